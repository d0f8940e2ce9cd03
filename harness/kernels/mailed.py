# SPDX-License-Identifier: MIT
"""A mailed series as commits to compare: its base, and the tree after each of its patches."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import patches
from harness.base.errors import ConfigurationError, KernelError
from harness.kernels.source import Commit, commit_id, from_git, objects_of, one_commit

BASE = "base"
"""The name of the commit that the series is applied to."""


@dataclass(frozen=True)
class Applied:
    """A series on its base."""

    commits: Sequence[Commit]
    """The base, and after it a patch each, named ``p1``, ``p2`` and so on. (Plain numbers are
    the steps of the series that ships.)"""
    base: str
    remarks: Sequence[str]
    """What the user should know of the choice."""


def mailed(path: Path, name: str, base: str | None = None, *, keep: bool = True) -> Applied:
    """The series that ``name`` means (a file, a directory, a message id) on a commit of ``path``.

    The commit is ``base`` if given, else that which the series names, else HEAD. The repository is
    only read; a series that is refused leaves nothing. With ``keep`` the trees are kept beside it.

    Raises:
        ConfigurationError: there is no such tree or commit, or not exactly one whole series.
        KernelError: a patch does not apply.
        InfrastructureError: a file cannot be read, or git or b4 is missing.
    """
    head = commit_id(path, base or "HEAD")
    series = patches.read_mailed(name)
    remarks = list(series.skipped)
    stated, onto, unknown = series.base_commit, head, False
    if stated and not base:
        try:
            onto = commit_id(path, stated)
        except ConfigurationError:
            unknown = True
            remarks.append(f"the series is for commit {stated:.12}, which {path} does not have")
    with tempfile.TemporaryDirectory(prefix="receive-batching-") as scratch:
        try:
            found = patches.apply_mailed(path, onto, series, Path(scratch))
        except KernelError as error:
            if not unknown:
                raise
            raise KernelError(
                f"{error.message}; it is for commit {stated:.12}, which {path} does not have",
                hint=f"get that commit with git fetch; or {error.hint}",
            ) from error
    if keep:
        objects = objects_of(path)
        objects.mkdir(parents=True, exist_ok=True)
        patches.apply_mailed(path, onto, series, objects)
    at = one_commit(path, onto)
    why = "named with --base" if base else "HEAD" if onto == head else "named by the series"
    remarks.append(f"{len(found)} patches on {at.name} ({at.subject}), {why}")
    made = [
        Commit(f"p{number}", mails[0].subject, tree)
        for number, (mails, tree) in enumerate(zip(series.patches, found, strict=True), 1)
    ]
    start = Commit(BASE, f"{at.name} {at.subject}", from_git(path, onto).identity)
    return Applied([start, *made], onto, remarks)
