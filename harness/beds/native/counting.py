# SPDX-License-Identifier: MIT
"""Counts what a user-mode kernel receives; answers as the agent's probes do.

Hides how the probes get into the kernel's process and how their tables are read there.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.agent.protocol import Calls
from harness.agent.tracing import stages as probed
from harness.agent.tracing.stages import Stage
from harness.base import process
from harness.base.errors import ConfigurationError, InfrastructureError
from harness.beds.access.channel import Pending
from harness.beds.native import detours
from harness.beds.native.detours import Detours
from harness.beds.native.elf import Symbol
from harness.beds.native.uml import UserModeKernel

_PATCHER = Path(__file__).with_name("patcher.py")
_ANSWER_S = 30.0
_TABLES = (
    "list_stages_table", "skb_stages_table", "nestings_table", "drops_table", "drops_used",
    "marks", "marked",
)  # fmt: skip
_DROP = struct.Struct("<QQQ")
"""Location, reason, packets."""
_CPU = "0"
"""The only one of a user-mode kernel."""


class Patcher:
    """A running patcher.py."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._process = process.start(
            [sys.executable, "-I", "-S", str(_PATCHER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin:
            self._process.stdin.write(json.dumps(plan).encode() + b"\n")

    def answer(self) -> dict[str, Any]:
        """What it says next.

        Raises:
            InfrastructureError: it could not change anything, or does not answer.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], 2 * _ANSWER_S)[0]:
            raise InfrastructureError(f"no answer for {2 * _ANSWER_S:.0f} s while code is changed")
        said = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(said) if said else {"error": "the patcher has ended"}
        if why := answer.get("error"):
            raise InfrastructureError(
                f"the code of the kernel's process cannot be changed: {why}",
                hint="is a debugger attached to it? See ptrace(2) and kernel.yama.ptrace_scope",
            )
        return answer

    def close(self) -> None:
        """Wait for its end; it gives up if it has not changed the process yet."""
        self._process.terminate()
        # Killed, it would take the process along.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ANSWER_S)
        process.end(self._process)
        assert self._process.stdout is not None
        self._process.stdout.close()


class OutsideProbes:
    """The probes of a user-mode kernel: named like the agent's calls, with the same answers."""

    def __init__(self, kernel: UserModeKernel, program: Path) -> None:
        self._kernel, self._program = kernel, program
        self._found: dict[bool, Detours] = {}
        self._attached: Detours | None = None

    def trace_attach(self, *, interface: str) -> dict[str, Any]:
        """Lead the kernel's functions to the probes of a trial; nothing is counted yet."""
        made = self._attach(interface, session=False)
        return {"stages": [stage.shown() for stage in made.stages]}

    def begin(self, interface: str, duration_s: float, within_s: float) -> Pending[dict[str, Any]]:
        """Count within a window of the agent: between its first reading and its last."""
        made, was_attached = self._attached, self._attached is not None
        if made is None:
            made = self._attach(interface, session=False)
        self._clear(made)
        self._count(made, interface)
        window = self._kernel.begin(
            Calls.window, within_s, interface=interface, duration_s=duration_s
        )

        def result() -> dict[str, Any]:
            told = window.result()
            if int.from_bytes(self._table(made, "marked"), "little") < 2:
                raise InfrastructureError("the probes did not see the readings of the window")
            marks = self._table(made, "marks")
            if not was_attached:
                self.trace_detach()
            start_ns, end_ns = (told[edge]["monotonic_ns"] for edge in ("start", "end"))
            return {
                "duration_s": (end_ns - start_ns) / 1e9,
                **counts(made.stages, marks[len(marks) // 2 :], marks[: len(marks) // 2]),
                "missed": 0,
                **told,
            }

        return Pending(window.arrived, result)

    def trace_watch(self, *, interface: str) -> dict[str, Any]:
        """Count what arrives on ``interface`` from now on, until :meth:`trace_detach`."""
        made = self._attach(interface, session=True)
        self._clear(made)
        self._count(made, interface)
        return {"stages": [stage.shown() for stage in (*made.stages, made.dropped)]}

    def trace_read(self) -> dict[str, Any]:
        """All counts since :meth:`trace_watch`, including splits and drops."""
        made = self._attached
        if made is None:
            raise ConfigurationError("nothing is watched")
        tables = [self._table(made, name) for name in ("list_stages_table", "skb_stages_table")]
        return {
            "monotonic_ns": time.monotonic_ns(),
            **counts(made.stages, b"".join(tables)),
            "drops": self._drops(made) if made.dropped.attach else None,
            "missed": 0,
        }

    def trace_detach(self) -> dict[str, Any]:
        """Put the kernel's functions back. Idempotent."""
        if self._attached is not None:
            plan = self._attached.plan
            self._attached = None
            back = {
                "memory": None,
                "contents": [],
                "patches": [[at, new, old] for at, old, new in plan["patches"]],
                "switches": [[at, -change] for at, change in plan["switches"]],
            }
            self._change(plan | back, trigger=None)
        return {}

    def _attach(self, interface: str, *, session: bool) -> Detours:
        self.trace_detach()
        if session not in self._found:
            self._found[session] = detours.of_kernel(self._program, session=session)
        made = self._found[session]
        self._change(made.plan, trigger=made.trigger, call=interface)
        self._attached = made
        return made

    def _change(self, plan: dict[str, Any], *, trigger: int | None, call: str = "") -> None:
        self._kernel.check()
        told = plan | {"pid": self._kernel.pid_here, "trigger": trigger, "within_s": _ANSWER_S}
        patcher = Patcher(told)
        try:
            if trigger is not None:
                patcher.answer()
                self._kernel.counters(interface=call)  # the agent reads /proc/net/snmp
            patcher.answer()
        except InfrastructureError:
            self._kernel.check()
            raise
        finally:
            patcher.close()

    def _clear(self, made: Detours) -> None:
        for name in _TABLES:
            if name in made.program.symbols:
                self._write(made.program.symbols[name], bytes(made.program.symbols[name].size))

    def _count(self, made: Detours, interface: str) -> None:
        index: int = self._kernel.inventory(interface=interface)["index"]
        self._write(made.program.symbols["wanted_table"], struct.pack("<I", index))

    def _drops(self, made: Detours) -> list[dict[str, Any]]:
        used = int.from_bytes(self._table(made, "drops_used"), "little")
        packets: Counter[tuple[int, int]] = Counter()
        for location, reason, count in [*_DROP.iter_unpack(self._table(made, "drops_table"))][
            :used
        ]:
            packets[location, reason] += count
        return [
            {
                "function": made.kernel.function_at(location),
                "reason": made.reasons.get(reason, str(reason)),
                "packets": count,
            }
            for (location, reason), count in packets.items()
        ]

    def _table(self, made: Detours, name: str) -> bytes:
        place = made.program.symbols[name]
        with self._memory(os.O_RDONLY) as memory:
            return os.pread(memory, place.size, place.address)

    def _write(self, place: Symbol, data: bytes) -> None:
        with self._memory(os.O_WRONLY) as memory:
            os.pwrite(memory, data, place.address)

    @contextlib.contextmanager
    def _memory(self, mode: int) -> Iterator[int]:
        """The memory of the kernel's process, opened."""
        self._kernel.check()  # its pid may belong to another process otherwise
        try:
            memory = os.open(f"/proc/{self._kernel.pid_here}/mem", mode | os.O_CLOEXEC)
            try:
                yield memory
            finally:
                os.close(memory)
        except OSError as error:
            self._kernel.check()
            raise InfrastructureError(
                f"the memory of the kernel's process cannot be used: {error.strerror}"
            ) from error


def counts(stages: Sequence[Stage], now: bytes, since: bytes | None = None) -> dict[str, Any]:
    """What was counted, in the form of the agent.

    ``now`` holds the tables list_stages and skb_stages of the probe, ``since`` what they held
    before.
    """
    words = memoryview(now).cast("Q").tolist()
    before = [0] * len(words) if since is None else memoryview(since).cast("Q").tolist()
    counted = [after - earlier for earlier, after in zip(before, words, strict=True)]
    longest, queues, lists, skbs = detours.layout()
    each = (len(words) - skbs) // lists
    shown = []
    for stage in stages:
        if stage.handler != "count_list" or stage.attach is None:
            continue
        at = stage.index * each
        shown.append(stage.shown() | _stage(counted[at : at + each], longest, queues))
        if shown[-1]["overflow"]:
            shown[-1]["max"] = words[at + 4]
    entered = {one["name"]: one["packets"] for one in shown}
    singly = {
        stage.name: counted[lists * each + stage.index]
        for stage in stages
        if stage.handler == "count_skb" and stage.attach is not None
    }
    return {
        "stages": shown,
        "per_skb": {
            **singly,
            "ip_list_rcv_packets": entered.get("ip_list_rcv", 0),
            probed.TRUTH: counted[lists * each + skbs - 1],
        },
    }


def _stage(counted: list[int], longest: int, queues: int) -> dict[str, Any]:
    """One struct stage_counts of the probe."""
    calls, packets, cut, _, _, *rest = counted
    lengths, session = rest[: longest + 2], rest[longest + 2 :]
    seen = [length for length, lists in enumerate(lengths) if lists]
    found: dict[str, Any] = {
        "calls": calls,
        "packets": packets,
        "by_cpu": {_CPU: packets} if calls else {},
        "lengths": lengths[:-1],
        "overflow": lengths[-1],
        "cut": cut,
        "min": min(seen, default=None),
        "max": max(seen, default=None),
    }
    if session:
        sublists, passed, same, other, *by_queue = session
        found |= {
            "by_queue": {str(n): one for n, one in enumerate(by_queue[:queues]) if one}
            | ({"other": by_queue[queues]} if by_queue[queues] else {}),
            "sublists": sublists,
            "passed": passed,
            "splits": [same, other],
        }
    return found
