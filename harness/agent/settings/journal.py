# SPDX-License-Identifier: MIT
"""Keeps the old values of settings on disk, for the next agent if this one is killed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from harness.agent.faults import AgentError
from harness.agent.foreign import read_text
from harness.agent.inventory import NET, in_first_namespace

# /run: a reboot resets the settings, too.
_JOURNALS = Path("/run/receive-batching")
_END_S, _KILL_S = 20.0, 5.0


class Journal:
    """The old values of one interface's settings, written before they are changed.

    Kept only in the machine's own network namespace: others end with their processes. The file
    is locked, so that two agents cannot work on one interface.
    """

    def __init__(self, interface: str) -> None:
        self.left: list[tuple[str, Any]] = []
        self._file: TextIOWrapper | None = None
        mac = read_text(NET / interface / "address")
        self._device = {"index": socket.if_nametoindex(interface), "mac": mac}
        self._path = _JOURNALS / f"settings-{interface}.jsonl"
        if not in_first_namespace():
            return
        try:
            _JOURNALS.mkdir(exist_ok=True, mode=0o700)
            self._file = self._path.open("a+", encoding="utf-8", errors="replace")
        except OSError as error:
            sys.stderr.write(f"no journal of the settings: {error}\n")
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise AgentError(
                f"another agent is at work on {interface}",
                hint=f"it holds {self._path}; wait for it or end it",
            ) from error
        self.left = self._left()

    def start(self, still: Sequence[tuple[str, Any]] = ()) -> None:
        """Start a journal for this agent's changes, beginning with those ``still`` to be undone."""
        self._write(self._device, *still, fresh=True)

    def add(self, name: str, old: Any) -> None:
        """Record an old value; when this returns, the setting may be changed."""
        self._write((name, old))

    def close(self, *, keep: bool) -> None:
        """Close the journal; ``keep`` it if something was not restored, for the next agent."""
        if self._file is not None:
            if not keep:
                self._path.unlink(missing_ok=True)
            self._file.close()

    def _left(self) -> list[tuple[str, Any]]:
        assert self._file is not None
        self._file.seek(0)
        lines = []
        for line in self._file:
            # If a line is incomplete, its change was never made.
            with contextlib.suppress(ValueError, RecursionError):
                lines.append(json.loads(line))
        same = bool(lines) and lines[0] == self._device
        changes = (line for line in lines[1:] if isinstance(line, list) and len(line) == 2)
        return [(name, old) for name, old in changes if isinstance(name, str)] if same else []

    def _write(self, *lines: Any, fresh: bool = False) -> None:
        if self._file is None:
            return
        if fresh:
            self._file.truncate(0)
        self._file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._file.flush()
        os.fsync(self._file.fileno())


def journalled() -> list[str]:
    """The interfaces of this host that have a journal, of a running or an ended agent."""
    names = (path.name for path in _JOURNALS.glob("settings-*.jsonl"))
    return sorted(name[len("settings-") : -len(".jsonl")] for name in names)


def end_holder(interface: str) -> None:
    """End the agent that holds the journal of ``interface``, if any.

    It restores everything as it ends. If it does not end in time it is killed, and its journal
    remains.
    """
    path = _JOURNALS / f"settings-{interface}.jsonl"
    with contextlib.suppress(ProcessLookupError):
        for number, patience_s in ((signal.SIGTERM, _END_S), (signal.SIGKILL, _KILL_S)):
            if (pid := _holder(path)) is None:
                return
            os.kill(pid, number)
            end_s = time.monotonic() + patience_s
            while _holder(path) is not None and time.monotonic() < end_s:
                time.sleep(0.1)


def _holder(path: Path) -> int | None:
    """The process that has locked ``path``: `1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`."""
    try:
        inode = str(path.stat().st_ino)
        device = path.stat().st_dev
    except OSError:
        return None
    at = f"{os.major(device):02x}:{os.minor(device):02x}:{inode}"
    for line in (read_text(Path("/proc/locks")) or "").splitlines():
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == at and int(words[4]) > 0:
            return int(words[4])
    return None
