# SPDX-License-Identifier: MIT
"""Builds bootable kernels from a source and a series: one for each step and layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness import patches
from harness.base.progress import Progress
from harness.config import Kernel
from harness.kernels.arch import ARCHES, UM, X86
from harness.kernels.build import Image, build_steps
from harness.kernels.build import build_commits as _build_commits
from harness.kernels.build import missing as _missing
from harness.kernels.configuration import HostConfig, chosen
from harness.kernels.packing import packed
from harness.kernels.source import (
    Commit,
    Tree,
    base_of_commit,
    commits_between,
    files_between,
    from_git,
    resolve,
    variants,
)
from harness.kernels.toolchain import toolchain_of

__all__ = [
    "Commit",
    "HostConfig",
    "Image",
    "build_commits",
    "commits_between",
    "files_between",
    "images",
    "layouts",
    "missing",
    "of_host",
    "packed",
    "variants",
]


def of_host(kernel: Kernel, *, virtual: bool) -> bool:
    """Are kernels configured after the dut's own kernel? Only if the dut is not ``virtual``.

    Raises:
        ConfigurationError: ``kernel.config`` asks for it, but the dut is virtual.
    """
    if kernel.config == "host" and virtual:
        chosen(kernel)
    return kernel.config == "host" or (kernel.config == "auto" and not virtual)


def images(
    kernel: Kernel,
    steps: Sequence[str],
    *,
    progress: Progress,
    tree: Path | None = None,
    host: HostConfig | None = None,
    arch: str = X86.name,
) -> dict[str, Image]:
    """One kernel for each of ``steps``: the first layout of :func:`layouts`."""
    made = layouts(kernel, steps, 1, progress=progress, tree=tree, host=host, arch=arch)
    return {step: images[0] for step, images in made.items()}


def layouts(
    kernel: Kernel,
    steps: Sequence[str],
    count: int,
    *,
    progress: Progress,
    tree: Path | None = None,
    host: HostConfig | None = None,
    arch: str = X86.name,
) -> dict[str, tuple[Image, ...]]:
    """The kernels of ``steps`` of the series for the source, in ``count`` layouts each.

    The kernels of one step differ only in where their functions lie. In a given layout, code
    that no patch touches has the same addresses in all steps.

    ``tree`` is a git tree that replaces the source in hosts.yaml; ``host`` is the dut's own
    configuration, if kernels are configured after it (see :func:`of_host`). ``arch`` is ``um``
    for kernels that run as processes of this machine.

    Raises:
        ConfigurationError: the source or configuration does not exist, no series fits it,
            or it cannot be built for ``arch``.
        KernelError: a patch does not apply, or a kernel does not build.
    """
    configuration = chosen(kernel, host, ARCHES[arch])
    source = from_git(tree) if tree else resolve(kernel.source)
    if kernel.series == "auto":
        with progress.task(f"source {source}"):
            series = patches.series_for(Tree.of(source).directory)
    else:
        series = patches.series(kernel.series)
    return build_steps(
        source,
        series,
        steps,
        configuration=configuration.on(series.base),
        toolchain=toolchain_of(kernel),
        layouts=count,
        progress=progress,
        bed_patches=_bed_patches(arch, series.base),
    )


def missing(
    kernel: Kernel,
    steps: Sequence[str],
    count: int,
    *,
    tree: Path | None = None,
    host: HostConfig | None = None,
    arch: str = X86.name,
) -> int:
    """How many kernels :func:`layouts` would have to build; nothing is built or unpacked.

    Raises:
        ConfigurationError, InfrastructureError: as :func:`layouts`, as far as it is known.
    """
    configuration = chosen(kernel, host, ARCHES[arch])
    source = from_git(tree) if tree else resolve(kernel.source)
    unpacked = Tree.kept(source)
    if kernel.series == "auto" and unpacked is None:
        return len(steps) * count
    series = (
        patches.series_for(unpacked.directory)
        if unpacked and kernel.series == "auto"
        else patches.series(kernel.series)
    )
    return _missing(
        source,
        series,
        steps,
        configuration=configuration.on(series.base),
        toolchain=toolchain_of(kernel),
        layouts=count,
        bed_patches=_bed_patches(arch, series.base),
    )


def _bed_patches(arch: str, base: str) -> tuple[Path, ...]:
    return patches.bed_patches(arch, base) if arch == UM.name else ()


def build_commits(
    repository: Path,
    commits: Sequence[Commit],
    *,
    kernel: Kernel,
    touched: Sequence[str],
    layouts: int,
    progress: Progress,
    host: HostConfig | None = None,
    arch: str = X86.name,
) -> dict[str, tuple[Image, ...]]:
    """The kernels of ``commits`` of ``repository``, without a series.

    ``kernel`` says only how they are built; ``touched`` names the files in which commits of
    the range differ. Errors as for :func:`layouts`.
    """
    return _build_commits(
        repository,
        commits,
        touched=touched,
        configuration=chosen(kernel, host, ARCHES[arch]),
        toolchain=toolchain_of(kernel),
        layouts=layouts,
        progress=progress,
        bed_patches=patches.bed_patches(arch, base_of_commit(repository, commits[0].name))
        if arch == UM.name
        else (),
    )
