# SPDX-License-Identifier: MIT
"""What an analysis consists of: a row for each step, and the comparisons between steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.plan import MIN_BLOCKS_FOR_VERDICT, families
from harness.results.figures import BootFigures, VoidTrial
from harness.results.ordered import Trend
from harness.results.ranks import CONFIDENCE
from harness.results.samples import Campaign
from harness.results.spread import Spread
from harness.results.stats import Paired, Verdict, block_ratio, time_sliced
from harness.trials import MEASURES, RATES
from harness.trials.kind import FunctionCost
from harness.trials.readings import Stage

PRIMARY = "stack_rx_pps"
COST = "cpu_ns_per_packet"
"""Valid also where the receiver is not saturated."""
LIST_LEN = "list_len_"
"""Prefix of the names of list-length figures; ``p50``, ``p90`` or ``max`` follows."""
DRIVER_STAGE = "netif_receive_skb_list"
"""Where the driver hands its list to the stack; the table shows the list lengths here."""


def named(campaign: Campaign, step: str) -> str:
    """``step`` as a sentence calls it; a cell has its levels in brackets."""
    return f"{'variant' if campaign.of_commits else 'step'} {step}"


def primary_of(campaign: Campaign) -> str | None:
    """The step whose comparison is decided first; ``None``: nothing is compared."""
    order = families(campaign.steps, campaign.baseline)
    return order[0][0] if order else None


@dataclass(frozen=True, kw_only=True)
class Look:
    """Where a campaign with declared looks is."""

    declared: tuple[int, ...]
    """Numbers of blocks."""
    blocks: int
    """The look that it has reached or, if it is incomplete, is on its way to."""
    level: float
    """The p-value that decides there."""
    primary: str
    """The step whose comparison is to be decided."""
    decided: bool


@dataclass(frozen=True, kw_only=True)
class ListLengths:
    """Lengths of the lists at one stage; percentiles are over lists; ``lengths`` as in a trace."""

    name: str
    lists: int
    packets: int
    p50: int
    p90: int
    max: int
    lengths: tuple[int, ...]
    overflow: int


@dataclass(frozen=True, kw_only=True)
class Beside:
    """One measure of one step, compared with the baseline's."""

    median: float
    """Over boots; the value of a boot is the median over its trials."""
    change: Paired | None
    verdict: Verdict | None


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One level of a factor against its reference level."""

    metric: str
    factor: str
    level: str
    reference: str
    step: str
    """The variant: the baseline, or another whose gain over the baseline is compared."""
    baseline: str
    change: Paired
    verdict: Verdict | None = None

    @property
    def interaction(self) -> bool:
        return self.step != self.baseline


@dataclass(frozen=True, kw_only=True)
class OnBed:
    """One step on one of several beds."""

    bed: str
    boots: int
    rates: dict[str, float | None]
    change: Paired | None
    verdict: Verdict | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One step over all its boots."""

    step: str
    title: str | None
    release: str | None
    measured: tuple[BootFigures, ...]
    """All boots that ended without an error."""
    rates: dict[str, float | None]
    """Median over boots of each of :data:`RATES`; all ``None`` if there are several beds."""
    beds: tuple[OnBed, ...]
    """The same by bed, if there are several."""
    change: Paired | None
    """The primary rate over the baseline's of the same block."""
    verdict: Verdict | None
    stages: tuple[ListLengths, ...]
    ip_rcv_per_packet: float | None
    traced_pps: float | None
    trace_missed: int
    drop_shares: dict[str, float]
    """By place, the share of frames at the NIC that were dropped there; median over boots."""
    drop_packets: dict[str, int]
    void_trials: int
    measures: dict[str, Beside]
    cost: Beside | None = None
    """The CPU time per packet, where factors are varied."""
    functions: dict[str, FunctionCost]
    """``emulated_instructions_per_packet`` by function, largest first."""

    @property
    def boots(self) -> tuple[BootFigures, ...]:
        """The boots that have timed trials."""
        return tuple(boot for boot in self.measured if boot.trials)

    def figure(self, metric: str) -> float | None:
        """A figure of the step by its name in the report; ``None``: not measured."""
        if metric in MEASURES:
            return self.measures[metric].median if metric in self.measures else None
        if metric in RATES:
            return self.rates[metric]
        if metric.startswith(LIST_LEN):
            lists = self.driver_lists
            return getattr(lists, metric.removeprefix(LIST_LEN)) if lists else None
        found: float | None = getattr(self, metric)
        return found

    @property
    def timed_trials(self) -> int:
        """Number of timed trials that count, for rates or only for costs per packet."""
        return sum(len(boot.trials) for boot in self.boots)

    @property
    def unsaturated_trials(self) -> int:
        """How many of them have void rates, because the receiver was not saturated."""
        return sum(boot.unsaturated for boot in self.boots)

    @property
    def driver_lists(self) -> ListLengths | None:
        """Lists at :data:`DRIVER_STAGE`; ``None`` if the step makes none."""
        return next((stage for stage in self.stages if stage.name == DRIVER_STAGE), None)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """Everything that a report says about a campaign."""

    campaign: Campaign
    rows: tuple[Row, ...]
    absent: dict[str, tuple[str, ...]]
    """By measure, why it is missing in all or some trials although it was requested."""
    void: tuple[VoidTrial, ...]
    problems: tuple[str, ...]
    """Why the campaign is incomplete; empty if it is complete."""
    notes: tuple[str, ...]
    """Remarks that qualify the figures."""
    boots_done: int
    boots_planned: int
    settings: dict[str, Any]
    """Settings of the hosts as the first boot recorded them: before, after, restored.

    With several beds this and :attr:`inventory` are by bed.
    """
    settings_varied: tuple[str, ...]
    """Dotted names of settings that differed between boots of one bed."""
    inventory: dict[str, Any]
    trend: Trend | None = None
    """Over the series as a whole; ``None``: it is not tested."""
    look: Look | None = None
    """The look that ended it; ``None``: it has no looks."""
    contrasts: tuple[Contrast, ...] = ()
    """What varied factors do to the baseline, and to the gain of each variant."""
    spread: Spread | None = None
    """Where the noise of the primary rate comes from."""
    repetition: float | None = None
    """How often the wire delivered each frame, if it repeats frames."""

    @property
    def complete(self) -> bool:
        """Did every planned boot end without an error, under the same conditions?"""
        return not self.problems

    @property
    def level(self) -> float:
        """The error that an interval may have: at a look, less than 5 %."""
        return self.look.level if self.look else 1 - CONFIDENCE

    @property
    def judged_blocks(self) -> int:
        """The smallest number of blocks over which a step could be compared."""
        changes = [row.change for row in self.rows if not self.campaign.is_baseline(row.step)]
        return min((len(change.ratios) if change else 0 for change in changes), default=0)

    @property
    def judged_units(self) -> int:
        """The same in units: layouts, where they were used again."""
        changes = [row.change for row in self.rows if not self.campaign.is_baseline(row.step)]
        return min((len(change.units) if change else 0 for change in changes), default=0)

    def row(self, step: str) -> Row:
        return next(row for row in self.rows if row.step == step)

    def against(self, step: str, other: str, metric: str) -> Paired | None:
        """The metric of ``step`` over that of ``other``, by block; ``None``: no block has both."""
        return paired(self.row(step).measured, self.row(other).measured, metric)

    def level_of(self, step: str, metric: str) -> Paired | None:
        """The metric of ``step`` itself, by block, as its ratio to 1; ``None``: none has it."""
        own = self.row(step).measured
        return _by_block(
            own,
            {
                boot.boot.block: statistics.median(of.values())
                for boot in own
                if (of := boot.of(metric))
            },
        )

    @property
    def no_verdict(self) -> str | None:
        """Why no step has a verdict; ``None`` if one has."""
        if not self.complete:
            if self.boots_done < self.boots_planned:
                return f"incomplete: {self.boots_done} of {self.boots_planned} boots"
            return "; ".join(self.problems)
        of_factors = (one.verdict for one in self.contrasts if one.metric == PRIMARY)
        if any(row.verdict for row in self.rows) or any(of_factors):
            return None
        baseline = named(self.campaign, self.campaign.baseline)
        if not any(self.campaign.is_baseline(row.step) for row in self.rows):
            return f"{baseline} was not booted: nothing to compare with"
        if all(self.campaign.is_baseline(row.step) for row in self.rows):
            return f"only {baseline} was booted: nothing to compare"
        unsaturated = sum(row.unsaturated_trials for row in self.rows)
        if unsaturated and self.campaign.blocks >= MIN_BLOCKS_FOR_VERDICT:
            return (
                f"the receiver was not saturated in {unsaturated} of "
                f"{sum(row.timed_trials for row in self.rows)} timed trials, whose rates are void: "
                f"{self.judged_blocks} of {MIN_BLOCKS_FOR_VERDICT} blocks are left"
            )
        if self.judged_blocks >= MIN_BLOCKS_FOR_VERDICT:
            return (
                "layouts were used in several blocks, so each is one observation: "
                f"{self.judged_units} of {MIN_BLOCKS_FOR_VERDICT} layouts"
            )
        return (
            "not enough boots for a verdict "
            f"({self.judged_blocks} of {MIN_BLOCKS_FOR_VERDICT} blocks)"
        )


def list_lengths(stage: Stage) -> ListLengths | None:
    """Percentiles over the lists of one stage; ``None`` if it saw no list.

    Empty lists are left out: a poll that found nothing is not a batch. A percentile that
    falls among lists too long to be counted exactly is the longest counted length plus one.
    """
    counts = np.asarray([*stage.lengths[1:], stage.overflow], dtype=np.int64)
    lists = int(counts.sum())
    if lists == 0:
        return None
    reached = np.cumsum(counts)
    p50, p90 = (int(np.searchsorted(reached, math.ceil(q * lists))) + 1 for q in (0.5, 0.9))
    longest = int(np.flatnonzero(counts)[-1]) + 1
    return ListLengths(
        name=stage.name,
        lists=lists,
        packets=stage.packets,
        p50=p50,
        p90=p90,
        max=longest if stage.max is None else stage.max,
        lengths=tuple(stage.lengths),
        overflow=stage.overflow,
    )


def paired(
    boots: Iterable[BootFigures], others: Iterable[BootFigures], metric: str
) -> Paired | None:
    """Ratios by block, of the blocks in which both have a positive value."""
    own, base = ({boot.boot.block: boot for boot in side} for side in (boots, others))
    found = {
        block: block_ratio(
            own[block].of(metric),
            base[block].of(metric),
            time_sliced=time_sliced(own[block].turns, base[block].turns),
        )
        for block in sorted(own.keys() & base.keys())
    }
    return _by_block(
        own.values(), {block: ratio for block, ratio in found.items() if ratio is not None}
    )


def _by_block(boots: Iterable[BootFigures], ratios: Mapping[int, float]) -> Paired | None:
    """``ratios`` by block, with the beds and layouts of ``boots``; ``None``: there is none."""
    own = {boot.boot.block: boot for boot in boots}
    if not ratios:
        return None
    beds = tuple(bed for block in ratios if (bed := own[block].bed))
    releases = tuple(own[block].release or "" for block in ratios)  # each layout has its own
    return Paired(
        ratios=tuple(ratios.values()),
        blocks=tuple(ratios),
        beds=beds,
        layouts=releases if len(set(releases)) > 1 else (),
    )
