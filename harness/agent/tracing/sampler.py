# SPDX-License-Identifier: MIT
"""The functions in which a CPU is found, by the bcc program of probes/sampled.bpf.c.

By cycles where the CPU has a counter of them; elsewhere by the kernel's timers, which do not fire
while interrupts are off: what runs then is found where they come on again.
"""

from __future__ import annotations

import platform
from collections import Counter
from typing import Any

from harness.agent.counters import Sleep
from harness.agent.faults import AgentError

from .compiler import bcc, compiled, probe_source

SOURCE = "sampled.bpf.c"
_PER_S = 997  # in step with no timer


class Sampler:
    """Compiled once."""

    def __init__(self) -> None:
        self._bpf: Any = None

    def sample(
        self, *, cpu: int, duration_s: float, sleep: Sleep, program_dir: str | None = None
    ) -> dict[str, Any]:
        """How often ``cpu`` is in each function of the kernel during ``duration_s``.

        The function without a name is user space.

        Raises:
            AgentError: this is no x86-64, or the program cannot be compiled or attached.
        """
        if platform.machine() != "x86_64":
            raise AgentError(f"functions are not sampled on {platform.machine()}")
        if self._bpf is None:
            self._bpf = compiled(probe_source(SOURCE, program_dir), [], program_dir=program_dir)
        table = self._bpf[b"sampled"]
        table.clear()
        event = self._attach(cpu)
        try:
            sleep(duration_s)
        finally:
            self._bpf.detach_perf_event(*event[1:])
        found: Counter[str] = Counter()
        for address, count in table.items():
            found[self._bpf.ksym(address.value).decode() if address.value else ""] += count.value
        return {"event": event[0], "functions": dict(found)}

    def _attach(self, cpu: int) -> tuple[str, int, int]:
        kinds = bcc()
        events = (
            ("cycles", kinds.PerfType.HARDWARE, kinds.PerfHWConfig.CPU_CYCLES),
            ("cpu-clock", kinds.PerfType.SOFTWARE, kinds.PerfSWConfig.CPU_CLOCK),
        )
        for name, kind, number in events:
            try:
                self._bpf.attach_perf_event(
                    ev_type=kind, ev_config=number, fn_name=b"sample", sample_freq=_PER_S, cpu=cpu
                )
            except Exception as error:  # noqa: BLE001 (bcc raises its base class)
                why = error
            else:
                return name, kind, number
        raise AgentError(f"no perf event can be attached on CPU {cpu}: {why}")
