# SPDX-License-Identifier: MIT
"""Ports a series to another kernel version with ``git am``; a person resolves the conflicts.

The work is done in a new worktree. It stops where a patch does not apply, as ``git am`` leaves
it; once the conflicts are resolved, the same call writes the new series.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from harness.base.errors import ConfigurationError, KernelError
from harness.patches.git import git, is_top_of_git_tree, unfinished
from harness.patches.series import Patch, Series, base_of

_PREFIX = re.compile(r"^Subject: \[(PATCH[^\]]*)\]", re.MULTILINE)


@dataclass(frozen=True)
class Rebased:
    """A series for another base: its directory, and the worktree it was made in."""

    directory: Path
    worktree: Path
    patches: int


def rebase(series: Series, tree: Path, *, worktree: Path | None, out: Path | None) -> Rebased:
    """Port ``series`` to the last commit of the git tree ``tree``, or continue with that.

    The new series goes to ``out`` (None: ``linux-X.Y`` in the current directory).

    Raises:
        ConfigurationError: ``tree`` is not a git tree of a kernel, or ``out`` exists.
        KernelError: a patch does not apply; the worktree is as ``git am`` left it.
    """
    base, _ = base_of(tree)
    if not is_top_of_git_tree(tree):
        raise ConfigurationError(f"{tree} is not the top of a git tree")
    target = (worktree or tree.resolve().parent / f"{tree.resolve().name}-rebase").absolute()
    directory = (out or Path(base)).absolute()
    if directory.exists():
        raise ConfigurationError(
            f"{directory} exists already", hint="name another directory with --out"
        )
    onto = f"refs/receive-batching/onto/{target.name}"
    if not target.exists():
        head = git(tree, "rev-parse", "HEAD").stdout.strip()
        git(tree, "worktree", "add", "--quiet", "--detach", str(target), head)
        git(tree, "update-ref", onto, head)
        files = [str(patch.path.absolute()) for patch in series.patches]
        done = git(target, "am", "--quiet", "--3way", *files, check=False)
        if done.returncode != 0:
            raise _stopped(target, done.stdout + done.stderr)
    if operation := unfinished(target):
        raise _stopped(target, f"{operation} is not finished")
    start = git(tree, "rev-parse", "--verify", "--quiet", onto, check=False).stdout.strip()
    if not start:
        raise ConfigurationError(
            f"{target} exists, but not from a rebase",
            hint="name another directory with --worktree",
        )
    _export(series, target, start, directory)
    return Rebased(directory, target, len(series.patches))


def _stopped(target: Path, said: str) -> KernelError:
    failed = re.search(r"^Patch failed at \d+ (.*)$", said, re.MULTILINE)
    return KernelError(
        f"{target}: {failed[1] if failed else said.strip()} has to be resolved by hand",
        hint=f"in {target}: edit, `git add`, `git am --continue`; then repeat this command",
    )


def _export(series: Series, worktree: Path, start: str, directory: Path) -> None:
    """The commits after ``start`` as the patches of ``series``, in files of the same names."""
    listed = git(worktree, "log", "--reverse", "--format=%H", f"{start}..HEAD").stdout.split()
    if len(listed) != len(series.patches):
        raise KernelError(
            f"{worktree} has {len(listed)} commits, the series {len(series.patches)} patches",
            hint="each patch has to be one commit, in the order of the series",
        )
    directory.mkdir(parents=True)
    for commit, patch in zip(listed, series.patches, strict=True):
        shown = git(
            worktree, "format-patch", "--stdout", "--zero-commit", "--no-signature", "-1",
            f"--subject-prefix={_prefix(patch)}", commit,
        )  # fmt: skip
        (directory / patch.path.name).write_text(shown.stdout, encoding="utf-8")
    for name in ("series", "0000-cover-letter.txt"):
        if (series.directory / name).is_file():
            (directory / name).write_bytes((series.directory / name).read_bytes())


def _prefix(patch: Patch) -> str:
    found = _PREFIX.search(patch.path.read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else "PATCH"
