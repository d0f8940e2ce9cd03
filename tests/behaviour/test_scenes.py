# SPDX-License-Identifier: MIT
"""Every step does with the same traffic what the baseline does, and under sanitizers too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.kernels import Image
from tests.behaviour import kernels
from tests.behaviour.bed import Observed, Stage, differences, stage
from tests.behaviour.scene import Scene
from tests.behaviour.scenes import BY_NAME, CHURN, NEW_FLOWS, SCENES, TWO_DEVICES

pytestmark = pytest.mark.guest

STEPS = [str(step) for step in range(int(kernels.LAST_STEP) + 1)]
OPTIONAL = ("2m", "2v", "9")
MEASURABLE = (
    "plain", "tap", "forward", "rp_filter", "xdp", "rps", "timestamps", "busy poll", "jumbo",
)  # fmt: skip
"""Scenes that need nothing of a kernel which the one that is measured has not."""
FAST = (
    "plain", "tap", "forward", "vlan and bridge", "vrf", "rp_filter", "nft", "nat", "xdp", "rps",
)  # fmt: skip
SANITIZED = ("plain", "rps", "xdp")
"""Those of :data:`MEASURABLE` for which there is time with sanitizers in every check."""

Baseline = Callable[[Scene], Observed]
Staged = Callable[[Image], Stage]


@pytest.fixture(scope="module")
def measured(home: Path, built: dict[str, Image]) -> Iterator[tuple[Stage, Stage]]:
    """The kernels that a campaign measures, of the baseline and the last step."""
    with ExitStack() as up:
        first, last = (
            up.enter_context(stage(built[step], home / f"measured-{step}"))
            for step in ("0", kernels.LAST_STEP)
        )
        yield first, last


@pytest.mark.parametrize("name", MEASURABLE)
def test_what_is_measured_does_the_same(name: str, measured: tuple[Stage, Stage]) -> None:
    first, last = (one.play(BY_NAME[name]) for one in measured)
    assert int(first["counters"]["Ip:InReceives"]) > 0
    assert differences(first, last) == []


@pytest.mark.others
def test_the_last_step_under_sanitizers(built: dict[str, Image], staged: Staged) -> None:
    step = kernels.LAST_STEP
    image = kernels.images([step], "small")[step]
    first, up = staged(built["0"]), staged(image)
    for name in SANITIZED:
        found = differences(*(one.play(BY_NAME[name]) for one in (first, up)))
        assert not found, "\n".join([f"{name}, baseline / step:", *found])
    up.play(BY_NAME["link and queues"])


@pytest.fixture(scope="module")
def last(home: Path) -> Iterator[Stage]:
    image = kernels.images(["0", kernels.LAST_STEP])[kernels.LAST_STEP]
    with stage(image, home / "last") as up:
        yield up


def same(baseline: Baseline, one: Stage, scene: Scene) -> None:
    found = differences(baseline(scene), one.play(scene))
    assert not found, "\n".join(["baseline / step:", *found])


@pytest.mark.deep
@pytest.mark.parametrize("name", FAST)
def test_the_last_step_does_what_the_baseline_does(
    name: str, last: Stage, baseline: Baseline
) -> None:
    same(baseline, last, BY_NAME[name])


@pytest.mark.deep
@pytest.mark.parametrize("step", [*STEPS[1:], *OPTIONAL])
def test_every_step_does_what_the_baseline_does(
    step: str, staged: Staged, baseline: Baseline
) -> None:
    up = staged(kernels.images([step])[step])
    for scene in SCENES:
        same(baseline, up, scene)


@pytest.mark.deep
def test_new_flows_under_conntrack(staged: Staged, baseline: Baseline) -> None:
    """No datagram is lost; what else differs is told."""
    up = staged(kernels.images([kernels.LAST_STEP])[kernels.LAST_STEP])
    found = differences(baseline(NEW_FLOWS), up.play(NEW_FLOWS))
    print(*found, sep="\n")
    assert [line for line in found if line.startswith("udp4 ")] == []


@pytest.mark.deep
@pytest.mark.parametrize(("step", "kept"), [("5", True), ("6", False), (kernels.LAST_STEP, False)])
def test_order_across_a_bridge(step: str, kept: bool, staged: Staged, baseline: Baseline) -> None:
    """From step 6 on what the bridge takes overtakes; nothing else differs."""
    up = staged(kernels.images([step])[step])
    found = differences(baseline(TWO_DEVICES), up.play(TWO_DEVICES))
    print(*found, sep="\n")
    assert kept == (not found)
    assert [line for line in found if not line.startswith("udp4 ")] == []


@pytest.mark.deep
def test_packets_from_memory_reserves(staged: Staged) -> None:
    seen = []
    for step in ("0", kernels.LAST_STEP):
        up = staged(kernels.patched(kernels.RESERVES, step, "debug"))
        seen.append([up.play(scene) for scene in (BY_NAME["plain"], BY_NAME["tap"])])
    assert int(seen[0][0]["counters"]["TcpExt:PFMemallocDrop"]) > 0
    for one, other in zip(*seen, strict=True):
        assert differences(one, other) == []


@pytest.mark.deep
@pytest.mark.parametrize("step", STEPS)
def test_every_step_under_sanitizers(step: str, staged: Staged, baseline: Baseline) -> None:
    up = staged(kernels.images([step], "debug")[step])
    for scene in SCENES:
        same(baseline, up, scene)
    for scene in CHURN:
        up.play(scene)
