# SPDX-License-Identifier: MIT
"""The record of what the harness installed on a host and how the host was before.

It is written before each change, in /var, which survives a reboot and a crash: a later
agent removes exactly what was installed and sees whether the default is unchanged.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.agent.faults import AgentError
from harness.agent.foreign import given_back, kept, read_bytes


@dataclass(frozen=True)
class Places:
    """Paths on a host; tests use another root."""

    root: Path = Path("/")

    @property
    def boot(self) -> Path:
        """The directory of the distribution's kernels."""
        return self.root / "boot"

    @property
    def kernels(self) -> Path:
        """Kernels of the harness: update-grub and grub2-mkconfig look only in /boot itself."""
        return self.boot / "receive-batching"

    @property
    def modules(self) -> Path:
        """One directory for each release."""
        return self.root / "lib/modules"

    @property
    def state(self) -> Path:
        """The directory of the record, which survives a reboot."""
        return self.root / "var/lib/receive-batching"

    def release(self) -> str:
        """The release of the running kernel."""
        return platform.release()

    def text(self, path: str) -> str | None:
        """The text of ``path`` under the root, stripped; None if it cannot be read.

        Decoded by :func:`~.foreign.kept`: the command line is passed on unchanged.
        """
        content = read_bytes(self.root / path)
        return None if content is None else kept(content).strip()


class Record:
    """The state file. Callers change ``data``; :meth:`save` writes it.

    ``known_good``: release, cmdline and default of the boot in which the first kernel was
    installed; ``kernels``: by release; ``armed``: the boot that was prepared; ``left``: the
    boot of the harness that last ended on request.
    """

    def __init__(self, places: Places) -> None:
        self._directory = places.state
        self.path = places.state / "kernels.json"
        self.data: dict[str, Any] = {
            "version": 1,
            "known_good": None,
            "kernels": {},
            "armed": None,
            "left": None,
        }
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return
        try:
            data = json.loads(content)
            assert data["version"] == 1
            self.data = {**self.data, **data}
            assert isinstance(self.data["kernels"], dict)
        except (ValueError, KeyError, TypeError, AssertionError, RecursionError) as error:
            raise AgentError(
                f"{self.path} is not a record of this harness: {error}",
                hint="remove the kernels that it names by hand, then the file",
            ) from error

    def complete(self) -> dict[str, list[str]]:
        """The parameters of each kernel that is installed completely."""
        return {
            release: entry["cmdline"]
            for release, entry in self.data["kernels"].items()
            if entry["complete"]
        }

    def save(self) -> None:
        """Write the record to disk; an empty record removes the file and its directory."""
        if not self.data["kernels"] and self.data["armed"] is None:
            self.data["known_good"] = None
            self.path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self._directory.rmdir()
            return
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        written(self.path, json.dumps(self.data, indent=1) + "\n", mode=0o600)


@contextlib.contextmanager
def changing(places: Places) -> Iterator[Record]:
    """The record, for one agent at a time.

    Raises:
        AgentError: another agent is at work on this host's kernels.
    """
    # The lock is in /run, so that nothing is left after a boot.
    run = places.root / "run/receive-batching"
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (run / "kernels.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AgentError(
                "another agent is at work on this host's kernels", hint="wait for it or end it"
            ) from error
        yield Record(places)


def written(path: Path, text: str, *, mode: int) -> None:
    """Replace ``path`` by ``text`` atomically; it is on disk when this returns.

    Text of others in it was decoded by :func:`~.foreign.kept`. An existing file keeps its owner.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(given_back(text))
            file.flush()
            if path.exists():
                was = path.stat()
                # FAT has no owners.
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), was.st_uid, was.st_gid)
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    synced(path.parent)


def synced(path: Path) -> None:
    """Write a file's content, or a directory's entries, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
