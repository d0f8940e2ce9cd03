# SPDX-License-Identifier: MIT
"""A campaign on the virtual bed under KVM, on a machine that has none.

QEMU's emulator executes AMD's virtualisation. So a stock Debian kernel in a guest of it has a
/dev/kvm that boots kernels. The harness runs in that guest, on a copy of this system.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import config, images, kernels
from harness.base import cache, process
from harness.base.progress import Progress
from harness.images import Tools
from harness.selftest import image
from tests.guest.conftest import harness
from tests.guest.test_rootless import CODE, LOGIN, OF_TESTS, SHIPPED

MEMORY_MIB = 6144
FREE_MIB = MEMORY_MIB + 1024
STEPS = ("0", "8")
LIMIT_S = 3600
SOURCE = Path("/usr/src/linux-source-6.12.tar.xz")
"""Kernels in the cache are named after it."""

pytestmark = [
    pytest.mark.guest,
    pytest.mark.deep,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can copy a whole system"),
    pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="needs squashfs-tools"),
    pytest.mark.skipif(not SOURCE.exists(), reason=f"needs {SOURCE}"),
    pytest.mark.skipif(
        psutil.virtual_memory().available < FREE_MIB << 20,
        reason=f"needs {FREE_MIB} MiB of free memory",
    ),
]

SYSTEM = (
    "/bin", "/sbin", "/lib", "/lib64", "/etc", "/usr/bin", "/usr/sbin", "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu", "/usr/lib/locale", "/usr/local/bin",
)  # fmt: skip
INIT = """#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmpfs /run
modprobe -a kvm_amd squashfs overlay veth
mkdir /run/system /run/new /run/root
mount -t squashfs -o ro /dev/vdb /run/system
mount -t tmpfs -o size=3G tmpfs /run/new
mkdir /run/new/upper /run/new/work
cd /run
mount -t overlay -o lowerdir=system,upperdir=new/upper,workdir=new/work none root
cd root
mkdir -p proc sys dev run tmp root nested
for name in proc sys dev; do mount --bind /$name $name; done
mkdir -p dev/pts dev/shm
mount -t devpts devpts dev/pts
for name in dev/shm run; do mount -t tmpfs tmpfs $name; done
ip link set lo up
echo "harness starts"
chroot . sh -c '@RUN@' > nested/printed 2> nested/said
echo "harness ended with status $?"
cp -r .@CACHE@/kvm nested
tar -cf /dev/vdc -C nested .
echo o > /proc/sysrq-trigger
sleep 60
"""


@dataclass(frozen=True)
class Nested:
    """What a run inside left, what it printed, and the console of the guest it ran in."""

    directory: Path
    printed: str
    console: str

    @property
    def boots(self) -> list[dict[str, Any]]:
        found = self.directory.glob("result/boots/*/boot.json")
        return [json.loads(path.read_text()) for path in found]

    def report(self) -> dict[str, Any]:
        printed = harness("report", str(self.directory / "result"), "--format", "json").stdout
        return dict(json.loads(printed))


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Nested:
    """A smoke campaign in a guest that has KVM."""
    kept = tmp_path_factory.mktemp("nested")
    hosts = config.load(config.locate(None))
    with Progress() as progress:
        tools = images.tools(progress)
        built = kernels.Kernels(kernel=hosts.kernel, names=STEPS).build(progress)
        entries = [made.directory for step in built.values() for made in step]
        entries.append(images.guest_image(progress).directory)
        entries += [tools.root.parent] if tools.root else []
        machine = image.machine_image(tools, progress)
    # Of the tree by which the series is chosen, its Makefile is enough.
    entries += cache.root().glob("sources/*/linux/Makefile")
    home = Path(tempfile.mkdtemp(prefix="kvm-", dir="/var/tmp"))
    try:
        disks = [home / name for name in ("disk", "system", "left")]
        image.copy(machine, disks[0], {"/nested": (init(home / "hosts.yaml"), 0o755)})
        fewer = config.locate(None).read_text().replace("streams: 10", "streams: 2")
        (home / "hosts.yaml").write_text(fewer)
        pack([*map(Path, SYSTEM), *interpreter(), *entries, home / "hosts.yaml"], disks[1])
        with disks[2].open("wb") as left:
            left.truncate(64 << 20)
        boot(tools, machine, disks, kept / "console.log")
        console = (kept / "console.log").read_text(errors="replace")
        assert "harness ended" in console, console[-3000:]
        with tarfile.open(disks[2]) as archive:
            archive.extractall(kept, filter="data")
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return Nested(kept, (kept / "printed").read_text(), console)


def init(hosts: Path) -> str:
    """What the guest runs: the harness, on the copy of this system."""
    run = [sys.executable, "-m", "harness", "run", "--bed", "virtual", "--profile", "smoke"]
    run += ["--steps", ",".join(STEPS), "--seed", "1", "--out", "/nested/result"]
    run += ["--hosts", str(hosts)]
    where = f"cd {CODE} && RECEIVE_BATCHING_CACHE={cache.root()} HOME=/root PATH={LOGIN}"
    return INIT.replace("@RUN@", f"{where} {process.quoted(run)}").replace(
        "@CACHE@", str(cache.root())
    )


def interpreter() -> list[Path]:
    """This Python, its packages, the checkout, and the source that kernels are named after."""
    base = Path(sys.base_prefix)
    own = [base / "bin", base / "lib"] if base != Path("/usr") else []
    standard = Path(sysconfig.get_paths()["stdlib"])
    return [*own, standard, Path(sys.prefix), *(CODE / name for name in SHIPPED), SOURCE]


def pack(paths: Iterable[Path], disk: Path) -> None:
    """A squashfs of ``paths`` and of all in them, at the same places."""
    wanted = sorted({path for path in paths if os.path.lexists(path)})
    outermost = [path for path in wanted if not set(wanted).intersection(path.parents)]
    left = [f"... {name}" for name in OF_TESTS]
    process.run(
        ["mksquashfs", *(str(path)[1:] for path in outermost), str(disk), "-no-strip",
         "-noI", "-noD", "-noF", "-noX", "-no-xattrs", "-no-progress", "-wildcards", "-e", *left],
        cwd=Path("/"),
    )  # fmt: skip


def boot(tools: Tools, machine: image.MachineImage, disks: list[Path], console: Path) -> None:
    """Boot the stock kernel of ``machine`` and wait for its end."""
    initrd = next(machine.directory.glob("boot/initrd.img-*"))
    arguments = [
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35",
        "-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "2", "-m", f"{MEMORY_MIB}M",
        "-kernel", str(machine.kernel), "-initrd", str(initrd), "-append",
        "root=/dev/vda1 rw init=/nested console=ttyS0 quiet panic=-1 mitigations=off",
        "-serial", f"file:{console}", "-device", "virtio-rng-pci",
    ]  # fmt: skip
    for disk in disks:
        arguments += ["-drive", f"file={disk},format=raw,if=virtio"]
    process.run(tools.qemu(arguments), timeout_s=LIMIT_S)


def test_kvm_is_proven_and_used(nested: Nested) -> None:
    [verdict] = nested.directory.glob("kvm/*/verdict")
    assert verdict.read_text() == "boots"
    assert (
        json.loads((nested.directory / "result/campaign.json").read_text())["accelerator"] == "kvm"
    )
    assert "virtual bed, KVM: not a hardware figure" in nested.printed


def test_the_campaign_holds(nested: Nested) -> None:
    assert "harness ended with status 0" in nested.console, nested.directory
    assert {boot["step"]: boot["outcome"] for boot in nested.boots} == dict.fromkeys(STEPS, "ok")
    report = nested.report()
    assert report["complete"]
    rules = {reason["rule"] for trial in report["void"] for reason in trial["reasons"]}
    assert rules <= {"unsaturated"}  # two emulators beneath, the sender is the slower one
    packets = {row["step"]: row["ip_rcv_per_packet"] for row in report["rows"]}
    assert packets["0"] == pytest.approx(1, abs=0.02)
    assert packets["8"] < 0.02


def test_the_clock_of_a_frozen_guest_stands_still(nested: Nested) -> None:
    assert {boot["inventory"]["dut"]["clocksource"] for boot in nested.boots} == {"kvm-clock"}
    said = (nested.directory / "said").read_text()
    [together_s] = map(int, re.findall(r"^1 trials of 2 boots: (\d+) s$", said, re.MULTILINE))
    readings = [boot["trials"][0]["whole"] for boot in nested.boots]
    passed_s = [
        (whole["after"]["monotonic_ns"] - whole["before"]["monotonic_ns"]) / 1e9
        for whole in readings
    ]
    # One guest of the two is always frozen.
    assert sum(passed_s) < 1.5 * together_s
