# SPDX-License-Identifier: MIT
"""How often ``harness trend --expect-steady`` is wrong, and how soon it finds a change.

Nights are simulated: campaigns with normal or heavy-tailed scatter, judged each night with
all campaigns up to then. A false alarm is a night that ends with exit code 6 though nothing
moved. A change is found if the night of the change or one of the next two alarms.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from multiprocessing import Pool

import numpy as np
from numpy.typing import NDArray

from harness.results.changes import MIN_CAMPAIGNS, find
from tests.bench import command, show

Floats = NDArray[np.float64]
BLOCKS = 8
NIGHTS = 60
PLANTED = 30
SHIFTS = (3.0, 4.0, 5.0)
"""Planted changes, in standard deviations between campaigns."""

SCATTERS: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "normal": lambda rng, count: rng.standard_normal(count),
    "heavy tails (t, 4 degrees)": lambda rng, count: rng.standard_t(4, count) / 2**0.5,
    "neighbours alike (AR 0.3)": lambda rng, count: _alike(rng, count, 0.3),
}


def _alike(rng: np.random.Generator, count: int, weight: float) -> Floats:
    own = rng.standard_normal(count) * (1 - weight**2) ** 0.5
    for night in range(1, count):
        own[night] += weight * own[night - 1]
    return np.asarray(own)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.trend_alarms", description=__doc__)
    parser.add_argument("--series", type=int, default=400)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    rows, result = [], {}
    for name in SCATTERS:
        with Pool() as pool:
            alarms = pool.starmap(nights, [(name, seed, 0.0) for seed in range(chosen.series)])
            found = [
                pool.starmap(nights, [(name, seed, shift) for seed in range(chosen.series)])
                for shift in SHIFTS
            ]
        judged = NIGHTS - MIN_CAMPAIGNS + 1
        early = sum(night < 2 * MIN_CAMPAIGNS for each in alarms for night in each)
        late = sum(night >= 2 * MIN_CAMPAIGNS for each in alarms for night in each)
        figures = {
            "false alarms a night": (early + late) / (judged * chosen.series),
            f"after {2 * MIN_CAMPAIGNS} nights": late
            / ((NIGHTS - 2 * MIN_CAMPAIGNS) * chosen.series),
        }
        for shift, each in zip(SHIFTS, found, strict=True):
            first = [any(night == PLANTED for night in one) for one in each]
            third = [any(PLANTED <= night <= PLANTED + 2 for night in one) for one in each]
            figures[f"{shift:g} sd: first night"] = sum(first) / len(first)
            figures[f"{shift:g} sd: three nights"] = sum(third) / len(third)
        result[name] = figures
        rows.append({"scatter": name, **{key: f"{value:.2%}" for key, value in figures.items()}})
    show({"bench": "trend_alarms", "scatters": result}, rows, as_json=chosen.json)


def nights(name: str, seed: int, shift: float) -> list[int]:
    """The nights of one series that alarm, counted from 0; ``shift`` is added from PLANTED on."""
    rng = np.random.default_rng((seed, round(10 * shift)))
    scatter = 0.01
    logs = scatter * SCATTERS[name](rng, NIGHTS)
    logs[PLANTED:] += scatter * shift
    # What the blocks of a campaign say of its error, if campaigns scatter no more than that.
    errors = scatter * np.sqrt(rng.chisquare(BLOCKS - 1, NIGHTS) / (BLOCKS - 1))
    last = NIGHTS if not shift else PLANTED + 3
    return [
        night
        for night in range(MIN_CAMPAIGNS - 1, last)
        if any(
            one.new for one in find(logs[: night + 1].tolist(), errors[: night + 1].tolist()).shifts
        )
    ]


if __name__ == "__main__":
    command(main)
