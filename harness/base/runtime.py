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
_IN_MEMORY = "/dev/shm"  # noqa: S108 (mkdtemp is private)
_USUAL = ("/tmp", "/var/tmp", _IN_MEMORY)  # noqa: S108 (as above)


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


def for_memory(mib: int) -> Path:
    """A directory for files of ``mib`` MiB that programs map as memory and execute.

    In memory if possible: writing back a file on a disk takes time. Containers often have a
    small /dev/shm, mounted noexec.

    Raises:
        InfrastructureError: no directory is large enough and allows execution.
    """
    tried = []
    for base in dict.fromkeys([_IN_MEMORY, *_bases()]):
        try:
            found = os.statvfs(base)
        except OSError as error:
            tried.append(f"{base}: {error.strerror}")
            continue
        free_mib = found.f_bavail * found.f_frsize >> 20
        if found.f_flag & os.ST_NOEXEC:
            tried.append(f"{base} is mounted noexec")
        elif free_mib < mib or not os.access(base, os.W_OK | os.X_OK):
            tried.append(f"{base} has {free_mib} MiB for this user")
        else:
            return Path(base)
    raise InfrastructureError(
        f"no directory for {mib} MiB of memory: {'; '.join(tried)}",
        hint="set TMPDIR to a writable directory that is large enough and not mounted noexec",
    )


def _bases() -> list[str]:
    named = (os.environ.get("TMPDIR", ""), os.environ.get("XDG_RUNTIME_DIR", ""))
    # A relative path would change its meaning with the current directory.
    return list(dict.fromkeys([*filter(os.path.isabs, named), *_USUAL]))
