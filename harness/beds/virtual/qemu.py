# SPDX-License-Identifier: MIT
"""A dut that is a guest on this machine: QEMU, its disk, its console, its end.

Hides how the guest is started and reached. It boots a kernel of the harness on a
copy-on-write view of the guest image; its NIC is the model at a unix socket.
Distinguishes a guest that ended, one that panicked, and one that only fell silent.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base import cache, process
from harness.base.errors import HostLostError, InfrastructureError, KernelError
from harness.beds.access.ssh import SshTarget
from harness.beds.bed import kernel_death
from harness.beds.virtual import icache
from harness.config import QemuHost
from harness.images import GUEST_USER, GuestImage, Tools
from harness.kernels.build import Image

if TYPE_CHECKING:
    from qemu.qmp.legacy import QEMUMonitorProtocol

_COMMAND_LINE = (
    "root=/dev/vda rw rootfstype=ext4 init=/sbin/guest-init console=ttyS0 quiet "
    "panic=1 oops=panic softlockup_panic=1"
)
_BOOT_TIMEOUT_S = 300.0
_KVM_PROOF_S = 300.0
_KVM_SILENT_S = 20.0
_MONITOR_S = 20.0
_FROZEN_S = 1800  # a guest may be frozen for long; QEMU's process is watched instead


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """What all boots of a campaign on a virtual bed use."""

    disk: GuestImage
    tools: Tools
    accelerator: str
    icache: Path | None = None
    """The emulator's plugin, if it counts instructions."""


@dataclass(kw_only=True)
class Guest:
    """A QEMU process, running or ended; its console is ``directory/console.log``."""

    process: subprocess.Popen[bytes]
    directory: Path
    ssh: SshTarget
    runtime: Path
    vcpu_threads: dict[int, int] = field(default_factory=dict)
    _monitor: QEMUMonitorProtocol | None = None

    def check(self) -> None:
        """Raise an error if the guest has ended.

        Raises:
            KernelError: its kernel died; the message is from the console.
            InfrastructureError: QEMU itself ended.
        """
        if self.process.poll() is not None:
            if death := kernel_death(self.console()):
                raise KernelError(
                    f"the guest's kernel died: {death}",
                    hint=f"console: {self.directory / 'console.log'}",
                )
            said = (self.directory / "qemu.log").read_text(errors="replace", encoding="utf-8")
            raise process.failed(["qemu-system-x86_64", "…"], self.process.returncode, said)

    def console(self) -> str:
        """Everything the guest has written to its serial console."""
        try:
            return (self.directory / "console.log").read_text(errors="replace", encoding="utf-8")
        except FileNotFoundError:
            return ""

    def wait_for_ssh(self) -> None:
        """Return when the guest's sshd answers.

        Raises:
            HostLostError: it did not within 300 s; the message shows the end of the console.
        """
        deadline = time.monotonic() + _BOOT_TIMEOUT_S
        while time.monotonic() < deadline:
            self.check()
            try:
                with socket.create_connection(("127.0.0.1", self.ssh.port or 0), timeout=5) as line:
                    if line.recv(4) == b"SSH-":
                        return
            except OSError:
                pass
            time.sleep(0.3)
        tail = "".join(f"\n  | {line}" for line in self.console().splitlines()[-8:])
        raise HostLostError(f"the guest did not come up in {_BOOT_TIMEOUT_S:.0f} s{tail}")

    def pin(self, vcpus: Sequence[int], others: Sequence[int]) -> None:
        """Pin the vCPU threads to ``vcpus`` in turn, QEMU's other threads to ``others``."""
        answer = self._ask("query-cpus-fast")
        assert isinstance(answer, list)
        self.vcpu_threads = {int(cpu["cpu-index"]): int(cpu["thread-id"]) for cpu in answer}
        threads = set(self.vcpu_threads.values())
        group = _thread_group(next(iter(threads)))
        for thread in Path(f"/proc/{group}/task").iterdir():
            if int(thread.name) not in threads:
                with contextlib.suppress(ProcessLookupError):  # some work only for a moment
                    os.sched_setaffinity(int(thread.name), others)
        for index, thread_id in self.vcpu_threads.items():
            os.sched_setaffinity(thread_id, {vcpus[index % len(vcpus)]})

    def freeze(self) -> None:
        """Stop the guest and its clock; no guest time passes until :meth:`thaw`."""
        self._ask("stop")

    def thaw(self) -> None:
        """Let it continue."""
        self._ask("cont")

    def _ask(self, command: str) -> object:
        """QEMU's answer to a monitor command without arguments."""
        from qemu.qmp import QMPError

        try:
            if self._monitor is None:
                self._monitor = monitor(self.runtime / "qmp")
            return self._monitor.cmd(command)
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            self.check()
            raise HostLostError(f"QEMU does not answer to {command}: {error!r}") from error

    def stop(self) -> None:
        """End the guest at once; its disk is a disposable view."""
        if self._monitor is not None:
            with contextlib.suppress(Exception):  # QEMU may be gone already
                self._monitor.close()
        process.end(self.process)


def start(
    host: QemuHost,
    equipment: Equipment,
    *,
    image: Image,
    nic_socket: Path,
    directory: Path,
    runtime: Path,
    extra_arguments: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
) -> Guest:
    """Start a guest of ``host`` on the kernel ``image``, without waiting for its boot.

    ``directory`` receives the console and QEMU's log, ``runtime`` (a short path)
    the sockets. ``extra_arguments`` go to QEMU and may refer to ``pass_fds``.
    """
    disk, port = equipment.disk, free_port()
    known_hosts = runtime / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {disk.host_key}\n", encoding="utf-8")
    nic = {"driver": "vfio-user-pci", "socket": {"type": "unix", "path": str(nic_socket)}}
    arguments = [
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-machine", "q35,memory-backend=ram", *machine(equipment.accelerator),
        "-smp", str(host.vcpus), "-m", f"{host.memory_mib}M",
        "-object", f"memory-backend-memfd,id=ram,size={host.memory_mib}M,share=on",
        "-kernel", str(image.kernel), "-append", " ".join([_COMMAND_LINE, *image.cmdline]),
        "-drive", f"file={disk.disk},format=raw,if=none,id=root,snapshot=on",
        "-device", "virtio-blk-pci,drive=root",
        "-drive", f"file={image.headers},format=raw,if=none,id=headers,readonly=on",
        "-device", "virtio-blk-pci,drive=headers",
        "-netdev", f"user,id=management,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:{port}-:22",
        "-device", "virtio-net-pci,netdev=management,romfile=",
        "-device", "virtio-rng-pci",
        "-serial", f"file:{directory / 'console.log'}",
        "-qmp", f"unix:{runtime / 'qmp'},server=on,wait=off",
        "-device", json.dumps(nic),
        *(icache.arguments(equipment.icache, runtime) if equipment.icache else []),
        *extra_arguments,
    ]  # fmt: skip
    with (directory / "qemu.log").open("w", encoding="utf-8") as log:
        started = process.start(
            ["setpriv", "--pdeathsig=KILL", "--", *equipment.tools.qemu(arguments)],
            hint="apt-get install util-linux",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
        )
    return Guest(
        process=started,
        directory=directory,
        runtime=runtime,
        ssh=SshTarget(
            hostname="127.0.0.1",
            port=port,
            user=GUEST_USER,
            key=disk.key,
            known_hosts=known_hosts,
            own_configuration=False,
            silence_s=_FROZEN_S,
        ),
    )


def monitor(path: Path) -> QEMUMonitorProtocol:
    """A connection to the monitor at ``path``; the caller closes it.

    Raises:
        OSError: nothing listens, or no greeting came within 20 s.
        qemu.qmp.QMPError: the greeting is not that of a monitor.
    """
    from qemu.qmp.legacy import QEMUMonitorProtocol

    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(_MONITOR_S)
        line.connect(str(path))
        line.recv(1)  # the library's client would wait forever
    connected = QEMUMonitorProtocol(str(path))
    connected.settimeout(_MONITOR_S)
    connected.connect(negotiate=True)
    return connected


def machine(accelerator: str) -> list[str]:
    """QEMU's arguments for ``accelerator``, ``kvm`` or ``tcg``."""
    if accelerator == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", "tcg,thread=multi", "-cpu", "max"]


def accelerator_that_works(wanted: str, *, image: Image, tools: Tools) -> str:
    """``kvm`` if it is wanted and a kernel boots with it on this machine, else ``tcg``.

    /dev/kvm may exist and not work (nested, or no permission). So a boot is tried,
    once per boot of this machine. It may be slow, but not silent.

    Raises:
        InfrastructureError: ``wanted`` is ``kvm`` and it does not work.
    """
    if wanted == "tcg":
        return "tcg"
    works = os.access("/dev/kvm", os.W_OK) and _kvm_boots(image, tools)
    if wanted == "kvm" and not works:
        raise InfrastructureError(
            "KVM does not work here: no kernel boots with it",
            hint="give your user access to /dev/kvm (group kvm), or set accelerator: auto in "
            "hosts.yaml",
        )
    return "kvm" if works else "tcg"


def _kvm_boots(image: Image, tools: Tools) -> bool:
    this_boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()

    def prove(making: Path) -> None:
        console = making / "console.log"
        qemu = [
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35",
            *machine("kvm"), "-m", "512M", "-kernel", str(image.kernel),
            "-append", "console=ttyS0 panic=-1", "-serial", f"file:{console}",
        ]  # fmt: skip
        with (making / "qemu.log").open("w", encoding="utf-8") as log:
            booting = process.start(
                tools.qemu(qemu), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            _until_silent(booting, console)
        finally:
            process.end(booting)
        said = console.read_text(errors="replace", encoding="utf-8") if console.exists() else ""
        (making / "verdict").write_text(
            "boots" if "Unable to mount root fs" in said else "does not boot",
            encoding="utf-8",
        )

    kept = cache.entry(
        cache.root() / "kvm" / cache.digest(this_boot, str(tools.root)),
        prove,
        what="the proof of KVM",
    )
    return (kept / "verdict").read_text(encoding="utf-8") == "boots"


def _until_silent(booting: subprocess.Popen[bytes], console: Path) -> None:
    """Return when it has ended, or has said nothing more for 20 s, or after 300 s."""
    began = heard = time.monotonic()
    size = 0
    while booting.poll() is None and time.monotonic() < min(
        heard + _KVM_SILENT_S, began + _KVM_PROOF_S
    ):
        if console.exists() and console.stat().st_size > size:
            size, heard = console.stat().st_size, time.monotonic()
        time.sleep(0.1)


def _thread_group(thread_id: int) -> int:
    status = Path(f"/proc/{thread_id}/status").read_text(encoding="utf-8")
    return int(re.search(r"^Tgid:\s+(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]


def free_port() -> int:
    """A free TCP port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
