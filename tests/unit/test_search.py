# SPDX-License-Identifier: MIT
"""The search for the highest rates, on simulated receivers."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base.errors import KernelError
from harness.trials import search
from harness.trials.search import Bounds, Outcome, UnfinishedError, highest_rates
from tests.bench.ndr_searches import LOSSES, RECEIVERS, Receiver, spread

pytestmark = pytest.mark.unit

_NEAR = 1 + search.RESOLUTION


@settings(max_examples=60)
@given(limit=st.floats(1031, 1e8), first=st.floats(1, 1e9), phase=st.floats(0, 1))
def test_the_search_comes_as_near_to_each_limit_as_its_resolution(
    limit: float, first: float, phase: float
) -> None:
    bounds = highest_rates(Receiver(limit), LOSSES, first_pps=first, phase=phase)
    for loss, found in zip(LOSSES, bounds, strict=True):
        exact = limit / (1 - loss)
        assert found.passes_pps is not None
        assert found.fails_pps is not None
        rounded = 2 / found.passes_pps  # of packets
        assert exact / _NEAR * (1 - rounded) <= found.passes_pps <= exact * (1 + rounded)
        assert found.fails_pps <= found.passes_pps * (_NEAR + 1e-9)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**9), receiver=st.sampled_from(sorted(RECEIVERS)))
def test_more_loss_is_never_a_lower_rate(seed: int, receiver: str) -> None:
    made = Receiver(50_000, **RECEIVERS[receiver], spurious=0.3, seed=seed)
    try:
        found = highest_rates(made, LOSSES, first_pps=40_000)
    except UnfinishedError:
        return
    rates = [bounds.passes_pps or 0.0 for bounds in found]
    assert rates == sorted(rates)


def test_the_mean_of_many_phases_resolves_less_than_a_step() -> None:
    def found(limit: float, phase: float) -> float:
        [bounds] = highest_rates(Receiver(limit), [0.0], first_pps=40_000, phase=phase)
        assert bounds.passes_pps is not None
        return bounds.passes_pps

    ratios = [found(50_500, n / 40) / found(50_000, n / 40) for n in range(40)]
    assert max(ratios) == pytest.approx(_NEAR, rel=1e-3)
    assert statistics.geometric_mean(ratios) == pytest.approx(1.01, abs=0.002)


def test_no_rate_is_found_where_none_passes() -> None:
    found = highest_rates(lambda pps: Outcome(round(pps), round(pps), 0), LOSSES, first_pps=40_000)
    assert found == [Bounds(None, search.LEAST_PPS)] * 3


@pytest.mark.parametrize("receiver", sorted(RECEIVERS))
def test_one_spurious_loss_in_twenty_does_not_scatter_the_rates(receiver: str) -> None:
    quiet, noisy = (spread(receiver, spurious, searches=60) for spurious in (0.0, 0.05))
    for calm, found in zip(quiet.rates, noisy.rates, strict=True):
        assert found.share_off(calm.median, by=search.RESOLUTION) <= 0.05
        assert found.median == pytest.approx(calm.median, rel=0.01)
    assert noisy.trials[-1] < search.MOST_TRIALS


def test_what_the_generator_does_not_send_is_no_pass() -> None:
    found = highest_rates(Receiver(90_000, generator_pps=50_000), LOSSES, first_pps=40_000)
    for bounds in found:
        assert bounds.passes_pps is not None
        assert 50_000 / _NEAR <= bounds.passes_pps <= 50_000 / 0.95


def test_a_search_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MOST_TRIALS", 7)
    receiver = Receiver(50_000, **RECEIVERS["soft"])
    with pytest.raises(UnfinishedError):
        highest_rates(receiver, LOSSES, first_pps=40_000)
    assert receiver.trials == 7


def test_a_kernel_that_dies_ends_the_search_as_what_it_is() -> None:
    receiver = Receiver(50_000)

    def dies(pps: float) -> Outcome:
        if receiver.trials == 5:
            raise KernelError("the kernel died")
        return receiver(pps)

    with pytest.raises(KernelError):
        highest_rates(dies, LOSSES, first_pps=40_000)
