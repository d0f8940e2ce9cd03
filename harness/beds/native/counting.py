# SPDX-License-Identifier: MIT
"""Counts what a user-mode kernel receives, from outside; answers as the agent's probes do.

Hides the program that does it (:mod:`harness.beds.native.tracer`) and how its counts are those
between two readings of the kernel's counters.
"""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.agent.protocol import Calls
from harness.agent.tracing import stages
from harness.base import process
from harness.base.errors import ConfigurationError, InfrastructureError
from harness.beds.access.channel import Pending
from harness.beds.native import breakpoints
from harness.beds.native.breakpoints import Breakpoints
from harness.beds.native.uml import UserModeKernel

_TRACER = Path(__file__).with_name("tracer.py")
_ANSWER_S = 30.0
_LONGEST_COUNTED = 64
_QUEUES = 32
_CPU = "0"
"""The only one of a user-mode kernel."""


class Tracer:
    """A running tracer; it ends, and puts the kernel's functions back, with :meth:`end`."""

    def __init__(self, plan: dict[str, Any], cpu: int) -> None:
        """Start counting as ``plan`` says.

        ``cpu`` is the kernel's own: one of the two always waits for the other.

        Raises:
            InfrastructureError: the process may not be traced, or has ended.
        """
        self._process = process.start(
            ["taskset", "-c", str(cpu), sys.executable, "-I", "-S", str(_TRACER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        try:
            self._ask(json.dumps(plan))
        except BaseException:
            self.end()
            raise

    def read(self) -> dict[str, Any]:
        """All counts since the beginning; see Counting in tracer.py."""
        return self._ask("read")

    def end(self) -> dict[str, Any] | None:
        """Detach; returns the last counts, or None if the process has ended."""
        if self._process.returncode is not None:
            return None
        try:
            return self._ask("end")
        except InfrastructureError:
            return None
        finally:
            for stream in (self._process.stdin, self._process.stdout):
                assert stream is not None
                with contextlib.suppress(OSError):
                    stream.close()
            # Its input has ended, so it detaches by itself; killed, it would take the kernel along.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_ANSWER_S)
            process.end(self._process)

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except OSError as error:
            raise InfrastructureError("the tracer has ended") from error
        if not select.select([self._process.stdout], [], [], _ANSWER_S)[0]:
            raise InfrastructureError(f"the tracer does not answer for {_ANSWER_S:.0f} s")
        said = bytearray()
        while not said.endswith(b"\n"):
            chunk = self._process.stdout.read(1 << 20)
            if not chunk:
                raise InfrastructureError("the tracer has ended")
            said += chunk
        answer: dict[str, Any] = json.loads(said)
        if why := answer.get("error"):
            raise InfrastructureError(
                f"the kernel's process cannot be traced: {why}",
                hint="is a debugger attached to it? See ptrace(2) and kernel.yama.ptrace_scope",
            )
        return answer


class OutsideProbes:
    """The probes of a user-mode kernel: named like the agent's calls, with the same answers."""

    def __init__(self, kernel: UserModeKernel, program: Path, *, cpu: int) -> None:
        self._kernel, self._program, self._cpu = kernel, program, cpu
        self._tracer: Tracer | None = None

    @cached_property
    def _places(self) -> Breakpoints:
        return breakpoints.of_kernel(self._program)

    def trace_attach(self, *, interface: str) -> dict[str, Any]:  # noqa: ARG002
        """Prepare a trial. Breakpoints are set only within it: they cost time wherever they are."""
        return {"stages": [stage.shown() for stage in self._places.shown(session=False)]}

    def begin(self, interface: str, duration_s: float, within_s: float) -> Pending[dict[str, Any]]:
        """Count within a window of the agent: between its first reading and its last."""
        tracer = self._start(interface, session=False)
        try:
            window = self._kernel.begin(
                Calls.window, within_s, interface=interface, duration_s=duration_s
            )
        except BaseException:
            self.trace_detach()
            raise

        def result() -> dict[str, Any]:
            try:
                told = window.result()
                marks = (tracer.end() or {}).get("marks", ())
            finally:
                self.trace_detach()
            if len(marks) < 2:
                self._kernel.check()
                raise InfrastructureError("the tracer did not see the readings of the window")
            first, last = marks
            return {
                "duration_s": (last["monotonic_ns"] - first["monotonic_ns"]) / 1e9,
                **self._counts(last, first, session=False),
                "missed": 0,
                **told,
            }

        return Pending(window.arrived, result)

    def trace_watch(self, *, interface: str) -> dict[str, Any]:
        """Count what arrives on ``interface`` from now on, until :meth:`trace_detach`."""
        self._kernel.inventory(interface=interface)  # it must exist
        self._start(interface, session=True)
        return {"stages": [stage.shown() for stage in self._places.shown(session=True)]}

    def trace_read(self) -> dict[str, Any]:
        """All counts since :meth:`trace_watch`, including splits and drops."""
        if self._tracer is None:
            raise ConfigurationError("nothing is watched")
        try:
            now = self._tracer.read()
        except InfrastructureError:
            self._kernel.check()
            raise
        return {
            "monotonic_ns": now["monotonic_ns"],
            **self._counts(now, None, session=True),
            "drops": [
                {
                    "function": self._places.elf.function_at(location),
                    "reason": self._places.reasons.get(reason, str(reason)),
                    "packets": packets,
                }
                for location, reason, packets in now["drops"]
            ],
            "missed": 0,
        }

    def trace_detach(self) -> dict[str, Any]:
        """Idempotent."""
        if self._tracer is not None:
            self._tracer.end()
            self._tracer = None
        return {}

    def _start(self, interface: str, *, session: bool) -> Tracer:
        self.trace_detach()
        self._kernel.check()
        plan = self._places.plan(self._kernel.pid_here, interface, session=session)
        try:
            self._tracer = Tracer(plan, self._cpu)
        except InfrastructureError:
            self._kernel.check()
            raise
        return self._tracer

    def _counts(
        self, now: dict[str, Any], since: dict[str, Any] | None, *, session: bool
    ) -> dict[str, Any]:
        """What was counted from ``since`` until ``now``, as a trace of the agent reports it."""
        known = {stage.name: stage for stage in self._places.stages}
        shown = [
            known[name].shown() | _stage(lists, since and since["lists"][name], session=session)
            for name, lists in now["lists"].items()
        ]
        packets = {
            name: count - (since["packets"][name] if since else 0)
            for name, count in now["packets"].items()
        }
        entered = {stage["name"]: stage["packets"] for stage in shown}
        return {
            "stages": shown,
            "per_skb": {
                stages.TRUTH: packets.pop(self._places.truth.name),
                "ip_list_rcv_packets": entered.get("ip_list_rcv", 0),
                **packets,
            },
        }


def _stage(now: dict[str, Any], since: dict[str, Any] | None, *, session: bool) -> dict[str, Any]:
    """The counts of one stage, in the agent's form."""
    before = since["lengths"] if since else {}
    by_length = {int(n): lists - before.get(n, 0) for n, lists in now["lengths"].items()}
    lengths = [by_length.get(n, 0) for n in range(_LONGEST_COUNTED + 1)]
    seen = [length for length, lists in by_length.items() if lists]
    packets = sum(length * lists for length, lists in by_length.items())
    found = {
        "calls": sum(by_length.values()),
        "packets": packets,
        "by_cpu": {_CPU: packets} if seen else {},
        "lengths": lengths,
        "overflow": sum(by_length.values()) - sum(lengths),
        "cut": now["cut"] - (since["cut"] if since else 0),
        "min": min(seen, default=None),
        "max": max(seen, default=None),
    }
    if not session:
        return found
    queues = {int(queue): count for queue, count in now["queues"].items()}
    inside = {str(n): count for n, count in sorted(queues.items()) if 0 <= n < _QUEUES}
    other = sum(queues.values()) - sum(inside.values())
    return found | {
        "by_queue": inside | ({"other": other} if other else {}),
        "sublists": now["sublists"],
        "passed": now["passed"],
        "splits": now["splits"],
    }
