# SPDX-License-Identifier: MIT
"""Estimates, intervals and verdicts from paired ratios of few boots.

The unit is the boot: its value is the median of its valid trials. Analysed is the
logarithm of its ratio to the baseline's boot of the same block. As there are few blocks
(6 to 10), the interval is the exact inversion of Wilcoxon's signed-rank test around the
Hodges-Lehmann estimate. Over 6 to 10 blocks its coverage is 95.1 to 96.9 % whatever the
tails, if differences are symmetric, which pairing in randomised order ensures. Resampling
of blocks was tried and covers less: see ``tests/unit/test_stats.py``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.plan import MIN_BLOCKS_FOR_VERDICT

CONFIDENCE = 0.95
MARGIN = 0.02
"""If the interval is within this share of 1, the verdict is "no difference"."""

_VALUES_AT_ONCE = 1_000_000
"""Of a simulation, to limit its memory when there are many blocks."""

_PERMUTATIONS = 20_000

Floats = NDArray[np.float64]
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

    @property
    def logs(self) -> Floats:
        return np.asarray(np.log(self.ratios), dtype=float)

    @property
    def median(self) -> float:
        """Median of the ratios (of their logarithms, which is the same for odd counts)."""
        return math.exp(float(np.median(self.logs)))

    @property
    def estimate(self) -> float:
        """The Hodges-Lehmann estimate."""
        return math.exp(hodges_lehmann(self.logs))

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest ratio of any block."""
        return min(self.ratios), max(self.ratios)

    def interval(self, confidence: float = CONFIDENCE) -> Interval | None:
        """The confidence interval of the ratio; ``None``: there are too few blocks."""
        try:
            low, high, exact = signed_rank_interval(self.logs, confidence)
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
    p_value: float
    """Two-sided, exact signed-rank."""
    p_corrected: float
    """The same, corrected for the number of comparisons; see :func:`corrected`."""
    bound: float
    """The largest difference, as a share, that is compatible with the interval."""
    detectable: float
    """The smallest relative difference that is found with 80 % power at this spread."""
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
) -> list[Verdict | None]:
    """A verdict for each comparison; ``None``: there are too few blocks.

    The words are those for a rate, where more is better. ``families`` group the comparisons,
    by their places, as :func:`corrected` needs them; by default each is a family of its own.
    A difference has a word only if its corrected p-value is small enough. If beds differ, by
    Holm's correction over all comparisons, the verdict is inconclusive.
    """
    logs = [paired.logs for paired in comparisons]
    enough = [values.size >= MIN_BLOCKS_FOR_VERDICT for values in logs]
    p_values = [
        signed_rank_p(values) if judged else 1.0
        for values, judged in zip(logs, enough, strict=True)
    ]
    families = families or [[place] for place in range(len(comparisons))]
    beds = _beds_holm(
        [
            (values, paired.beds)
            for values, paired, judged in zip(logs, comparisons, enough, strict=True)
            if judged
        ]
    )
    of_beds = iter(beds)
    return [
        _verdict(values, p_value, p_corrected, next(of_beds), margin=margin) if judged else None
        for values, judged, p_value, p_corrected in zip(
            logs, enough, p_values, corrected(p_values, families), strict=True
        )
    ]


def _beds_holm(judged: Sequence[tuple[Floats, Sequence[str]]]) -> list[float | None]:
    """Per comparison the corrected p-value of "beds do not differ", if it can be significant."""
    if not all(len(set(beds)) > 1 for _, beds in judged):
        return [None] * len(judged)
    p_values = holm([beds_p(values, beds) for values, beds in judged])
    least = [beds_p(np.arange(len(beds), dtype=float), sorted(beds)) for _, beds in judged]
    could_tell = len(judged) * max(least, default=1.0) < 1 - CONFIDENCE
    return [p_value if could_tell else None for p_value in p_values]


def _verdict(
    values: Floats, p_value: float, p_corrected: float, p_beds: float | None, *, margin: float
) -> Verdict:
    low, high, confidence = signed_rank_interval(values)
    found = Verdict(
        outcome=outcome_of(low, high, margin=margin),
        ratio=math.exp(hodges_lehmann(values)),
        interval=(math.exp(low), math.exp(high)),
        confidence=confidence,
        blocks=values.size,
        p_value=p_value,
        p_corrected=p_corrected,
        bound=_bound(low, high),
        detectable=detectable(values.size, float(np.std(values, ddof=1))),
        p_beds=p_beds,
    )
    too_many = found.outcome in ("faster", "slower") and p_corrected >= 1 - CONFIDENCE
    return replace(found, outcome="inconclusive") if too_many or found.beds_differ else found


def detectable(blocks: int, spread: float) -> float:
    """The smallest relative difference that ``blocks`` find with 80 % power.

    ``spread`` is the standard deviation of the log-ratios of blocks.
    """
    return math.expm1(_detectable_sd(blocks) * spread)


def outcome_of(low: float, high: float, *, margin: float = MARGIN) -> Outcome:
    """The verdict from an interval of a log-ratio of rates."""
    if low > 0:
        return "faster"
    if high < 0:
        return "slower"
    return "no difference" if _bound(low, high) <= margin else "inconclusive"


def _bound(low: float, high: float) -> float:
    return math.exp(max(abs(low), abs(high))) - 1


def hodges_lehmann(values: Floats) -> float:
    """Median of all pairwise means: an estimate of the centre that is robust to outliers."""
    return float(np.median(_walsh(values)))


def signed_rank_interval(
    values: Floats, confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """The centres that an exact two-sided signed-rank test does not reject.

    Returns (low, high, exact confidence). Holds for any symmetric distribution.

    Raises:
        ValueError: there are too few values for an interval of this confidence.
    """
    cut, exact = _cut(values.size, confidence)
    means = _walsh(values)
    return float(means[cut]), float(means[-1 - cut]), exact


def signed_rank_p(values: Floats) -> float:
    """Two-sided p-value of "the centre is 0"; ties are counted conservatively."""
    count = values.size
    means = _walsh(values)
    tail = _rank_sum_cdf(count)
    # The rank sum of the positive values is the number of positive pairwise means.
    statistic = min(int(np.sum(means >= 0)), int(np.sum(means <= 0)))
    return float(min(1.0, 2 * tail[min(statistic, tail.size - 1)]))


def beds_p(values: Floats, beds: Sequence[str]) -> float:
    """p-value of "``values`` do not depend on their beds", by permutation of the beds.

    The statistic is that of Kruskal and Wallis. Blocks are exchangeable between beds that
    share one effect, so the test is valid for any distribution.
    """
    names = sorted(set(beds))
    of_bed = np.array([[bed == name for name in names] for bed in beds], dtype=float)
    ordered = np.sort(values)
    low, high = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    ranks = (low + high).astype(float)

    def between(ranked: Floats) -> Floats:
        return np.asarray(((ranked @ of_bed) ** 2 / of_bed.sum(axis=0)).sum(axis=-1))

    drawn = np.tile(ranks, (_PERMUTATIONS, 1))
    drawn = np.random.default_rng(20180702).permuted(drawn, axis=1)
    as_far = between(drawn) >= between(ranks) * (1 - 1e-12)
    return float((1 + as_far.sum()) / (1 + _PERMUTATIONS))


def rank_sum_interval(
    one: Floats, other: Floats, confidence: float = CONFIDENCE
) -> tuple[float, float, float, float]:
    """The shift from ``one`` to ``other``, two unpaired samples of distributions of equal shape.

    Returns (estimate, low, high, exact confidence) by Hodges-Lehmann and the inversion of
    the exact two-sided Mann-Whitney test.

    Raises:
        ValueError: there are too few values for an interval of this confidence.
    """
    shifts = np.sort((other[:, None] - one[None, :]).ravel())
    tail = _u_cdf(one.size, other.size)
    cut = int(np.searchsorted(tail, (1 - confidence) / 2, side="right")) - 1
    if cut < 0:
        raise ValueError(f"{one.size} and {other.size} values give no interval of {confidence:.0%}")
    return (
        float(np.median(shifts)),
        float(shifts[cut]),
        float(shifts[-1 - cut]),
        float(1 - 2 * tail[cut]),
    )


def corrected(p_values: Sequence[float], families: Sequence[Sequence[int]]) -> list[float]:
    """``p_values`` corrected so that all of them together are wrong in at most 5 % of campaigns.

    ``families`` list places in ``p_values``. Each family has an equal share (Bonferroni). Within
    a family the order is fixed: a comparison has at least the value of those before it.
    """
    found = [1.0] * len(p_values)
    for family in families:
        worst = 0.0
        for place in family:
            worst = max(worst, min(1.0, len(families) * p_values[place]))
            found[place] = worst
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given."""
    corrected = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = worst
    return corrected


def _walsh(values: Floats) -> Floats:
    """All means of pairs, each value with itself included, in ascending order."""
    first, second = np.triu_indices(values.size)
    means: Floats = (values[first] + values[second]) / 2
    means.sort()
    return means


@lru_cache(maxsize=64)
def _rank_sum_cdf(count: int) -> Floats:
    """P(W <= w) for w = 0, 1, … under "the centre is 0", exact."""
    ways = np.zeros(count * (count + 1) // 2 + 1)
    ways[0] = 1
    for rank in range(1, count + 1):
        shifted = np.zeros_like(ways)
        shifted[rank:] = ways[:-rank]
        ways = (ways + shifted) / 2
    return np.asarray(np.cumsum(ways), dtype=float)


@lru_cache(maxsize=64)
def _u_cdf(one: int, other: int) -> Floats:
    """P(U <= u) for u = 0, 1, … of two samples of one distribution, exact.

    The ways to reach U are the coefficients of the Gaussian binomial.
    """
    ways = np.ones(1)
    for size in range(1, one + 1):
        factor = np.zeros(other + size + 1)
        factor[0], factor[-1] = 1, -1
        ways = np.convolve(ways, factor)
        # Divide by 1 - q^size, which leaves no remainder.
        for index in range(size, ways.size):
            ways[index] += ways[index - size]
        ways = ways[: size * other + 1]
    return np.asarray(np.cumsum(ways / ways.sum()), dtype=float)


def _cut(count: int, confidence: float) -> tuple[int, float]:
    """The number of pairwise means cut off at each end, and the resulting confidence."""
    tail = _rank_sum_cdf(count)
    cut = int(np.searchsorted(tail, (1 - confidence) / 2, side="right")) - 1
    if cut < 0:
        raise ValueError(f"{count} values give no interval of {confidence:.0%}")
    return cut, float(1 - 2 * tail[cut])


@lru_cache(maxsize=64)
def _detectable_sd(count: int, power: float = 0.8) -> float:
    """The shift, in standard deviations of normal blocks, found with ``power``.

    By simulation with a fixed seed: a normal approximation is far too optimistic for six
    blocks, where the test needs all values to have the same sign.
    """
    noise = np.random.default_rng(20180702).standard_normal((20_000, count))
    cut, _ = _cut(count, CONFIDENCE)
    first, second = np.triu_indices(count)
    # A shift moves every pairwise mean alike, so the lower end of each interval
    # passes 0 exactly when the shift exceeds its negative.
    parts = np.array_split(noise, -(-noise.shape[0] * first.size // _VALUES_AT_ONCE))
    lower = [
        np.partition((part[:, first] + part[:, second]) / 2, cut, axis=1)[:, cut] for part in parts
    ]
    return float(np.quantile(-np.concatenate(lower), power))
