# SPDX-License-Identifier: MIT
"""The host's own programs, each found where root finds it and ended in time."""

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
    """$PATH, and behind it what of the system's it lacks."""
    parts = [*os.environ.get("PATH", "").split(":"), *_SYSTEM.split(":")]
    return ":".join(dict.fromkeys(filter(None, parts)))


# Here and at once: by it a program finds those that it starts itself. A login shell's path,
# and that of a sudo without secure_path, may leave out sbin.
os.environ["PATH"] = _path()


def found(*names: str) -> str | None:
    """The path of the first of ``names`` that is installed; they are one program's names."""
    return next((at for name in names if (at := shutil.which(name, path=_path()))), None)


def run(
    command: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    hint: str | None = None,
) -> str:
    """What ``command`` writes to stdout; it is ended with all it started after ``timeout_s``.

    Raises:
        AgentError: it is missing, fails, or does not end in time.
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
        errors="surrogateescape",  # paths in it are given on
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
