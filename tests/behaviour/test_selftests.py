# SPDX-License-Identifier: MIT
"""The kernel's own tests of its network, from the source that is patched: the same results."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.beds.virtual import VirtualBed
from harness.kernels.source import Tree
from tests.behaviour import kernels
from tests.behaviour.bed import differences, guest

pytestmark = [pytest.mark.guest, pytest.mark.deep]

CASES = (
    "arp_ndisc_evict_nocarrier.sh", "fib-onlink-tests.sh", "fib_nexthop_multiprefix.sh",
    "fib_nexthop_nongw.sh", "fib_nexthops.sh -t 'basic ipv4_fcnal_runtime ipv4_mpath_select'",
    "fib_rule_tests.sh", "fib_tests.sh", "fdb_flush.sh", "gre_gso.sh", "gro.sh", "icmp.sh",
    "icmp_redirect.sh", "ip_defrag.sh", "pmtu.sh pmtu_ipv4_exception pmtu_ipv4_vxlan4_exception",
    "psock_snd.sh", "route_localnet.sh", "test_bridge_backup_port.sh",
    "test_vxlan_nolocalbypass.sh", "test_vxlan_under_vrf.sh", "txtimestamp.sh", "udpgro.sh",
    "udpgso.sh", "unicast_extensions.sh", "vrf-xfrm-tests.sh", "vrf_route_leaking.sh",
    "vrf_strict_mode_test.sh", "netfilter/br_netfilter.sh", "netfilter/conntrack_icmp_related.sh",
    "netfilter/conntrack_vrf.sh", "netfilter/nft_conntrack_helper.sh",
    "netfilter/nft_flowtable.sh", "netfilter/nft_meta.sh", "netfilter/nft_nat.sh",
    "netfilter/nft_nat_zones.sh", "netfilter/rpath.sh", "forwarding/bridge_port_isolation.sh",
    "forwarding/bridge_vlan_aware.sh", "forwarding/bridge_vlan_unaware.sh",
    "forwarding/pedit_dsfield.sh", "forwarding/router_bridge.sh",
    "forwarding/router_bridge_vlan.sh", "forwarding/router_broadcast.sh",
    "forwarding/router_vid_1.sh", "forwarding/tc_flower.sh",
)  # fmt: skip
"""Of tools/testing/selftests/net what the guest has the programs for, and the time.

Last those that leave devices in the first namespace, which others cannot add then."""
PROGRAMS = (
    "gro", "ip_defrag", "nettest", "psock_snd", "txtimestamp",
    "udpgso", "udpgso_bench_rx", "udpgso_bench_tx",
)  # fmt: skip
CASE_S = 400
_HOME = "/run/selftests"
_VERDICT = re.compile(r"^\s*(?:TEST:\s*)?(\S.*?)\s*\[\s*(OK|PASS|FAIL|SKIP|XFAIL)\s*\]\s*$")
_VERDICT_FIRST = re.compile(r"^(OK|PASS|FAIL|SKIP|ERROR):\s*(\S.*?)\s*$")
_NAMESPACE = re.compile(r"-[0-9A-Za-z]{6}\b")
"""What mktemp has put behind the names of namespaces."""
_UNTESTED = {"4": "the guest lacks something", "124": "not through in time"}
"""By exit code, of kselftest's convention and of timeout."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The scripts and their compiled programs, as a tar."""
    source = Tree.of(kernels.source()).directory / "tools/testing/selftests"
    made = tmp_path_factory.mktemp("selftests") / "net"
    shutil.copytree(source / "net", made, ignore=shutil.ignore_patterns("*.c", "packetdrill"))
    shutil.copytree(source / "kselftest", made.parent / "kselftest")
    includes = [f"-I{at}" for at in (source, source / "net")]
    for name in PROGRAMS:
        command = [
            "gcc",
            "-O2",
            "-w",
            *includes,
            "-o",
            str(made / name),
            str(source / f"net/{name}.c"),
        ]
        subprocess.run([*command, "-lpthread"], check=True)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.add(made.parent, arcname=".")
    return out.getvalue()


def results(bed: VirtualBed, case: str) -> dict[str, str]:
    """The verdicts of ``case``, by what was tested; of one told twice, both."""
    within, _, script = f"net/{case}".rpartition("/")
    command = (
        f"cd {_HOME}/{within} && PATH={_HOME}/bin:$PATH KSFT_MACHINE_SLOW=yes"
        f" timeout {CASE_S} ./{script} 2>&1"
    )
    done = bed.guest.ssh.run(["sudo", "sh", "-c", command], timeout_s=CASE_S + 60)
    (bed.guest.directory / f"{script.split()[0]}.log").write_bytes(done.stdout)
    found: dict[str, str] = {"exit code": str(done.returncode)}
    for line in done.stdout.decode(errors="replace").splitlines():
        if told := _VERDICT.match(line):
            what, verdict = told.groups()
        elif told := _VERDICT_FIRST.match(line):
            verdict, what = told.groups()
        else:
            continue
        what = _NAMESPACE.sub("", what)
        found[what] = f"{found[what]} {verdict}" if what in found else verdict
    return found


@pytest.fixture(scope="module")
def beds(packed: bytes, home: Path) -> Iterator[list[VirtualBed]]:
    """Guests at the first step and at the last, with the tests in them."""
    unpack = (
        f"mkdir -p {_HOME}/bin && tar xzf - -C {_HOME}"
        f" && ln -s /bin/true {_HOME}/bin/modprobe"  # all is built in
    )
    with ExitStack() as up:
        made = []
        for step, image in kernels.images(["0", kernels.LAST_STEP], "selftests").items():
            made.append(up.enter_context(guest(image, home / f"selftests-{step}")))
            done = made[-1].guest.ssh.run(["sudo", "sh", "-c", unpack], stdin=packed)
            assert done.returncode == 0, done.stderr
        yield made


@pytest.mark.parametrize("case", CASES)
def test_it_ends_alike(case: str, beds: list[VirtualBed]) -> None:
    with ThreadPoolExecutor() as pool:
        first, last = pool.map(lambda one: results(one, case), beds)
    assert _UNTESTED.get(first["exit code"]) is None
    assert differences({case: first}, {case: last}) == []
