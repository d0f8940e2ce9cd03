# SPDX-License-Identifier: MIT
"""The control side of the NIC model, through the kernel's own driver and its tools.

Each case is a boot of a native bed, which takes a second or two. harness/nic/README.md has a
table of the faults with what was seen.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import config, kernels
from harness.base.progress import Progress
from harness.beds import native
from harness.campaign import prepare
from tests.behaviour import kernels as behaviour
from tests.guest.shell import INSIDE, Shell

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(
        not all(map(shutil.which, ("gcc", "make", "pahole", "unshare"))),
        reason="needs gcc, make, pahole and unshare",
    ),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs"),
]

_BROKEN = re.compile(r"(?:BUG: |Oops|WARNING: |INFO: task|unable to handle).*")


@pytest.fixture(scope="module")
def image() -> kernels.Image:
    hosts = config.load(config.locate(None))
    with Progress() as progress:
        return kernels.Kernels(kernel=hosts.kernel, names=["8"], arch="um").build(progress)["8"][0]


@pytest.fixture(scope="module")
def equipment() -> native.Equipment:
    with Progress() as progress:
        return native.equipment(progress)


@contextmanager
def booted(image: kernels.Image, equipment: native.Equipment, directory: Path) -> Iterator[Shell]:
    """The shell of a native bed whose NIC passes packets, and a model without mistakes."""
    bed = config.bed(config.load(config.locate(None)), "native")
    assert not isinstance(bed.generator, (config.SshHost, config.LabgridHost))
    with native.native_bed(bed, image, equipment, directory, program=INSIDE) as up:
        prepare.apply_settings(bed, up)
        inside = Shell(up, own=str(bed.dut.address), peer=str(bed.generator.address.ip))
        assert inside.passes()
        inside.run("dmesg --clear")
        yield inside
        counters = up.nic_counters()
        assert counters["internal_errors"] == 0
        assert counters["mcdi_unknown"] == 0


@pytest.fixture
def shell(image: kernels.Image, equipment: native.Equipment, tmp_path: Path) -> Iterator[Shell]:
    with booted(image, equipment, tmp_path) as inside:
        yield inside


def test_the_tools_of_an_administrator(shell: Shell) -> None:
    run = shell.run
    for kind in ("online", "offline"):
        assert "The test result is PASS" in run(f"ethtool -t IF {kind}")
    assert shell.bed.nic_counters()["mc_reboots"] == 1
    run("timeout 20 ethtool -p IF 1")
    module = run("ethtool -m IF")
    assert "virtual cable" in module
    assert "0x03 (SFP)" in module
    found = run("devlink dev info pci/DEVICE")
    assert re.search(r"board\.id virtual", found)
    assert re.search(r"serial_number [0-9a-f]{12}", found)
    assert re.search(r"stored:\s+fw\.mgmt 1\.0\.0\.1\s+fw\.exprom 1\.0\.0\.0", found), found
    assert "firmware-version: 1.0.0.1" in run("ethtool -i IF")
    assert "10000Mb/s" in run("ethtool IF")
    changes = shell.bed.nic_counters()["link_changes"]
    assert " 1000Mb/s" in run("ethtool -s IF speed 1000 autoneg off; sleep 1; ethtool IF")
    assert "10000Mb/s" in run("ethtool -s IF speed 10000 autoneg off; sleep 1; ethtool IF")
    assert shell.bed.nic_counters()["link_changes"] >= changes + 2
    run("ethtool -A IF autoneg off rx off tx off; sleep 1")
    assert re.search(r"RX:\s+off\s+TX:\s+off", run("ethtool -a IF"))
    run("ethtool -A IF autoneg off rx on tx on; sleep 1")
    assert re.search(r"RX:\s+on\s+TX:\s+on", run("ethtool -a IF"))
    for microseconds in (0, 60, 1000):
        run(f"ethtool -C IF adaptive-rx off rx-usecs {microseconds}; sleep 0.2")
        assert re.search(r"rx-usecs:\s+(\d+)", run("ethtool -c IF"))
        assert shell.passes(), microseconds
    assert "Supports Wake-on: d" in run("ethtool IF")
    shell.rebind()
    assert shell.passes()
    said = shell.dmesg()
    assert not _BROKEN.search(said), said


@pytest.mark.deep
def test_flash_and_sensors(equipment: native.Equipment, tmp_path: Path) -> None:
    """Through MTD and hwmon, which the measured kernels do not have."""
    (image,) = behaviour.images(["8"], "card").values()
    with booted(image, equipment, tmp_path) as inside:
        run = inside.run
        found = run("cat /proc/mtd")
        names = re.findall(r'mtd\d+: [0-9a-f]+ 00001000 "\S+ (\w+):\d+"', found)
        assert names == ["sfc_mcfw", "sfc_exp_rom", "sfc_dynamic_cfg", "sfc_exp_rom_cfg"], found
        number = re.search(r"mtd(\d+): .* sfc_dynamic_cfg:", found)
        assert number
        flash = f"/dev/mtd{number[1]}"
        run("test -e FLASH || mount -t devtmpfs devtmpfs /dev".replace("FLASH", flash))
        assert "dynamic configuration" in run(f"head -c 21 {flash}")
        run(f"python3 -c '{_UPDATE}' {flash}")
        inside.rebind()
        assert run(f"dd if={flash} bs=4096 skip=1 count=1 status=none | sha256sum") == run(
            "python3 -c 'import sys; sys.stdout.buffer.write(bytes(range(256)) * 16)' | sha256sum"
        )
        assert "The test result is PASS" in run("ethtool -t IF online")
        at = "/sys/class/hwmon/hwmon0"
        assert run(f"cat {at}/name") == "sfc\n"
        assert run(f"cat {at}/temp1_label {at}/temp1_input {at}/temp1_max {at}/temp1_crit") == (
            "Controller board temp.\n48000\n90000\n100000\n"
        )
        assert run(f"cat {at}/in0_input {at}/in0_alarm") == "12050\n0\n"
        assert not _BROKEN.search(inside.dmesg())


# MEMERASE of the second sector, then its contents; closing the device finishes the update.
_UPDATE = """\
import fcntl, os, struct, sys
flash = os.open(sys.argv[1], os.O_RDWR)
fcntl.ioctl(flash, 0x40084D02, struct.pack("II", 4096, 4096))
os.pwrite(flash, bytes(range(256)) * 16, 4096)
os.close(flash)
"""


@dataclass(frozen=True)
class Case:
    """A fault, what makes it matter, and what the driver does.

    Args:
        name: of ``nic.injection.FAULTS``.
        provoke: a script that needs what is broken.
        fails: that script fails.
        says: what the kernel says, in this order; nothing: no driver message at all.
        counts: of ``ethtool -S``, what has risen.
        disabled: it is out of order until it is bound again.
        deaf: it receives nothing until it is reset by hand. After RECOVER_OR_ALL, unlike after
            ALL, efx_ef10_reset() forgets that ENTITY_RESET has removed the filters.
    """

    name: str
    number: int = 1
    ms: int = 0
    command: int | None = None
    provoke: str = ""
    fails: bool = False
    says: tuple[str, ...] = ()
    counts: str = ""
    disabled: bool = False
    deaf: bool = False
    takes_s: float = 10.0

    @property
    def asked(self) -> dict[str, int]:
        asked = {"number": self.number, "ms": self.ms}
        return asked if self.command is None else {**asked, "command": self.command}


_MODULE = "ethtool -m IF > /dev/null"
# More than a ring has room for, from more sockets than one buffer stops.
_FLOOD = """python3 -c '
import socket
for _ in range(40):
    line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    line.setblocking(False)
    line.connect(("PEER", 9))
    globals().setdefault("kept", []).append(line)
    try:
        for _ in range(200):
            line.send(bytes(1400))
    except OSError:
        pass
'"""
_RESET = r"resetting \(DATAPATH\)"
_RECOVERS = r"resetting \(RECOVER_OR_ALL\)"
CASES = (
    Case("link-flap", number=2, ms=300, says=("link down", "link up", "link down", "link up")),
    Case("mc-reboot", says=("MC Reboot", _RESET)),
    Case(
        "mc-reboot-in-command", command=0x4B, provoke=_MODULE, fails=True,
        says=("MC Reboot", "MC reboot detected", _RESET),
    ),
    Case("mc-assertion", says=("assertion failure", "MCPU thread-level assertion")),
    Case("sensor-warning", says=("Controller board temp.*'Warning' for value 95 degC",)),
    Case("mcdi-late", ms=500, provoke=_MODULE),
    Case("mcdi-event-twice", number=20, provoke=_MODULE),
    Case(
        "rx-event-lost", says=("dropped [0-9]+ events", r"resetting \(DISABLE\)", "disabled"),
        disabled=True,
    ),
    Case("rx-length", number=5, says=("overlength RX event",)),
    Case("rx-crc", number=5, counts="rx_eth_crc_err"),
    Case("rx-error", says=("RX DMA error", _RECOVERS), deaf=True),
    Case("rx-starved", ms=300),
    Case("tx-event-lost"),
    Case("tx-event-twice", number=5),
    Case("tx-event-ahead", says=("spurious TX completion", _RECOVERS), deaf=True),
    Case("tx-error", says=("TX DMA error", _RECOVERS), deaf=True),
    Case("interrupts-late", ms=500),
    Case("dma-fault", ms=300, says=("RX DMA error", _RECOVERS), deaf=True),
)  # fmt: skip
_TIMES_OUT = ("timed out", "MCDI_TIMEOUT")
LONG = (
    Case("mcdi-stuck", command=0x4B, provoke=_MODULE, fails=True, says=_TIMES_OUT, takes_s=60),
    Case(
        "mcdi-no-event", command=0x4B, provoke=_MODULE, fails=True, takes_s=60,
        says=("timed out", "completed without an event", "MCDI_TIMEOUT"),
    ),
    Case(
        "tx-halted", ms=9_000, provoke=_FLOOD, deaf=True, takes_s=30,
        says=("TX stuck", _RECOVERS),
    ),
)  # fmt: skip
"""The driver waits for ten seconds, or the stack for five."""


def afflict(shell: Shell, case: Case) -> None:
    """Bring the fault about, and check what the driver makes of it."""
    before = counted(shell, case)
    shell.bed.nic.fault(case.name, **case.asked)
    asked = time.monotonic()
    if case.provoke:
        shell.run(case.provoke.replace("PEER", shell.peer), fails=case.fails)
    if case.disabled or case.takes_s > 10:
        shell.passes(case.takes_s / 10)
    shell.says(*case.says, within_s=case.takes_s)
    if case.disabled:
        assert not shell.passes(2.0)
        shell.rebind()
    if case.deaf:
        time.sleep(max(0.0, asked + case.ms / 1000 - time.monotonic()))
        before_it = shell.bed.nic_counters()
        assert not shell.passes(2.0)
        after_it = shell.bed.nic_counters()
        for name in ("tx_frames", "rx_filtered"):
            assert after_it[name] > before_it[name], name
        shell.run("ethtool --reset IF mac-shared phy-shared")
    assert shell.passes(case.takes_s), shell.dmesg()
    print(f"{case.name}: passes packets {time.monotonic() - asked:.1f} s later")
    assert counted(shell, case) > before or not case.counts
    said = shell.dmesg()
    assert not _BROKEN.search(said), said
    assert "sfc" in said or not case.says
    assert case.says or case.counts or "sfc" not in said, said
    assert shell.bed.nic_counters()[f"fault_{case.name.replace('-', '_')}"] == 1


def counted(shell: Shell, case: Case) -> int:
    if not case.counts:
        return 0
    found = re.findall(rf"{case.counts}: (\d+)", shell.run("ethtool -S IF"))
    return sum(map(int, found))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_fault(shell: Shell, case: Case) -> None:
    afflict(shell, case)


@pytest.mark.deep
@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_a_fault_that_takes_long(shell: Shell, case: Case) -> None:
    afflict(shell, case)


@pytest.mark.deep
def test_a_repeated_event_of_a_frame_hangs_the_driver(shell: Shell) -> None:
    """It releases no buffers, 2^32 times: efx_ef10_handle_rx_abort(), efx_recycle_rx_pages()."""
    shell.bed.nic.fault("rx-event-twice")
    until = time.monotonic() + 20
    while "invalid RX abort: scatter_n=0" not in shell.bed.console():
        assert time.monotonic() < until, shell.bed.console()
        time.sleep(0.2)


@pytest.mark.deep
def test_a_card_that_is_pulled_out(shell: Shell) -> None:
    """The driver waits ten seconds for an answer, and the kernel a minute for the device."""
    shell.bed.nic.fault("removal")
    shell.run("timeout 150 ethtool -m IF", fails=True, timeout_s=200)
    shell.says("timed out", "has been disabled", within_s=120)
    shell.run("echo DEVICE > /sys/bus/pci/drivers/sfc/unbind", timeout_s=200)
    assert shell.bed.dut_interface not in shell.run("ls /sys/class/net").split()
