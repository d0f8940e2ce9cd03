# SPDX-License-Identifier: MIT
"""A user-mode kernel, a process of this machine: start, agent, freezing, end.

Hides how the kernel finds its disk, its NIC and its console; that its agent uses the
process's standard streams; how its clock stands still while it is stopped; and how the
causes of its end are distinguished.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from harness.agent.counters.pmu import Pmu
from harness.agent.protocol import Calls
from harness.base.errors import ConfigurationError, InfrastructureError, KernelError
from harness.base.process import failed
from harness.base.runtime import for_memory
from harness.beds.access.channel import Pending, RemoteAgent, agent_archive
from harness.beds.bed import kernel_death
from harness.images import GuestImage
from harness.kernels import Image

DEVICE_ID = 4242
"""CONFIG_UML_PCI_OVER_VIRTIO_DEVICE_ID of the kernels."""
_INIT = Path(__file__).with_name("guest-init.sh")
_KERNELS = 4
"""For as many kernels there must be room where their memory is: its files grow later."""
_BOOT_S = 120.0
_STOP_S = 10.0
_NIC_US = 10_000_000
"""How long the kernel waits for the NIC model, which may share its CPU with much else."""
_LAST_S = 1.0
_PMU = Pmu()
_PLAIN = re.compile(r"[\w./+@-]+", re.ASCII)
_TRACEABLE = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(0x59616D61, int(sys.argv[1]), 0, 0, 0)
os.execvp(sys.argv[2], sys.argv[2:])
"""
_FAULTS = {getattr(signal, name) for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")}


class UserModeKernel(RemoteAgent):
    """A user-mode kernel and the agent in it, which share one process.

    Its console goes to ``directory/console.log``, up to 4 MiB.
    """

    parameters: ClassVar[tuple[str, ...]] = ()
    """Further words of its command line."""

    def __init__(
        self,
        image: Image,
        disk: GuestImage,
        *,
        host: str,
        memory_mib: int,
        nic_socket: Path | None,
        cpu: int,
        directory: Path,
        runtime: Path,
        watch: Callable[[], None] = lambda: None,
        program: str | None = None,
    ) -> None:
        """Boot ``image`` on a copy-on-write view of ``disk``, pinned to ``cpu``.

        ``nic_socket`` is where the NIC model listens; ``watch`` raises if it has ended.
        ``program``, in Python, runs beside the agent; its standard streams are :attr:`line`.

        Raises:
            KernelError: the kernel died.
            HostLostError: it did not come up in time; the message shows the end of its console.
        """
        self._console = directory / "console.log"
        self._others = watch
        self._cpu = cpu
        self._counting = contextlib.ExitStack()
        self._stopped_ns: int | None = None
        self.line, theirs = socket.socketpair()
        shared = runtime / "guest"
        shared.mkdir()
        (shared / "agent.pyz").write_bytes(agent_archive()[1])
        (shared / "init").write_bytes(_INIT.read_bytes())
        if program is not None:
            (shared / "program.py").write_text(program, encoding="utf-8")
        clock = runtime / "stopped"
        clock.write_bytes(bytes(mmap.PAGESIZE))
        with clock.open("r+b") as file:
            self._stopped = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        (runtime / "disk").symlink_to(disk.disk)
        command = [
            "env", f"TMPDIR={for_memory(_KERNELS * memory_mib)}",
            *_traceable(),
            "setpriv", "--pdeathsig=KILL", "--", "prlimit", "--core=0", "--",
            "taskset", "-c", str(cpu), str(image.kernel), *self.parameters,
            *image.cmdline,
            *arguments(
                runtime, memory_mib=memory_mib, nic_socket=nic_socket, line=theirs.fileno()
            ),
        ]  # fmt: skip
        with theirs:
            super().__init__(
                command,
                host=host,
                log=self._console,
                watch=self.check,
                start_timeout_s=_BOOT_S,
                pass_fds=(theirs.fileno(),),
            )

    def _begin(self, name: str, arguments: Mapping[str, Any], within_s: float) -> Pending[Any]:
        """As :class:`RemoteAgent`; the PMU is this machine's, as its kernel is a process here."""
        if name != Calls.window.__name__ or arguments.get("pmu_cpu") is None:
            return super()._begin(name, arguments, within_s)
        watch = self._counting.enter_context(_PMU.over(self._cpu, self.pid_here))
        watch.open()
        pending = super()._begin(name, {**arguments, "pmu_cpu": None}, within_s)

        def result() -> Any:
            with self._counting:
                answer = pending.result()
                watch.close()
                return answer | {"pmu": watch.read()}

        return Pending(pending.arrived, result)

    @property
    def pid_here(self) -> int:
        """Its process id on this machine; :attr:`pid` is the agent's inside the guest."""
        return self._process.pid

    def check(self) -> None:
        """Raise an error if the kernel has ended.

        Raises:
            KernelError: it died; the message is from the console.
            InfrastructureError: something else ended it, or ended what it depends on.
        """
        status = self._process.poll()
        if status is None:
            try:
                self._others()
            except InfrastructureError:
                # The model ends with its kernel: if that has ended too, report the kernel.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = self._process.wait(_LAST_S)
                if status is None:
                    raise
        if status is None:
            return
        hint = f"console: {self._console}"
        if death := kernel_death(self.console()):
            raise KernelError(f"the guest's kernel died: {death}", hint=hint)
        if status < 0:
            name = signal.Signals(-status).name
            if -status in _FAULTS:
                raise KernelError(f"the kernel's process died of {name}", hint=hint)
            raise InfrastructureError(
                f"the kernel's process was killed from outside, by {name}",
                hint="did this machine run out of memory? Check `dmesg`",
            )
        raise failed(["linux", "…"], status, self.console(), hint=hint)

    def console(self) -> str:
        """Everything the kernel has printed."""
        try:
            return self._console.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def freeze(self) -> None:
        """Stop the kernel and its clock; no guest time passes until :meth:`thaw`.

        Only its own process is stopped: it traces the processes of its user space and
        would have to handle a signal to them.
        """
        if self._stopped_ns is not None:
            return
        self._signal(signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_S
        # Until it is stopped it may read the clock, which must not go back.
        while not _stands_still(self._process.pid):
            self.check()
            if time.monotonic() > deadline:
                raise self._lost(f"the kernel's process does not stop within {_STOP_S:.0f} s")
        self._stopped_ns = time.monotonic_ns()

    def thaw(self) -> None:
        """Let it continue."""
        if self._stopped_ns is None:
            return
        (before,) = struct.unpack_from("=q", self._stopped)
        struct.pack_into("=q", self._stopped, 0, before + time.monotonic_ns() - self._stopped_ns)
        self._stopped_ns = None
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it at once; its disk is a disposable view."""
        self._counting.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self.kill()
        self.line.close()

    def _signal(self, number: signal.Signals) -> None:
        self.check()  # its pid may belong to another process otherwise
        self._process.send_signal(number)


def arguments(runtime: Path, *, memory_mib: int, nic_socket: Path | None, line: int) -> list[str]:
    """The command line of a kernel whose files are in ``runtime``.

    ``line`` is the file descriptor of its second serial line.

    Raises:
        ConfigurationError: the kernel cannot parse the name of that directory.
    """
    if not _PLAIN.fullmatch(str(runtime)):
        raise ConfigurationError(
            f"a user-mode kernel cannot parse the path {str(runtime)!a}",
            hint="set TMPDIR to a directory whose name has only letters, digits and ._+@-",
        )
    nic = (
        []
        if nic_socket is None
        else [f"virtio_uml.device={nic_socket}:{DEVICE_ID}", f"virt_pci.max_delay_us={_NIC_US}"]
    )
    return [
        f"mem={memory_mib}M",
        f"uml_dir={runtime}/",
        f"time-stopped={runtime / 'stopped'}",
        # c: without locks, which would keep QEMU from reading the disk that both share.
        f"ubd0c={runtime / 'changes'},{runtime / 'disk'}",
        "root=/dev/ubda", "rw",
        "con=null", "con0=null,fd:2", "ssl=null", "ssl0=fd:0,fd:1", f"ssl1=fd:{line}", "stderr=1",
        *nic,
        f"hostfs={runtime / 'guest'}",
        "init=/bin/sh", "--", "-c", '"mount -t hostfs none /mnt && exec sh /mnt/init"',
    ]  # fmt: skip


def _traceable() -> list[str]:
    """Starts a program that processes of this harness may trace (PR_SET_PTRACER).

    Where kernel.yama.ptrace_scope is 1, a process may otherwise be traced only by its parents.
    """
    return [sys.executable, "-I", "-S", "-c", _TRACEABLE, str(os.getpid())]


def _stands_still(pid: int) -> bool:
    """Whether all threads of the process are stopped; False if it is gone."""
    try:
        states = [
            (task / "stat").read_bytes().rpartition(b") ")[2][:1]
            for task in Path(f"/proc/{pid}/task").iterdir()
        ]
    except OSError:
        return False
    return bool(states) and all(state in b"TtZX" for state in states)
