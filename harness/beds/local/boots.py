# SPDX-License-Identifier: MIT
"""Boots that are processes of this machine, as many at once as are asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from harness import images
from harness.beds.bed import BedKind, Boots, RunningBed
from harness.kernels import Image


class LocalBoots(Boots):
    """``up(image, directory)`` brings one up; it ends with the harness, so nothing is noted."""

    def __init__(
        self,
        up: Callable[[Image, Path], AbstractContextManager[RunningBed]],
        *,
        accelerator: str | None = None,
    ) -> None:
        self._up, self._accelerator = up, accelerator

    @property
    def accelerator(self) -> str | None:
        """What runs the guests."""
        return self._accelerator

    def boot(
        self,
        image: Image,
        directory: Path,
        note: Callable[..., None],  # noqa: ARG002
    ) -> AbstractContextManager[RunningBed]:
        """The bed with its dut on ``image``."""
        return self._up(image, directory)


class LocalKind(BedKind):
    """A kind of bed whose boots are processes of this machine."""

    here = True

    def made_meanwhile(self) -> AbstractContextManager[None]:
        return images.made_meanwhile()
