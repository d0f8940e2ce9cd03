# SPDX-License-Identifier: MIT
"""How often printed words are wrong, over few simulated campaigns.

``python -m tests.bench.verdicts`` does the same with thousands; ``tests/bench/README.md`` has its
table.
"""

from __future__ import annotations

import math

import pytest

from tests.bench.verdicts import (
    SERIES,
    SETTINGS,
    TRUSTING,
    USUAL,
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
