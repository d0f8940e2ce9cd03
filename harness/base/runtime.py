# SPDX-License-Identifier: MIT
"""Directories for sockets: short enough for a socket's address, wherever $TMPDIR leads."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.base.errors import InfrastructureError

_ADDRESS_BYTES = 107  # sun_path of unix(7), without the 0 at its end
_OWN_BYTES = len("/rb-12345678/")
_USUAL = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 (mkdtemp is private)


def made(*, name_bytes: int) -> Path:
    """A new private directory whose sockets have room for names of ``name_bytes``.

    Raises:
        InfrastructureError: no directory for temporary files is short enough and can be written.
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
        hint="set TMPDIR to a short path of a directory that can be written",
    )


@contextmanager
def directory(*, name_bytes: int) -> Iterator[Path]:
    """The same for a while; what cannot be removed at the end stays."""
    path = made(name_bytes=name_bytes)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _bases() -> list[str]:
    named = (os.environ.get("TMPDIR", ""), os.environ.get("XDG_RUNTIME_DIR", ""))
    # A relative one would be another after a change of directory.
    return list(dict.fromkeys([*filter(os.path.isabs, named), *_USUAL]))
