# SPDX-License-Identifier: MIT
"""The one gateway to other programs on this machine.

Commands are argument lists, never shell text. A program that is missing or
fails becomes an :class:`InfrastructureError` that names it and shows the end of
what it said.
"""

from __future__ import annotations

import shlex
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
        done = subprocess.run(
            list(command),
            cwd=cwd,
            env=env,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise InfrastructureError(f"{command[0]} is not installed", hint=hint) from error
    except subprocess.TimeoutExpired as error:
        raise InfrastructureError(
            f"no end after {timeout_s:.0f} s: {quoted(command)}", hint=hint
        ) from error
    if check and done.returncode != 0:
        raise failed(command, done.returncode, done.stderr or done.stdout, hint=hint)
    return done


def failed(
    command: Sequence[str], status: int, output: str, *, hint: str | None = None
) -> InfrastructureError:
    """The error for a command that ended with ``status`` after writing ``output``."""
    tail = "\n".join(f"  | {line}" for line in output.strip().splitlines()[-_TAIL_LINES:])
    return InfrastructureError(
        f"{quoted(command)} ended with status {status}" + (f"\n{tail}" if tail else ""), hint=hint
    )
