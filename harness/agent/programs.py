# SPDX-License-Identifier: MIT
"""Runs the host's programs: found in root's path, and killed after a time limit."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence

from .faults import AgentError

_SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TAIL_LINES = 5


def _path() -> str:
    """$PATH, followed by the system's directories that are not in it."""
    parts = [*os.environ.get("PATH", "").split(":"), *_SYSTEM.split(":")]
    return ":".join(dict.fromkeys(filter(None, parts)))


# Set at import, so that programs find those they start themselves. The path of a login shell,
# and of sudo without secure_path, may not have sbin.
os.environ["PATH"] = _path()


def found(*names: str) -> str | None:
    """The path of the first of ``names``, names of one program, that is installed."""
    return next((at for name in names if (at := shutil.which(name, path=_path()))), None)


def run(
    command: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    hint: str | None = None,
) -> str:
    """The stdout of ``command``; after ``timeout_s`` it is killed with all that it started.

    Raises:
        AgentError: it is not installed, fails, or does not end in time.
    """
    at = found(command[0])
    if at is None:
        raise AgentError(f"{command[0]} is not installed on this host", hint=hint)
    started = subprocess.Popen(
        [at, *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",  # paths in the output are used
        start_new_session=True,
        env={**os.environ, "LC_ALL": "C", **(env or {})},
    )
    try:
        out, err = started.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        _kill(started)
        raise AgentError(f"{command[0]} did not end in {timeout_s:.0f} s", hint=hint) from error
    except BaseException:
        _kill(started)
        raise
    if started.returncode != 0:
        tail = " | ".join((err or out).strip().splitlines()[-_TAIL_LINES:])
        raise AgentError(
            f"{command[0]} ended with status {started.returncode}: {tail or 'it said nothing'}",
            hint=hint,
        )
    return out


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
