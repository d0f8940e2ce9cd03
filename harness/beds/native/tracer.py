# SPDX-License-Identifier: MIT
"""A program that counts, from outside, what a process passes to some of its functions.

It traces one task with ptrace(2) and breakpoints, so it needs no right that the process's owner
lacks, and counts every call exactly. It is a process of its own, because a wait by another
thread of the tracer's process would take the stops of the traced one. It runs as a script and
imports only the standard library.

Standard input: the plan (one line of JSON, see :class:`Point` and :class:`Counting`), then
``read`` or ``end``. Standard output: one line of JSON for each. The end of the input is an end,
too. At the end, and after any error, the functions are as they were and the process runs on.
If this program is killed, the kernel of this machine kills the traced process
(PTRACE_O_EXITKILL): it could not survive its breakpoints.

A breakpoint is one byte, int3, at the entry of a function. The instruction that it replaces is
never put back while the process runs, or a call in between would be missed. A copy of it stands
in a slot, followed by a jump to the next one; after the count the process continues there.
Slots are not removed, because the process may be inside one.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# include/uapi/linux/ptrace.h
_POKETEXT, _POKEUSER, _CONT, _GETREGS, _DETACH = 4, 6, 7, 12, 17
_SEIZE, _INTERRUPT, _LISTEN = 0x4206, 0x4207, 0x4208
_EXITKILL = 1 << 20
_WALL = 0x40000000
_STOPPING = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
# struct user_regs_struct of x86-64, in words.
_REGISTERS = 27
_RCX, _RDX, _RSI, _RDI, _RIP = 11, 12, 13, 14, 16
_INT3 = 0xCC
_LONGEST_WALKED = 4096
_NAME_BYTES = 16

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
class Point:
    """A function whose calls are counted."""

    name: str
    kind: str
    """``list``, ``skb``, ``drop`` or ``mark``: what a call is counted as."""
    stage: int
    """The position in the order in which lists pass the stages; only of ``list``."""
    address: int
    slot: int
    """Where the process continues."""
    entry: bytes
    """The first instruction of the function, as it must be found there."""
    moved: bytes
    """The content of the slot: that instruction, and a jump to the next."""
    argument: int = 0
    """Which argument is the list or the packet; 0 is the first."""
    orig_dev: bool = False
    """Whether the third argument is the list's device."""

    @classmethod
    def of(cls, told: dict[str, Any]) -> Point:
        return cls(**told | {name: bytes.fromhex(told[name]) for name in ("entry", "moved")})


class Tracee:
    """A traced task, and the breakpoints in its process."""

    def __init__(self, pid: int, points: list[Point], switches: list[int]) -> None:
        """``switches``: addresses of counters (int) that must not be 0 for a point to be hit."""
        self.pid = pid
        self.registers = (ctypes.c_uint64 * _REGISTERS)()
        self._registers_at = ctypes.addressof(self.registers)
        self._points = points
        self._after = {point.address + 1: point for point in points}
        self._switches = switches
        self._memory = -1
        self._undo: list[Callable[[], None]] = []
        self._attached = False
        self._next: tuple[int, int] | None = None
        """How it continues, while it is stopped: the request and the signal."""

    def attach(self) -> None:
        """Trace it and set the breakpoints; it is stopped afterwards.

        Raises:
            OSError: it may not be traced.
            ValueError: its code is not what the points say.
        """
        ptrace(_SEIZE, self.pid, 0, _EXITKILL)
        self._attached = True
        self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        ptrace(_INTERRUPT, self.pid)
        self.stop()
        for point in self._points:
            self._arm(point)
        for switch in self._switches:
            self._add(switch, 1)
            self._undo.append(lambda at=switch: self._add(at, -1))  # type: ignore[misc]

    def stop(self) -> Point | None:
        """Wait until it stops, and return the function it has entered, if that is why.

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
            return None
        if number == signal.SIGTRAP:
            ptrace(_GETREGS, self.pid, 0, self._registers_at)
            point = self._after.get(self.registers[_RIP])
            if point is not None:
                ptrace(_POKEUSER, self.pid, 8 * _RIP, point.slot)
                self._next = (_CONT, 0)
                return point
        self._next = (_CONT, number)
        return None

    def resume(self) -> None:
        """Let it continue, with the signal it was about to receive."""
        assert self._next is not None
        request, number = self._next
        self._next = None
        with contextlib.suppress(ProcessLookupError):  # killed: the next wait tells
            ptrace(request, self.pid, 0, number)

    def interrupt(self) -> None:
        """Make :meth:`stop` return soon; also from a signal handler."""
        if self._attached:
            with contextlib.suppress(ProcessLookupError):
                ptrace(_INTERRUPT, self.pid)

    def detach(self) -> None:
        """Put the functions back and leave the process as it is, running or stopped."""
        if not self._attached:
            return
        with contextlib.suppress(GoneError, ProcessLookupError):
            if self._next is None:
                self.interrupt()
                self.stop()
            while self._undo:
                self._undo.pop()()
            assert self._next is not None
            ptrace(_DETACH, self.pid, 0, self._next[1])
        self._attached = False

    def word(self, address: int) -> int:
        """Eight bytes of its memory."""
        return int.from_bytes(os.pread(self._memory, 8, address), "little")

    def bytes_at(self, address: int, size: int) -> bytes:
        return os.pread(self._memory, size, address)

    def _arm(self, point: Point) -> None:
        if self.bytes_at(point.address, len(point.entry)) != point.entry:
            raise ValueError(f"the process has other code at {point.name} than its file")
        here = self.bytes_at(point.slot, len(point.moved))
        if here != point.moved:
            if any(here):
                raise ValueError(f"the process uses the place of the copy for {point.name}")
            self._poke(point.slot, point.moved)
        self._poke(point.address, bytes([_INT3]))
        self._undo.append(lambda: self._poke(point.address, point.entry[:1]))

    def _add(self, address: int, change: int) -> None:
        value = int.from_bytes(self.bytes_at(address, 4), "little")
        self._poke(address, ((value + change) & 0xFFFFFFFF).to_bytes(4, "little"))

    def _poke(self, address: int, data: bytes) -> None:
        """Write through ptrace, which also writes to code and is never forbidden to a tracer."""
        begin = address & ~7
        end = address + len(data) + 7 & ~7
        whole = bytearray(self.bytes_at(begin, end - begin))
        whole[address - begin : address - begin + len(data)] = data
        for at in range(0, len(whole), 8):
            word = int.from_bytes(whole[at : at + 8], "little")
            ptrace(_POKETEXT, self.pid, begin + at, word)


@dataclass
class _Lists:
    """What was counted at one stage."""

    lengths: Counter[int] = field(default_factory=Counter)
    cut: int = 0
    """Lists that are longer than the walk."""
    queues: Counter[int] = field(default_factory=Counter)
    """Packets by queue; -1: none recorded."""
    sublists: int = 0
    passed: int = 0
    splits: list[int] = field(default_factory=lambda: [0, 0])


class Counting:
    """Counts calls, as probes/receive_lists.bpf.c does; the comments there apply."""

    def __init__(self, tracee: Tracee, points: list[Point], told: dict[str, Any]) -> None:
        """``told``: ``interface``; ``session``; ``offsets`` of structure members, by name."""
        self._tracee = tracee
        self._interface = told["interface"].encode() + b"\0"
        self._session = told["session"]
        at = told["offsets"]
        self._next_at, self._list_at = at["list_head.next"], at["sk_buff.list"]
        self._dev_at, self._name_at = at["sk_buff.dev"], at["net_device.name"]
        self._index_at, self._queue_at = at["net_device.ifindex"], at["sk_buff.queue_mapping"]
        self._iif_at = at["sk_buff.skb_iif"]
        self._index = 0
        """Of the interface; known as soon as a packet came in on it."""
        self._lists = {point.stage: _Lists() for point in points if point.kind == "list"}
        self._names = {point.stage: point.name for point in points if point.kind == "list"}
        self._packets = {point.name: 0 for point in points if point.kind == "skb"}
        self._drops: Counter[tuple[int, int]] = Counter()
        self._marks: list[dict[str, Any]] = []
        self._hits = 0
        self._open = self._counted = self._split = self._orig_dev = 0
        self._kinds: dict[str, Callable[[Point, Any], None]] = {
            "list": self._list,
            "skb": self._skb,
            "drop": self._drop,
            "mark": self._mark,
        }

    def hit(self, point: Point) -> None:
        """The process is at the entry of this function."""
        self._hits += 1
        self._kinds[point.kind](point, self._tracee.registers)

    def counts(self) -> dict[str, Any]:
        """All counts since the beginning."""
        return {
            "monotonic_ns": time.monotonic_ns(),
            "lists": {self._names[stage]: vars(one) for stage, one in self._lists.items()},
            "packets": self._packets,
            "drops": [[*where, count] for where, count in self._drops.items()],
            "hits": self._hits,
        }

    def marks(self) -> list[dict[str, Any]]:
        """The counts at the first and the last call of a function of kind ``mark``."""
        return self._marks

    def _list(self, point: Point, registers: Any) -> None:
        word, next_at = self._tracee.word, self._next_at
        head = registers[_RDI]
        first = node = word(head + next_at)
        length, counts, whole = 0, self._lists[point.stage], None
        ours = first == head or self._came_in(first - self._list_at)
        if self._session and first != head:
            whole = self._enter(point, ours, registers[_RDX] if point.orig_dev else 0)
        if not ours and whole is None:
            return
        while node != head and length < _LONGEST_WALKED:
            length += 1
            node = word(node + next_at)
        if whole is not None:
            whole.passed += length
        if not ours:
            return
        if self._session and length:
            mapping = self._short(first - self._list_at + self._queue_at)
            counts.queues[mapping - 1] += length
        counts.cut += node != head
        counts.lengths[length] += 1

    def _enter(self, point: Point, ours: bool, orig_dev: int) -> _Lists | None:
        """A list enters a stage; returns the counts of the list that it is a part of."""
        stage, whole = point.stage, None
        if not stage:
            return None
        above = (1 << stage) - 1
        self._open &= above
        self._counted &= above
        self._split &= above
        parent = max(0, self._open.bit_length() - 1)
        if self._counted >> parent & 1:
            whole = self._lists[parent]
            whole.sublists += 1
            if self._split >> parent & 1:
                whole.splits[bool(orig_dev) and orig_dev != self._orig_dev] += 1
        self._split |= 1 << parent
        self._open |= 1 << stage
        if ours:
            self._counted |= 1 << stage
        if orig_dev:
            self._orig_dev = orig_dev
        return whole

    def _skb(self, point: Point, registers: Any) -> None:
        if self._came_in(registers[_RSI if point.argument else _RDI]):
            self._packets[point.name] += 1

    def _drop(self, _: Point, registers: Any) -> None:
        skb = registers[_RSI]
        index = int.from_bytes(self._tracee.bytes_at(skb + self._iif_at, 4), "little")
        if index and index == self._index:
            self._drops[registers[_RDX], registers[_RCX] & 0xFFFFFFFF] += 1

    def _mark(self, _: Point, __: Any) -> None:
        # As text, because the counts change.
        self._marks[1:] = [json.loads(json.dumps(self.counts()))]

    def _came_in(self, skb: int) -> bool:
        device = self._tracee.word(skb + self._dev_at)
        if not device:
            return False
        name = self._tracee.bytes_at(device + self._name_at, _NAME_BYTES)
        if not name.startswith(self._interface):
            return False
        if not self._index:
            at = self._tracee.bytes_at(device + self._index_at, 4)
            self._index = int.from_bytes(at, "little")
        return True

    def _short(self, address: int) -> int:
        return int.from_bytes(self._tracee.bytes_at(address, 2), "little")


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def _listen(requests: collections.deque[str]) -> None:
    """Wake the tracing thread for each line; the end of the input counts as one."""
    while True:
        line = sys.stdin.readline()
        requests.append(line.strip() or "end")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        if not line:
            return


def _follow(tracee: Tracee, counting: Counting, requests: collections.deque[str]) -> None:
    """Count until asked to end."""
    while True:
        while requests:
            if requests.popleft() == "end":
                return
            _say(**counting.counts())
        tracee.resume()
        point = tracee.stop()
        if point is not None:
            counting.hit(point)


def main() -> int:
    """Trace as the plan on standard input says; returns the exit code."""
    told = json.loads(sys.stdin.readline())
    points = [Point.of(point) for point in told["points"]]
    tracee = Tracee(told["pid"], points, told["switches"])
    counting = Counting(tracee, points, told)
    requests: collections.deque[str] = collections.deque()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, lambda *_: tracee.interrupt())
    try:
        try:
            tracee.attach()
            _say(attached=True)
            threading.Thread(target=_listen, args=[requests], daemon=True).start()
            _follow(tracee, counting, requests)
        finally:
            tracee.detach()
    except GoneError:
        _say(error="the process has ended")
        return 1
    except (OSError, ValueError) as error:
        _say(error=str(error))
        return 1
    _say(**counting.counts(), marks=counting.marks())
    return 0


if __name__ == "__main__":
    sys.exit(main())
