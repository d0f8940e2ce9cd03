# SPDX-License-Identifier: MIT
"""Checks whether a series applies to a kernel tree, and applies it.

Hides how a tree is checked without being changed (the files that a series touches are copied,
from the last commit of a git tree) and how a failed or interrupted application is undone.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.base.errors import ConfigurationError, HarnessError, KernelError
from harness.patches.git import checkout_files, git, is_top_of_git_tree, unfinished
from harness.patches.series import Patch, Series, base_of, series_for

_FAILED_HUNK = re.compile(r"^error: patch failed: (.+):(\d+)$", re.MULTILINE)
_HUNK = re.compile(r"^@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@.*")
_DIFF = re.compile(r"^diff --git a/\S+ b/(\S+)$")
# An applied series is at the end of a tree's history; upstream's commits with the same titles
# are further back than this.
_LOG_DEPTH = 500


class AlreadyPatchedError(ConfigurationError):
    """The tree has the series already, up to ``step``."""

    def __init__(self, tree: Path, series: Series, step: int) -> None:
        super().__init__(
            f"{tree} is already patched: it has series {series.base} up to step {step}",
            hint="name the unpatched tree: unpack it again, or check out an older commit in a "
            "worktree",
        )
        self.step = step


class HunkError(KernelError):
    """A patch does not apply; ``file`` and ``hunk`` (from 1) are None if git does not name them."""

    def __init__(self, patch: Path, output: str, *, reverse: bool = False) -> None:
        self.patch, self.file, self.hunk = patch, None, None
        where = next(
            (line.removeprefix("error: ") for line in output.splitlines() if "error: " in line),
            output.strip() or "git gave no reason",
        )
        if found := _FAILED_HUNK.search(output):
            self.file = found[1]
            self.hunk, header = _hunk_at(patch, found[1], int(found[2]), reverse=reverse)
            where = f"{self.file}, hunk {self.hunk}: {header}" if self.hunk else self.file
        self.where = where
        super().__init__(
            f"{patch.name} does not {'revert' if reverse else 'apply'}: {where}",
            hint="there the tree differs from the kernel that the series was written for; "
            "the hunk has the lines that it expects",
        )

    file: str | None
    hunk: int | None


@dataclass(frozen=True)
class Outcome:
    """The result for one patch; ``detail`` says where it failed."""

    patch: Patch
    state: Literal["applies", "fails", "present", "not tried"]
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """The result of :func:`check`; ``error`` is why the series does not apply, or None."""

    tree: Path
    release: str
    series: Series
    outcomes: tuple[Outcome, ...]
    error: HarnessError | None

    def require(self) -> None:
        """Raise ``error`` if there is one."""
        if self.error is not None:
            raise self.error


@dataclass(frozen=True)
class Applied:
    """Where :func:`apply` put a series; ``branch`` is None for a detached HEAD."""

    directory: Path
    branch: str | None
    commits: int


def check(tree: Path, series: Series | None = None, step: str | int | None = None) -> Report:
    """Check the patches up to ``step`` (None: all) against ``tree``, which is only read.

    In a git tree the last commit counts; uncommitted changes are ignored.

    Raises:
        ConfigurationError: ``tree`` is not a kernel tree, or (UnknownBaseError) no
            series ships for its version.
    """
    _, release = base_of(tree)
    series = series or series_for(tree)
    patches = series.upto(series.steps[-1] if step is None else step)
    error: HarnessError | None = None
    outcomes: list[Outcome] = []
    with _copied(tree, series) as copy:
        for patch in patches:
            if error is not None:
                outcomes.append(Outcome(patch, "not tried"))
                continue
            try:
                _apply_one(copy, patch.path)
            except HunkError as failure:
                error = failure
                present = _present(tree, copy, series) if not outcomes else None
                if present is not None:
                    error = AlreadyPatchedError(tree, series, present)
                    outcomes = [
                        Outcome(each, "present" if each.step <= present else "not tried")
                        for each in patches
                    ]
                    break
                outcomes.append(Outcome(patch, "fails", failure.where))
            else:
                outcomes.append(Outcome(patch, "applies"))
    return Report(tree, release, series, tuple(outcomes), error)


def apply(
    tree: Path,
    step: str | int,
    *,
    series: Series | None = None,
    worktree: Path | None = None,
    in_place: bool = False,
) -> Applied:
    """Commit the patches up to ``step`` on top of a git tree's last commit.

    They go to a new branch ``receive-batching/stepN`` in a new worktree (beside the tree if
    ``worktree`` is None); with ``in_place`` to the current branch. A failure or an interruption
    leaves everything unchanged.

    Raises:
        ConfigurationError: the tree is not in git, not clean, of an unknown base, or
            already patched (AlreadyPatchedError); the worktree or branch exists.
        KernelError: a patch does not apply (HunkError).
    """
    if not is_top_of_git_tree(tree):
        base_of(tree)
        raise ConfigurationError(
            f"{tree} is not the top of a git tree, where the patches could be committed",
            hint=f"`git -C {tree} init && git -C {tree} add . && git -C {tree} commit -m base`, "
            "or let `harness build` patch its own copy",
        )
    if in_place:
        _require_clean(tree)
    report = check(tree, series, step)
    report.require()
    patches = [outcome.patch for outcome in report.outcomes]
    if in_place:
        _commit_all(tree, patches)
        branch = git(tree, "branch", "--show-current").stdout.strip() or None
        return Applied(tree, branch, len(patches))
    branch = f"receive-batching/step{step}"
    target = (worktree or tree.resolve().parent / f"{tree.resolve().name}-step{step}").absolute()
    _require_free(tree, branch, target)
    try:
        git(tree, "worktree", "add", "--quiet", "-b", branch, str(target), "HEAD")
        _commit_all(target, patches)
    except BaseException:
        _remove_worktree(tree, branch, target)
        raise
    return Applied(target, branch, len(patches))


def apply_files(directory: Path, patches: Sequence[Path], *, reverse: bool = False) -> None:
    """Apply ``patches`` to the files under ``directory``; with ``reverse``, revert them.

    Raises:
        HunkError: one does not apply; those before it are undone.
    """
    done: list[Path] = []
    try:
        for patch in reversed(patches) if reverse else patches:
            _apply_one(directory, patch, reverse=reverse)
            done.append(patch)
    except BaseException:
        for patch in reversed(done):
            _apply_one(directory, patch, reverse=not reverse)
        raise


def _apply_one(directory: Path, patch: Path, *, reverse: bool = False) -> None:
    """Apply a patch file completely or not at all."""
    arguments = ["apply", "-p1", *(["--reverse"] if reverse else []), str(patch.absolute())]
    done = git(directory, *arguments, check=False)
    if done.returncode != 0:
        raise HunkError(patch, done.stderr, reverse=reverse)


@contextmanager
def _copied(tree: Path, series: Series) -> Iterator[Path]:
    """A directory with the files of ``tree`` that ``series`` touches."""
    patches = (*series.patches, *series.optional)
    names = list(dict.fromkeys(name for patch in patches for name in patch.files))
    with tempfile.TemporaryDirectory(prefix="receive-batching-") as scratch:
        copy = Path(scratch).resolve() / "tree"
        copy.mkdir()
        if is_top_of_git_tree(tree):
            checkout_files(tree, names, copy)
        else:
            for name in names:
                if (tree / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(tree / name, copy / name)
        yield copy


def _present(tree: Path, copy: Path, series: Series) -> int | None:
    """The step up to which a tree has ``series``, or None if it has no part of it.

    A step is present if its patches revert. If later changes prevent that, the titles of a git
    tree's last commits decide.
    """
    for count in range(len(series.patches), 0, -1):
        attempt = copy.with_name("attempt")
        shutil.copytree(copy, attempt)
        try:
            apply_files(attempt, [patch.path for patch in series.patches[:count]], reverse=True)
        except HunkError:
            continue
        else:
            return series.patches[count - 1].step
        finally:
            shutil.rmtree(attempt)
    if not is_top_of_git_tree(tree):
        return None
    log = git(tree, "log", f"--max-count={_LOG_DEPTH}", "--format=%s", "HEAD").stdout
    titles = set(log.splitlines())
    if series.patches[0].subject not in titles:
        return None
    return max(patch.step for patch in series.patches if patch.subject in titles)


def _require_clean(tree: Path) -> None:
    if operation := unfinished(tree):
        raise ConfigurationError(
            f"{tree} has an unfinished {operation}",
            hint="finish or abort it, or omit --in-place",
        )
    changed = git(tree, "status", "--porcelain", "--untracked-files=no").stdout.splitlines()
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise ConfigurationError(
            f"{tree} has uncommitted changes: {changed[0][3:]}{more}",
            hint="commit or stash them, or omit --in-place to get a worktree beside it",
        )


def _require_free(tree: Path, branch: str, target: Path) -> None:
    known = git(tree, "show-ref", "--verify", "--quiet", f"refs/heads/{branch}", check=False)
    if known.returncode == 0:
        raise ConfigurationError(
            f"{tree} has a branch {branch} already",
            hint=f"`git -C {tree} worktree list` shows where it is; "
            f"`git worktree remove` and `git branch -D {branch}` remove it",
        )
    if target.exists():
        raise ConfigurationError(
            f"{target} exists already", hint="name another directory with --worktree"
        )


def _commit_all(directory: Path, patches: Sequence[Patch]) -> None:
    """Commit all ``patches`` to a clean tree with ``git am``, or none."""
    if not patches:
        return
    options = ["--quiet", "--no-gpg-sign", "--committer-date-is-author-date"]
    files = [str(patch.path.absolute()) for patch in patches]
    names = {name for patch in patches for name in patch.files}
    absent = {name for name in names if not (directory / name).exists()}
    head = git(directory, "rev-parse", "HEAD").stdout.strip()
    finished = False
    try:
        done = git(directory, "am", *options, *files, check=False)
        finished = done.returncode == 0
    finally:
        if not finished:
            _put_back(directory, head, absent=absent, kept=names - absent)
    if not finished:
        stopped = re.search(r"^Patch failed at (\d+)", done.stdout + done.stderr, re.MULTILINE)
        raise HunkError(patches[int(stopped[1]) - 1 if stopped else 0].path, done.stderr)


def _put_back(directory: Path, head: str, *, absent: set[str], kept: set[str]) -> None:
    """Undo an unfinished ``git am`` on a tree that was clean at ``head``.

    ``git am --abort`` refuses to if a signal came between the writing of files and of the index.
    """
    if unfinished(directory):
        git(directory, "am", "--quit")
    git(directory, "reset", "--quiet", head)
    for name in absent:
        (directory / name).unlink(missing_ok=True)
        for parent in (directory / name).parents:
            if parent == directory or not parent.is_dir() or any(parent.iterdir()):
                break
            parent.rmdir()
    tracked = git(directory, "ls-files", "-z", "--", *sorted(kept)).stdout if kept else ""
    git(directory, "checkout-index", "--force", "-z", "--stdin", "--index", stdin=tracked)


def _remove_worktree(tree: Path, branch: str, target: Path) -> None:
    # Twice --force: an interrupted `worktree add` leaves it locked.
    remove = ("worktree", "remove", "--force", "--force", str(target))
    if git(tree, *remove, check=False).returncode != 0:
        shutil.rmtree(target, ignore_errors=True)
        git(tree, *remove, check=False)
    git(tree, "branch", "--quiet", "-D", branch, check=False)


def _hunk_at(patch: Path, file: str, line: int, *, reverse: bool) -> tuple[int | None, str]:
    """The number and header of the hunk of ``file`` that starts at ``line``."""
    current, number = "", 0
    for text in patch.read_text(encoding="utf-8", errors="replace").splitlines():
        if named := _DIFF.match(text):
            current, number = named[1], 0
        elif current == file and (hunk := _HUNK.match(text)):
            number += 1
            if int(hunk[2 if reverse else 1]) == line:
                return number, hunk[0]
    return None, ""
