# SPDX-License-Identifier: MIT
"""One boot reduced to its figures, and which of its trials are void.

Judges what the boot itself shows. What only other boots show (the path of packets, from a
traced trial of another boot of the step) is applied with :meth:`BootRead.voided`.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from harness import cells
from harness.plan import PlannedBoot
from harness.results.samples import Boot, Campaign, holdoff_us
from harness.trials import RATES, VOID_RULES, kind_of, receive_path
from harness.trials.kind import Conditions, FunctionCost, Told, Tolerances
from harness.trials.paced import PacedTrial
from harness.trials.readings import Loaded, Trace, Trial, Void
from harness.trials.timed import LOADS_RATES


@dataclass(frozen=True)
class VoidTrial:
    """A void trial, and the rules that make it void."""

    boot: PlannedBoot
    kind: str
    index: int
    reasons: tuple[Void, ...]
    rates_only: bool = False
    """Are only its rates void?"""


@dataclass(frozen=True, kw_only=True)
class BootFigures:
    """One boot: the median of each rate over its valid timed trials."""

    boot: PlannedBoot
    bed: str | None
    release: str | None
    turns: str | None
    rates: dict[str, float]
    trials: dict[int, dict[str, float]]
    """The valid rates of each valid timed trial, by its index."""
    drops: dict[str, int]
    offered: int
    pauses: dict[str, int] = field(default_factory=dict)
    """Pause frames over its valid timed trials, ``sent`` and ``received``."""
    unsaturated: int = 0
    """How many of :attr:`trials` are void for rates."""
    judged_by: frozenset[str] = frozenset()
    """What saturation was judged by: ``cpu``, or in old results ``interrupts`` or ``nothing``."""
    measures: dict[str, dict[int, float]] = field(default_factory=dict)
    """The other measures, by name and trial."""

    def of(self, metric: str) -> dict[int, float]:
        """The positive values of one metric, by trial."""
        found = self.measures.get(metric) or {
            index: rates[metric] for index, rates in self.trials.items() if metric in rates
        }
        return {index: value for index, value in found.items() if value > 0}


@dataclass(frozen=True, kw_only=True)
class BootRead:
    """Everything that is kept of one boot."""

    figures: BootFigures
    valid: tuple[tuple[str, int], ...]
    """The trials that count, warm-ups and traced ones apart."""
    void: tuple[VoidTrial, ...]
    traces: tuple[Trace, ...]
    traced_pps: tuple[float, ...]
    path: tuple[Void, ...] | None
    """What traced trials found wrong with the path of packets; ``None``: no traced trial."""
    unproven: tuple[str, ...]
    """Functions of the step's list path that had no probe."""
    absent: dict[str, frozenset[str]]
    functions: tuple[Mapping[str, FunctionCost], ...]
    link_mbps: dict[str, frozenset[int]]
    """By role, every speed at which its link was seen, if known."""
    unlike_loads: bool
    """Was a paced load a share of a rate at which the receiver was not saturated?"""

    def voided(self, reasons: tuple[Void, ...]) -> BootRead:
        """The same boot with all trials void except traced ones."""
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
    """What has been read so far of a boot."""

    def __init__(self, boot: Boot) -> None:
        self.planned = PlannedBoot(boot.block, boot.position, boot.step)
        self.timed: dict[int, Told] = {}
        self.measures: dict[str, dict[int, float]] = defaultdict(dict)
        self.valid: list[tuple[str, int]] = []
        self.void: list[VoidTrial] = []
        self.traces: list[Trace] = []
        self.traced_pps: list[float] = []
        self.absent: dict[str, set[str]] = defaultdict(set)
        self.functions: list[Mapping[str, FunctionCost]] = []

    def take(self, trial: Trial, told: Told) -> None:
        """Add a valid trial."""
        for name, why in told.absent.items():
            self.absent[name].add(why)
        for name, value in told.values.items():
            if name not in RATES:
                self.measures[name][trial.index] = value
        if told.functions:
            self.functions.append(told.functions)
        if told.saturation is not None:
            self.timed[trial.index] = told
        if told.rates_void:
            void = VoidTrial(self.planned, trial.kind, trial.index, told.rates_void, True)
            self.void.append(void)
        if told.trace is not None:
            self.traces.append(told.trace)
            if told.traced_pps is not None:
                self.traced_pps.append(told.traced_pps)
        else:
            self.valid.append((trial.kind, trial.index))


def recorded_tolerances(campaign: Campaign) -> Tolerances:
    """The tolerances declared when the campaign began, or today's if there are none."""
    tolerances = {name: dict(rule.tolerances) for name, rule in VOID_RULES.items()}
    recorded = campaign.provenance.get("void_rules")
    if isinstance(recorded, dict):
        for name, rule in recorded.items():
            if name in tolerances and isinstance(rule, dict):
                tolerances[name].update(rule.get("tolerances") or {})
    return tolerances


def conditions(campaign: Campaign, boot: Boot, tolerances: Tolerances) -> Conditions:
    """What was planned for the trials of ``boot``."""

    def planned(name: str) -> int | None:
        level = cells.levels_of(boot.step).get(name, "")
        value = int(level) if level.isdigit() else campaign.placement.get(name)
        return value if isinstance(value, int) else None

    same = campaign.placement.get("netserver_cpu") == "same"
    declared = "queues-spread" in (campaign.provenance.get("void_rules") or {})
    return Conditions(
        tolerances=tolerances,
        irq_cpu=planned("irq_cpu"),
        netserver_cpu=planned("irq_cpu" if same else "netserver_cpu"),
        rx_queues=planned("rx_queues") if declared else None,
        load=campaign.load_kind,
        holdoff_us=holdoff_us(boot.settings),
    )


def model_rule(boot: Boot) -> Iterable[Void]:
    """Void if the NIC model had internal errors during ``boot``."""
    errors = (boot.nic_model or {}).get("internal_errors")
    if isinstance(errors, int) and errors > 0:
        yield Void(rule="nic-model-error", detail=f"{errors} errors of the model, see its log")


def read(boot: Boot, campaign: Campaign, tolerances: Tolerances) -> BootRead:
    """The valid figures of ``boot``, and its void trials with reasons."""
    reading = _Reading(boot)
    model = tuple(model_rule(boot))
    planned = conditions(campaign, boot, tolerances)
    for trial in boot.trials:
        if trial.kind == "warmup":
            continue
        told = kind_of(trial).judge(trial, planned)
        if reasons := (*told.void, *model):
            reading.void.append(VoidTrial(reading.planned, trial.kind, trial.index, reasons))
        else:
            reading.take(trial, told)
    traces = reading.traces if _makes_lists(boot) else []
    load = campaign.load_kind
    path = [
        void
        for trace in traces
        for void in receive_path.list_rules(trace, boot.step, tolerances, load)
    ]
    unproven = [name for trace in traces for name in receive_path.unproven(trace, boot.step, load)]
    return BootRead(
        figures=_figures(boot, reading),
        valid=tuple(reading.valid),
        void=tuple(reading.void),
        traces=tuple(reading.traces),
        traced_pps=tuple(reading.traced_pps),
        path=tuple(path) if traces else None,
        unproven=tuple(dict.fromkeys(unproven)),
        absent={name: frozenset(why) for name, why in reading.absent.items()},
        functions=tuple(reading.functions),
        link_mbps=_link_mbps(boot),
        unlike_loads=any(
            isinstance(trial, PacedTrial) and trial.paced_of_saturated is False
            for trial in boot.trials
        ),
    )


def _makes_lists(boot: Boot) -> bool:
    """Does the series change the driver of the dut's NIC, according to the inventory?

    With any other driver all steps use the same path; the report has a warning about it.
    """
    nic = (boot.inventory.get("dut") or {}).get("nic")
    return not (isinstance(nic, dict) and nic.get("warnings"))


def _figures(boot: Boot, reading: _Reading) -> BootFigures:
    timed = reading.timed
    trials = {
        index: {name: value for name, value in told.values.items() if _counts(name, told)}
        for index, told in timed.items()
    }
    rates = {name: median(found.get(name) for found in trials.values()) for name in RATES}
    drops: dict[str, int] = defaultdict(int)
    pauses: dict[str, int] = defaultdict(int)
    for told in timed.values():
        for place, packets in told.drops.items():
            drops[place] += packets
        for way, frames in told.pauses.items():
            pauses[way] += frames
    return BootFigures(
        boot=reading.planned,
        bed=boot.bed,
        release=boot.release,
        turns=boot.turns,
        rates={name: value for name, value in rates.items() if value is not None},
        trials=trials,
        drops=dict(drops),
        offered=sum(told.offered_packets or 0 for told in timed.values()),
        pauses={way: frames for way, frames in pauses.items() if frames},
        unsaturated=sum(bool(told.rates_void) for told in timed.values()),
        judged_by=frozenset(
            (told.saturation.by if told.saturation else None) or "nothing"
            for told in timed.values()
        ),
        measures=dict(reading.measures),
    )


def _counts(name: str, told: Told) -> bool:
    """Is ``name`` a rate that the kernel limits, not the load?"""
    return name in RATES and not (told.rates_void and name in LOADS_RATES)


def _link_mbps(boot: Boot) -> dict[str, frozenset[int]]:
    told: dict[str, set[int | None]] = {
        role: {(boot.inventory.get(role) or {}).get("speed_mbps"), boot.link_mbps.get(role)}
        for role in ("dut", "generator")
    }
    for trial in boot.trials:
        if isinstance(trial, Loaded) and trial.whole is not None:
            told["dut"] |= {trial.whole.before.speed_mbps, trial.whole.after.speed_mbps}
    known = {role: frozenset(mbps for mbps in seen if mbps) for role, seen in told.items()}
    return {role: seen for role, seen in known.items() if seen}


def median(values: Iterable[float | None]) -> float | None:
    """The median of the values that are not ``None``."""
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None
