# SPDX-License-Identifier: MIT
"""One guest as a machine, with a power button, a persistent disk and a console log.

Its NIC is the model, which has power while the machine has. The machine reboots and powers
off by itself like any other.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from harness.base import process
from harness.base.errors import HostLostError, InfrastructureError
from harness.beds.access.ssh import SshTarget
from harness.beds.local.netns import Namespace
from harness.beds.local.nic_model import NicModel
from harness.beds.virtual import qemu
from harness.images import Tools
from harness.selftest import gdb

INTERFACE = "enp0s4np0"
"""udev's name for the NIC's port, from its PCI slot."""
_NIC_SLOT = 4
_UP_S = 300.0
_SSH = b"SSH-"
_NIC_END_S = 10.0


@dataclass(kw_only=True)
class Machine:
    """A machine, initially off.

    ``directory`` keeps ``disk.raw``, ``console.log`` (appended to across power
    cycles) and logs; ``runtime``, a short path, is for sockets.
    """

    name: str
    directory: Path
    runtime: Path
    tools: Tools
    accelerator: str
    vcpus: int
    memory_mib: int
    mac: str
    namespace: Namespace
    wire: str
    ssh: SshTarget
    starter: ThreadPoolExecutor
    """One thread that starts all processes, which die with it (PDEATHSIG)."""
    _qemu: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _nic: NicModel | None = field(default=None, init=False)
    _unplugged: bool = field(default=False, init=False)

    @property
    def disk(self) -> Path:
        """Raw."""
        return self.directory / "disk.raw"

    @property
    def console_log(self) -> Path:
        """All output of its serial port."""
        return self.directory / "console.log"

    def is_on(self) -> bool:
        """Whether it has power."""
        return self.starter.submit(self._is_on).result()

    def power_on(self) -> None:
        """Switch it on, if it is off; does not wait for its boot."""
        self.starter.submit(self._on).result()

    def power_off(self) -> None:
        """Cut its power at once."""
        self.starter.submit(self._off).result()

    def cycle(self) -> None:
        """Switch it off and on."""
        self.power_off()
        self.power_on()

    def freeze(self) -> None:
        """Make it hang: no answer, no console, no clock."""
        self._ask("stop")

    def thaw(self) -> None:
        """End :meth:`freeze`."""
        self._ask("cont")

    def oops(self) -> None:
        """Make its kernel jump to address 0."""
        gdb.oops(self._debugger)

    def lock_up(self) -> None:
        """Make its first CPU loop in the kernel."""
        gdb.lock_up(self._debugger)

    def break_nic(self) -> None:
        """Make its NIC fail until the machine is power-cycled."""
        assert self._nic is not None
        self._nic.process.kill()

    def cut(self, *, off: bool) -> None:
        """Unplug the cable of the management network, or plug it in again."""
        self._unplugged = off
        self._ask("set_link", name="management", up=not off)

    def wait_for_ssh(self, *, within_s: float = _UP_S) -> float:
        """Return when the machine's user can log in; returns the seconds it took.

        Raises:
            HostLostError: not in time; the message has the last answer and the end of the
                console.
        """
        began = time.monotonic()
        answered = "nobody asked"
        while time.monotonic() < began + within_s:
            banner = self._banner()
            answered = f"its ssh server says {banner!r}" if banner else "no ssh server answers"
            if banner == _SSH:
                try:
                    if self.ssh.run(["true"], timeout_s=60).returncode == 0:
                        return time.monotonic() - began
                except InfrastructureError as error:  # sshd may refuse at first
                    answered = error.message
            time.sleep(0.3)
        raise HostLostError(
            f"{self.name} did not come up in {within_s:.0f} s: {answered}{self._told()}"
        )

    def _told(self) -> str:
        """QEMU's state, and the ends of all logs."""
        try:
            state = str(self._ask("query-status"))
        except HostLostError as error:
            state = error.message
        logs = (self.console_log, self.directory / "qemu.log", self.directory / "nic.log")
        written = [
            log.read_text(errors="replace", encoding="utf-8") if log.exists() else ""
            for log in logs
        ]
        lines = [line for text in written for line in text.split("\n")[-25:] if line.strip()]
        return "".join(f"\n  | {line}" for line in [f"QEMU: {state}", *lines])

    def run(self, *command: str, timeout_s: float = 60.0) -> str:
        """The output of ``command`` on it; raises if the command fails."""
        done = self.ssh.run(command, timeout_s=timeout_s)
        if done.returncode != 0:
            raise process.failed(command, done.returncode, done.stderr.decode(errors="replace"))
        return done.stdout.decode(errors="replace")

    def boot_id(self) -> str:
        """The running kernel's boot id."""
        return self.run("cat", "/proc/sys/kernel/random/boot_id").strip()

    def wait_for_boot(self, before: str, *, within_s: float = _UP_S) -> str:
        """Wait for a boot other than ``before``; returns the running release."""
        deadline = time.monotonic() + within_s
        while True:
            self.wait_for_ssh(within_s=deadline - time.monotonic())
            with contextlib.suppress(HostLostError):
                if self.boot_id() != before:
                    return self.run("uname", "-r").strip()
            time.sleep(0.5)

    def _banner(self) -> bytes:
        """The first bytes from its ssh port."""
        try:
            with socket.create_connection(("127.0.0.1", self.ssh.port or 0), timeout=5) as line:
                return line.recv(len(_SSH))
        except OSError:
            return b""

    def _is_on(self) -> bool:
        return self._qemu is not None and self._qemu.poll() is None

    def _on(self) -> None:
        if self._is_on():
            return
        self._off()  # the NIC model of a machine that powered itself off
        nic_socket = self.runtime / f"{self.name}-nic"
        nic = NicModel(
            self.namespace,
            wire=self.wire,
            mac=self.mac,
            socket=nic_socket,
            control=self.runtime / f"{self.name}-nic-control",
            log=self.directory / "nic.log",
        )
        self._nic = nic
        command = self.tools.qemu(self._arguments(nic_socket))
        for stale in (self._monitor, self._debugger):
            stale.unlink(missing_ok=True)
        with (self.directory / "qemu.log").open("a", encoding="utf-8") as log:
            self._qemu = process.start(
                ["setpriv", "--pdeathsig=KILL", "--", *command],
                hint="apt-get install util-linux",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        if self._unplugged:
            self.cut(off=True)

    def _off(self) -> None:
        if self._qemu is not None:
            process.end(self._qemu, grace_s=0.0)
            self._qemu = None
        if self._nic is not None:
            # The model ends when QEMU is gone, and with QEMU the lock on the disk.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._nic.process.wait(_NIC_END_S)
            self._nic.stop()
            self._nic = None

    def _arguments(self, nic_socket: Path) -> list[str]:
        nic = {
            "driver": "vfio-user-pci",
            "socket": {"type": "unix", "path": str(nic_socket)},
            "addr": f"{_NIC_SLOT:#x}",
        }
        return [
            "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", "q35,memory-backend=ram,sata=off,smbus=off", *_cpu(self.accelerator),
            "-smp", str(self.vcpus), "-m", f"{self.memory_mib}M",
            "-object", f"memory-backend-memfd,id=ram,size={self.memory_mib}M,share=on",
            "-drive", f"file={self.disk},format=raw,if=none,id=root,discard=unmap",
            "-device", "virtio-blk-pci,drive=root,bootindex=0,addr=0x2",
            "-netdev",
            f"user,id=management,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:{self.ssh.port}-:22",
            "-device", "virtio-net-pci,netdev=management,romfile=,addr=0x3",
            "-device", json.dumps(nic),
            "-device", "virtio-rng-pci,addr=0x5",
            "-chardev", f"file,id=console,path={self.console_log},append=on",
            "-serial", "chardev:console",
            "-qmp", f"unix:{self._monitor},server=on,wait=off",
            "-gdb", f"unix:{self._debugger},server=on,wait=off",
        ]  # fmt: skip

    @property
    def _monitor(self) -> Path:
        return self.runtime / f"{self.name}-qmp"

    @property
    def _debugger(self) -> Path:
        return self.runtime / f"{self.name}-gdb"

    def _ask(self, command: str, **arguments: object) -> object:
        from qemu.qmp import QMPError

        for _ in range(50):  # of a QEMU that was just started
            if self._monitor.exists():
                break
            time.sleep(0.1)
        try:
            with contextlib.closing(qemu.monitor(self._monitor)) as monitor:
                return monitor.cmd(command, **arguments)
        except (QMPError, OSError, EOFError, TimeoutError) as error:
            raise HostLostError(f"{self.name}: QEMU does not do {command}: {error!r}") from error


def _cpu(accelerator: str) -> list[str]:
    """As for any guest, without nested virtualisation: the kvm module takes seconds to load."""
    return [
        f"{word},svm=off,vmx=off" if word in ("max", "host") else word
        for word in qemu.machine(accelerator)
    ]
