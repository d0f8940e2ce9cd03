# SPDX-License-Identifier: MIT
"""Kernels booted on a bed for a session of a user, without a campaign."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import kernels, needs
from harness.base.progress import Progress
from harness.beds import registry
from harness.beds.bed import Boots, RunningBed
from harness.beds.waiting import Waiting
from harness.campaign import prepare
from harness.config import Bed, HostsFile, Load
from harness.kernels import Image
from harness.trials.load import start_load


@dataclass(frozen=True)
class Session:
    """A bed that is open, and the kernels that it can boot."""

    _bed: Bed
    _load: Load
    _boots: Boots
    _images: Mapping[str, Image]
    _scratch: Path
    _progress: Progress

    @property
    def groups(self) -> list[list[str]]:
        """The steps that can be up together: all on this machine, one on another."""
        steps = list(self._images)
        return [steps] if registry.of(self._bed).here else [[step] for step in steps]

    @contextlib.contextmanager
    def up(self, steps: Sequence[str], *, idle: bool = False) -> Iterator[dict[str, RunningBed]]:
        """The bed with its dut on the kernel of each of ``steps``, under load unless ``idle``.

        Of several boots, all but the last are frozen. All of them end with the context.
        """
        running: dict[str, RunningBed] = {}
        with contextlib.ExitStack() as up:
            for step in steps:
                for other in list(running.values())[-1:]:
                    other.freeze()
                with self._progress.task(f"{self._bed.dut_name}: step {step}"):
                    directory = self._scratch / step
                    one = self._boots.boot(self._images[step], directory, lambda *_, **__: None)
                    running[step] = up.enter_context(one)
                    prepare.apply_settings(self._bed, running[step], self._load)
                    if not idle:
                        start_load(self._bed, self._load, running[step])
            yield running


@contextlib.contextmanager
def opened(
    hosts: HostsFile,
    bed: Bed,
    steps: Sequence[str],
    *,
    tree: Path | None = None,
    commits: Sequence[kernels.Commit] = (),
    wait_s: float | None = None,
) -> Iterator[Session]:
    """``bed``, after the kernels of ``steps`` were built.

    With ``commits`` of ``tree``, these are the names of some. If it is busy, it is waited for
    ``wait_s`` seconds; ``None``: not.
    """
    with (
        Progress() as progress,
        tempfile.TemporaryDirectory(prefix="rb-session-") as scratch,
        contextlib.ExitStack() as up,
    ):
        waiting = Waiting(progress, wait_s)
        place = waiting.entered(up, partial(registry.acquired, bed))
        bed = place.bed  # as far as this machine allows what hosts.yaml says
        if waiting.alone:
            waiting.until_free(partial(registry.require_free, bed))
        wanted = kernels.Kernels(
            kernel=hosts.kernel,
            names=steps,
            tree=tree,
            commits=commits,
            host=waiting.until_free(partial(registry.kernel_config, hosts.kernel, bed)),
            arch=bed.arch,
        )
        needs.require(needs.of_kernels(wanted, bed=bed, together=len(steps)))
        images = {step: image for step, (image,) in wanted.build(progress).items()}
        opening = registry.Wanted("session", Path(scratch), alone=waiting.alone)
        open_bed = partial(registry.opened, place, images[steps[0]], opening, progress)
        boots = waiting.entered(up, open_bed)
        yield Session(bed, hosts.load, boots, images, Path(scratch), progress)
