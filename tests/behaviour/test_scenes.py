# SPDX-License-Identifier: MIT
"""Every step does with the same traffic what the baseline does, under sanitizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.kernels import Image
from harness.plan import STAIRS
from tests.behaviour import kernels
from tests.behaviour.bed import Observed, Stage, differences, stage
from tests.behaviour.scene import Scene
from tests.behaviour.scenes import BY_NAME, BY_SIZE, CHURN, NEW_FLOWS, SCENES, TWO_DEVICES

pytestmark = pytest.mark.guest

OPTIONAL = ("2m", "9", "0+11", *STAIRS)
"""Without 2v, which changes another driver: see ``test_x86.py``."""
IN_CHECK = ("0", kernels.LAST_STEP)
"""The others are deep, because their kernels take long to build: see the README."""
STEPS = [
    pytest.param(step, marks=() if step in IN_CHECK else pytest.mark.deep)
    for step in (*map(str, range(int(kernels.LAST_STEP) + 1)), *OPTIONAL)
]
BRIDGED_IN_ORDER = ("0", "0+11", "1", "2", "2m", "3", "4", "5")

Baseline = Callable[[Scene, str], Observed]
Staged = Callable[[Image], Stage]


@pytest.fixture(scope="module", params=STEPS)
def step(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def up(step: str, home: Path) -> Iterator[Stage]:
    """Step 0 as well, in another boot than the baseline: nothing else may differ either."""
    with stage(kernels.images([step])[step], home / f"step-{step}") as made:
        yield made


@pytest.mark.parametrize("scene", [*SCENES, *BY_SIZE], ids=lambda scene: scene.name)
def test_it_does_what_the_baseline_does(
    scene: Scene, step: str, up: Stage, baseline: Baseline
) -> None:
    assert differences(baseline(scene, step), up.play(scene)) == [], "baseline / step"


def test_new_flows_under_conntrack(step: str, up: Stage, baseline: Baseline) -> None:
    """No datagram is lost; what else differs is told."""
    found = differences(baseline(NEW_FLOWS, step), up.play(NEW_FLOWS))
    print(*found, sep="\n")
    assert [line for line in found if line.startswith("udp4 ")] == []


def test_order_across_a_bridge(step: str, up: Stage, baseline: Baseline) -> None:
    """From step 6 on what the bridge takes overtakes; nothing else differs."""
    found = differences(baseline(TWO_DEVICES, step), up.play(TWO_DEVICES))
    print(*found, sep="\n")
    assert (step in BRIDGED_IN_ORDER) == (not found)
    assert [line for line in found if not line.startswith("udp4 ")] == []


@pytest.mark.deep
@pytest.mark.parametrize("scene", CHURN, ids=lambda scene: scene.name)
def test_nothing_breaks_under_a_flood(scene: Scene, up: Stage) -> None:
    up.play(scene)


@pytest.mark.deep
def test_packets_from_memory_reserves(staged: Staged) -> None:
    seen = []
    for step in ("0", kernels.LAST_STEP):
        up = staged(kernels.patched(kernels.RESERVES, step))
        seen.append([up.play(scene) for scene in (BY_NAME["plain"], BY_NAME["tap"])])
    assert int(seen[0][0]["counters"]["TcpExt:PFMemallocDrop"]) > 0
    for one, other in zip(*seen, strict=True):
        assert differences(one, other) == []
