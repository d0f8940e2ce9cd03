# SPDX-License-Identifier: MIT
"""Where things that can be made again are kept, and how they come to be there.

Every entry is named by a digest of what it was made from, is made in a
directory beside its final place and moved there when it is whole; an
interrupted maker leaves nothing that a later run would take for finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from harness.errors import InfrastructureError


def root() -> Path:
    """The cache directory: ``$RECEIVE_BATCHING_CACHE`` or the user's own cache."""
    chosen = os.environ.get("RECEIVE_BATCHING_CACHE")
    return Path(chosen).absolute() if chosen else user_cache_path("receive-batching")


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
        InfrastructureError: another process holds it and did not let go in an hour.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(path.name + ".lock"), timeout=3600):
            yield
    except Timeout as error:
        raise InfrastructureError(f"another harness is still at {what}") from error


def entry(path: Path, make: Callable[[Path], None], *, what: str) -> Path:
    """The directory ``path``, filled by ``make(directory)`` if it is not there yet."""
    if path.is_dir():
        return path
    with locked(path, what=what):
        if path.is_dir():
            return path
        for left in path.parent.glob(f".{path.name}-*"):  # by a maker that was killed
            shutil.rmtree(left, ignore_errors=True)
        making = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            make(making)
            making.chmod(0o755)
            making.rename(path)
        except OSError as error:
            raise InfrastructureError(
                f"cannot keep {what} in {path.parent}: {error.strerror}",
                hint="free some space, or name another place in RECEIVE_BATCHING_CACHE",
            ) from error
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return path
