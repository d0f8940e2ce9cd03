# SPDX-License-Identifier: MIT
"""Counts of a CPU's PMU over a window, by ``perf stat``: of all that runs there, or of one process.

perf is started before the window with its events off, and told to enable and disable them
when the window takes its packet counters. An event that could not be counted is ``absent``
with the reason, never 0.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.agent import cpus, packages, programs

EVENTS = ("cycles", "instructions", "L1-icache-load-misses")

_START_S = 10.0
_END_S = 5.0
_ENV = {"LC_ALL": "C"}
# Tried after a perf in $PATH, which may be a wrapper that wants the running kernel's own perf.
_KEPT = ("/usr/lib/linux-tools/*/perf", "/usr/lib/linux-tools-*/perf")
# The time in which events were on may differ from the window's length by this share.
_TOLERANCE = 0.1
_PMUS = Path("/sys/bus/event_source/devices")
# The kernel's names of core PMUs: cpu, cpu_core, cpum_cf; armv8_pmuv3_0; riscv-pmu.
_COUNTS = re.compile(r"cpu|arm|riscv")
_EVENT = re.compile(r"(?:\w+/)?(?P<name>[^/:]+)/?(?::(?P<modifier>\w+))?")


class Pmu:
    """The PMU counters of this host; looks once for a perf that works."""

    def __init__(self) -> None:
        self._program: str | None = None
        self._why: str | None = None

    @contextlib.contextmanager
    def over(self, cpu: int, pid: int | None = None) -> Iterator[Watch]:
        """perf on ``cpu``, ready with its events off; it is killed when the context ends.

        With ``pid`` it counts what that process executes itself, there or elsewhere. Its user
        may do that without any right.
        """
        if self._program is None and self._why is None:
            self._look()
        watch = Watch(cpu, pid)
        try:
            if self._program is None:
                watch.why = self._why
            else:
                self._why = watch.start(self._program)
                if self._why:
                    # perf would refuse the same before every window.
                    self._program = None
            yield watch
        finally:
            watch.end()

    def _look(self) -> None:
        if not any(_COUNTS.match(path.name) for path in _PMUS.glob("*")):
            self._why = "the dut's CPU has no counters (no PMU)"
            return
        self._program = _program()
        self._why = None if self._program else f"perf is not on the dut: {packages.install('perf')}"


class Watch:
    """One window on one CPU, or on one process."""

    def __init__(self, cpu: int, pid: int | None = None) -> None:
        self._cpu, self._pid = cpu, pid
        self._process: subprocess.Popen[bytes] | None = None
        self._open = contextlib.ExitStack()
        self._complaint = os.memfd_create("complaint")
        self._open.callback(os.close, self._complaint)
        self._control = self._acks = self._log = -1
        self._opened_s = self._lasted_s = 0.0
        self.why: str | None = None

    def start(self, program: str) -> str | None:
        """Start perf; returns why it does not run, or None once it is ready."""
        control, self._control = os.pipe()
        self._acks, acks = os.pipe()
        self._log, log = os.pipe()
        for file in (self._control, self._acks, self._log):
            self._open.callback(os.close, file)
        mode = "" if self._pid is None else ":u"
        command = [program, "stat", "-x", ",", "-e", ",".join(event + mode for event in EVENTS)]
        # Without its children: those of a user-mode kernel are the processes of its user space.
        command += ["-C", str(self._cpu)] if self._pid is None else ["-p", str(self._pid), "-i"]
        command += ["-D", "-1", "--control", f"fd:{control},{acks}", "--log-fd", str(log)]
        try:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._complaint,
                env=os.environ | _ENV,
                pass_fds=(control, acks, log),
            )
        except OSError as error:
            self.why = f"{program} cannot be started: {error.strerror}"
        finally:
            for file in (control, acks, log):
                os.close(file)
        if self._process is not None:
            _kept_apart(self._process.pid, self._cpu)
            self._say("disable")
            self.why = self._acknowledged(_START_S)
        return self.why

    def open(self) -> None:
        """The window begins."""
        self._opened_s = time.monotonic()
        self._say("enable")

    def close(self) -> None:
        """The window is over."""
        self._say("disable")
        self._lasted_s = time.monotonic() - self._opened_s

    def read(self) -> dict[str, Any]:
        """``counts`` by event, as :func:`parse` returns them, and why the others are ``absent``."""
        counts: dict[str, dict[str, float]] = {}
        absent: dict[str, str] = {}
        if self.why is None:
            self.why = self._acknowledged(_END_S) or self._acknowledged(_END_S)
        if self.why is None:
            assert self._process is not None
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
            said = b""
            while select.select([self._log], [], [], 0)[0] and (
                more := os.read(self._log, 1 << 16)
            ):
                said += more
            counts, absent = parse(
                said.decode(errors="replace"),
                window_s=self._lasted_s if self._pid is None else None,
                mode="" if self._pid is None else "u",
            )
        for event in EVENTS:
            if event not in counts:
                absent.setdefault(event, self.why or "perf did not report it")
        return {"cpu": self._cpu, "counts": counts, "absent": absent}

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self._open.close()

    def _say(self, word: str) -> None:
        if self._process is not None and self.why is None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._control, f"{word}\n".encode())

    def _acknowledged(self, within_s: float) -> str | None:
        """Wait for perf's answer to the last command; returns why there is none, or None."""
        if select.select([self._acks], [], [], within_s)[0] and os.read(self._acks, 5):
            return None
        said = os.pread(self._complaint, 1 << 16, 0).decode(errors="replace")
        return f"perf stat: {_gist(said)}" if said.strip() else "perf stat does not answer"


def parse(
    text: str, *, window_s: float | None = None, mode: str = ""
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Counts and reasons for absence from the lines of ``perf stat -x,``, by :data:`EVENTS`.

    A ``count`` is over the ``on_s`` seconds in which the event was on; perf has scaled it if
    the event had a counter only for a share of them (``running``). Several lines of one event
    are from different core types (hybrid CPUs), each with its own PMU. With ``window_s``, events
    that were not on for about that long are absent. So are those counted in another ``mode``.
    """
    counts: dict[str, dict[str, float]] = {}
    absent: dict[str, str] = {}
    for line in text.splitlines():
        words = line.split(",")
        event = _EVENT.fullmatch(words[2]) if len(words) >= 5 else None
        if event is None or event["name"] not in EVENTS:
            continue
        name = event["name"]
        if words[0].startswith("<"):
            absent.setdefault(name, f"{words[0].strip('<>')} by the CPU's PMU")
            continue
        if (event["modifier"] or "") != mode:
            absent[name] = f"counted only as {words[2]}"
            continue
        try:
            count, ran_s, running = float(words[0]), float(words[3]) / 1e9, float(words[4]) / 100
        except ValueError:
            absent[name] = f"perf said {line[:80]!r}"
            continue
        on_s = ran_s / running if running else 0.0
        if window_s and abs(on_s - window_s) > _TOLERANCE * window_s:
            absent[name] = f"counted over {on_s:.2f} s of {window_s:.2f} s"
            continue
        one = counts.setdefault(name, {"count": 0.0, "on_s": on_s, "running": 1.0})
        one["count"] += count
        one["running"] = min(one["running"], running)
    return counts, {name: why for name, why in absent.items() if name not in counts}


def _kept_apart(pid: int, cpu: int) -> None:
    """Put perf on neither the CPU it measures nor the agent's CPU, if there is another."""
    away = set(cpus.apart_from(cpu))
    own = os.sched_getaffinity(0)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(pid, away - own if len(own) == 1 and away - own else away or own)
        # A SCHED_BATCH process does not preempt others when it wakes.
        os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))


def _program() -> str | None:
    named = programs.found("perf")
    others = [str(path) for pattern in _KEPT for path in Path("/").glob(pattern[1:])]
    others.sort(
        key=lambda path: ([int(part[:9]) for part in re.findall(r"\d+", path)], path), reverse=True
    )
    for program in [*([named] if named else []), *others]:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                [program, "version"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_START_S,
                check=False,
            )
            if done.returncode == 0:
                return program
    return None


def _gist(said: str) -> str:
    """The first meaningful line of perf's error message."""
    lines = [line.strip() for line in said.splitlines()]
    return next(line for line in lines if line not in ("", "Error:", "Events disabled"))[:200]
