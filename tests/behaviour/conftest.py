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
from tests.guest.conftest import built as built  # noqa: PLC0414 - a fixture


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where beds keep what they say."""
    return tmp_path_factory.mktemp("beds")


@pytest.fixture(scope="session")
def baseline(home: Path) -> Iterator[Callable[[Scene], Observed]]:
    """What is observed in a scene at step 0; its bed is up from the first question on."""
    known: dict[str, Observed] = {}
    with ExitStack() as up:
        beds: list[Stage] = []

        def asked(scene: Scene) -> Observed:
            if scene.name not in known:
                if not beds:
                    image = kernels.images(["0"])["0"]
                    beds.append(up.enter_context(stage(image, home / "baseline")))
                known[scene.name] = beds[0].play(scene)
            return known[scene.name]

        yield asked


@pytest.fixture
def staged(home: Path) -> Iterator[Callable[[Image], Stage]]:
    """Brings a bed up on a user-mode kernel, for one test."""
    with ExitStack() as up:
        yield lambda image: up.enter_context(stage(image, home / image.release))
