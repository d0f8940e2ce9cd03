# SPDX-License-Identifier: MIT
"""Exact rank tests of few values, and the intervals that they imply.

One sample (ratios of blocks): Wilcoxon's signed-rank test. Two samples (two campaigns): the
test of Mann and Whitney. Ordered columns (the steps of a series): Page's test. They hold for
any distribution that is symmetric, or of equal shape in both samples, or exchangeable within
a block. Written here because they need exact tails, which scipy has for fewer cases, and
because importing scipy takes longer than the report; ``tests/unit/test_ranks.py`` compares
each with scipy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
Floats = NDArray[np.float64]

_PERMUTATIONS = 20_000
_EXACT_COLUMNS = 9
"""Of Page's test: its exact distribution is a sum over subsets of the columns."""


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
    cut, exact = cut_at(values.size, confidence)
    means = _walsh(values)
    return float(means[cut]), float(means[-1 - cut]), exact


def signed_rank_p(values: Floats) -> float:
    """Two-sided p-value of "the centre is 0"; ties are counted conservatively."""
    return min(1.0, 2 * min(above_p(values, 0.0), above_p(-values, 0.0)))


def above_p(values: Floats, bound: float) -> float:
    """One-sided p-value of "the centre is not above ``bound``", by the signed-rank test."""
    tail = _rank_sum_cdf(values.size)
    # The rank sum of the positive values is the number of positive pairwise means.
    return float(tail[int(np.sum(_walsh(values) <= bound))])


def equivalence_p(values: Floats, bound: float) -> float:
    """p-value of "the centre is not within ±``bound``": the larger of two one-sided tests."""
    return max(above_p(values, -bound), above_p(-values, -bound))


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


def rank_sum_p(one: Floats, other: Floats) -> float:
    """Two-sided exact p-value of "``other`` is not shifted"; ties are counted conservatively."""
    return min(1.0, 2 * min(_rank_sum_above_p(one, other, 0), _rank_sum_above_p(other, one, 0)))


def rank_sum_equivalence_p(one: Floats, other: Floats, bound: float) -> float:
    """p-value of "the shift is not within ±``bound``": the larger of two one-sided tests."""
    return max(_rank_sum_above_p(one, other, -bound), _rank_sum_above_p(other, one, -bound))


def _rank_sum_above_p(one: Floats, other: Floats, bound: float) -> float:
    """One-sided p-value of "``other`` is not above ``one`` by more than ``bound``"."""
    shifts = other[:, None] - one[None, :]
    return float(_u_cdf(one.size, other.size)[int(np.sum(shifts <= bound))])


def page(rows: Floats) -> tuple[bool, float]:
    """Page's test for a trend over ordered columns; each row is a block.

    Returns whether values rise from the first column to the last, and the two-sided p-value of
    "within a row, every order is equally likely". Exact for up to nine columns (scipy's is for
    eight), by the normal approximation for more. Ties are counted conservatively.
    """
    blocks, columns = rows.shape
    below = (rows[:, None, :] < rows[:, :, None]).sum(axis=2)
    equal = (rows[:, None, :] == rows[:, :, None]).sum(axis=2)
    ranks = below + (equal + 1) / 2
    seen = float((ranks @ np.arange(1.0, columns + 1)).sum())
    centre = blocks * columns * (columns + 1) ** 2 / 4
    if columns > _EXACT_COLUMNS:
        spread = math.sqrt(blocks * columns**2 * (columns + 1) * (columns**2 - 1) / 144)
        return seen > centre, math.erfc(abs(seen - centre) / spread / math.sqrt(2))
    tail = _page_cdf(columns, blocks)
    # By symmetry the upper tail is the lower one of the mirrored sum.
    least = min(seen, 2 * centre - seen)
    return seen > centre, float(min(1.0, 2 * tail[math.ceil(least)]))


def _walsh(values: Floats) -> Floats:
    """All means of pairs, each value with itself included, in ascending order."""
    first, second = _pairs(values.size)
    means: Floats = (values[first] + values[second]) / 2
    means.sort()
    return means


@lru_cache(maxsize=64)
def _pairs(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first and the second place of every pair, each place with itself included."""
    return np.triu_indices(count)


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


def cut_at(count: int, confidence: float) -> tuple[int, float]:
    """The number of pairwise means cut off at each end, and the resulting confidence."""
    tail = _rank_sum_cdf(count)
    cut = int(np.searchsorted(tail, (1 - confidence) / 2, side="right")) - 1
    if cut < 0:
        raise ValueError(f"{count} values give no interval of {confidence:.0%}")
    return cut, float(1 - 2 * tail[cut])


@lru_cache(maxsize=16)
def _page_cdf(columns: int, blocks: int) -> Floats:
    """P(L <= l) for l = 0, 1, … under "every order is equally likely", exact.

    L is the sum over blocks and columns of the column's number times its rank.
    """
    most = columns * (columns + 1) * (2 * columns + 1) // 6
    # By the set of ranks that the first columns have taken.
    taken = np.zeros((1 << columns, most + 1))
    taken[0, 0] = 1
    for ranks in range((1 << columns) - 1):
        column = ranks.bit_count() + 1
        for rank in range(1, columns + 1):
            if not ranks >> (rank - 1) & 1:
                shift = column * rank
                taken[ranks | 1 << (rank - 1), shift:] += taken[ranks, : most + 1 - shift]
    ways = taken[-1] / math.factorial(columns)
    total = np.ones(1)
    for _ in range(blocks):
        total = np.convolve(total, ways)
    return np.asarray(np.minimum(np.cumsum(total), 1.0), dtype=float)
