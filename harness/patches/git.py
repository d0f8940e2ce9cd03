# SPDX-License-Identifier: MIT
"""git, behaving the same for every user.

Hides the environment in which it runs: no repository, index or setting that the
user's shell exports (GIT_DIR …), no configuration of the user's or the system's (but
for the trees they declared safe), no hooks, no signing, messages in English, an
identity of its own, commit dates from the patches. Every call of git goes through here.
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
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run git in ``directory``, with another index file when ``index`` is given.

    Raises:
        InfrastructureError: git is missing, or it failed and ``check`` holds.
    """
    done = process.run(
        command(*arguments),
        cwd=directory,
        env=environment(directory) | ({"GIT_INDEX_FILE": str(index)} if index else {}),
        stdin=stdin,
        check=False,
        hint=_INSTALL,
    )
    if check and done.returncode != 0:
        # Without the settings, which would bury the command.
        raise process.failed(["git", *arguments], done.returncode, done.stderr or done.stdout)
    return done


def command(*arguments: str) -> list[str]:
    """git with our settings, for whoever starts it himself in :func:`environment`."""
    settings = [f"{key}={value}" for key, value in _SETTINGS.items()]
    settings += [f"safe.directory={path}" for path in _declared_safe()]
    return ["git", *(part for setting in settings for part in ("-c", setting)), *arguments]


def is_top_of_git_tree(tree: Path) -> bool:
    """Whether ``tree`` is the top directory of a git work tree.

    Raises:
        ConfigurationError: it is, of another user's, and git refuses to read it.
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
    """The operation that someone left unfinished in a git tree, such as ``git am``."""
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
    """Write ``names`` as the last commit of ``tree`` has them to ``target``, those it has."""
    if git(tree, "rev-parse", "--verify", "--quiet", "HEAD", check=False).returncode != 0:
        raise ConfigurationError(f"{tree} is a git tree without a commit")
    listed = git(tree, "ls-tree", "-z", "--name-only", "HEAD", "--", *names).stdout
    index = target.parent / f"{target.name}.index"
    git(tree, "read-tree", "HEAD", index=index)
    git(
        tree,
        "checkout-index",
        "--force",
        "-z",
        "--stdin",
        f"--prefix={target}/",
        index=index,
        stdin=listed,
    )
    index.unlink()


def environment(directory: Path) -> dict[str, str]:
    """What git knows of ours in ``directory``."""
    return process.environment() | variables(directory)


def variables(directory: Path) -> dict[str, str]:
    """Of that environment what is git's own; also for what calls git itself, as make does."""
    return {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        # In a directory inside somebody's repository `git apply` would skip
        # every path outside the subdirectory, and say nothing.
        "GIT_CEILING_DIRECTORIES": str(directory.resolve().parent),
    }


@functools.cache
def _declared_safe() -> tuple[str, ...]:
    try:
        done = process.run(
            ["git", "config", "--null", "--get-all", "safe.directory"],
            cwd=Path("/"),
            # Where the user's configuration lies, and nothing else that he exports to git.
            env=process.environment()
            | {key: text for key, text in os.environ.items() if key.startswith("GIT_CONFIG")},
            check=False,
        )
    except InfrastructureError as error:
        raise InfrastructureError(error.message, hint=_INSTALL) from error
    return tuple(path for path in done.stdout.split("\0") if path)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it gave no reason"])[-1]
