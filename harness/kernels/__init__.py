# SPDX-License-Identifier: MIT
"""From a kernel source and a series to bootable images, one for each step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness import patches
from harness.config import Kernel
from harness.kernels.build import Image, build_commits, build_steps
from harness.kernels.source import Commit, Tree, commits_between, files_between, from_git, resolve
from harness.progress import Progress

__all__ = [
    "Commit",
    "Image",
    "build_commits",
    "commits_between",
    "files_between",
    "images",
    "layouts",
]


def images(
    kernel: Kernel, steps: Sequence[str], *, progress: Progress, tree: Path | None = None
) -> dict[str, Image]:
    """One kernel for each of ``steps``: the first layout of :func:`layouts`."""
    made = layouts(kernel, steps, 1, progress=progress, tree=tree)
    return {step: images[0] for step, images in made.items()}


def layouts(
    kernel: Kernel,
    steps: Sequence[str],
    count: int,
    *,
    progress: Progress,
    tree: Path | None = None,
) -> dict[str, tuple[Image, ...]]:
    """The kernels of ``steps`` of the series that fits the source, ``count`` for each step.

    Those of a step differ in where their functions lie and in nothing else; the first
    of one step has what its patches do not touch where the first of any other has it.

    ``tree`` names a git tree to take instead of the source in hosts.yaml.

    Raises:
        ConfigurationError: there is no such source, or no series fits it.
        KernelError: a patch does not apply, or a kernel does not build.
    """
    source = from_git(tree) if tree else resolve(kernel.source)
    if kernel.series == "auto":
        with progress.task(f"source {source}"):
            series = patches.series_for(Tree.of(source).directory)
    else:
        series = patches.series(kernel.series)
    return build_steps(source, series, steps, layouts=count, progress=progress)
