# SPDX-License-Identifier: MIT
"""One boot boiled down to its figures, and which of its trials do not count.

What a boot can tell of itself is judged here. What only its fellows can tell (the way
packets take, which a traced trial of another boot of the step has shown) is put to it by
:meth:`BootRead.voided`.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from harness.plan import PlannedBoot, TrialKind
from harness.results import receive_path
from harness.results.measures import RATES, beside, paced_measure, pmu_absent, pmu_per_packet
from harness.results.metrics import (
    Tolerances,
    TrialMetrics,
    measure,
    model_rule,
    traced_stack_pps,
    void_alone,
)
from harness.results.samples import Boot, Campaign, Function, Trace, Trial, Void, holdoff_us

_LOADS_RATES = ("nic_rx_pps", "stack_rx_pps", "delivered_pps")
"""Rates that are the kernel's only while it is saturated."""


@dataclass(frozen=True)
class VoidTrial:
    """A trial that does not count, and by which rules."""

    boot: PlannedBoot
    kind: str
    index: int
    reasons: tuple[Void, ...]
    rates_only: bool = False
    """Do other figures of it count?"""


@dataclass(frozen=True, kw_only=True)
class FunctionCost:
    """What an emulated kernel does in one function for each packet; medians over boots."""

    calls: float
    instructions: float
    misses: float


@dataclass(frozen=True, kw_only=True)
class BootFigures:
    """One boot: the median of each rate over its valid timed trials."""

    boot: PlannedBoot
    bed: str | None
    release: str | None
    turns: str | None
    rates: dict[str, float]
    trials: dict[int, dict[str, float]]
    """The rates of each valid timed trial, by its index; of one that is void for rates those
    that count."""
    drops: dict[str, int]
    offered: int
    pauses: dict[str, int] = field(default_factory=dict)
    """Pause frames over its valid timed trials, ``sent`` and ``received``."""
    unsaturated: int = 0
    """How many of :attr:`trials` are void for rates."""
    judged_by: frozenset[str] = frozenset()
    """What told whether they were saturated: ``cpu``, or in old results ``interrupts`` or
    ``nothing``."""
    measures: dict[str, dict[int, float]] = field(default_factory=dict)
    """What was measured beside the rates, by name and trial."""

    def of(self, metric: str) -> dict[int, float]:
        """The positive values of one metric, by trial."""
        found = self.measures.get(metric) or {
            index: rates[metric] for index, rates in self.trials.items() if metric in rates
        }
        return {index: value for index, value in found.items() if value > 0}


@dataclass(frozen=True, kw_only=True)
class BootRead:
    """All that is kept of one boot."""

    figures: BootFigures
    valid: tuple[tuple[TrialKind, int], ...]
    """The trials that count, warm-ups and traced ones apart."""
    void: tuple[VoidTrial, ...]
    traces: tuple[Trace, ...]
    traced_pps: tuple[float, ...]
    path: tuple[Void, ...] | None
    """What a traced trial found wrong with the way packets took; ``None``: none was traced."""
    unproven: tuple[str, ...]
    """Functions of the step's lists that no probe saw."""
    absent: dict[str, frozenset[str]]
    functions: tuple[dict[str, FunctionCost], ...]
    link_mbps: dict[str, frozenset[int]]
    """By role every speed its link was seen at, where that is known."""
    unlike_loads: bool
    """Was a paced load a share of a rate at which the receiver was not saturated?"""

    def voided(self, reasons: tuple[Void, ...]) -> BootRead:
        """The same boot when nothing it measured counts; what probes counted stands."""
        boot = self.figures.boot
        taken = {(one.kind, one.index) for one in self.void if one.rates_only}
        more = [VoidTrial(boot, kind, index, reasons) for kind, index in self.valid]
        kept = [one for one in self.void if (one.kind, one.index) not in taken]
        figures = replace(
            self.figures,
            rates={},
            trials={},
            drops={},
            offered=0,
            pauses={},
            unsaturated=0,
            measures={},
        )
        return replace(self, figures=figures, valid=(), void=(*kept, *more), functions=())


class _Reading:
    """What has been read of a boot so far."""

    def __init__(self, boot: Boot) -> None:
        self.planned = PlannedBoot(boot.block, boot.position, boot.step)
        self.timed: dict[int, TrialMetrics] = {}
        self.measures: dict[str, dict[int, float]] = defaultdict(dict)
        self.valid: list[tuple[TrialKind, int]] = []
        self.void: list[VoidTrial] = []
        self.traces: list[Trace] = []
        self.traced_pps: list[float] = []
        self.absent: dict[str, set[str]] = defaultdict(set)
        self.functions: list[dict[str, FunctionCost]] = []

    def take(self, trial: Trial, metrics: TrialMetrics | None) -> None:
        """A trial that counts; one measured alone has no metrics."""
        if metrics is None:
            for name, value in beside(trial).items():
                self.measures[name][trial.index] = value
        elif trial.kind == "timed":
            self._timed(trial, metrics)
        elif trial.kind == "icache":
            self._emulated(trial, metrics)
        elif metrics.paced_cpu_ns_per_packet is not None:
            name = paced_measure(trial.paced_share)
            self.measures[name][trial.index] = metrics.paced_cpu_ns_per_packet
        elif trial.trace is not None:
            self.traces.append(trial.trace)
            traced = traced_stack_pps(trial)
            if traced is not None:
                self.traced_pps.append(traced)
            return
        self.valid.append((trial.kind, trial.index))

    def _timed(self, trial: Trial, metrics: TrialMetrics) -> None:
        self.timed[trial.index] = metrics
        if metrics.rates_void:
            void = VoidTrial(self.planned, trial.kind, trial.index, metrics.rates_void, True)
            self.void.append(void)
        if trial.window is not None:
            for name, value in pmu_per_packet(trial.window, metrics.stack_rx_pps).items():
                self.measures[name][trial.index] = value
            for name, why in pmu_absent(trial.window).items():
                self.absent[name].add(why)

    def _emulated(self, trial: Trial, metrics: TrialMetrics) -> None:
        if trial.window is None:
            return
        for name, why in pmu_absent(trial.window).items():
            self.absent[f"emulated_{name}"].add(why)
        counted = pmu_per_packet(trial.window, metrics.stack_rx_pps)
        for name, value in counted.items():
            self.measures[f"emulated_{name}"][trial.index] = value
        self.functions.append(_costs(trial.functions, counted.get("instructions_per_packet")))


def read(boot: Boot, campaign: Campaign, tolerances: Tolerances) -> BootRead:
    """Everything that counts of ``boot``, and what does not and why."""
    reading = _Reading(boot)
    model = tuple(model_rule(boot))
    moderated_us = holdoff_us(boot.settings)
    for trial in boot.trials:
        if trial.kind == "warmup":
            continue
        metrics = None
        if trial.kind not in ("latency", "ndr"):
            metrics = measure(trial, campaign, tolerances, holdoff_us=moderated_us)
        found = metrics.void if metrics else void_alone(trial, campaign, tolerances)
        if reasons := (*found, *model):
            reading.void.append(VoidTrial(reading.planned, trial.kind, trial.index, reasons))
        else:
            reading.take(trial, metrics)
    traces = reading.traces if receive_path.makes_lists(boot) else []
    return BootRead(
        figures=_figures(boot, reading),
        valid=tuple(reading.valid),
        void=tuple(reading.void),
        traces=tuple(reading.traces),
        traced_pps=tuple(reading.traced_pps),
        path=tuple(
            void
            for trace in traces
            for void in receive_path.list_rules(trace, boot.step, tolerances)
        )
        if traces
        else None,
        unproven=tuple(
            dict.fromkeys(
                name for trace in traces for name in receive_path.unproven(trace, boot.step)
            )
        ),
        absent={name: frozenset(why) for name, why in reading.absent.items()},
        functions=tuple(reading.functions),
        link_mbps=_link_mbps(boot),
        unlike_loads=any(trial.paced_of_saturated is False for trial in boot.trials),
    )


def _figures(boot: Boot, reading: _Reading) -> BootFigures:
    valid = reading.timed
    trials = {index: _rates(metrics) for index, metrics in valid.items()}
    rates = {name: median(found.get(name) for found in trials.values()) for name in RATES}
    drops: dict[str, int] = defaultdict(int)
    pauses: dict[str, int] = defaultdict(int)
    for metrics in valid.values():
        for place, packets in metrics.drops.items():
            drops[place] += packets
        for way, frames in metrics.pauses.items():
            pauses[way] += frames
    return BootFigures(
        boot=reading.planned,
        bed=boot.bed,
        release=boot.release,
        turns=boot.turns,
        rates={name: value for name, value in rates.items() if value is not None},
        trials=trials,
        drops=dict(drops),
        offered=sum(metrics.offered_packets or 0 for metrics in valid.values()),
        pauses={way: frames for way, frames in pauses.items() if frames},
        unsaturated=sum(bool(metrics.rates_void) for metrics in valid.values()),
        judged_by=frozenset(
            (metrics.saturation.by if metrics.saturation else None) or "nothing"
            for metrics in valid.values()
        ),
        measures=dict(reading.measures),
    )


def _rates(metrics: TrialMetrics) -> dict[str, float]:
    names = [name for name in RATES if not (metrics.rates_void and name in _LOADS_RATES)]
    values = {name: getattr(metrics, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _link_mbps(boot: Boot) -> dict[str, frozenset[int]]:
    told: dict[str, set[int | None]] = {
        role: {(boot.inventory.get(role) or {}).get("speed_mbps"), boot.link_mbps.get(role)}
        for role in ("dut", "generator")
    }
    for trial in boot.trials:
        if trial.whole is not None:
            told["dut"] |= {trial.whole.before.speed_mbps, trial.whole.after.speed_mbps}
    known = {role: frozenset(mbps for mbps in seen if mbps) for role, seen in told.items()}
    return {role: seen for role, seen in known.items() if seen}


def _costs(functions: Mapping[str, Function], per_packet: float | None) -> dict[str, FunctionCost]:
    """``functions`` per packet, of which each costs so many instructions in all."""
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


def median(values: Iterable[float | None]) -> float | None:
    """Of those that are there."""
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None
