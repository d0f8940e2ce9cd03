# SPDX-License-Identifier: MIT
"""Where things that can be made again are kept, and how they come to be there.

Every entry is named by a digest of what it was made from, is made in a
directory beside its final place and moved there when it is whole; an
interrupted maker leaves nothing that a later run would take for finished.
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
# make takes no blank and no colon in a path, its shells none of what they read otherwise,
# QEMU no comma, OpenSSH no per cent.
_BEARABLE = re.compile(r"[\w./+@~-]+")


def root() -> Path:
    """The cache directory: ``$RECEIVE_BATCHING_CACHE`` or the user's own cache.

    Raises:
        ConfigurationError: kernels cannot be built there, or it is no directory.
    """
    chosen = os.environ.get(_VARIABLE, "")
    try:
        path = Path(chosen).expanduser() if chosen else user_cache_path("receive-batching")
    except RuntimeError as error:  # of a user who is not there
        raise ConfigurationError(f"{_VARIABLE}: {error}", hint="name a path without ~") from error
    if not chosen and not path.is_absolute():
        raise ConfigurationError(
            f"there is no home directory to keep kernels in: HOME is {os.environ.get('HOME')!a}",
            hint=f"set HOME, or name a place in {_VARIABLE}",
        )
    path = path.absolute()
    named = f"{_VARIABLE} names {_shown(path)}" if chosen else f"the cache is {_shown(path)}"
    if odd := _BEARABLE.sub("", str(path)):
        raise ConfigurationError(
            f"{named}, and make and QEMU cannot bear {odd[0]!a} in a path",
            hint=f"{_ELSEWHERE}, of letters, digits and ./+@~_-",
        )
    there = next(up for up in (path, *path.parents) if os.path.lexists(up))
    if not there.is_dir():
        what = "a link that leads nowhere" if there.is_symlink() else "no directory"
        raise ConfigurationError(f"{named}, and {there} is {what}", hint=_ELSEWHERE)
    return path


def _shown(path: Path) -> str:
    return str(path) if str(path).isprintable() else ascii(str(path))


def digest(*parts: object) -> str:
    """16 hexadecimal digits that stand for ``parts`` (JSON values) in an entry's name."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path, *, what: str) -> Iterator[None]:
    """Hold ``path`` for this process; the kernel lets go of it when the process ends.

    Raises:
        InfrastructureError: another process holds it and did not let go in an hour, or
            nothing can be written there.
    """
    lock = FileLock(path.with_name(path.name + ".lock"), timeout=3600)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InfrastructureError(f"another harness is still at {what}") from error
    except OSError as error:
        raise _not_kept(path, what, error) from error
    try:
        yield
    finally:
        lock.release()


def entry(path: Path, make: Callable[[Path], None], *, what: str) -> Path:
    """The directory ``path``, filled by ``make(directory)`` if it is not there yet."""
    if path.is_dir():
        return path
    with locked(path, what=what):
        if path.is_dir():
            return path
        for left in path.parent.glob(f".{path.name}-*"):  # by a maker that was killed
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
        hint=f"{'free some space' if full else 'make it writable for you'}, or {_ELSEWHERE}",
    )
