# SPDX-License-Identifier: MIT
"""The search for the highest rates on simulated receivers, compared with a bisection.

The bisection is that of RFC 2544 with one trial for each rate, and three more for the rate
that it finds. Nothing is sent: a trial takes no time.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.trials import ndr, search
from harness.trials.search import Outcome, UnfinishedError
from tests.bench import command, show

LOSSES = tuple(ndr.LOSSES.values())
SPURIOUS = 0.05
RECEIVERS: Mapping[str, dict[str, Any]] = {
    "sharp": {},
    "soft": {"soft": 0.3},
    "collapsing": {"collapses": True},
    "soft, collapsing": {"soft": 0.3, "collapses": True},
}
_CAPACITY_PPS = 50_000
_FIRST = (0.4, 4.0)
"""The first rate as a share of the capacity: the stack takes more than is read."""


class Receiver:
    """A receiver of at most ``capacity_pps`` behind a generator; call it for a trial of 1 s."""

    def __init__(
        self,
        capacity_pps: float,
        *,
        soft: float = 0.0,
        collapses: bool = False,
        spurious: float = 0.0,
        generator_pps: float = float("inf"),
        seed: int = 0,
    ) -> None:
        """``soft``: the share of the capacity below it in which the loss rises to 1 %.
        ``collapses``: at twice the capacity next to nothing is read.
        ``spurious``: the share of trials that lose something by chance."""
        self._capacity_pps, self._soft, self._collapses = capacity_pps, soft, collapses
        self._spurious, self._generator_pps = spurious, generator_pps
        self._rng = random.Random(seed)
        self.trials = 0

    def __call__(self, pps: float) -> Outcome:
        self.trials += 1
        offered_pps = min(pps, self._generator_pps)
        sent = round(offered_pps)
        lost = round(sent * self._loss(offered_pps / self._capacity_pps))
        if self._rng.random() < self._spurious:
            lost = max(lost, round(sent * self._rng.uniform(0.01, 0.1)))
        unsent = 0 if offered_pps >= 0.95 * pps else round(pps) - sent
        return Outcome(sent, lost, unsent)

    def _loss(self, load: float) -> float:
        loss = 0.0
        if self._soft:
            loss = 0.01 * max(0.0, (load - 1 + self._soft) / self._soft) ** 3
        if load > 1:
            read = 1 / load
            if self._collapses:
                read *= max(0.01, 2 - load)
            loss = max(loss, 1 - read)
        return min(1.0, loss)


@dataclass(frozen=True)
class Rates:
    """The rates of many searches for one goal, as shares of the receiver's capacity; sorted."""

    shares: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.shares)

    @property
    def scatter(self) -> float:
        """Their standard deviation as a share of their median."""
        return statistics.pstdev(self.shares) / self.median

    def share_off(self, expected: float, *, by: float) -> float:
        """Share of the searches that are further than ``by`` from ``expected``."""
        return statistics.mean(abs(one / expected - 1) > by for one in self.shares)


@dataclass(frozen=True)
class Spread:
    """What many searches took and found."""

    trials: Sequence[int]
    """Sorted."""
    rates: Sequence[Rates]
    """In the order of the goals."""
    unfinished: int


Search = Callable[[Receiver, float], Sequence[float | None]]


def searched(receiver: Receiver, first_pps: float) -> Sequence[float | None]:
    """The harness's search."""
    phase = first_pps % 1
    found = search.highest_rates(receiver, LOSSES, first_pps=first_pps, phase=phase)
    return [bounds.passes_pps for bounds in found]


def bisected(receiver: Receiver, first_pps: float) -> Sequence[float | None]:
    """The same for :data:`ndr.LOSS` alone, by bisection."""

    def passes(pps: float) -> bool:
        done = receiver(pps)
        return not done.unsent and done.lost <= ndr.LOSS * done.sent

    low, high, rate = 0.0, 0.0, first_pps
    while not (low and high):
        if passes(rate):
            low, rate = rate, 2 * rate
        elif rate <= search.LEAST_PPS:
            return [None]
        else:
            high, rate = rate, max(rate / 2, search.LEAST_PPS)
    while high / low > 1 + search.RESOLUTION:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if passes(middle) else (low, middle)
    lacking = 3
    while low >= search.LEAST_PPS:
        if all(passes(low) for _ in range(lacking)):
            return [low]
        low, lacking = low / (1 + search.RESOLUTION), 4
    return [None]


def spread(receiver: str, spurious: float, *, searches: int, by: Search = searched) -> Spread:
    """``searches`` searches, each on a receiver of its own and from a rate of its own."""
    trials: list[int] = []
    rows: list[list[float]] = []
    unfinished = 0
    for seed in range(searches):
        rng = random.Random(-seed - 1)
        capacity_pps = _CAPACITY_PPS * rng.uniform(0.9, 1.1)
        first_pps = capacity_pps * _FIRST[0] * (_FIRST[1] / _FIRST[0]) ** rng.random()
        made = Receiver(capacity_pps, **RECEIVERS[receiver], spurious=spurious, seed=seed)
        try:
            found = by(made, first_pps)
        except UnfinishedError:
            unfinished += 1
        else:
            rows.append([(pps or 0.0) / capacity_pps for pps in found])
        trials.append(made.trials)
    rates = [Rates(sorted(shares)) for shares in zip(*rows, strict=True)]
    return Spread(sorted(trials), rates, unfinished)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ndr_searches", description=__doc__)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for receiver in RECEIVERS:
        for name, by in (("bisection", bisected), ("MLRsearch", searched)):
            quiet = spread(receiver, 0.0, searches=chosen.searches, by=by)
            noisy = spread(receiver, SPURIOUS, searches=chosen.searches, by=by)
            rows += _rows(receiver, name, 0.0, quiet, quiet)
            rows += _rows(receiver, name, SPURIOUS, noisy, quiet)
    show(
        {"bench": "ndr_searches", "searches": chosen.searches, "found": rows},
        [_told(row) for row in rows],
        as_json=chosen.json,
    )


def _rows(
    receiver: str, name: str, spurious: float, found: Spread, quiet: Spread
) -> list[dict[str, Any]]:
    goals = LOSSES if len(found.rates) > 1 else (ndr.LOSS,)
    return [
        {
            "receiver": receiver,
            "spurious": spurious,
            "search": name,
            "goal": goal,
            "trials": [found.trials[0], statistics.median(found.trials), found.trials[-1]],
            "unfinished": found.unfinished,
            "median": rates.median,
            "least": rates.shares[0],
            "scatter": rates.scatter,
            "off": rates.share_off(calm.median, by=search.RESOLUTION),
        }
        for goal, rates, calm in zip(goals, found.rates, quiet.rates, strict=True)
    ]


def _told(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "receiver": row["receiver"],
        "spurious losses": f"{row['spurious']:.0%}",
        "search": row["search"],
        "goal": f"{row['goal']:.1%}",
        "trials": "{:.0f} / {:.0f} / {:.0f}".format(*row["trials"]),
        "unfinished": str(row["unfinished"]),
        "rate / capacity": f"{row['median']:.3f}, least {row['least']:.3f}",
        "scatter": f"{row['scatter']:.1%}",
        f"off by {search.RESOLUTION:.0%}": f"{row['off']:.1%}",
    }


if __name__ == "__main__":
    command(main)
