# SPDX-License-Identifier: MIT
"""Boots that are processes of this machine, any number at once, and where they may run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path

import psutil

from harness import images
from harness.base import cache
from harness.base.errors import BusyError, ConfigurationError
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

    def require_free(self, bed: Bed) -> None:  # noqa: ARG002
        with Progress(bars=False) as progress, measuring(progress, alone=True):
            pass

    def made_meanwhile(self, bed: Bed) -> AbstractContextManager[None]:
        return images.made_meanwhile(tools=isinstance(bed.generator, NetnsHost))


@contextmanager
def measuring(progress: Progress, *, alone: bool = False) -> Iterator[None]:
    """Tell the user if another harness of his measures on this machine at the same time.

    Raises:
        BusyError: there is one, and this harness wants to be ``alone``.
    """
    path = cache.root() / "measuring.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_name(f"measuring-{os.getpid()}.json")
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if alone:
                raise BusyError(
                    f"another harness measures on this machine: {_holders(path.parent)}",
                    hint="wait for it with --wait, or end it",
                ) from error
            progress.say(
                "another harness is booting kernels on this machine: both share its CPUs, so rates "
                f"are lower and intervals wider than alone; --wait waits for it "
                f"({_holders(path.parent)})"
            )
        # All that measure hold it together; who wants to be alone needs it for itself.
        with contextlib.suppress(BlockingIOError):  # an earlier version has it for itself
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        about = {"pid": os.getpid(), "since": time.time(), "command": shlex.join(sys.argv[1:])}
        holder.write_text(json.dumps(about), encoding="utf-8")
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def _holders(directory: Path) -> str:
    """Who measures, and since when."""
    found = []
    for file in sorted(directory.glob("measuring-*.json")):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            about = json.loads(file.read_text(encoding="utf-8"))
            if not psutil.pid_exists(about["pid"]):
                file.unlink()  # of a killed harness
                continue
            since = datetime.fromtimestamp(about["since"]).astimezone()
            told = f"process {about['pid']}, since {since:%H:%M:%S}: harness {about['command']:.80}"
            found.append(told)
    return "; ".join(found) or "it does not say which"


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
