# SPDX-License-Identifier: MIT
"""Directories for sockets, with paths short enough for a socket address."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.base.errors import InfrastructureError

_ADDRESS_BYTES = 107  # sun_path of unix(7), without the final 0
_OWN_BYTES = len("/rb-12345678/")
_USUAL = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 (mkdtemp is private)


def made(*, name_bytes: int) -> Path:
    """A new private directory for sockets with names of up to ``name_bytes``.

    Raises:
        InfrastructureError: no directory for temporary files is short enough and writable.
    """
    longest = _ADDRESS_BYTES - _OWN_BYTES - name_bytes
    tried = []
    for base in _bases():
        if len(os.fsencode(base)) > longest:
            tried.append(f"{base} is longer than {longest} bytes")
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="rb-", dir=base))
        except OSError as error:
            tried.append(f"{base}: {error.strerror}")
    raise InfrastructureError(
        f"there is no directory for sockets: {'; '.join(tried)}",
        hint="set TMPDIR to a writable directory with a short path",
    )


@contextmanager
def directory(*, name_bytes: int) -> Iterator[Path]:
    """The same as a context; files that cannot be removed at its end stay."""
    path = made(name_bytes=name_bytes)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _bases() -> list[str]:
    named = (os.environ.get("TMPDIR", ""), os.environ.get("XDG_RUNTIME_DIR", ""))
    # A relative path would change its meaning with the current directory.
    return list(dict.fromkeys([*filter(os.path.isabs, named), *_USUAL]))
