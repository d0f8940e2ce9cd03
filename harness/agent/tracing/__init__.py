# SPDX-License-Identifier: MIT
"""Lengths of packet lists, counted in the kernel by the bcc program in probes/.

Hides how a stage is found in the running kernel and attached (by fentry, or by a kprobe if
that fails), and how lost events are counted. A stage that the kernel does not have is reported
with the reason; nothing is guessed from the kernel's version.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.agent.counters import Counters, Sleep
from harness.agent.cpus import possible
from harness.agent.faults import AgentError
from harness.agent.inventory import existing

from .btf import VMLINUX
from .compiler import bcc, compiled, probe_source, takes_loops
from .stages import DROP, SOURCE, TRACEPOINT, TRUTH, Stage, of_program

_TRACEFS = Path("/sys/kernel/tracing")
_SAMPLE_S = 0.2


class Tracer:
    """The probes of one agent: compiled once, attached only on request."""

    def __init__(self) -> None:
        self._program: _Program | None = None
        self._lost = 0

    def can(self, *, program_dir: str | None = None) -> dict[str, Any]:
        """Compile, attach and detach all probes, and report the result.

        Call it before there is load: the compiler needs seconds of CPU time.
        """
        times_s: dict[str, float] = {}
        try:
            with _timed(times_s, "compile"):
                program = self._compiled(program_dir)
            was_attached = program.attached
            with _timed(times_s, "attach"):
                program.attach()
            if not was_attached:
                with _timed(times_s, "detach"):
                    program.detach()
        except AgentError as error:
            return {"ok": False, "stages": [], "why": str(error), "hint": error.hint}
        return {
            "ok": program.truth.attach is not None,
            "stages": [stage.shown() for stage in program.stages],
            "why": program.truth.why,
            "hint": None,
            "times_s": times_s,
        }

    def attach(
        self, *, interface: str | None = None, program_dir: str | None = None
    ) -> dict[str, Any]:
        """Attach the probes without counting, until :meth:`detach` or the agent's end.

        The probes serve every interface; ``interface`` only has to exist.
        """
        if interface is not None:
            existing(interface)
        program = self._compiled(program_dir)
        program.attach()
        return {"stages": [stage.shown() for stage in program.stages]}

    def detach(self) -> dict[str, Any]:
        if self._program is not None:
            self._program.detach()
        return {}

    def trace(
        self,
        *,
        interface: str,
        duration_s: float,
        counters: Counters,
        sleep: Sleep,
        program_dir: str | None = None,
    ) -> dict[str, Any]:
        """Count only what arrives on ``interface`` within ``duration_s``.

        Raises:
            AgentError: the program cannot be compiled or attached on this host.
        """
        index = socket.if_nametoindex(existing(interface))
        program = self._compiled(program_dir)
        was_attached = program.attached
        program.attach()
        try:
            edges: list[int] = []

            def gate(ifindex: int) -> None:
                program.count(ifindex)
                edges.append(time.monotonic_ns())

            program.clear()
            lost = program.lost()
            try:
                window = counters.window(
                    duration_s=duration_s,
                    sample_s=_SAMPLE_S,
                    sleep=sleep,
                    opened=lambda: gate(index),
                    closed=lambda: gate(0),
                )
            finally:
                program.count(0)
            return {
                "duration_s": (edges[1] - edges[0]) / 1e9,
                **program.counts(),
                "missed": program.lost() - lost,
                **window,
            }
        finally:
            if not was_attached:
                program.detach()

    def watch(self, *, interface: str, program_dir: str | None = None) -> dict[str, Any]:
        """Count what arrives on ``interface`` from now on, until :meth:`detach`."""
        index = socket.if_nametoindex(existing(interface))
        program = self._compiled(program_dir, session=True)
        program.attach()
        program.count(0)
        program.clear()
        self._lost = program.lost()
        program.count(index)
        return {"stages": [stage.shown() for stage in (*program.stages, program.dropped)]}

    def read(self) -> dict[str, Any]:
        """All counts since :meth:`watch`, including splits and drops; counting continues."""
        if self._program is None or not self._program.attached:
            raise AgentError("nothing is watched", kind="configuration")
        return {
            "monotonic_ns": time.monotonic_ns(),
            **self._program.counts(),
            "drops": self._program.drops(),
            "missed": self._program.lost() - self._lost,
        }

    def close(self) -> None:
        """Detach and free everything."""
        if self._program is not None:
            self._program.detach()
            self._program = None

    def _compiled(self, program_dir: str | None, *, session: bool = False) -> _Program:
        source = probe_source(SOURCE, program_dir)
        kept = self._program
        if kept is None or (kept.source, kept.session) != (source, session):
            self.close()
            self._program = kept = _Program(source, program_dir, session=session)
        return kept


class _Program:
    """The compiled program and its attachments."""

    def __init__(self, source: str, program_dir: str | None, *, session: bool) -> None:
        if os.geteuid() != 0:
            raise AgentError("tracing needs root on this host", kind="configuration")
        self.source = source
        self.session = session
        self.attached = False
        self.truth = Stage(TRACEPOINT, "count_skb", 1, function=f"net:{TRACEPOINT}")
        self.stages = of_program(source, _probeable(), session=session)
        self.dropped = Stage(f"skb:{DROP}", "count_drop", 0)
        self._flags = ["-DSESSION"] if session else []
        self._program_dir = program_dir
        self._detachers: list[Callable[[], None]] = []
        self._group = f"receive_lists_{os.getpid()}"
        _sweep()
        self._with_kprobes = False
        if VMLINUX.exists():
            self._bpf = compiled(source, self._flags, program_dir=program_dir)
        else:  # without BTF fentry cannot work, so it is not compiled
            self._flags.append("-DNO_FENTRY")
            self._compile_kprobes()

    def attach(self) -> None:
        """Attach every stage that can be; the others say why not."""
        if self.attached:
            return
        self.attached = True
        self.count(0)
        if self._with_kprobes or not all(map(self._attach_fentry, self._present())):
            # Compiled only now, because most kernels do not need the kprobes.
            self._compile_kprobes()
            for stage in self._present():
                if not self._attach_fentry(stage):
                    self._attach_kprobe(stage)
        self._attach_tracepoint(self.truth, TRACEPOINT)
        if self.session:
            self._reasons = _drop_reasons()
            if self._reasons:
                self._attach_tracepoint(self.dropped, DROP)
            else:
                self.dropped.why = "this kernel does not report drop reasons"

    def detach(self) -> None:
        """Idempotent; the compiled program is kept."""
        self.attached = False
        self._detach_all()

    def count(self, ifindex: int) -> None:
        """Count the packets of this interface from now on; 0: none."""
        self._bpf[b"wanted"][ctypes.c_int(0)] = ctypes.c_uint(ifindex)

    def clear(self) -> None:
        """Reset all counts to 0."""
        for name in (b"list_stages", b"skb_stages", *([b"nestings"] * self.session)):
            table = self._bpf[name]
            for key in range(len(table)):
                table.clearitem(key)
        if self.session:
            self._bpf[b"drops"].clear()

    def counts(self) -> dict[str, Any]:
        """The counts, summed over all CPUs, as a trace reports them."""
        stages = []
        packets = {}
        for stage in self.stages:
            if stage.handler != "count_list" or stage.attach is None:
                continue
            stages.append(stage.shown() | _added(self._bpf[b"list_stages"][stage.index]))
            packets[stage.name] = stages[-1]["packets"]
        per_skb = {
            stage.name: sum(self._bpf[b"skb_stages"][stage.index])
            for stage in self.stages
            if stage.handler == "count_skb" and stage.attach is not None
        }
        return {
            "stages": stages,
            "per_skb": {
                **per_skb,
                "ip_list_rcv_packets": packets.get("ip_list_rcv", 0),
                TRUTH: sum(self._bpf[b"skb_stages"][self.truth.index]),
            },
        }

    def drops(self) -> list[dict[str, Any]] | None:
        """Dropped packets by function and reason; None if they are not counted."""
        if self.dropped.attach is None:
            return None
        return [
            {
                "function": self._bpf.ksym(drop.location).decode(),
                "reason": self._reasons.get(drop.reason, str(drop.reason)),
                "packets": sum(per_cpu),
            }
            for drop, per_cpu in self._bpf[b"drops"].items()
        ]

    def lost(self) -> int:
        """Events for which the kernel did not run the program, since it was loaded."""
        lost = 0
        for function in self._bpf.funcs.values():
            text = Path(f"/proc/self/fdinfo/{function.fd}").read_text()
            found = re.search(r"^recursion_misses:\s*(\d+)", text, re.MULTILINE)
            lost += int(found[1]) if found else 0
        with contextlib.suppress(OSError):
            for line in (_TRACEFS / "kprobe_profile").read_text(errors="replace").splitlines():
                name, _hits, misses = line.split()[:3]
                lost += int(misses) if name.startswith(f"{self._group}_") else 0
        return lost

    def _present(self) -> list[Stage]:
        return [stage for stage in self.stages if stage.function is not None]

    def _attach_fentry(self, stage: Stage) -> bool:
        if stage.attach == "kprobe":
            return False
        if stage.function != stage.name:
            stage.why = "a compiler's copy of a function has no BTF type for fentry"
            return False
        name = _fentry_programs(self._bpf).get(stage.name)
        if name is None:
            stage.why = "the kernel has no BTF types for fentry"
            return False
        try:
            self._bpf.attach_kfunc(fn_name=name)
        except Exception as error:  # noqa: BLE001 - bcc raises nothing narrower
            stage.why = str(error)
            return False
        self._detachers.append(lambda: self._bpf.detach_kfunc(fn_name=name))
        stage.attach, stage.why = "fentry", None
        return True

    def _attach_tracepoint(self, stage: Stage, name: str) -> None:
        tracepoint = name.encode()
        try:
            self._bpf.attach_raw_tracepoint(tp=tracepoint, fn_name=b"tracepoint_" + tracepoint)
        except Exception as error:  # noqa: BLE001 - bcc raises nothing narrower
            stage.attach, stage.why = None, str(error)
        else:
            stage.attach, stage.why = "tracepoint", None
            self._detachers.append(lambda: self._bpf.detach_raw_tracepoint(tp=tracepoint))

    def _attach_kprobe(self, stage: Stage) -> None:
        """Through tracefs, the only place where kernels of any age count missed kprobes."""
        events = _TRACEFS / "kprobe_events"
        # The event's name repeats the group, because kprobe_profile shows only the name.
        event = f"{self._group}/{self._group}_{stage.name}"
        handler = f"kprobed_{stage.name}".encode()
        tracepoint = event.replace("/", ":").encode()
        try:
            _append(events, f"p:{event} {stage.function}")
            try:
                self._bpf.load_func(handler, bcc().BPF.KPROBE)
                self._bpf.attach_tracepoint(tp=tracepoint, fn_name=handler)
            except BaseException:
                _append(events, f"-:{event}")
                raise
        except Exception as error:  # noqa: BLE001 - bcc raises nothing narrower
            stage.attach, stage.why = None, f"fentry: {stage.why}; kprobe: {error}"
            return

        def detach() -> None:
            self._bpf.detach_tracepoint(tp=tracepoint)
            _append(events, f"-:{event}")

        self._detachers.append(detach)
        stage.attach, stage.why = "kprobe", None

    def _compile_kprobes(self) -> None:
        """Compile the program once more with a kprobe handler for each stage."""
        if self._with_kprobes:
            return
        self._with_kprobes = True
        self._detach_all()
        flags = [*self._flags, "-DKPROBES", *([] if takes_loops() else ["-DUNROLLED"])]
        self._bpf = compiled(self.source, flags, program_dir=self._program_dir)

    def _detach_all(self) -> None:
        while self._detachers:
            self._detachers.pop()()


def _fentry_programs(bpf: Any) -> dict[str, bytes]:
    """By function; versions of bcc differ in the names that KFUNC_PROBE generates."""
    lib = bcc().lib
    names = [lib.bpf_function_name(bpf.module, i) for i in range(lib.bpf_num_functions(bpf.module))]
    found = (re.fullmatch(rb"kfunc__(?:vmlinux__)?(\w+)", name) for name in names)
    return {match[1].decode(): match[0] for match in found if match}


def _probeable() -> list[str]:
    """Functions that can be traced; from kallsyms if the kernel has no function tracer."""
    for path, column in ((_TRACEFS / "available_filter_functions", 0), (Path("/proc/kallsyms"), 2)):
        with contextlib.suppress(OSError):
            lines = path.read_text(encoding="ascii", errors="replace").splitlines()
            return [line.split()[column] for line in lines if "_r" in line]
    raise AgentError(
        "neither tracefs nor kallsyms can be read", hint="mount tracefs at /sys/kernel/tracing"
    )


def _drop_reasons() -> dict[int, str]:
    """Names of skb:kfree_skb's drop reasons, by number; empty before Linux 5.17."""
    with contextlib.suppress(OSError):
        shape = (_TRACEFS / "events" / "skb" / DROP / "format").read_text(errors="replace")
        return {int(n): name for n, name in re.findall(r'\{ (\d+), "(\w+)" \}', shape)}
    return {}


def _added(per_cpu: Any) -> dict[str, Any]:
    """The struct stage_counts of all CPUs, summed."""
    lengths = [sum(column) for column in zip(*(cpu.lengths for cpu in per_cpu))]
    called = [cpu for cpu in per_cpu if cpu.calls]
    session = {}
    if hasattr(per_cpu[0], "queues"):
        queues = [sum(column) for column in zip(*(cpu.queues for cpu in per_cpu))]
        session = {
            "by_queue": {str(n): packets for n, packets in enumerate(queues[:-1]) if packets}
            | ({"other": queues[-1]} if queues[-1] else {}),
            "sublists": sum(cpu.sublists for cpu in per_cpu),
            "passed": sum(cpu.passed for cpu in per_cpu),
            "splits": [sum(cpu.splits[i] for cpu in per_cpu) for i in (0, 1)],
        }
    return session | {
        "calls": sum(cpu.calls for cpu in called),
        "packets": sum(cpu.packets for cpu in called),
        "by_cpu": {str(n): cpu.packets for n, cpu in zip(possible(), per_cpu) if cpu.calls},
        "lengths": lengths[:-1],
        "overflow": lengths[-1],
        "cut": sum(cpu.cut for cpu in called),
        "min": min((cpu.min for cpu in called), default=None),
        "max": max((cpu.max for cpu in called), default=None),
    }


def _sweep() -> None:
    """Remove kprobe events of killed agents; no program is attached to them any more."""
    with contextlib.suppress(OSError):
        for line in (_TRACEFS / "kprobe_events").read_text(errors="replace").splitlines():
            found = re.match(r"p\d*:(receive_lists_(\d+)/\S+)", line)
            if found and not Path("/proc", found[2]).exists():
                _append(_TRACEFS / "kprobe_events", f"-:{found[1]}")


def _append(path: Path, line: str) -> None:
    # Python's append mode seeks to the end, which tracefs does not allow.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(file, line.encode() + b"\n")
    finally:
        os.close(file)


@contextlib.contextmanager
def _timed(times_s: dict[str, float], name: str) -> Any:
    begin_s = time.monotonic()
    yield
    times_s[name] = round(time.monotonic() - begin_s, 3)
