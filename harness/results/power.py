# SPDX-License-Identifier: MIT
"""How large a difference must be to be found, and how often a given one is found.

By simulation with a fixed seed, of normal blocks and the exact test at the level that the
correction for the family leaves to it. A normal approximation is far too optimistic for six
blocks, where the test needs all values to have the same sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from harness.results.ranks import CONFIDENCE, Floats, cut_at

POWER = 0.8
_LEVEL = 1 - CONFIDENCE
_CAMPAIGNS = 20_000
_SEED = 20180702
_VALUES_AT_ONCE = 1_000_000
"""Of a simulation, to limit its memory when there are many blocks."""


def detectable(blocks: int, spread: float, level: float = _LEVEL) -> float | None:
    """The smallest relative difference that four of five campaigns of ``blocks`` find.

    ``spread`` is the standard deviation of the log-ratios of blocks as one campaign shows it,
    which is an estimate from few blocks itself: the result allows for that. ``level`` is what
    the family leaves to this comparison, if those before it are decided. ``None``: so few
    blocks find no difference, however large.
    """
    factor = _factor(blocks, level)
    return None if factor is None else math.expm1(factor * spread)


def power(blocks: int, noise: float, change: float, level: float = _LEVEL) -> float:
    """The share of campaigns that find the relative difference ``change``.

    ``noise`` is the true standard deviation of the log-ratios of blocks.
    """
    shifts = _least_shifts(blocks, level)
    if shifts is None:
        return 0.0
    return float(np.mean(noise * shifts < abs(math.log1p(change))))


def power_of_looks(
    looks: Sequence[tuple[int, float]], noise: float, change: float
) -> tuple[float, float]:
    """The share of campaigns with ``looks`` that find ``change``, and their mean blocks.

    Each look is a number of blocks and the p-value that decides there.
    """
    values = np.random.default_rng(_SEED).standard_normal((_CAMPAIGNS, looks[-1][0]))
    ended = np.zeros(_CAMPAIGNS, dtype=int)
    for blocks, level in looks:
        cut, _ = cut_at(blocks, 1 - level)
        found = noise * _lower_ends(values[:, :blocks], cut) < abs(math.log1p(change))
        ended[found & (ended == 0)] = blocks
    return float(np.mean(ended > 0)), float(np.where(ended > 0, ended, looks[-1][0]).mean())


@lru_cache(maxsize=64)
def _factor(blocks: int, level: float) -> float | None:
    shifts = _least_shifts(blocks, level)
    if shifts is None:
        return None
    # The spread that one campaign shows, and another campaign's noise.
    freedom = blocks - 1
    spread = np.sqrt(np.random.default_rng(_SEED + 1).chisquare(freedom, shifts.size) / freedom)
    return float(np.quantile(shifts / spread, POWER))


@lru_cache(maxsize=64)
def _least_shifts(blocks: int, level: float) -> Floats | None:
    """Of simulated campaigns with noise 1, the smallest shift that each would find."""
    try:
        cut, _ = cut_at(blocks, 1 - level)
    except ValueError:
        return None
    noise = np.random.default_rng(_SEED).standard_normal((_CAMPAIGNS, blocks))
    return _lower_ends(noise, cut)


def _lower_ends(noise: Floats, cut: int) -> Floats:
    """Of each row, the shift above which the interval without ``cut`` means is above 0."""
    first, second = np.triu_indices(noise.shape[1])
    # A shift moves every pairwise mean alike, so the lower end of each interval
    # passes 0 exactly when the shift exceeds its negative.
    parts = np.array_split(noise, -(-noise.shape[0] * first.size // _VALUES_AT_ONCE))
    lower = [
        np.partition((part[:, first] + part[:, second]) / 2, cut, axis=1)[:, cut] for part in parts
    ]
    return np.asarray(-np.concatenate(lower), dtype=float)
