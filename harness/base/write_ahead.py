# SPDX-License-Identifier: MIT
"""The write-ahead log of a campaign, for ``--resume`` after an interruption."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from harness.base.errors import InfrastructureError

Notes = Mapping[str, Mapping[str, Any]]
"""The events of one boot: by event, its latest line."""

BEGIN, END = "begin", "end"
_CAMPAIGN, _LEASE = "campaign", "lease"


class WriteAheadLog:
    """``journal.jsonl`` of a result directory: one line per event, synced to disk."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "journal.jsonl"
        self._noting = threading.Lock()

    def note(self, boot: str, event: str, **what: Any) -> None:
        """Write an event to disk; do the act only after this returns.

        Raises:
            InfrastructureError: it cannot be written.
        """
        line = {"at": time.time(), "boot": boot, "event": event, **what}
        try:
            with self._noting, self.path.open("a+b") as file:
                # The last line may be incomplete if a harness was killed.
                end = b"" if _ends_a_line(file) else b"\n"
                file.write(end + json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InfrastructureError(
                f"{self.path} cannot be written: {error.strerror}", hint="free some space there"
            ) from error

    def begin_campaign(self) -> str:
        """The id of the campaign in this directory, on disk before machines are leased under it.

        An id that is already in the log is used again.
        """
        for noted in self.noted():
            if noted["event"] == _CAMPAIGN:
                return str(noted["id"])
        made = secrets.token_hex(8)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.note("", _CAMPAIGN, id=made)
        return made

    def note_lease(self, host: str, left_s: float) -> None:
        """Note that we hold ``host`` for ``left_s`` seconds from now."""
        self.note("", _LEASE, host=host, until=time.time() + left_s)

    def holds(self, host: str) -> bool:
        """Do we still hold ``host``, according to the log?"""
        until = 0.0
        for noted in self.noted():
            if noted["event"] == _LEASE and noted.get("host") == host:
                until = noted["until"]
        return time.time() < until

    def unfinished(self) -> dict[str, Notes]:
        """The boots that have begun and not ended, by name."""
        begun: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        for noted in self.noted():
            if noted["event"] == BEGIN:
                begun.pop(noted["boot"], None)
            begun[noted["boot"]][noted["event"]] = noted
        return {boot: said for boot, said in begun.items() if BEGIN in said and END not in said}

    def noted(self) -> Iterator[dict[str, Any]]:
        """All events so far, without incomplete lines."""
        with contextlib.suppress(FileNotFoundError):
            for line in self.path.read_text(errors="replace", encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    noted = json.loads(line)
                    if isinstance(noted, dict) and {"boot", "event"} <= noted.keys():
                        yield noted


def _ends_a_line(file: BinaryIO) -> bool:
    if not file.seek(0, os.SEEK_END):
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
