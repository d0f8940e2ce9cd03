# SPDX-License-Identifier: MIT
"""What others write, spoilt in every way: a parser gives an answer or its own error."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.agent import counters, cpus, drivers, foreign, inventory, lease, packages
from harness.agent import load as netperf
from harness.agent.boot import cmdline, firmware, grub, mounts, upload
from harness.agent.boot.record import Places, Record
from harness.agent.counters import pmu
from harness.agent.doctor import health
from harness.agent.drivers import ef10
from harness.agent.faults import AgentError
from harness.agent.interface import nic, reached, taps
from harness.agent.interface.ethtool import Ethtool
from harness.agent.interface.ntuple import Ntuple
from harness.agent.settings import journal
from tests.unit import test_agent_grub, test_agent_parsers, test_agent_ways
from tests.unit.fake_machine import CMDLINE, GRUB_CFG

pytestmark = pytest.mark.unit

QUICK = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
ODD = [
    "",
    "\0",
    "\x85",
    "\u2028",
    "٣",
    "-",
    "0x",
    "9" * 30,
    "inf",
    "nan",
    "1e999",
    "\udce9",
    "=",
    ",",
]
FINDMNT = json.dumps(
    {
        "filesystems": [
            {"source": "/dev/sda2[/boot]", "fstype": "ext4", "uuid": "1", "maj:min": "8:2"}
        ]
    }
)
RR = "".join(f"{key}=1.5\n" for key in netperf._RR_SELECTORS)
PERF = "12,,cycles,1000000,100.00,,\n<not counted>,,instructions,0,0.00,,\n"
TCP = (
    "  sl  local_address rem_address   st\n   0: 0100007F:0016 0200000A:C350 01 00000000:00000000 "
    "00:00000000 00000000     0        0 4711 1 0 20 4 30 10 -1\n"
)
PACKET = "sk RefCnt Type Proto Iface R Rmem User Inode\n00000000193668da 3 2 0800 3 1 0 0 1616703\n"
ROUTES = "Iface\tDestination\neth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"

TEXTS: list[tuple[str, Callable[[str], Any], str]] = [
    ("/proc/interrupts", lambda text: inventory.parse_interrupts(text, {1, 24, 25, 26, 27}),
     test_agent_parsers.INTERRUPTS),
    ("/proc/net/snmp", counters.parse_snmp, test_agent_parsers.SNMP),
    ("a sample", lambda text: counters._sample(0, text.encode("utf-8", "surrogateescape")),
     test_agent_parsers.SNMP),
    ("softnet_stat", counters.parse_softnet, test_agent_parsers.SOFTNET),
    ("softnet_stat, old", lambda text: counters.parse_softnet(text, [0]),
     test_agent_parsers.SOFTNET_4_18),
    ("/proc/stat", counters.parse_cpu, test_agent_parsers.STAT),
    ("/proc/net/udp", counters.parse_udp, test_agent_parsers.UDP),
    ("netperf", lambda text: netperf.parse_stream(text, message_bytes=1),
     test_agent_parsers.KEYVAL),
    ("netperf, round trips", netperf.parse_round_trips, RR),
    ("/proc/net/ptype", taps.parse_ptype, test_agent_ways.PTYPE),
    ("/proc/net/packet", taps.parse_packet, PACKET),
    ("/proc/net/tcp", reached.parse_tcp, TCP),
    ("a list of CPUs", cpus.parse_list, "0-3,8,10-14:1/2"),
    ("a mask of CPUs", cpus.parse_mask, "00000001,80000000"),
    ("findmnt", mounts.parse_findmnt, FINDMNT),
    ("a short grub.cfg", firmware.parse_pointer, test_agent_grub.FEDORA),
    ("perf stat", lambda text: pmu.parse(text, window_s=0.001), PERF),
    ("os-release", packages.family, 'ID="rocky"\nID_LIKE="rhel fedora"\n'),
    ("a version", packages.as_numbers, "Netperf version 2.7.0"),
    ("a command line", lambda text: cmdline.for_grub(cmdline.words(text)), CMDLINE),
    ("sfc's firmware", ef10.parse_firmware, "7.6.9.1018 rx1 tx1"),
    ("an interrupt's name", lambda t: nic.queue_irqs({24: t}, drivers.named("sfc")), "eth0-3"),
    ("/proc/net/route", health.default_routes, ROUTES),
    ("/proc/net/ipv6_route", lambda text: health.default_routes("", text), f"{'0' * 32} 00 " * 6),
]  # fmt: skip
RAW: list[tuple[str, Callable[[bytes], Any], bytes]] = [
    ("/proc/PID/stat", counters.parse_task, test_agent_parsers.TASK.encode()),
    ("/proc/PID/environ", reached.parse_environ, b"A=1\0SSH_CONNECTION=192.0.2.7 5 ::1 22\0"),
    ("a boot entry", firmware.parse_load_option, test_agent_grub.load_option("\\EFI\\x.efi")),
    ("a bzImage", lambda data: upload.version_of(io.BytesIO(data)), b"MZ" * 512),
]


@st.composite
def spoilt(draw: st.DrawFn, sample: str) -> str:
    """``sample`` with some of its words, lines or characters others; or anything at all."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.text(max_size=80))
    text = sample
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        end = min(len(text), at + draw(st.integers(0, 12)))
        put = draw(st.sampled_from(ODD) | st.text(max_size=4) | st.just(text[at:end] * 2))
        text = text[:at] + put + text[end:]
    return text


@pytest.mark.parametrize(("name", "parse", "sample"), TEXTS, ids=[row[0] for row in TEXTS])
def test_texts(name: str, parse: Callable[[str], Any], sample: str) -> None:
    parse(sample)

    @QUICK
    @given(spoilt(sample))
    def tried(text: str) -> None:
        with suppress(AgentError):
            parse(text)

    tried()


@pytest.mark.parametrize(("name", "parse", "sample"), RAW, ids=[row[0] for row in RAW])
def test_bytes(name: str, parse: Callable[[bytes], Any], sample: bytes) -> None:
    @QUICK
    @given(spoilt(sample.decode("latin-1")))
    def tried(text: str) -> None:
        with suppress(AgentError):
            parse(text.encode("latin-1", "replace"))

    tried()


@QUICK
@given(st.data())
def test_what_a_driver_answers(data: st.DataObject) -> None:
    """Answers are as long as what was asked; their content may be anything."""

    class Answering(Ethtool):
        def _call(self, request: bytes) -> bytes:
            kinds = st.binary(min_size=len(request), max_size=len(request))
            return data.draw(
                kinds | st.just(request) if len(request) < 4096 else st.just(bytes(len(request)))
            )

    one = Answering("lo")
    for read in (
        one.driver,
        one.channels,
        one.indirection,
        one.coalesce,
        lambda: one.statistics(one.statistics_values()),
        Ntuple(one._call).rules,
    ):
        with suppress(AgentError):
            read()


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        at = Path(directory)
        for name in ("boot/grub", "etc/default", "proc", "var/lib/receive-batching", "run"):
            (at / name).mkdir(parents=True)
        yield at


def test_files_of_a_boot_loader(root: Path) -> None:
    @QUICK
    @given(spoilt(GRUB_CFG), spoilt("# GRUB Environment Block\nsaved_entry=1\n" + "#" * 80),
           spoilt(CMDLINE), spoilt('GRUB_DEFAULT="saved"\n'))  # fmt: skip
    def tried(cfg: str, env: str, line: str, default: str) -> None:
        for path, text in (
            ("boot/grub/grub.cfg", cfg),
            ("boot/grub/grubenv", env),
            ("proc/cmdline", line),
            ("etc/default/grub", default),
        ):
            (root / path).write_bytes(text.encode("utf-8", "surrogatepass"))
        one = grub.Grub(Places(root))
        assert one.directory is not None
        one.default(), one.pending(), one.taken()
        firmware.named_there(Places(root), one.directory)
        cmdline.known_good(Places(root).text("proc/cmdline") or "")

    tried()


def test_a_custom_cfg_is_given_back(root: Path) -> None:
    at = root / "boot/grub/custom.cfg"
    ours = f"{grub._BEGIN}menuentry 'x' {{\n}}\n{grub._END}"
    (root / "boot/grub/grub.cfg").write_text(GRUB_CFG)
    (root / "boot/grub/grubenv").write_bytes(b"")

    @QUICK
    @given(st.binary(min_size=1, max_size=200))
    def tried(theirs: bytes) -> None:
        at.write_bytes(theirs + ours.encode())
        grub.Grub(Places(root)).entries({})
        assert at.read_bytes() == theirs
        at.unlink()

    tried()


def test_records_of_this_harness(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_JOURNALS", root / "run")
    monkeypatch.setattr(journal, "in_first_namespace", lambda: True)
    kept = json.dumps({"version": 1, "kernels": {"6.12-x": {"complete": True, "cmdline": []}}})
    held = json.dumps(
        {"holder": "a", "owner": "b", "campaign": "", "boot_id": "c", "ttl_s": 1,
         "at_boot_s": 1, "at_s": 1}
    )  # fmt: skip
    written = '{"index": 1, "mac": "00:00:00:00:00:00"}\n["up", true]\n["rps", {"rx-0": "1"}]\n'

    @QUICK
    @given(spoilt(kept), spoilt(held), spoilt(written))
    def tried(record: str, lease_: str, changes: str) -> None:
        for path, text in (
            ("var/lib/receive-batching/kernels.json", record),
            ("run/lease.json", lease_),
            ("run/settings-lo.jsonl", changes),
        ):
            (root / path).write_bytes(text.encode("utf-8", "surrogatepass"))
        with suppress(AgentError):
            Record(Places(root))
        with suppress(AgentError):
            lease.Lease(root / "run/lease.json").state()
        one = journal.Journal("lo")
        assert all(isinstance(name, str) for name, _ in one.left)
        one.close(keep=False)

    tried()


@QUICK
@given(st.binary(max_size=60))
def test_any_bytes_can_be_shown_and_given_back(content: bytes) -> None:
    assert foreign.given_back(foreign.kept(content)) == content
    foreign.shown(content).encode()
    path = os.fsdecode(content.replace(b"\0", b"").replace(b"/", b""))
    foreign.printable(path).encode()
    foreign.read_text(Path("/nonexistent") / path)
