# SPDX-License-Identifier: MIT
"""Verdicts from paired ratios of few boots.

The unit is the boot: its value is the median of its valid trials. Analysed is the
logarithm of its ratio to the baseline's boot of the same block. If kernels of one layout were
booted in several blocks, the unit is the mean over these blocks: where functions lie in memory
moves a rate, so a layout that is used again is not a new observation.

As there are few blocks (6 to 12), the interval is the exact inversion of Wilcoxon's signed-rank
test around the Hodges-Lehmann estimate. Resampling of blocks was tried and covers less: see
``tests/unit/test_stats.py``. Words are corrected for all comparisons of a campaign. How often
each word is wrong was simulated: ``tests/bench/verdicts.py``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from harness.plan import MIN_BLOCKS_FOR_VERDICT
from harness.results.power import detectable
from harness.results.ranks import (
    CONFIDENCE,
    Floats,
    beds_p,
    equivalence_p,
    hodges_lehmann,
    signed_rank_interval,
    signed_rank_p,
)

MARGIN = 0.02
"""The declared margin: "no difference" means none larger than this share."""

Outcome = Literal["faster", "slower", "no difference", "inconclusive"]


class Interval(NamedTuple):
    """Ratios from ``low`` to ``high``."""

    low: float
    high: float
    confidence: float
    """Exact; at least the requested one."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One variant's metric over another's, one ratio per block: the basis of every verdict."""

    ratios: tuple[float, ...]
    blocks: tuple[int, ...] = ()
    """The block of each ratio."""
    beds: tuple[str, ...] = ()
    """The bed of each ratio; empty if there is only one bed."""
    layouts: tuple[str, ...] = ()
    """The layout of each ratio's kernel; empty if it is unknown or the only one."""

    @property
    def logs(self) -> Floats:
        return np.asarray(np.log(self.ratios), dtype=float)

    @property
    def shares_layouts(self) -> bool:
        """Was a layout booted in more than one block?"""
        return len(set(self.layouts)) < len(self.layouts)

    def of_blocks(self, blocks: Collection[int]) -> Paired:
        """The same, of these ``blocks`` only."""
        kept = [place for place, block in enumerate(self.blocks) if block in blocks]
        names = ("ratios", "blocks", "beds", "layouts")
        own = {name: tuple(getattr(self, name)[i] for i in kept) for name in names
               if getattr(self, name)}  # fmt: skip
        return replace(self, **own)

    @property
    def units(self) -> Floats:
        """What counts as one observation: the logarithm of each ratio, or each layout's mean."""
        if not self.shares_layouts:
            return self.logs
        by_layout: dict[str, list[float]] = {}
        for layout, value in zip(self.layouts, self.logs, strict=True):
            by_layout.setdefault(layout, []).append(float(value))
        return np.asarray([statistics.fmean(values) for values in by_layout.values()])

    @property
    def median(self) -> float:
        """Median of the ratios (of their logarithms, which is the same for odd counts)."""
        return math.exp(float(np.median(self.logs)))

    @property
    def estimate(self) -> float:
        """The Hodges-Lehmann estimate."""
        return math.exp(hodges_lehmann(self.units))

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest ratio of any block."""
        return min(self.ratios), max(self.ratios)

    def interval(self, confidence: float = CONFIDENCE) -> Interval | None:
        """The confidence interval of the ratio; ``None``: there are too few blocks."""
        try:
            low, high, exact = signed_rank_interval(self.units, confidence)
        except ValueError:
            return None
        return Interval(math.exp(low), math.exp(high), exact)

    @property
    def beds_differ(self) -> bool:
        """Does the ratio depend on the bed, by a single test?"""
        return len(set(self.beds)) > 1 and beds_p(self.logs, self.beds) < 1 - CONFIDENCE


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on one variant; a ratio above 1 means more of the metric."""

    outcome: Outcome
    ratio: float
    """Hodges-Lehmann estimate."""
    interval: tuple[float, float]
    confidence: float
    """The interval's exact confidence, at least the requested one."""
    blocks: int
    """The number of units: blocks, or layouts."""
    of_layouts: bool = False
    """Is the unit a layout, because layouts were used again?"""
    p_value: float
    """Two-sided, exact signed-rank."""
    p_corrected: float
    """The same, corrected for the number of comparisons; see :func:`corrected`."""
    margin: float
    p_equivalent: float
    """Of "it differs by more than ``margin``", by two one-sided tests."""
    p_equivalent_corrected: float
    equivalence_interval: tuple[float, float]
    """At 90 %: if it is within the margin, so are both one-sided tests at 5 %."""
    bound: float
    """The largest difference, as a share, that this interval contains."""
    detectable: float | None
    """The smallest relative difference found in four of five campaigns with this spread, after
    correction; ``None``: with so few units none is."""
    level: float = 1 - CONFIDENCE
    """The p-value that decides, before correction for comparisons: less than 5 % at a look."""
    p_beds: float | None = None
    """Corrected p-value of "all beds share one effect"; ``None``: too few blocks to test."""

    @property
    def beds_differ(self) -> bool:
        """Does the effect depend on the bed? Then there is no single effect to judge."""
        return self.p_beds is not None and self.p_beds < 1 - CONFIDENCE


def time_sliced(own: str | None, base: str | None) -> bool:
    """Were two boots time-sliced together, that is, do both carry the same turn id?"""
    return own is not None and own == base


def block_ratio(
    own: Mapping[int, float], base: Mapping[int, float], *, time_sliced: bool
) -> float | None:
    """One boot's rate over another's of its block; both given by trial.

    Boots that ran one after the other are compared by their medians. If they were
    time-sliced, trials with the same number ran during the same seconds, and the result is
    the geometric mean of their ratios. ``None``: there is nothing to compare.
    """
    if not time_sliced and own and base:
        own, base = ({0: statistics.median(trials.values())} for trials in (own, base))
    logs = [math.log(own[trial] / base[trial]) for trial in own.keys() & base.keys()]
    return math.exp(statistics.fmean(logs)) if logs else None


def judge(
    comparisons: Sequence[Paired],
    families: Sequence[Sequence[int]] = (),
    *,
    margin: float = MARGIN,
    beside: Sequence[float] = (),
    level: float = 1 - CONFIDENCE,
    first: int | None = None,
) -> list[Verdict | None]:
    """A verdict for each comparison; ``None``: there are too few blocks.

    The words are those for a rate, where more is better. ``families`` group the comparisons,
    by their places, as :func:`corrected` needs them; by default each is a family of its own.
    A word needs a corrected p-value below 5 %. Differences are decided in the order of a family,
    equivalence in the opposite order: the last step is the most likely to differ, the first the
    least. ``beside`` are p-values of other claims, each a family. At a look, ``level`` is what it
    may use of the 5 %, and ``first`` the comparison that has to be decided before all others. If
    beds differ, by Holm's correction over all comparisons, the verdict is inconclusive.
    """
    units = [paired.units for paired in comparisons]
    judged = [place for place, of in enumerate(units) if of.size >= MIN_BLOCKS_FOR_VERDICT]
    families = families or [[place] for place in range(len(comparisons))]
    differ, equal = [1.0] * len(units), [1.0] * len(units)
    for place in judged:
        differ[place] = signed_rank_p(units[place])
        equal[place] = equivalence_p(units[place], math.log1p(margin))
    words = corrected(differ, families, beside, level=level, first=first)[: len(units)]
    backwards = [[*reversed(family)] for family in families]
    equal_corrected = corrected(equal, backwards, level=level, first=first)
    beds = _beds_holm([(comparisons[place].logs, comparisons[place].beds) for place in judged])
    share = level / max(1, len(families) + len(beside))
    found: list[Verdict | None] = [None] * len(units)
    for place, p_beds in zip(judged, beds, strict=True):
        values = units[place]
        low, high, confidence = signed_rank_interval(values, 1 - level)
        least, most, _ = signed_rank_interval(values, 1 - 2 * level)
        own = level if place == first else share
        verdict = Verdict(
            outcome="inconclusive",
            ratio=math.exp(hodges_lehmann(values)),
            interval=(math.exp(low), math.exp(high)),
            confidence=confidence,
            blocks=values.size,
            of_layouts=comparisons[place].shares_layouts,
            p_value=differ[place],
            p_corrected=words[place],
            margin=margin,
            p_equivalent=equal[place],
            p_equivalent_corrected=equal_corrected[place],
            equivalence_interval=(math.exp(least), math.exp(most)),
            bound=math.expm1(max(abs(least), abs(most))),
            detectable=detectable(values.size, float(np.std(values, ddof=1)), own),
            level=level,
            p_beds=p_beds,
        )
        if not verdict.beds_differ:
            word = outcome_of(verdict.ratio, verdict.p_corrected, verdict.p_equivalent_corrected)
            verdict = replace(verdict, outcome=word)
        found[place] = verdict
    return found


def outcome_of(ratio: float, p_value: float, p_equivalent: float) -> Outcome:
    """The word for a ratio of rates, from p-values that are corrected already."""
    if p_value < 1 - CONFIDENCE:
        return "faster" if ratio > 1 else "slower"
    return "no difference" if p_equivalent < 1 - CONFIDENCE else "inconclusive"


def _beds_holm(judged: Sequence[tuple[Floats, Sequence[str]]]) -> list[float | None]:
    """Per comparison the corrected p-value of "beds do not differ", if it can be significant."""
    if not all(len(set(beds)) > 1 for _, beds in judged):
        return [None] * len(judged)
    p_values = holm([beds_p(values, beds) for values, beds in judged])
    least = [beds_p(np.arange(len(beds), dtype=float), sorted(beds)) for _, beds in judged]
    could_tell = len(judged) * max(least, default=1.0) < 1 - CONFIDENCE
    return [p_value if could_tell else None for p_value in p_values]


def corrected(
    p_values: Sequence[float],
    families: Sequence[Sequence[int]],
    beside: Sequence[float] = (),
    *,
    level: float = 1 - CONFIDENCE,
    first: int | None = None,
) -> list[float]:
    """``p_values`` corrected so that all of them together are wrong in at most 5 % of campaigns.

    ``families`` list places in ``p_values``; ``beside`` are more p-values, each a family, whose
    corrected values follow. Each family has an equal share of the 5 %. Within a family the order
    is fixed: a comparison is decided only if those before it are. A family that is decided
    completely leaves its share to the others (the graphical procedure of Bretz, Maurer, Brannath
    and Posch, Statistics in Medicine 28 (2009); with families of one it is Holm's). If a place is
    ``first``, nothing is decided before it. At a look of a campaign, values are also corrected
    for the other looks: ``level`` is the p-value that decides there.
    """
    values = [p_value * (1 - CONFIDENCE) / level for p_value in (*p_values, *beside)]
    chains = [[place for place in family if place != first] for family in families]
    chains += [[len(p_values) + place] for place in range(len(beside))]
    if first is not None:
        chains = [chain for chain in chains if chain]
    shares = [1 / max(1, len(chains))] * len(chains)
    found, worst = [1.0] * len(values), 0.0
    if first is not None:
        found[first] = worst = min(1.0, values[first])
    while alive := [place for place, chain in enumerate(chains) if chain]:
        least = min(alive, key=lambda place: values[chains[place][0]] / shares[place])
        head = chains[least].pop(0)
        worst = max(worst, min(1.0, values[head] / shares[least]))
        found[head] = worst
        if not chains[least]:
            for place in alive:
                shares[place] += shares[least] / (len(alive) - 1) if place != least else 0.0
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    corrected = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = worst
    return corrected
