# SPDX-License-Identifier: MIT
"""git, with the same behaviour for every user. Every call of git goes through here.

Hides the environment in which it runs: no repository, index or setting from the user's shell
(GIT_DIR …), no configuration of the user or the system except safe.directory, no hooks, no
signing, messages in English, its own identity, commit dates from the patches.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness.base import process
from harness.base.errors import ConfigurationError, InfrastructureError

_SETTINGS = {
    "user.name": "receive-batching harness",
    "user.email": "harness@localhost.invalid",
    "commit.gpgSign": "false",
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.autocrlf": "false",
    "core.eol": "lf",
    "core.attributesFile": os.devnull,
    "core.quotePath": "false",
    "diff.noprefix": "false",
    "diff.mnemonicPrefix": "false",
    "log.showSignature": "false",
    "gc.auto": "0",
    "am.threeWay": "false",
    "am.keepcr": "false",
    "apply.whitespace": "nowarn",
    "advice.detachedHead": "false",
}
_INSTALL = "apt-get install git"


def git(
    directory: Path,
    *arguments: str,
    check: bool = True,
    index: Path | None = None,
    objects: Path | None = None,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run git in ``directory``, with ``index`` as its index file if given.

    With ``objects``, new objects are written to that directory instead of the repository.

    Raises:
        InfrastructureError: git is missing, or it failed and ``check`` holds.
    """
    own = {"GIT_INDEX_FILE": str(index)} if index else {}
    if objects is not None:
        kept = git(directory, "rev-parse", "--git-path", "objects").stdout.strip()
        own["GIT_OBJECT_DIRECTORY"] = str(objects)
        own["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = _quoted((directory / kept).resolve())
    done = process.run(
        command(*arguments),
        cwd=directory,
        env=environment(directory) | own,
        stdin=stdin,
        check=False,
        hint=_INSTALL,
    )
    if check and done.returncode != 0:
        # Without the settings, which would hide the command.
        raise process.failed(["git", *arguments], done.returncode, done.stderr or done.stdout)
    return done


def _quoted(path: Path) -> str:
    """As one entry of a list that is separated by colons."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def command(*arguments: str) -> list[str]:
    """The git command with our settings, to be run in :func:`environment`."""
    settings = [f"{key}={value}" for key, value in _SETTINGS.items()]
    settings += [f"safe.directory={path}" for path in _declared_safe()]
    return ["git", *(part for setting in settings for part in ("-c", setting)), *arguments]


def is_top_of_git_tree(tree: Path) -> bool:
    """Is ``tree`` the top directory of a git work tree?

    Raises:
        ConfigurationError: git refuses to read it, because it belongs to another user.
    """
    if not os.path.lexists(tree / ".git"):
        return False
    done = git(tree, "rev-parse", "--show-toplevel", check=False)
    if "dubious ownership" in done.stderr:
        raise ConfigurationError(
            f"{tree} belongs to another user, and git does not trust it",
            hint=f"git config --global --add safe.directory {tree.resolve()}",
        )
    if done.returncode != 0:
        raise ConfigurationError(f"git cannot read {tree}: {_last_line(done.stderr)}")
    return Path(done.stdout.strip()).resolve() == tree.resolve()


def unfinished(tree: Path) -> str | None:
    """The unfinished operation in a git tree, such as ``git am``, or None."""
    for name, operation in {
        "rebase-apply": "git am or git rebase",
        "rebase-merge": "git rebase",
        "MERGE_HEAD": "git merge",
        "CHERRY_PICK_HEAD": "git cherry-pick",
        "REVERT_HEAD": "git revert",
        "BISECT_LOG": "git bisect",
    }.items():
        where = git(tree, "rev-parse", "--git-path", name).stdout.strip()
        if (tree / where).exists():
            return operation
    return None


def checkout_files(tree: Path, names: Sequence[str], target: Path) -> None:
    """Write the files ``names`` of the last commit of ``tree`` to ``target``, if it has them."""
    if git(tree, "rev-parse", "--verify", "--quiet", "HEAD", check=False).returncode != 0:
        raise ConfigurationError(f"{tree} is a git tree without a commit")
    listed = git(tree, "ls-tree", "-z", "--name-only", "HEAD", "--", *names).stdout
    index = target.parent / f"{target.name}.index"
    git(tree, "read-tree", "HEAD", index=index)
    checkout = ("checkout-index", "--force", "-z", "--stdin", f"--prefix={target}/")
    git(tree, *checkout, index=index, stdin=listed)
    index.unlink()


def environment(directory: Path) -> dict[str, str]:
    """The environment of git in ``directory``."""
    return process.environment() | variables(directory)


def variables(directory: Path) -> dict[str, str]:
    """git's own variables of that environment, also for programs that call git, such as make."""
    return {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        # In a subdirectory of a repository, `git apply` would silently skip every path
        # outside that subdirectory.
        "GIT_CEILING_DIRECTORIES": str(directory.resolve().parent),
    }


@functools.cache
def _declared_safe() -> tuple[str, ...]:
    try:
        done = process.run(
            ["git", "config", "--null", "--get-all", "safe.directory"],
            cwd=Path("/"),
            # Only the variables that say where the user's configuration is.
            env=process.environment()
            | {key: text for key, text in os.environ.items() if key.startswith("GIT_CONFIG")},
            check=False,
        )
    except InfrastructureError as error:
        raise InfrastructureError(error.message, hint=_INSTALL) from error
    return tuple(path for path in done.stdout.split("\0") if path)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it gave no reason"])[-1]
