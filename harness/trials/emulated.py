# SPDX-License-Identifier: MIT
"""Instructions and misses of a simulated icache, counted by an emulator for each function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.plan import PlannedTrial, Profile
from harness.trials import timed
from harness.trials.kind import Conditions, Figure, FunctionCost, Kind, Measure, Panel, Told
from harness.trials.load import under_load, window
from harness.trials.readings import Declared, Windowed

if TYPE_CHECKING:
    from harness.beds.bed import RunningBed
    from harness.trials.block import Block, MeasuredBoot

_LEAST_SHARE = 1e-4
"""The share of all instructions from which on a function is kept by name."""
_SOURCE = "the emulator, on the interrupt's vCPU"
_COUNTED = {
    "instructions_per_packet": ("counted by the emulator", "all executed instructions"),
    "l1i_misses_per_packet": ("simulated", "32 KiB, 8 ways, least recently used, no prefetch"),
}
"""By measure: how it is counted, and what."""


class Function(Declared):
    """What an emulated CPU executed in one function of the kernel while the emulator counted."""

    calls: int
    instructions: int
    misses: int
    """Misses in a simulated icache."""


class EmulatedTrial(Windowed):
    """A window in which an emulator counted."""

    kind: Literal["icache"] = "icache"
    functions: dict[str, Function] = Field(default_factory=dict)


class Emulated(Kind[EmulatedTrial]):
    """One trial per boot, while the other boots of its block are frozen."""

    name = "icache"
    sample = EmulatedTrial
    also = "icache"
    summary = "instructions per packet, and misses in a simulated icache"
    counting = True
    beds = ("virtual",)
    elsewhere = (
        "leave out --also icache: if a machine's CPU has counters, they are read in every "
        "timed trial"
    )
    measures = {
        f"emulated_{name}": Measure(
            f"{timed.PMU[name][0]}, {how}",
            timed.PMU[name][1],
            source=f"{_SOURCE}: {what}",
            also="icache",
        )
        for name, (how, what) in _COUNTED.items()
    }
    figure = Figure(
        "counted",
        "What the emulator counted",
        "On the interrupt's vCPU, per packet at IP, while netserver is stopped: "
        "boots (dots) and their median (bar).",
        [Panel(one.title, one.unit, [name]) for name, one in measures.items()],
    )

    def planned(self, profile: Profile, ordinal: int) -> Iterator[PlannedTrial]:  # noqa: ARG002
        yield PlannedTrial("icache", 0, profile.trace_s)

    def measure(self, block: Block, planned: Sequence[PlannedTrial]) -> None:
        begin = window(block.bed.placement.irq_cpu, emulated=True)

        def sample(
            boot: MeasuredBoot, shared: dict[str, Any], told: dict[str, Any] | None
        ) -> EmulatedTrial:
            functions = _functions(boot.bed) if told else {}
            return EmulatedTrial.model_validate(shared | {"window": told, "functions": functions})

        def measure(boot: MeasuredBoot, trial: PlannedTrial) -> None:
            under_load(block, [trial], begin, sample, only=boot)

        block.alone("instructions", planned, measure)

    def judge(self, sample: EmulatedTrial, conditions: Conditions) -> Told:
        told = Told(void=timed.windowed(sample, conditions))
        if sample.window is not None:
            counted = timed.pmu_per_packet(sample.window)
            absent = timed.pmu_absent(sample.window)
            told.values = {f"emulated_{name}": value for name, value in counted.items()}
            told.absent = {f"emulated_{name}": why for name, why in absent.items()}
            told.functions = _costs(sample.functions, counted.get("instructions_per_packet"))
        return told


def _functions(bed: RunningBed) -> dict[str, Function]:
    """What the emulator counted, by function; rarely executed functions are summed up."""
    blocks = bed.executed()
    addresses = [block.address for block in blocks]
    found: dict[str, list[int]] = {}
    for block, (name, offset) in zip(blocks, bed.dut.symbols(addresses=addresses), strict=True):
        sums = found.setdefault(name, [0, 0, 0])
        sums[0] += block.runs if offset == 0 else 0
        sums[1] += block.instructions
        sums[2] += block.misses
    least = _LEAST_SHARE * sum(block.instructions for block in blocks)
    kept = {name: sums for name, sums in found.items() if sums[1] >= least}
    rest = [sums for name, sums in found.items() if name not in kept]
    if rest:
        kept["(other)"] = [0, *(sum(sums[which] for sums in rest) for which in (1, 2))]
    return {
        name: Function(calls=calls, instructions=instructions, misses=misses)
        for name, (calls, instructions, misses) in kept.items()
    }


def _costs(functions: Mapping[str, Function], per_packet: float | None) -> dict[str, FunctionCost]:
    """``functions`` per packet, scaled so that their instructions add up to ``per_packet``."""
    total = sum(found.instructions for found in functions.values())
    if not total or not per_packet:
        return {}
    scale = per_packet / total
    return {
        name: FunctionCost(
            calls=found.calls * scale,
            instructions=found.instructions * scale,
            misses=found.misses * scale,
        )
        for name, found in functions.items()
    }
