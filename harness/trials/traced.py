# SPDX-License-Identifier: MIT
"""Lengths of lists, and packets that enter a function one by one, counted by probes.

Probes cost time, so nothing else is measured in these trials.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness.plan import PlannedTrial, Profile
from harness.trials import receive_path, rules
from harness.trials.counted import Delta
from harness.trials.kind import Conditions, Kind, Told, VoidRule
from harness.trials.load import under_load
from harness.trials.readings import Loaded, Trace, Void, Window

if TYPE_CHECKING:
    from harness.beds.access.channel import Pending
    from harness.beds.bed import RunningBed
    from harness.trials.block import Block, MeasuredBoot


class TracedTrial(Loaded):
    """What the probes counted under the unlimited load."""

    kind: Literal["trace"] = "trace"
    trace: Trace | None = None


class Traced(Kind[TracedTrial]):
    """One trial per boot in the first blocks, while the other boots of its block are frozen."""

    name = "trace"
    sample = TracedTrial
    rules = {
        **receive_path.RULES,
        "trace-missed": VoidRule("the probes see nearly every event", {"share": 0.01}),
    }

    def planned(self, profile: Profile, ordinal: int) -> Iterator[PlannedTrial]:
        if ordinal <= profile.trace_blocks:
            yield PlannedTrial("trace", 0, profile.trace_s)

    def measure(self, block: Block, planned: Sequence[PlannedTrial]) -> None:
        def begin(bed: RunningBed, trial: PlannedTrial, within_s: float) -> Pending[dict[str, Any]]:
            return bed.trace(trial.duration_s, within_s)

        def sample(
            _: MeasuredBoot, shared: dict[str, Any], told: dict[str, Any] | None
        ) -> TracedTrial:
            return TracedTrial.model_validate(shared | {"trace": told})

        def measure(boot: MeasuredBoot, trial: PlannedTrial) -> None:
            boot.bed.probes.trace_attach(interface=boot.bed.dut_interface)
            under_load(block, [trial], begin, sample, only=boot)
            boot.bed.probes.trace_detach()

        block.alone("probes", planned, measure)

    def judge(self, sample: TracedTrial, conditions: Conditions) -> Told:
        trace, window = sample.trace, None
        own: list[Void] = []
        if trace is not None:
            if trace.start is not None and trace.end is not None:
                window = Window(start=trace.start, end=trace.end)
            events = sum(stage.calls for stage in trace.stages) + sum(trace.per_skb.values())
            allowed = conditions.tolerances["trace-missed"]["share"]
            if trace.missed > allowed * (events + trace.missed):
                detail = f"{trace.missed} events missed beside {events} counted"
                own.append(Void(rule="trace-missed", detail=detail))
        return Told(
            void=rules.loaded(sample, window, conditions, own=own),
            trace=trace,
            traced_pps=Delta(window.start, window.end).ip_pps if window else None,
        )
