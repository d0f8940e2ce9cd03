# SPDX-License-Identifier: MIT
"""How often printed words are wrong, over few simulated campaigns.

``python -m tests.bench.verdicts`` does the same with thousands; ``tests/bench/README.md`` has its
table.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness import cells
from harness.plan import blocks_for_verdict
from harness.results.judged import judge_campaign
from tests.bench.verdicts import (
    SERIES,
    SETTINGS,
    TRUSTING,
    USUAL,
    _campaign,
    at_margin,
    same,
    simulate,
    stairs,
)

pytestmark = pytest.mark.unit

CAMPAIGNS = 300


def _at_most(share: float) -> float:
    """Three standard errors of the simulation above ``share``."""
    return share + 3 * math.sqrt(share * (1 - share) / CAMPAIGNS)


@pytest.mark.parametrize("name", SETTINGS)
def test_one_kernel_under_nine_names_seldom_gets_a_word(name: str) -> None:
    found = simulate(SETTINGS[name], same(), blocks=9, campaigns=CAMPAIGNS)
    assert found.wrong <= _at_most(0.05)
    assert found.covered >= 0.93


def test_nor_does_it_as_another_variant() -> None:
    found = simulate(SETTINGS["normal"], same(USUAL), blocks=8, campaigns=CAMPAIGNS)
    assert found.wrong <= _at_most(0.05)


def test_a_layout_taken_for_a_new_one_would_make_words_of_nothing() -> None:
    found = simulate(TRUSTING, same(), blocks=9, campaigns=CAMPAIGNS)
    assert found.wrong > 0.1


@pytest.mark.parametrize("effects", [at_margin(), at_margin(5)], ids=["all", "half"])
def test_steps_at_the_margin_are_seldom_called_equal(effects: dict[str, float]) -> None:
    found = simulate(SETTINGS["normal"], effects, blocks=12, campaigns=CAMPAIGNS)
    assert found.wrong <= _at_most(0.05)


def test_what_is_there_is_found() -> None:
    effects = same(SERIES) | {"8": math.log1p(0.05)}
    assert simulate(SETTINGS["normal"], effects, blocks=12, campaigns=100).primary > 0.9
    assert simulate(SETTINGS["normal"], stairs(0.05), blocks=8, campaigns=100).rising > 0.9


CELLS = cells.crossed(("0", "8"), {"burst": ("1", "8", "64")})
TWO_FACTORS = cells.crossed(("0", "2", "8"), {"gro": ("on", "off"), "rx_usecs": ("0", "60")})


@pytest.mark.parametrize("name", ["normal", "heavy tails (t3)", "drift", "autocorrelation"])
@pytest.mark.parametrize(("steps", "blocks"), [(CELLS, 9), (TWO_FACTORS, 10)])
def test_levels_that_do_nothing_seldom_get_a_word(
    name: str, steps: tuple[str, ...], blocks: int
) -> None:
    assert blocks >= blocks_for_verdict(steps)
    found = simulate(SETTINGS[name], same(steps), blocks=blocks, campaigns=CAMPAIGNS)
    assert found.wrong <= _at_most(0.05)
    assert found.interaction <= 0.055


def test_a_gain_that_is_the_same_at_each_level_seldom_gets_a_word_of_interaction() -> None:
    """Though every step gains, and every level changes the rate of all."""
    effects = {
        cell: 0.2 * (cells.variant_of(cell) == "8") + 0.1 * (CELLS.index(cell) // 2)
        for cell in CELLS
    }
    found = simulate(SETTINGS["normal"], effects, blocks=10, campaigns=1000)
    assert found.interaction <= 0.055
    assert found.difference == 0
    assert found.primary == pytest.approx(1)


def test_a_gain_that_grows_with_the_level_is_found() -> None:
    effects = same(CELLS) | {"8[burst=8]": 0.02, "8[burst=64]": 0.10}
    rng = np.random.default_rng(5)
    found = 0
    for number in range(50):
        campaign, boots = _campaign(SETTINGS["normal"], effects, 12, rng, number)
        judged = judge_campaign(campaign, boots, complete=True)
        first = judged.contrasts[0]
        assert (first.step, first.level, first.interaction) == ("8", "64", True)
        found += first.verdict is not None and first.verdict.outcome == "faster"
    assert found > 45
