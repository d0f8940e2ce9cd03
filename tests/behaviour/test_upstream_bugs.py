# SPDX-License-Identifier: MIT
"""The scenes see the bugs that upstream met: each is put back, and has to show."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import patches
from harness.base.errors import KernelError
from harness.kernels import Image
from harness.kernels.source import Tree
from tests.behaviour import kernels
from tests.behaviour.bed import Observed, Stage, differences
from tests.behaviour.kernels import MUTATIONS, Mutation
from tests.behaviour.scene import Scene
from tests.behaviour.scenes import BY_NAME, RPS

pytestmark = [pytest.mark.guest, pytest.mark.others]

Baseline = Callable[[Scene, str], Observed]
Staged = Callable[[Image], Stage]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The files that the series touches, as they came with the kernel."""
    tree = Tree.of(kernels.source())
    series = kernels.series()
    for name in {name for patch in (*series.patches, *series.optional) for name in patch.files}:
        known = tree.home / "pristine" / name
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(known if known.exists() else tree.directory / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_it_applies(mutation: Mutation, copied: Path) -> None:
    assert mutation.scene in BY_NAME
    assert mutation.seen_as in ("kernel", "difference")
    broken = kernels.extended(mutation.path, mutation.over)
    patches.apply_files(copied, broken.patches_for(broken.steps[-1]))


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(
            each,
            id=each.name,
            marks=() if each.over == kernels.LAST_STEP else pytest.mark.deep,
        )
        for each in MUTATIONS
        if each.scene != RPS.name
    ],
)
def test_it_shows(mutation: Mutation, staged: Staged, baseline: Baseline) -> None:
    """Unbroken, the scene shows nothing: every step plays it in ``test_scenes.py``."""
    scene = BY_NAME[mutation.scene]
    expected = baseline(scene, mutation.over)
    up = staged(kernels.patched(mutation.path, mutation.over))
    if mutation.seen_as == "kernel":
        with pytest.raises(KernelError) as told:
            up.play(scene)
        print(told.value.message)
    else:
        found = differences(expected, up.play(scene))
        assert found
        print(*found, sep="\n")
