# SPDX-License-Identifier: MIT
"""What needs two CPUs, and so guests with x86 kernels instead of user-mode kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.base.errors import KernelError
from harness.kernels import Image
from tests.behaviour import kernels
from tests.behaviour.bed import Observed, Stage, differences, virtual_stage
from tests.behaviour.kernels import MUTATIONS, Mutation
from tests.behaviour.scenes import BY_NAME, CHURN, RPS, SCENES

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module")
def measured(home: Path, built: dict[str, Image]) -> Iterator[tuple[Stage, Stage]]:
    """The kernels that a campaign measures, of the baseline and the last step."""
    with ExitStack() as up:
        first, last = (
            up.enter_context(virtual_stage(built[step], home / f"measured-{step}"))
            for step in ("0", kernels.LAST_STEP)
        )
        yield first, last


@pytest.mark.parametrize("name", ["plain", RPS.name])
def test_the_last_step_does_what_the_baseline_does(
    name: str, measured: tuple[Stage, Stage]
) -> None:
    first, last = (one.play(BY_NAME[name]) for one in measured)
    assert int(first["counters"]["Ip:InReceives"]) > 0
    assert differences(first, last) == []


@pytest.mark.parametrize(
    "mutation",
    [each for each in MUTATIONS if each.scene == RPS.name],
    ids=lambda mutation: mutation.name,
)
def test_a_mistake_shows(mutation: Mutation, home: Path) -> None:
    image = kernels.patched(mutation.path, mutation.over, "measured")
    with virtual_stage(image, home / mutation.name) as up, pytest.raises(KernelError):
        up.play(RPS)


@pytest.fixture(scope="module")
def expected(home: Path) -> list[Observed]:
    with virtual_stage(kernels.images(["0"], "x86")["0"], home / "x86-0") as up:
        return [up.play(scene) for scene in (*SCENES, RPS)]


@pytest.mark.deep
@pytest.mark.parametrize("step", [kernels.LAST_STEP, "2v"])
def test_all_of_it_under_sanitizers(step: str, expected: list[Observed], home: Path) -> None:
    """With 2v, ``virtio_net`` makes lists of what the guest's ssh server gets."""
    with virtual_stage(kernels.images([step], "x86")[step], home / f"x86-{step}") as up:
        played = zip((*SCENES, RPS), expected, strict=True)
        found = {scene.name: differences(one, up.play(scene)) for scene, one in played}
        assert {name: lines for name, lines in found.items() if lines} == {}, "baseline / step"
        for scene in CHURN:
            up.play(scene)
