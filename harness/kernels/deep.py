# SPDX-License-Identifier: MIT
"""Checks every step of a series with the kernel's own tools: gcc, checkpatch, sparse.

Hides how one tree is moved from step to step and how each checker is called. A warning counts
only if the base, compiled the same way, does not give it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from harness.base import cache, process
from harness.base.errors import HarnessError, KernelError
from harness.base.progress import Progress
from harness.kernels.configuration import benchmark
from harness.kernels.source import Source, Tree
from harness.patches import Patch, Series
from harness.patches.git import variables

CHECKS: Mapping[str, str] = MappingProxyType(
    {
        "applies": "each patch applies on top of the patches before it",
        "checkpatch": "the tree's checkpatch.pl --strict finds nothing",
        "benchmark": "the files that the series touches compile with a virtual bed's "
        "configuration, without new warnings at W=1",
        "modules": "the same with defconfig and everything else that receives packets",
        "sparse": "the same with sparse",
        "allmodconfig": "net/ and drivers/net/ethernet/sfc/ compile, at the first and last step",
    }
)
_MODULES = Path(__file__).with_name("checking.config")
_SIENA = "CONFIG_MODULES=y\nCONFIG_PTP_1588_CLOCK=y\nCONFIG_SFC_SIENA=m\n"
"""Drivers that a prelude touches and that the benchmark's configuration leaves out."""
_ALL = ("net/", "drivers/net/ethernet/sfc/")
_COMPLAINT = re.compile(r"^\S+?:\d+: (?:WARNING|ERROR|CHECK):.*$", re.MULTILINE)
_IGNORED = "FILE_PATH_CHANGES,GIT_COMMIT_ID,UNKNOWN_COMMIT_ID"
"""The latter two look up commits, which a tree without git does not have."""
_WARNING = re.compile(r"^.*\b(?:warning|error): .*$", re.MULTILINE)
_LINE = re.compile(r":\d+")


@dataclass(frozen=True)
class DeepCheck:
    """The result of a check of a step; ``ok`` is None if the check could not run."""

    step: str
    check: str
    ok: bool | None
    detail: str = ""


def check_deep(
    source: Source, series: Series, checks: Sequence[str], *, progress: Progress
) -> Iterator[DeepCheck]:
    """Run ``checks``, names of :data:`CHECKS`, on each step, optional ones included."""
    steps = (*series.steps, *series.optional_steps)
    with _linked(source, series.base) as tree:
        for check in checks:
            with progress.task(f"{series.base}: {check}", total=len(steps)) as task:
                for finding in _by(check, tree, series, steps):
                    yield finding
                    task.advance()


def _by(check: str, tree: Tree, series: Series, steps: Sequence[str]) -> Iterator[DeepCheck]:
    if check == "applies":
        for step in steps:
            try:
                tree.move_to(series.patches_for(step))
            except HarnessError as error:
                yield DeepCheck(step, check, ok=False, detail=error.message)
            else:
                yield DeepCheck(step, check, ok=True)
    elif check == "checkpatch":
        for patch in (*series.patches, *series.optional):
            complaints = _checkpatch(tree, patch)
            yield DeepCheck(patch.name, check, ok=not complaints, detail="; ".join(complaints[:3]))
    elif check == "sparse" and shutil.which("sparse") is None:
        for step in steps:
            yield DeepCheck(step, check, ok=None, detail="sparse is not installed")
    else:
        yield from _compiled(check, tree, series, steps)


def _checkpatch(tree: Tree, patch: Patch) -> list[str]:
    options = ["--strict", "--no-tree", "--terse", "--no-summary", f"--ignore={_IGNORED}"]
    told = process.run(
        ["perl", "scripts/checkpatch.pl", *options, str(patch.path.absolute())],
        cwd=tree.directory,
        check=False,
        hint="apt-get install perl",
    )
    found = _COMPLAINT.findall(told.stdout)
    if told.returncode != 0 and not found:
        raise process.failed(["checkpatch.pl"], told.returncode, told.stdout + told.stderr)
    return [line.partition(":")[2] for line in found]


def _compiled(check: str, tree: Tree, series: Series, steps: Sequence[str]) -> Iterator[DeepCheck]:
    touched = {name for patch in (*series.patches, *series.optional) for name in patch.files}
    objects = sorted(name.removesuffix(".c") + ".o" for name in touched if name.endswith(".c"))
    make = _Make(tree.directory, tree.home / f"objects-{check}")
    tree.move_to([])
    make.configure(check, series.base)
    if check == "allmodconfig":
        for step in (series.steps[0], series.steps[-1]):
            tree.move_to(series.patches_for(step))
            yield _outcome(step, check, make, list(_ALL), None)
        return
    goals = ["C=2" if check == "sparse" else "W=1", *objects]
    known = make.warnings(goals)
    for step in steps:
        tree.move_to(series.patches_for(step))
        yield _outcome(step, check, make, goals, known)


def _outcome(
    step: str, check: str, make: _Make, goals: Sequence[str], known: set[str] | None
) -> DeepCheck:
    """Make ``goals``; warnings that are ``known`` do not count, with None no warning does."""
    try:
        warnings = make.warnings(goals)
    except KernelError as error:
        return DeepCheck(step, check, ok=False, detail=error.message)
    new = set() if known is None else warnings - known
    return DeepCheck(step, check, ok=not new, detail="; ".join(sorted(new)[:3]))


class _Make:
    """make in its own object directory, with ccache if it is installed."""

    def __init__(self, directory: Path, objects: Path) -> None:
        self._objects = objects
        self._command = ["make", "-C", str(directory), f"O={objects}", f"-j{os.cpu_count() or 1}"]
        self._env = process.building() | variables(directory)
        if shutil.which("ccache"):  # it repeats warnings, too
            self._command.append("CC=ccache gcc")
            self._env |= {"CCACHE_DIR": str(cache.root() / "ccache"), "CCACHE_NOHASHDIR": "1"}

    def configure(self, check: str, base: str) -> None:
        """Write the .config of ``check`` for the kernel ``base``."""
        self._objects.mkdir(exist_ok=True)
        common, *own = (path.read_text(encoding="utf-8") for path in benchmark().on(base).fragments)
        if check == "modules":
            self.warnings(["defconfig"])
            with (self._objects / ".config").open("a", encoding="utf-8") as config:
                config.writelines([_MODULES.read_text(encoding="utf-8"), *own])
            self.warnings(["olddefconfig"])
            return
        whole = check == "allmodconfig"
        fragment = self._objects / "fragment"
        fragment.write_text("".join(own if whole else [common, *own, _SIENA]), encoding="utf-8")
        self.warnings([f"KCONFIG_ALLCONFIG={fragment}", check if whole else "allnoconfig"])

    def warnings(self, goals: Sequence[str]) -> set[str]:
        """The warnings of making ``goals``, without their line numbers.

        Raises:
            KernelError: make fails.
        """
        done = process.run([*self._command, *goals], env=self._env, check=False)
        if done.returncode != 0:
            first = _WARNING.search(done.stderr)
            raise KernelError(first[0] if first else done.stderr[-500:].strip())
        return {_LINE.sub("", line) for line in _WARNING.findall(done.stderr)}


@contextmanager
def _linked(source: Source, name: str) -> Iterator[Tree]:
    """A copy of the source made of links, so that the kernels' own tree keeps its timestamps."""
    home = cache.root() / "checks" / name
    with cache.locked(home, what=f"the checks of {name}"):
        shutil.rmtree(home, ignore_errors=True)
        try:
            yield Tree.of(source).linked(home)
        finally:
            shutil.rmtree(home, ignore_errors=True)
