# SPDX-License-Identifier: MIT
"""Kernels booted on a bed of this machine for a session of a user, without a campaign."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness import kernels, needs
from harness.base.progress import Progress
from harness.beds import registry
from harness.beds.bed import RunningBed
from harness.campaign import prepare
from harness.config import Bed, HostsFile
from harness.trials.load import start_load


@contextlib.contextmanager
def booted(
    hosts: HostsFile,
    bed: Bed,
    steps: Sequence[str],
    *,
    idle: bool = False,
    tree: Path | None = None,
    commits: Sequence[kernels.Commit] = (),
) -> Iterator[dict[str, RunningBed]]:
    """``bed`` with its dut on the kernel of each of ``steps``, under load unless ``idle``.

    With ``commits`` of ``tree``, these are the names of some.

    Of several boots, all but the last are frozen. All of them end with the context.
    """
    with (
        Progress() as progress,
        tempfile.TemporaryDirectory(prefix="rb-session-") as scratch,
        contextlib.ExitStack() as up,
    ):
        place = up.enter_context(registry.acquired(bed))
        bed = place.bed  # as far as this machine allows what hosts.yaml says
        wanted = kernels.Kernels(
            kernel=hosts.kernel, names=steps, tree=tree, commits=commits, arch=bed.arch
        )
        needs.require(needs.of_kernels(wanted, bed=bed, together=len(steps)))
        images = {step: image for step, (image,) in wanted.build(progress).items()}
        opening = registry.Wanted("session", Path(scratch))
        boots = up.enter_context(registry.opened(place, images[steps[0]], opening, progress))
        running: dict[str, RunningBed] = {}
        for step in steps:
            for other in list(running.values())[-1:]:
                other.freeze()
            with progress.task(f"{bed.dut_name}: step {step}"):
                directory = Path(scratch) / step
                one = boots.boot(images[step], directory, lambda *_, **__: None)
                running[step] = up.enter_context(one)
                prepare.apply_settings(bed, running[step])
                if not idle:
                    start_load(bed, hosts.load, running[step])
        yield running
