# SPDX-License-Identifier: MIT
"""The one gateway to other programs on this machine.

Commands are argument lists, never shell text. Each gets a session of its own, so
that it can be ended with all it started and its signals do not reach us. A
program that is missing or fails becomes an :class:`InfrastructureError` that
names it and shows the end of what it said.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.errors import InfrastructureError

_TAIL_LINES = 15


def quoted(command: Sequence[str]) -> str:
    """``command`` as one line a shell would read back as the same arguments."""
    return shlex.join(command)


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout_s: float | None = None,
    check: bool = True,
    hint: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` to its end and return what it wrote.

    Raises:
        InfrastructureError: it is missing, ran longer than ``timeout_s``, or
            ended with a status other than 0 while ``check`` holds.
    """
    try:
        started = subprocess.Popen(
            list(command),
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise InfrastructureError(f"{command[0]} is not installed", hint=hint) from error
    try:
        out, err = started.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        end(started)
        raise InfrastructureError(
            f"no end after {timeout_s:.0f} s: {quoted(command)}", hint=hint
        ) from error
    except BaseException:
        end(started)
        raise
    done = subprocess.CompletedProcess(list(command), started.returncode, out, err)
    if check and done.returncode != 0:
        raise failed(command, done.returncode, done.stderr or done.stdout, hint=hint)
    return done


def end(process: subprocess.Popen[str], *, grace_s: float = 3.0) -> None:
    """End ``process``, the leader of its own session, and all that it started."""
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            continue


def failed(
    command: Sequence[str], status: int, output: str, *, hint: str | None = None
) -> InfrastructureError:
    """The error for a command that ended with ``status`` after writing ``output``."""
    tail = "\n".join(f"  | {line}" for line in output.strip().splitlines()[-_TAIL_LINES:])
    return InfrastructureError(
        f"{quoted(command)} ended with status {status}" + (f"\n{tail}" if tail else ""), hint=hint
    )
