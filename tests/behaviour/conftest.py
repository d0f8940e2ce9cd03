# SPDX-License-Identifier: MIT
"""Beds on the kernels of the behaviour tests, and what the baseline does on one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness.kernels import Image
from tests.behaviour import kernels
from tests.behaviour.bed import Observed, Stage, stage
from tests.behaviour.scene import Scene
from tests.behaviour.scenes import BY_SIZE
from tests.guest.conftest import built as built  # noqa: PLC0414 - a fixture


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where beds keep what they say."""
    return tmp_path_factory.mktemp("beds")


@pytest.fixture(scope="session")
def baseline(home: Path) -> Iterator[Callable[[Scene, str], Observed]]:
    """What is observed in a scene at the baseline of a step; its bed is up from then on."""
    known: dict[tuple[str, str], Observed] = {}
    with ExitStack() as up:
        beds: dict[str, Stage] = {}

        def asked(scene: Scene, step: str) -> Observed:
            base = kernels.baseline_of(step) if scene in BY_SIZE else "0"
            if (base, scene.name) not in known:
                if base not in beds:
                    image = kernels.images([base])[base]
                    beds[base] = up.enter_context(stage(image, home / f"baseline-{base}"))
                known[base, scene.name] = beds[base].play(scene)
            return known[base, scene.name]

        yield asked


@pytest.fixture
def staged(home: Path) -> Iterator[Callable[[Image], Stage]]:
    """Brings a bed up on a user-mode kernel, for one test."""
    with ExitStack() as up:
        yield lambda image: up.enter_context(stage(image, home / image.release))
