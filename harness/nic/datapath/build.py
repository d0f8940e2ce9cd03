# SPDX-License-Identifier: MIT
"""Compile the data path: ``python -m harness.nic.datapath``, or by the package's install.

Needs a C compiler (``$CC``, else ``cc``) and no headers but those of the C library. The library
contains the checksum of its sources, so that one made from other sources is never used. Imports
nothing but the standard library, because the install runs it before the package is there.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
import zlib
from pathlib import Path

HERE = Path(__file__).parent
LIBRARY = HERE / "datapath.so"
OPTIONS = ("-std=gnu11", "-O3", "-fno-strict-aliasing", "-fPIC", "-shared", "-Wall", "-Wextra")
_TIME_S = 120


class BuildError(Exception):
    """There is no compiler, or it refused; the message is for the user."""


def sources() -> list[Path]:
    """The C files, in a fixed order."""
    return sorted(HERE.glob("*.c"))


def source_sum() -> int:
    """The checksum of all that is compiled, never 0."""
    total = 0
    for path in [*sources(), *sorted(HERE.glob("*.h"))]:
        total = zlib.crc32(path.read_bytes(), total)
    return total or 1


def compile_library(to: Path = LIBRARY, *, options: tuple[str, ...] = OPTIONS) -> Path:
    """Compile the library and move it to ``to``, which another process may be using.

    Raises:
        BuildError: see there.
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    try:
        with tempfile.TemporaryDirectory(dir=to.parent, prefix=".datapath-") as made:
            new = Path(made) / to.name
            command = [*compiler, *options, f"-DSOURCE_SUM={source_sum()}u"]
            done = subprocess.run(
                [*command, "-o", str(new), *map(str, sources())],
                capture_output=True, encoding="utf-8", errors="replace", timeout=_TIME_S,
            )  # fmt: skip
            if done.returncode != 0:
                said = (done.stderr.strip().splitlines() or ["it said nothing"])[0]
                raise BuildError(f"{compiler[0]} cannot compile the NIC's data path: {said}")
            new.replace(to)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the NIC's data path cannot be compiled: {error}") from error
    return to
