# SPDX-License-Identifier: MIT
"""Applies a mailed series to a commit, in an index and an object directory of ours.

The repository is only read: no worktree, no branch, no object is added to it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from harness.base import process
from harness.base.errors import ConfigurationError, InfrastructureError, KernelError
from harness.patches import mails
from harness.patches.git import git
from harness.patches.mails import Mail, Mailed
from harness.patches.tree import HunkError

_ID = re.compile(r"<?[^\s<>/@]+@[^\s<>/@]+>?")
_LINK = re.compile(r"https?://\S+")
_BROKEN = re.compile(r"corrupt patch|No valid patches|patch fragment without header|unrecognized")


def apply_mailed(repository: Path, base: str, series: Mailed, objects: Path) -> list[str]:
    """Apply ``series`` to commit ``base``; returns the tree after each patch.

    The trees are written to the directory ``objects``.

    Raises:
        KernelError: a patch does not apply; names the patch, the file and the hunk.
    """
    own = ("-c", "core.splitIndex=false")  # it would be written beside the repository's index
    found: list[str] = []
    with tempfile.TemporaryDirectory(prefix="receive-batching-") as name:
        scratch = Path(name)
        index = scratch / "index"
        git(repository, *own, "read-tree", base, index=index, objects=objects)
        for number, of_patch in enumerate(series.patches, 1):
            for mail in of_patch:
                patch = _patch_of(mail, scratch)
                arguments = ("apply", "--cached", str(patch))
                done = git(repository, *own, *arguments, index=index, objects=objects, check=False)
                if done.returncode != 0:
                    where = f"patch {number}/{len(series.patches)}, {mail.subject!r:.90}"
                    raise _refused(where, mail, HunkError(patch, done.stderr).where, series)
            made = git(repository, *own, "write-tree", index=index, objects=objects)
            found.append(made.stdout.strip())
    return found


def _patch_of(mail: Mail, scratch: Path) -> Path:
    """The diff of ``mail``, as git takes it from a mail."""
    patch = scratch / "patch"
    said = ("mailinfo", "--encoding=UTF-8", str(scratch / "changelog"), str(patch))
    git(scratch, *said, stdin=mail.plain())
    return patch


def _refused(where: str, mail: Mail, why: str, series: Mailed) -> KernelError:
    if _BROKEN.search(why):
        flowed = ", probably because it was sent with format=flowed" if mail.flowed else ""
        return KernelError(
            f"{where}: its lines are damaged{flowed}: {why}",
            hint="get the series from the list's archive, or from its author as attachments",
        )
    needs = ", and the series says that it needs other patches first" if series.needs else ""
    return KernelError(
        f"{where} does not apply: {why}{needs}",
        hint="name the commit of the tree that the series was made for with --base",
    )


def fetched(name: str, directory: Path) -> Path:
    """What ``name`` means: a file, or the thread of a message id or link, put in ``directory``.

    Raises:
        InfrastructureError: b4, which gets threads, is not installed or failed.
    """
    if Path(name).exists() or not (_ID.fullmatch(name) or _LINK.fullmatch(name)):
        return Path(name)
    if shutil.which("b4") is None:
        raise InfrastructureError(
            f"b4 is needed to get {name!r:.120} from a list's archive, and is not installed",
            hint="apt-get install b4, or name an mbox that you have downloaded",
        )
    process.run(["b4", "mbox", "-o", str(directory), name.strip("<>")])
    if not any(directory.iterdir()):
        raise ConfigurationError(f"b4 found no mails of {name!r:.120}")
    return directory


def read_mailed(name: str) -> Mailed:
    """:func:`mails.read` of what ``name`` means."""
    with tempfile.TemporaryDirectory(prefix="receive-batching-") as scratch:
        return mails.read(fetched(name, Path(scratch)))
