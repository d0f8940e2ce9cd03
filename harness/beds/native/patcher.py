# SPDX-License-Identifier: MIT
"""A program that changes the code of a running process, at a moment when that is safe.

It traces one task with ptrace(2) for some milliseconds, so it needs no right that the owner of
the process lacks. It is a process of its own, because a wait by any other thread of the tracer's
process would take the stops of the traced task. It runs as a script and imports only the
standard library.

Standard input: a :class:`Plan` as one line of JSON. Standard output: ``{"waiting": true}`` once
it traces, then ``{"done": true}`` or ``{"error": …}``. Everything is changed or nothing, and in
any case the task runs on as it was, running or stopped. If this program is killed meanwhile, the
kernel of this machine kills the task too (PTRACE_O_EXITKILL): it could not survive a breakpoint.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# include/uapi/linux/ptrace.h
_POKETEXT, _CONT, _GETREGS, _SETREGS, _DETACH = 4, 7, 12, 13, 17
_SEIZE, _INTERRUPT, _LISTEN = 0x4206, 0x4207, 0x4208
_EXITKILL = 1 << 20
_WALL = 0x40000000
_STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
# struct user_regs_struct of x86-64, in words.
_REGISTERS = 27
_R10, _R9, _R8, _RAX, _RDX, _RSI, _RDI, _ORIG_RAX, _RIP = 7, 8, 9, 10, 12, 13, 14, 15, 16
_NO_SYSCALL = (1 << 64) - 1
_INT3 = b"\xcc"
_SYSCALL_INT3 = b"\x0f\x05\xcc"
_MMAP = 9
_READ_WRITE_EXEC = 7
_PRIVATE_ANONYMOUS_NOREPLACE = 0x2 | 0x20 | 0x100000
_LAST_ERROR = (1 << 64) - 4096

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    """ptrace(2) of requests that return nothing.

    Raises:
        OSError: it was refused; ProcessLookupError: the task is gone, or not stopped.
    """
    if _ptrace(request, pid, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class GoneError(Exception):
    """The traced process has ended."""


@dataclass(frozen=True)
class Plan:
    """What is changed. Bytes are written in hex, a place as its address."""

    pid: int
    trigger: int | None
    """Wait until the task enters the function at this address; None: any moment will do."""
    within_s: float
    """How long to wait."""
    memory: tuple[int, int] | None
    """Address and size of memory to have, filled with 0 and executable."""
    scratch: int
    """A place in its code that is 0 and unused, for an instruction."""
    contents: list[tuple[int, str]]
    """What is written into that memory."""
    patches: list[tuple[int, str, str]]
    """For each place: what must be there, and what is written."""
    switches: list[tuple[int, int]]
    """Counters (int), and what is added to each."""


class Task:
    """A traced task and the memory of its process."""

    def __init__(self, pid: int) -> None:
        """Trace it; it runs on."""
        self.pid = pid
        self._registers = (ctypes.c_uint64 * _REGISTERS)()
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        ptrace(_SEIZE, pid, 0, _EXITKILL)
        self._attached = True
        self._next: tuple[int, int] | None = None
        """How it continues, while it is stopped: the request and the signal."""
        self._awaited: int | None = None

    def interrupt(self) -> None:
        """Make :meth:`stop` return soon; also from a signal handler."""
        if self._attached:
            with contextlib.suppress(ProcessLookupError):
                ptrace(_INTERRUPT, self.pid)

    def stop(self) -> bool:
        """Wait until it stops; returns whether it is at the awaited breakpoint.

        Its instruction pointer is then on the breakpoint, not behind it.

        Raises:
            GoneError: it has ended.
        """
        _, status = os.waitpid(self.pid, _WALL)
        if not os.WIFSTOPPED(status):
            self._attached = False
            raise GoneError
        number = os.WSTOPSIG(status)
        if status >> 16:  # PTRACE_EVENT_STOP: a group-stop, its end, or our interruption
            self._next = (_LISTEN if number in _STOPPING else _CONT, 0)
            return False
        self._next = (_CONT, number)
        if number == signal.SIGTRAP and self._awaited is not None:
            registers = self.registers()
            if registers[_RIP] == self._awaited + 1:
                registers[_RIP] = self._awaited
                self.set_registers(registers)
                self._next = (_CONT, 0)
                return True
        return False

    def resume(self) -> None:
        """Let it continue, with the signal it was about to receive."""
        assert self._next is not None
        request, number = self._next
        self._next = None
        with contextlib.suppress(ProcessLookupError):  # killed: the next wait tells
            ptrace(request, self.pid, 0, number)

    def detach(self, before: Callable[[], None]) -> None:
        """Stop it if necessary, call ``before``, and let it go as it was."""
        if not self._attached:
            return
        with contextlib.suppress(GoneError, ProcessLookupError):
            if self._next is None:
                self.interrupt()
                self.stop()
            before()
            assert self._next is not None
            ptrace(_DETACH, self.pid, 0, self._next[1])
        self._attached = False

    def registers(self) -> list[int]:
        ptrace(_GETREGS, self.pid, 0, ctypes.addressof(self._registers))
        return [*self._registers]

    def set_registers(self, registers: list[int]) -> None:
        for place, value in enumerate(registers):
            self._registers[place] = value
        ptrace(_SETREGS, self.pid, 0, ctypes.addressof(self._registers))

    def read(self, address: int, size: int) -> bytes:
        return os.pread(self._memory, size, address)

    def write(self, address: int, data: bytes) -> None:
        """To memory that it could write itself."""
        while data:
            done = os.pwrite(self._memory, data, address)
            address, data = address + done, data[done:]

    def poke(self, address: int, data: bytes) -> None:
        """Also to code: that is never forbidden to a tracer."""
        begin = address & ~7
        end = address + len(data) + 7 & ~7
        whole = bytearray(self.read(begin, end - begin))
        whole[address - begin : address - begin + len(data)] = data
        for at in range(0, len(whole), 8):
            word = int.from_bytes(whole[at : at + 8], "little")
            ptrace(_POKETEXT, self.pid, begin + at, word)

    def wait_at(self, address: int, given_up: Callable[[], bool]) -> None:
        """Let it run until it reaches the breakpoint at ``address``.

        Raises:
            TimeoutError: ``given_up`` says so; it is asked after every stop.
        """
        self._awaited = address
        while True:
            self.resume()
            if self.stop():
                return
            if given_up():
                raise TimeoutError("it did not call the function in time")

    def mapped(self, address: int, size: int) -> bool:
        """Whether it has exactly this mapping."""
        wanted = f"{address:08x}-{address + size:08x} rwxp".encode()
        maps = pathlib.Path(f"/proc/{self.pid}/maps").read_bytes()
        return any(line.startswith(wanted) for line in maps.splitlines())


class Changes:
    """Changes of a stopped task, which can be undone until they are kept."""

    def __init__(self, task: Task, plan: Plan) -> None:
        self._task, self._plan = task, plan
        self._undo: list[Callable[[], None]] = []
        self._expired = False
        signal.signal(signal.SIGALRM, lambda *_: self.give_up())

    def give_up(self) -> None:
        self._expired = True
        self._task.interrupt()

    def make(self) -> None:
        """Wait for the right moment and change everything.

        Raises:
            OSError: memory cannot be had, or the right moment does not come.
            ValueError: the code is not what the plan says.
        """
        task, plan = self._task, self._plan
        for at, expected, _ in plan.patches:
            if task.read(at, len(expected) // 2) != bytes.fromhex(expected):
                raise ValueError(f"the process has other code at {at:#x} than its file")
        if plan.trigger is not None:
            trap = self._patch(plan.trigger, _INT3)
            signal.setitimer(signal.ITIMER_REAL, plan.within_s)
            print(json.dumps({"waiting": True}), flush=True)
            task.wait_at(plan.trigger, lambda: self._expired)
            self._undo.remove(trap)
            trap()
        if plan.memory is not None and not task.mapped(*plan.memory):
            self._map(*plan.memory)
        for at, content in plan.contents:
            task.write(at, bytes.fromhex(content))
        for at, expected, new in plan.patches:
            if expected != new:
                self._patch(at, bytes.fromhex(new))
        for at, change in plan.switches:
            value = int.from_bytes(task.read(at, 4), "little") + change
            self._patch(at, (value & 0xFFFFFFFF).to_bytes(4, "little"))

    def keep(self) -> None:
        self._undo.clear()

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()

    def _patch(self, at: int, new: bytes) -> Callable[[], None]:
        old = self._task.read(at, len(new))

        def undo() -> None:
            self._task.poke(at, old)

        self._undo.append(undo)
        self._task.poke(at, new)
        return undo

    def _map(self, address: int, size: int) -> None:
        """Let the task, which is at the entry of a function, call mmap(2)."""
        task, scratch = self._task, self._plan.scratch
        if any(task.read(scratch, len(_SYSCALL_INT3))):
            raise ValueError("the place for an instruction is used")
        before = task.registers()
        call = self._patch(scratch, _SYSCALL_INT3)
        registers = [*before]
        arguments = {
            _RAX: _MMAP, _RDI: address, _RSI: size, _RDX: _READ_WRITE_EXEC,
            _R10: _PRIVATE_ANONYMOUS_NOREPLACE, _R8: _NO_SYSCALL, _R9: 0,
            _ORIG_RAX: _NO_SYSCALL, _RIP: scratch,
        }  # fmt: skip
        for register, value in arguments.items():
            registers[register] = value
        task.set_registers(registers)
        task.wait_at(scratch + len(_SYSCALL_INT3) - 1, lambda: False)
        result = task.registers()[_RAX]
        task.set_registers(before)
        self._undo.remove(call)
        call()
        if result >= _LAST_ERROR:
            raise OSError((1 << 64) - result, "no memory for the counting code")
        if result != address:
            raise ValueError(f"this machine's kernel is too old: it mapped {result:#x}")


def main() -> int:
    """Change what the plan on standard input says; returns the exit code."""
    told: dict[str, Any] = json.loads(sys.stdin.readline())
    plan = Plan(**told)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Its default would end this program, and so the task, without an undo.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        task = Task(plan.pid)
        changes = Changes(task, plan)
        signal.signal(signal.SIGTERM, lambda *_: changes.give_up())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        try:
            task.interrupt()
            task.stop()
            changes.make()
            changes.keep()
        finally:
            task.detach(changes.undo)
    except GoneError:
        print(json.dumps({"error": "the process has ended"}), flush=True)
        return 1
    except (OSError, ValueError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 1
    print(json.dumps({"done": True}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
