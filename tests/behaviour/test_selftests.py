# SPDX-License-Identifier: MIT
"""The kernel's own tests of its network, from the source that is patched: the same results."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.kernels import Image
from harness.kernels.source import Tree
from tests.behaviour import kernels
from tests.behaviour.bed import Stage, differences

pytestmark = [pytest.mark.guest, pytest.mark.deep]

CASES = (
    "fib-onlink-tests.sh", "fib_rule_tests.sh", "fib_tests.sh", "gro.sh", "icmp_redirect.sh",
    "ip_defrag.sh", "psock_snd.sh", "txtimestamp.sh", "udpgro.sh", "udpgso.sh",
    "unicast_extensions.sh", "vrf_route_leaking.sh", "vrf_strict_mode_test.sh",
    "netfilter/br_netfilter.sh", "netfilter/nft_fib.sh", "netfilter/nft_meta.sh",
    "netfilter/nft_nat.sh", "netfilter/nft_queue.sh", "netfilter/rpath.sh",
)  # fmt: skip
"""Scripts of tools/testing/selftests/net that the guest has the programs for."""
PROGRAMS = (
    "gro", "ip_defrag", "nettest", "psock_snd", "txtimestamp",
    "udpgso", "udpgso_bench_rx", "udpgso_bench_tx",
)  # fmt: skip
CASE_S = 900
_HOME = "/run/selftests"
_VERDICT = re.compile(r"^\s*(?:TEST:\s*)?(\S.*?)\s*\[\s*(OK|PASS|FAIL|SKIP|XFAIL)\s*\]\s*$")
_SKIPPED = 4
"""By kselftest's convention, the exit code of what lacks something."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The scripts and their compiled programs, as a tar."""
    source = Tree.of(kernels.source()).directory / "tools/testing/selftests"
    made = tmp_path_factory.mktemp("selftests") / "net"
    shutil.copytree(source / "net", made, ignore=shutil.ignore_patterns("*.c", "packetdrill"))
    shutil.copytree(source / "kselftest", made.parent / "kselftest")
    includes = [f"-I{at}" for at in (source, source / "net")]
    for name in PROGRAMS:
        command = ["gcc", "-O2", "-w", *includes, "-o", made / name, source / f"net/{name}.c"]
        subprocess.run([*command, "-lpthread"], check=True)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.add(made.parent, arcname=".")
    return out.getvalue()


def results(stage: Stage, case: str) -> dict[str, str]:
    """The verdicts of ``case``, by what was tested; of one told twice, both."""
    within, _, script = f"net/{case}".rpartition("/")
    command = f"cd {_HOME}/{within} && KSFT_MACHINE_SLOW=yes timeout {CASE_S} ./{script} 2>&1"
    ssh = stage.bed.guest.ssh
    done = ssh.run(["sudo", "sh", "-c", command], timeout_s=CASE_S + 60)
    (stage.directory / f"{script}.log").write_bytes(done.stdout)
    found: dict[str, str] = {"exit code": str(done.returncode)}
    for line in done.stdout.decode(errors="replace").splitlines():
        if told := _VERDICT.match(line):
            what, verdict = told.groups()
            found[what] = f"{found[what]} {verdict}" if what in found else verdict
    return found


def test_they_end_alike(staged: Callable[[Image, str], Stage], packed: bytes, home: Path) -> None:
    seen = []
    for step, image in kernels.images(["0", kernels.LAST_STEP]).items():
        up = staged(image, "plain")
        unpack = f"mkdir -p {_HOME} && tar xzf - -C {_HOME}"
        done = up.bed.guest.ssh.run(["sudo", "sh", "-c", unpack], stdin=packed)
        assert done.returncode == 0, done.stderr
        seen.append({case: results(up, case) for case in CASES})
        (home / f"selftests-{step}.json").write_text(json.dumps(seen[-1], indent=1))
    first, last = seen
    skipped = [case for case in CASES if first[case]["exit code"] == str(_SKIPPED)]
    print("skipped:", *skipped or ["none"])
    assert len(skipped) < len(CASES) / 2
    assert differences(first, last) == []
