# SPDX-License-Identifier: MIT
"""Boots that are processes of this machine, any number at once, and where they may run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from harness import images
from harness.base import cache
from harness.base.errors import ConfigurationError
from harness.base.progress import Progress
from harness.beds.bed import BedKind, Boots, RunningBed
from harness.config import Bed, MachineCpus, NetnsHost
from harness.kernels import Image


class LocalBoots(Boots):
    """``up(image, directory)`` boots one. It ends with the harness, so nothing is noted."""

    def __init__(
        self,
        up: Callable[[Image, Path], AbstractContextManager[RunningBed]],
        *,
        accelerator: str | None = None,
    ) -> None:
        self._up, self._accelerator = up, accelerator

    @property
    def accelerator(self) -> str | None:
        return self._accelerator

    def boot(
        self,
        image: Image,
        directory: Path,
        note: Callable[..., None],  # noqa: ARG002
    ) -> AbstractContextManager[RunningBed]:
        return self._up(image, directory)


class LocalKind(BedKind):
    """A kind of bed whose boots are processes of this machine."""

    here = True

    def made_meanwhile(self, bed: Bed) -> AbstractContextManager[None]:
        return images.made_meanwhile(tools=isinstance(bed.generator, NetnsHost))


@contextmanager
def measuring(progress: Progress) -> Iterator[None]:
    """Tell the user if another harness of his measures on this machine at the same time."""
    path = cache.root() / "measuring.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        progress.say(
            "another harness is booting kernels on this machine: both share its CPUs, so rates are "
            "lower and intervals wider than alone"
        )
        yield
        return
    try:
        yield
    finally:
        lock.release()


def named_cpus(bed: Bed, cpus: MachineCpus, mine: list[int]) -> MachineCpus:
    """``cpus``, which hosts.yaml names for ``bed``, if they are among ``mine``.

    Raises:
        ConfigurationError: this process may not use one of them.
    """
    if missing := {*cpus.vcpus, cpus.model, *cpus.netperf} - set(mine):
        raise ConfigurationError(
            f"beds.{bed.name}.cpus names {sorted(missing)}, which this process may not use",
            hint=f"it may use {mine}; or set cpus: auto",
        )
    return cpus
