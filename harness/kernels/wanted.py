# SPDX-License-Identifier: MIT
"""Kernels that are wanted, from the names of steps or commits to images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import patches
from harness.base.progress import Progress
from harness.config import Kernel
from harness.kernels import build
from harness.kernels.arch import ARCHES, UM, X86
from harness.kernels.build import Image
from harness.kernels.configuration import Configuration, HostConfig, chosen
from harness.kernels.source import (
    Commit,
    Source,
    Tree,
    base_of_commit,
    files_between,
    from_git,
    resolve,
)
from harness.kernels.toolchain import toolchain_of
from harness.kernels.walk import Variant


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Steps of the series for a source, or commits of a git tree.

    The kernels of one name differ only in where their functions lie. In a given layout, code
    that is the same in all of them has the same addresses.
    """

    kernel: Kernel
    """What hosts.yaml says of them."""
    names: Sequence[str]
    layouts: int = 1
    """In how many layouts each is linked."""
    tree: Path | None = None
    """A git tree that replaces the source in hosts.yaml."""
    commits: Sequence[Commit] = ()
    """Of ``tree``: all that are compared. If there are any, ``names`` are among theirs."""
    host: HostConfig | None = None
    """The dut's own configuration, if kernels are configured after it (see :func:`.of_host`)."""
    arch: str = X86.name
    """``um``: they run as processes of this machine."""
    options: tuple[str, ...] = ()
    """Of their configuration, over all others, such as CONFIG_X=n."""

    def build(self, progress: Progress) -> dict[str, tuple[Image, ...]]:
        """By name, its images. Only those that are not in the cache are built.

        Raises:
            ConfigurationError: the source or configuration does not exist, no series fits it,
                or it cannot be built for ``arch``.
            KernelError: a patch does not apply, or a kernel does not build.
            InfrastructureError: a build tool is missing, or there is too little space.
        """
        toolchain = toolchain_of(self.kernel)
        if self.commits:
            objects, configuration, variants = self._of_commits()
        else:
            source = self._source
            with progress.task(f"source {source}"):
                tree = Tree.of(source) if self.kernel.series == "auto" else None
            configuration, variants = self._of_steps(source, tree)
            objects = build.objects_of(source.identity, configuration, toolchain)
        return build.built(variants, objects, configuration, toolchain, self.layouts, progress)

    def missing(self) -> int:
        """How many images :meth:`build` would have to build; nothing is built or unpacked.

        Raises:
            ConfigurationError, InfrastructureError: as :meth:`build`, as far as it is known.
        """
        if self.commits:
            return build.missing(self._of_commits()[2], self.layouts)
        source = self._source
        unpacked = Tree.kept(source)
        if self.kernel.series == "auto" and unpacked is None:
            chosen(self.kernel, self.host, ARCHES[self.arch])
            return len(self.names) * self.layouts
        return build.missing(self._of_steps(source, unpacked)[1], self.layouts)

    @property
    def _source(self) -> Source:
        return from_git(self.tree) if self.tree else resolve(self.kernel.source)

    def _of_steps(self, source: Source, tree: Tree | None) -> tuple[Configuration, list[Variant]]:
        series = (
            patches.series_for(tree.directory)
            if tree and self.kernel.series == "auto"
            else patches.series(self.kernel.series)
        )
        configuration = self._configuration(series.base)
        variants = build.of_steps(
            source,
            series,
            self.names,
            configuration,
            toolchain_of(self.kernel),
            self._bed_patches(series.base),
        )
        return configuration, list(variants)

    def _of_commits(self) -> tuple[Path, Configuration, list[Variant]]:
        assert self.tree is not None
        toolchain, refs = toolchain_of(self.kernel), [commit.ref for commit in self.commits]
        base = base_of_commit(self.tree, refs[0])
        configuration = self._configuration(base)
        whose = f"the commits of {self.tree.resolve()}"
        objects = build.objects_of(whose, configuration, toolchain)
        variants = build.of_commits(
            self.tree,
            [commit for commit in self.commits if commit.name in self.names],
            files_between(self.tree, *refs),
            objects,
            configuration,
            toolchain,
            self._bed_patches(base),
        )
        return objects, configuration, list(variants)

    def _configuration(self, base: str) -> Configuration:
        found = chosen(self.kernel, self.host, ARCHES[self.arch]).on(base)
        return found.with_options(*self.options)

    def _bed_patches(self, base: str) -> tuple[Path, ...]:
        return patches.bed_patches(self.arch, base) if self.arch == UM.name else ()
