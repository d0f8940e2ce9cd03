# SPDX-License-Identifier: MIT
"""The cache of things that can be made again, such as kernels and images.

The name of an entry contains a digest of its inputs. An entry is made in a directory
beside its final place and moved there when it is complete, so an interrupted run leaves
nothing that a later run would take for finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from harness.base.errors import ConfigurationError, InfrastructureError

_VARIABLE = "RECEIVE_BATCHING_CACHE"
_ELSEWHERE = f"name another place in {_VARIABLE}"
# A path must not contain blanks or colons (make), shell characters, commas (QEMU) or
# per cent signs (OpenSSH).
_SUPPORTED = re.compile(r"[\w./+@~-]+")


def root() -> Path:
    """The cache directory: ``$RECEIVE_BATCHING_CACHE`` or the user's own cache.

    Raises:
        ConfigurationError: kernels cannot be built there, or it is not a directory.
    """
    chosen = os.environ.get(_VARIABLE, "")
    try:
        path = Path(chosen).expanduser() if chosen else user_cache_path("receive-batching")
    except RuntimeError as error:  # ~USER of an unknown user
        raise ConfigurationError(f"{_VARIABLE}: {error}", hint="name a path without ~") from error
    if not chosen and not path.is_absolute():
        raise ConfigurationError(
            f"there is no home directory for the cache: HOME is {os.environ.get('HOME')!a}",
            hint=f"set HOME, or name a place in {_VARIABLE}",
        )
    path = path.absolute()
    named = f"{_VARIABLE} names {_shown(path)}" if chosen else f"the cache is {_shown(path)}"
    if odd := _SUPPORTED.sub("", str(path)):
        raise ConfigurationError(
            f"{named}, but make and QEMU do not support {odd[0]!a} in a path",
            hint=f"{_ELSEWHERE}, with only letters, digits and ./+@~_-",
        )
    there = next(up for up in (path, *path.parents) if os.path.lexists(up))
    if not there.is_dir():
        what = "a dangling link" if there.is_symlink() else "not a directory"
        raise ConfigurationError(f"{named}, but {there} is {what}", hint=_ELSEWHERE)
    return path


def _shown(path: Path) -> str:
    return str(path) if str(path).isprintable() else ascii(str(path))


def digest(*parts: object) -> str:
    """16 hexadecimal digits that identify ``parts`` (JSON values) in an entry's name."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, *, what: str) -> Iterator[None]:
    """Lock ``path`` for this process; the kernel releases the lock when the process ends.

    Raises:
        InfrastructureError: another process held the lock for an hour, or nothing can be
            written there.
    """
    lock = FileLock(path.with_name(path.name + ".lock"), timeout=3600)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InfrastructureError(
            f"another harness is still making {what}", hint="wait for it, or end it"
        ) from error
    except OSError as error:
        raise _not_kept(path, what, error) from error
    try:
        yield
    finally:
        lock.release()


def entry(path: Path, make: Callable[[Path], None], *, what: str) -> Path:
    """The directory ``path``; if it does not exist, ``make(directory)`` fills it."""
    if path.is_dir():
        return path
    with locked(path, what=what):
        if path.is_dir():
            return path
        for left in path.parent.glob(f".{path.name}-*"):  # of a killed process
            shutil.rmtree(left, ignore_errors=True)
        making: Path | None = None
        try:
            making = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
            make(making)
            making.chmod(0o755)
            making.rename(path)
        except OSError as error:
            raise _not_kept(path, what, error) from error
        finally:
            if making is not None:
                shutil.rmtree(making, ignore_errors=True)
    return path


def _not_kept(path: Path, what: str, error: OSError) -> InfrastructureError:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    return InfrastructureError(
        f"cannot keep {what} in {path.parent}: {error.strerror or error}",
        hint=f"{'free some space' if full else 'make it writable'}, or {_ELSEWHERE}",
    )
