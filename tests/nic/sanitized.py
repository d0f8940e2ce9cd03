# SPDX-License-Identifier: MIT
"""The compiled data path under sanitizers, driven at random by datapath_fuzz.c."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

from harness.nic.datapath import build

SOURCE = Path(__file__).with_name("datapath_fuzz.c")
_OPTIONS = (
    "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-pthread",
)  # fmt: skip


class NoSanitizersError(Exception):
    """The compiler or its sanitizers are missing; the message says which."""


def compile_fuzzer(to: Path) -> Path:
    """Compile it to ``to``.

    Raises:
        NoSanitizersError: see there.
        subprocess.CalledProcessError: the compiler refuses our sources.
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    empty = [*compiler, *_OPTIONS, "-x", "c", "-", "-o", str(to)]
    try:
        tried = subprocess.run(empty, input="int main(void){return 0;}", text=True, **_QUIET)  # type: ignore[call-overload]
    except OSError as error:
        raise NoSanitizersError(f"no C compiler: {error}") from error
    if tried.returncode != 0:
        raise NoSanitizersError(f"{compiler[0]} has no libasan or libubsan: {tried.stderr[:200]}")
    sources = [str(SOURCE), *map(str, build.sources())]
    command = [*compiler, *_OPTIONS, f"-I{build.HERE}", *sources, "-o", str(to)]
    subprocess.run(command, check=True)
    return to


_QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}


def fuzz(program: Path, *, seed: int, seconds: int) -> int:
    """Run it for ``seconds``; returns how many rounds it made.

    Raises:
        AssertionError: a sanitizer or a check found something; the message is its report.
    """
    done = subprocess.run(
        [str(program), str(seed), str(seconds)],
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-4000:]}"
    return int(done.stdout)
