# SPDX-License-Identifier: MIT
"""The highest rates at which a receiver loses at most given shares, all found by one search.

The algorithm is FD.io's MLRsearch (draft-ietf-bmwg-mlrsearch). A rate is a bound only after
several trials of it agree, so one spurious loss does not end the search below the limit.
This module chooses its parameters, and the first rates in place of the library's, which
begins with an overload.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

RESOLUTION = 0.03
"""The limit is at most this share above the rate that is found."""
LEAST_PPS = 1000.0
"""The lowest rate of a search of phase 0."""
_MOST_PPS = 1e9
MOST_TRIALS = 60
"""The end of a search that does not end by itself: more than any of 8,000 simulated ones took
that lost one trial in twenty by chance."""
TRIALS_OF_A_BOUND = 4
"""A rate passes if half of so many trials pass. One loss by chance costs further trials of the
rate; three are needed to bound the search."""
_PRECEDING_TARGETS = 2
"""One trial of each rate finds the limit to within four times the resolution, and then two to
within twice the resolution."""
_CLOSEST = 0.97
"""The next rate after a failed one is at most this share of it."""


class UnfinishedError(Exception):
    """The search took :data:`MOST_TRIALS` trials."""


@dataclass(frozen=True)
class Outcome:
    """A trial of a rate, in packets: sent, lost of these, and asked for but not sent."""

    sent: int
    lost: int
    unsent: int


@dataclass(frozen=True)
class Bounds:
    """The highest rate that passes and the lowest that fails, in packets/s.

    ``None``: every rate fails, or every rate passes.
    """

    passes_pps: float | None
    fails_pps: float | None


def highest_rates(
    attempt: Callable[[float], Outcome],
    losses: Sequence[float],
    *,
    first_pps: float,
    phase: float = 0.0,
) -> list[Bounds]:
    """For each share of ``losses``, the bounds of the rates at which no more is lost.

    ``attempt`` makes a trial of a rate. Bounds are in the order of ``losses``, and the rates
    of a larger loss are not below those of a smaller one.

    All rates are on a grid of steps of :data:`RESOLUTION`; ``phase``, 0 to 1, moves it by a
    part of a step. A mean over searches with different phases resolves less than a step.

    Raises:
        UnfinishedError: after :data:`MOST_TRIALS` trials.
    """
    from MLRsearch import Config, SearchGoal

    # The library's durations are in trials, so that their sums are exact.
    goals = [
        SearchGoal(
            loss_ratio=loss,
            exceed_ratio=0.5,
            relative_width=RESOLUTION / (1 + RESOLUTION),
            initial_trial_duration=1,
            final_trial_duration=1,
            duration_sum=TRIALS_OF_A_BOUND,
            preceding_targets=_PRECEDING_TARGETS,
            expansion_coefficient=2,
            fail_fast=False,
        )
        for loss in losses
    ]
    moved = (1 + RESOLUTION) ** phase
    config = Config(
        goals=goals,
        min_load=LEAST_PPS * moved,
        max_load=_MOST_PPS * moved,
        search_duration_max=float("inf"),  # counted in trials instead
        warmup_duration=None,
    )
    found = _controller(config, first_pps).search(_Measurer(attempt), debug=lambda _: None)
    return [
        Bounds(
            _pps(found[goal].relevant_lower_bound),
            _pps(found[goal].relevant_upper_bound),
        )
        for goal in goals
    ]


def _pps(bound: Any) -> float | None:
    return None if bound is None else float(bound)


class _Measurer:
    """What the library asks for a trial."""

    def __init__(self, attempt: Callable[[float], Outcome]) -> None:
        self._attempt = attempt
        self._trials = 0

    def measure(self, intended_duration: float, intended_load: float) -> Any:
        """A trial for the library, to which packets that were not sent are lost, too."""
        from MLRsearch import MeasurementResult

        if self._trials == MOST_TRIALS:
            raise UnfinishedError
        self._trials += 1
        done = self._attempt(intended_load)
        return MeasurementResult(
            intended_duration=intended_duration,
            intended_load=intended_load,
            offered_count=done.sent,
            loss_count=done.lost,
            intended_count=done.sent + done.unsent,
        )


def _controller(config: Any, first_pps: float) -> Any:
    from MLRsearch import MultipleLossRatioSearch

    class Search(MultipleLossRatioSearch):  # type: ignore[misc]
        def run_initial_trials(self) -> tuple[Any, Any]:
            """Trials until one passes the strictest goal and one fails it, or at a limit.

            The first is at ``first_pps``. After a pass the rate is doubled; after a failure
            it is what was received, or half.
            """
            strictest = min(target.loss_ratio for target in self.scaling.targets)
            passed = failed = None
            pps = first_pps
            while not (passed and failed):
                load = self.from_float(pps).rounded_down()  # within the limits
                result = self.measure(1.0, load)
                if result.loss_ratio <= strictest:
                    passed = result
                    if load >= self.limit_handler.max_load:
                        break
                    pps = 2 * float(load)
                else:
                    failed = result
                    if load <= self.limit_handler.min_load:
                        break
                    received_pps = min(result.relative_forwarding_rate, _CLOSEST * float(load))
                    pps = max(received_pps, float(load) / 2)
            return passed or failed, failed or passed

    return Search(config=config)
