# SPDX-License-Identifier: MIT
"""A native bed's configuration and kernels, and its kernel's process, played by a script."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import yaml

from harness import config, patches, report
from harness.agent.settings import irq_affinity, registry
from harness.base.errors import (
    ConfigurationError,
    HarnessError,
    InfrastructureError,
    KernelError,
)
from harness.base.progress import Progress
from harness.base.resources import shipped
from harness.beds import native
from harness.beds.local.nic_model import wire_options
from harness.beds.native import uml
from harness.beds.native.sender import SendingKernel
from harness.beds.registry import profile
from harness.config import Kernel, MachineCpus
from harness.images import GuestImage
from harness.kernels import Image, build, configuration
from harness.kernels.arch import UM, X86, Arch
from harness.kernels.source import from_tarball
from harness.kernels.toolchain import Toolchain
from harness.kernels.walk import _LD, Walk
from harness.report import text
from harness.results.analysis import analyse
from harness.results.samples import ResultDirectory
from harness.trials import counted, extras, readings
from tests.unit.synthetic import make_campaign
from tests.unit.test_kernel_commits import MAKEFILE

pytestmark = pytest.mark.unit

Booting = Callable[..., uml.UserModeKernel]

SHIPPED = shipped("hosts.yaml")


def hosts(
    tmp_path: Path, change: Callable[[dict[str, Any]], None] = lambda _: None
) -> config.HostsFile:
    data = yaml.safe_load(SHIPPED.read_text())
    change(data)
    path = tmp_path / "hosts.yaml"
    path.write_text(yaml.safe_dump(data))
    return config.load(path)


# --- Configuration ---


def test_the_shipped_native_bed(tmp_path: Path) -> None:
    bed = config.bed(hosts(tmp_path), "native")
    assert (bed.kind, bed.arch) == ("native", "um")
    assert isinstance(bed.dut, config.UmlHost)
    assert wire_options(bed.dut.wire) == ["--repeat", "0"]
    virtual = config.bed(hosts(tmp_path), "virtual")
    assert virtual.arch == "x86"
    assert isinstance(virtual.dut, config.QemuHost)
    assert wire_options(virtual.dut.wire) == ["--repeat", "1"]


@pytest.mark.parametrize(
    ("wire", "told"),
    [
        ({"repeat": 1}, ["--repeat", "1"]),
        ({"repeat": 7, "burst": 64}, ["--repeat", "7", "--burst", "64"]),
        ({"burst": 1}, ["--repeat", "0", "--burst", "1"]),
    ],
)
def test_the_model_is_told_of_the_wire(
    tmp_path: Path, wire: dict[str, int], told: list[str]
) -> None:
    def change(data: dict[str, Any]) -> None:
        for name in ("process", "guest"):
            data["hosts"][name]["wire"] = dict(wire)

    found = hosts(tmp_path, change).hosts
    for dut in (found["process"], found["guest"]):
        assert isinstance(dut, config.UmlHost | config.QemuHost)
        assert wire_options(dut.wire) == told


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (("beds", "native", "rx_queues"), 2, "process has one CPU; expected 1"),
        (("beds", "native", "placement"), {"irq_cpu": 1}, "has no CPU 1; expected 0, its only"),
        (("beds", "native", "generator"), "process", "the dut itself; expected another host"),
        (("beds", "native", "generator"), "guest", "which cannot be a generator to a uml dut"),
        (
            ("hosts", "wire"),
            {"kind": "uml", "address": "198.18.0.1/24"},
            "02:00:00:00:00:02 is the dut's MAC address; expected {mac: 02:00:00:00:00:01}",
        ),
        (("beds", "virtual", "generator"), "process", "which cannot be a generator to a qemu dut"),
        (("hosts", "process", "wire"), {"repeat": 0}, "wire.repeat"),
        (("hosts", "process", "wire"), {"burst": 0}, "wire.burst"),
        (("hosts", "process", "memory_mib"), 16, "memory_mib"),
        (("hosts", "process", "vcpus"), 2, "vcpus"),
    ],
)
def test_what_a_native_bed_cannot_be(
    tmp_path: Path, where: tuple[str, ...], value: object, told: str
) -> None:
    def change(data: dict[str, Any]) -> None:
        *path, last = where
        for key in path:
            data = data[key]
        data[last] = value

    with pytest.raises(ConfigurationError, match=told):
        hosts(tmp_path, change)


def test_native_beds_are_not_used_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="bed native is native; only beds of machines"):
        config.beds(hosts(tmp_path), None, ["native", "virtual"])


def bed_with(tmp_path: Path, cpus: object = "auto") -> config.Bed:
    return config.bed(
        hosts(tmp_path, lambda data: data["beds"]["native"].update(cpus=cpus)), "native"
    )


@pytest.mark.parametrize(
    ("mine", "kernel", "model", "netperf"),
    [((0, 1), 0, 1, (1,)), ((2, 5, 7), 2, 5, (7,)), ((0, 1, 2, 3), 0, 1, (2, 3))],
)
def test_the_kernel_shares_its_cpu_with_none(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mine: tuple[int, ...],
    kernel: int,
    model: int,
    netperf: tuple[int, ...],
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(mine))
    found = native.machine_cpus(bed_with(tmp_path))
    assert found == MachineCpus(vcpus=(kernel,), model=model, netperf=netperf)


@pytest.mark.parametrize(
    ("mine", "cpus", "told"),
    [
        ((3,), "auto", "needs two CPUs, but this process may use only CPU 3"),
        ((0, 1), {"vcpus": [0], "model": 0, "netperf": [1]}, "CPU 0 to the kernel and to another"),
        ((0, 1), {"vcpus": [1], "model": 0, "netperf": [1]}, "CPU 1 to the kernel and to another"),
        ((0, 1), {"vcpus": [0], "model": 7, "netperf": [1]}, r"names \[7\]"),
    ],
)
def test_cpus_that_do_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mine: tuple[int, ...], cpus: object, told: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(mine))
    with pytest.raises(ConfigurationError, match=told):
        native.machine_cpus(bed_with(tmp_path, cpus))


def test_a_native_bed_has_turns_of_its_own() -> None:
    for name in ("smoke", "quick", "standard"):
        chosen = profile(name, bed_kind="native")
        assert chosen.slice_s < 0.1
        assert chosen.trace_blocks == 1
    with pytest.raises(ConfigurationError, match="icache cannot be measured on a native bed"):
        extras(["icache"], "native")


def test_its_figures_are_no_hardware_figures() -> None:
    assert native.kind.Native().label(None) == "native, user-mode kernel: not a hardware figure"


def test_cpu_time_is_that_of_the_kernels_process() -> None:
    def at(monotonic_ns: int, packets: int, own: int | None, idle_ns: int) -> readings.Snapshot:
        return readings.Snapshot.model_validate(
            {
                "monotonic_ns": monotonic_ns,
                "snmp": {"Ip": {"InReceives": packets}},
                "cpu": [{"cpu": 0, "idle_ns": idle_ns}],
                "kernel_cpu_ns": own,
            }
        )

    known = counted.Delta(at(0, 0, 5_000, 0), at(1_000_000, 1000, 255_000, 500_000))
    assert (known.cost_ns(0), known.busy_ns(0)) == (250, 250_000)
    ticks = counted.Delta(at(0, 0, None, 0), at(1_000_000, 1000, None, 500_000))
    assert ticks.cost_ns(0) == 500


# --- Kernels ---


def test_no_kernel_without_virt_pci_is_a_process() -> None:
    with pytest.raises(
        ConfigurationError, match=r"linux-4\.18 cannot be built to run as a process"
    ):
        patches.bed_patches("um", "linux-4.18")


def test_what_the_bed_needs_is_arch_code() -> None:
    """None of it may be in a file that a step changes: it must be the same in all steps."""
    homes = sorted((shipped("kernel-patches") / "bed-um").iterdir())
    assert homes
    for home in homes:
        files = patches.bed_patches("um", home.name)
        assert sorted(files) == sorted(home.glob("*.patch"))
        changed = {name for file in files for name in patches.Patch.read(file).files}
        assert all(name.startswith("arch/um/") for name in changed)
        assert all(patches.Patch.read(file).changelog for file in files)
        assert home.name in {series.base for series in patches.list_series()}


@pytest.mark.parametrize("chosen", ["host", Path("/boot/config")])
def test_a_user_mode_kernel_has_a_configuration_of_its_own(chosen: Literal["host"] | Path) -> None:
    with pytest.raises(ConfigurationError, match="a user-mode kernel has its own"):
        configuration.chosen(Kernel(config=chosen), None, UM)
    assert configuration.chosen(Kernel(), None, UM).fragments == (UM.fragment,)
    assert configuration.chosen(Kernel(), None, X86).fragments == (X86.fragment,)


PATCH = """\
From: A <a@b.example>
Subject: [PATCH] {name}

Why.

---
diff --git a/{file} b/{file}
--- a/{file}
+++ b/{file}
@@ -1 +1 @@
-{was}
+{now}
"""


@pytest.mark.skipif(
    not all(map(shutil.which, ("make", "gcc", "mksquashfs"))),
    reason="needs make, gcc and squashfs-tools",
)
def test_every_step_has_the_patches_of_the_bed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_FREE_BYTES", 0)
    tree = tmp_path / "linux"
    for name in ("arch/x86/include/x.h", "include/y.h", "a.c", "b.c"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("old\n")
    (tree / "Makefile").write_text(
        MAKEFILE.replace("bzImage:", "vmlinux: | told\nvmlinux bzImage:")
        + "told:\n\ttest $(ARCH) = um\n\ttest -x $$COMPILER_PATH/ld\n"
    )
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "linux.tar", "linux"], check=True)
    home = tmp_path / "linux-6.12"
    home.mkdir()
    for name, file, now in (("0001-step", "a.c", "step"), ("0001-bed", "b.c", "bed")):
        mail = PATCH.format(name=name, file=file, was="old", now=now)
        (home / f"{name}.patch").write_text(mail)
    (home / "series").write_text("0001-step.patch\n")
    series = patches.series("linux-6.12", tmp_path)
    toolchain = Toolchain(compiler="gcc")
    typed: list[str] = []

    def built(bed_patches: list[Path], arch: Arch = UM) -> dict[str, Image]:
        monkeypatch.setattr(configuration.Configuration, "check", lambda *_: None)
        monkeypatch.setattr(Walk, "_add_types", lambda _, kernel: typed.append(kernel.name))
        with Progress(bars=False) as progress:
            made = build.build_steps(
                from_tarball(tmp_path / "linux.tar"),
                series,
                ["0", "1"],
                configuration=configuration.benchmark(arch),
                toolchain=toolchain,
                layouts=1,
                progress=progress,
                bed_patches=bed_patches,
            )
        return {step: images[0] for step, images in made.items()}

    with_bed = built([home / "0001-bed.patch"])
    for step, code in (("0", "old\nbed\n"), ("1", "step\nbed\n")):
        image = with_bed[step]
        assert (image.kernel.name, image.kernel.read_text()) == ("linux", code)
        assert image.provenance()["bed_patches"] == ("0001-bed.patch",)
        assert image.patches == (("0001-step.patch",) if step == "1" else ())
        assert not image.headers.exists()
    assert typed == ["linux", "linux"]
    assert built([home / "0001-bed.patch"]) == with_bed
    assert built([])["0"].directory != with_bed["0"].directory


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")
def test_a_compiler_that_links_a_kernel_finds_the_layouts_linker(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "ld").write_text(_LD)
    (programs / "ld").chmod(0o755)
    verbose = subprocess.run(["ld", "--verbose"], check=True, capture_output=True, text=True)
    script = verbose.stdout.split("=" * 50)[1].replace(
        "*(.text.unlikely", "*(.text.hot*) *(.text.u", 1
    )
    lds = tmp_path / "arch/um/kernel/vmlinux.lds"
    lds.parent.mkdir(parents=True)
    lds.write_text(script)
    (tmp_path / "a.c").write_text("int main(void) { return 0; }\n")

    def run(*command: str) -> str:
        env = os.environ | {
            "COMPILER_PATH": str(programs),
            "KERNEL_LAYOUT": "1",
            "KERNEL_ALSO": f"2={tmp_path}/also-2",
            "KERNEL_TOUCHED": "",
            "KERNEL_BTF": "none",
        }
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("gcc", "-c", "a.c")
    run("ar", "rcs", "vmlinux.a", "a.o")
    link = ["-no-pie", "-Wl,--whole-archive", "vmlinux.a", "-Wl,--no-whole-archive"]
    run("gcc", "-o", "other", *link)
    assert not (tmp_path / "layout.lds").exists()
    kernel = "-Wl,--script=./arch/um/kernel/vmlinux.lds"
    for name in (".tmp_vmlinux.btf", "vmlinux"):
        (tmp_path / "layout.lds").unlink(missing_ok=True)
        run("gcc", kernel, "-o", name, *link)
        assert "*vmlinux.a:a.o(.text" in (tmp_path / "layout.lds").read_text()
        assert (tmp_path / "also-2").exists() == (name == "vmlinux")
        (tmp_path / "also-2").unlink(missing_ok=True)
        run(f"./{name}")


# --- The process ---

KERNEL = """\
#!/bin/sh
# Is to a user-mode kernel what it has to be for its bed: an agent, and a console.
echo "Linux version 6.12" >&2
for word; do echo "told: $word" >&2; done
{before}
PYTHONPATH={root} exec {python} -m harness.agent
"""


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Booting]:
    booted: list[uml.UserModeKernel] = []

    def boot(
        before: str = "",
        watch: Callable[[], None] = lambda: None,
        kind: type[uml.UserModeKernel] = uml.UserModeKernel,
    ) -> uml.UserModeKernel:
        root = Path(__file__).parents[2]
        directory, runtime = tmp_path / "boot", tmp_path / "runtime"
        directory.mkdir()
        runtime.mkdir()
        script = tmp_path / "linux"
        script.write_text(KERNEL.format(before=before, root=root, python=sys.executable))
        script.chmod(0o755)
        image = Image(
            step="0", layout=1, release="6.12", patches=(), source="", compiler="",
            config_sha256="", image_sha256="", directory=tmp_path, arch="um",
        )  # fmt: skip
        kernel = kind(
            image,
            GuestImage(directory=tmp_path),
            host="process",
            memory_mib=256,
            nic_socket=runtime / "nic",
            cpu=min(os.sched_getaffinity(0)),
            directory=directory,
            runtime=runtime,
            watch=watch,
        )
        booted.append(kernel)
        return kernel

    yield boot
    for kernel in booted:
        kernel.stop()


def test_a_kernel_is_reached_over_its_own_streams(boot: Booting, tmp_path: Path) -> None:
    kernel = boot()
    assert kernel.ready["pid"] == kernel.pid_here
    told = kernel.console()
    assert "Linux version 6.12" in told
    assert f"told: virtio_uml.device={tmp_path}/runtime/nic:4242" in told
    assert f"told: ubd0c={tmp_path}/runtime/changes,{tmp_path}/runtime/disk" in told
    assert (tmp_path / "runtime/disk").readlink() == tmp_path / "guest.ext2"
    assert (tmp_path / "runtime/guest/agent.pyz").read_bytes().startswith(b"#!")


def test_a_frozen_kernel_and_its_clock_stand_still(boot: Booting, tmp_path: Path) -> None:
    kernel = boot()

    def stopped_ns() -> int:
        return int(struct.unpack("=q", (tmp_path / "runtime/stopped").read_bytes()[:8])[0])

    process = psutil.Process(kernel.pid_here)
    assert stopped_ns() == 0
    began_ns = time.monotonic_ns()
    kernel.freeze()
    kernel.freeze()
    assert process.status() == psutil.STATUS_STOPPED
    time.sleep(0.2)
    kernel.thaw()
    kernel.thaw()
    assert 200_000_000 <= stopped_ns() <= time.monotonic_ns() - began_ns
    before_ns = stopped_ns()
    kernel.freeze()
    assert stopped_ns() == before_ns
    kernel.thaw()
    assert before_ns < stopped_ns()
    kernel.inventory()


@pytest.mark.parametrize(
    ("before", "kind", "told"),
    [
        ("echo 'Kernel panic - not syncing: Oops' >&2; kill -ABRT $$", KernelError, "panic"),
        ("kill -SEGV $$", KernelError, "died of SIGSEGV"),
        ("kill -KILL $$", InfrastructureError, "killed from outside, by SIGKILL"),
        ("echo cannot map memory >&2; exit 1", InfrastructureError, "cannot map memory"),
    ],
)
def test_the_ends_of_a_kernel_are_told_apart(
    boot: Booting, before: str, kind: type[HarnessError], told: str
) -> None:
    with pytest.raises(kind, match=told):
        boot(before)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGSEGV, KernelError), (signal.SIGKILL, InfrastructureError)],
)
def test_a_kernel_that_ends_is_noticed(
    boot: Booting, number: int, kind: type[HarnessError]
) -> None:
    kernel = boot()
    os.kill(kernel.pid_here, number)
    with pytest.raises(kind):
        kernel.inventory()
    with pytest.raises(kind):
        kernel.freeze()


def test_the_death_of_a_kernel_that_sends_is_not_the_duts(boot: Booting) -> None:
    kernel = boot(kind=SendingKernel)
    assert "told: sysctl.net.core.wmem_default=16384" in kernel.console()
    os.kill(kernel.pid_here, signal.SIGSEGV)
    with pytest.raises(InfrastructureError, match=r"process, which sends: .* died of SIGSEGV"):
        kernel.inventory()


def test_the_model_ends_with_its_kernel_and_not_the_other_way_round(boot: Booting) -> None:
    ended = False

    def watch() -> None:
        if ended:
            raise InfrastructureError("the NIC model ended")

    kernel = boot(watch=watch)
    ended = True
    with pytest.raises(InfrastructureError, match="the NIC model ended"):
        kernel.check()
    os.kill(kernel.pid_here, signal.SIGSEGV)
    with pytest.raises(KernelError, match="died of SIGSEGV"):
        kernel.check()


def test_a_kernel_dies_with_the_harness(boot: Booting, tmp_path: Path) -> None:
    harness = os.fork()
    if harness == 0:
        boot()
        (tmp_path / "up").touch()
        time.sleep(60)
        os._exit(1)
    deadline = time.monotonic() + 60
    while not (tmp_path / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    [kernel] = psutil.Process(harness).children()
    os.kill(harness, signal.SIGKILL)
    os.waitpid(harness, 0)
    kernel.wait(timeout=30)


@pytest.mark.parametrize("name", ["with space", "a,b", 'quo"te', "co:lon"])
def test_a_directory_that_a_kernel_cannot_be_told_of(name: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot parse the path"):
        uml.arguments(Path("/run") / name, memory_mib=256, nic_socket=None, line=3)


# --- What its result tells ---


def test_the_result_tells_how_often_the_wire_repeated(tmp_path: Path) -> None:
    make_campaign(tmp_path, effects={"0": 1.0}, blocks=2)
    assert report.document(analyse(ResultDirectory.open(tmp_path)))["repetition"] is None
    for boot in tmp_path.glob("boots/*/boot.json"):
        kept = json.loads(boot.read_text())
        kept["nic_model"] = {"repeat_taken": 100, "repeat_delivered": 750}
        boot.write_text(json.dumps(kept))
    told = report.document(analyse(ResultDirectory.open(tmp_path)))
    assert told["repetition"] == 7.5
    assert "delivered 7.5 times" in "\n".join(text.head_lines(told))


def test_a_kernel_for_one_cpu_has_no_interrupt_to_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(irq_affinity, "interface_irqs", lambda _: {999_999: "sfc"})
    assert registry.known("lo")["irq_affinity"].read() == {}
    assert registry.DECLARED["irq_affinity"].absent
