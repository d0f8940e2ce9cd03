# SPDX-License-Identifier: MIT
"""Where noise comes from: components that were put in come out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from harness.plan import PlannedBoot
from harness.results.figures import BootFigures
from harness.results.spread import Spread, spread_of

pytestmark = pytest.mark.unit

STEPS, BLOCKS, TRIALS = ("0", "2", "8"), 24, 4
Parts = dict[str, float]


def _boots(seed: int, parts: Parts, *, layouts: int = BLOCKS, sliced: bool = False) -> Any:
    rng = np.random.default_rng(seed)
    block = rng.normal(0, parts.get("block", 0.0), BLOCKS)
    moment = rng.normal(0, parts.get("moment", 0.0), (BLOCKS, TRIALS))
    boots: dict[str, list[BootFigures]] = {}
    for number, step in enumerate(STEPS):
        layout = rng.normal(0, parts.get("layout", 0.0), layouts)
        for at in range(BLOCKS):
            own = 0.1 * number + block[at] + layout[at % layouts]
            own += rng.normal(0, parts.get("boot", 0.0))
            logs = own + moment[at] + rng.normal(0, parts.get("trial", 0.0), TRIALS)
            boots.setdefault(step, []).append(
                BootFigures(
                    boot=PlannedBoot(at + 1, number + 1, step),
                    bed=None,
                    release=f"{step}-{at % layouts}",
                    turns=str(at) if sliced else None,
                    rates={},
                    trials={
                        index: {"stack_rx_pps": 1e5 * math.exp(value)}
                        for index, value in enumerate(logs)
                    },
                    drops={},
                    offered=0,
                )
            )
    return boots


def _typical(parts: Parts, **options: Any) -> Spread:
    """Root mean squares over many campaigns: variances are what is estimated without bias."""
    found = [spread_of(_boots(seed, parts, **options), "stack_rx_pps") for seed in range(60)]

    def over(name: str) -> float | None:
        values = [getattr(one, name) for one in found]
        return None if None in values else math.sqrt(np.mean(np.square(values)))

    return Spread(**{name: over(name) for name in ("block", "boot", "layout", "trial")})  # type: ignore[arg-type]


def test_components_that_were_put_in_come_out() -> None:
    found = _typical({"block": 0.05, "boot": 0.02, "trial": 0.01})
    assert found.block == pytest.approx(0.05, rel=0.08)
    assert found.boot == pytest.approx(0.02, rel=0.08)
    assert found.trial == pytest.approx(0.01, rel=0.05)
    assert found.layout is None


def test_layouts_are_told_from_boots_where_blocks_share_them() -> None:
    parts = {"layout": 0.03, "boot": 0.01, "trial": 0.01}
    found = _typical(parts, layouts=8)
    assert found.layout == pytest.approx(0.03, rel=0.08)
    assert found.boot == pytest.approx(0.01, rel=0.08)
    fresh = _typical(parts)
    assert fresh.layout is None
    assert fresh.boot == pytest.approx(math.hypot(0.03, 0.01), rel=0.08)


def test_what_time_slices_share_is_no_noise_of_a_trial() -> None:
    parts = {"boot": 0.01, "trial": 0.01, "moment": 0.05}
    assert _typical(parts, sliced=True).trial == pytest.approx(0.01, rel=0.05)
    assert (_typical(parts).trial or 0) > 0.045


def test_one_step_or_one_block_has_no_spread() -> None:
    boots = _boots(1, {"boot": 0.01})
    assert spread_of({"0": boots["0"]}, "stack_rx_pps") is None
    assert spread_of({step: of[:1] for step, of in boots.items()}, "stack_rx_pps") is None
    assert spread_of(boots, "ndr_pps") is None
