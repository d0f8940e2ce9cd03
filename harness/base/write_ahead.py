# SPDX-License-Identifier: MIT
"""What a campaign was about to do, on disk before it did it, for the harness that comes after."""

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
"""What was noted of one boot: by event, what was said with it last."""

BEGIN, END = "begin", "end"
_CAMPAIGN, _LEASE = "campaign", "lease"


class WriteAheadLog:
    """``journal.jsonl`` of a result directory: a line an event, each on disk when noted."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "journal.jsonl"
        self._noting = threading.Lock()

    def note(self, boot: str, event: str, **what: Any) -> None:
        """Once this returns the act may be done.

        Raises:
            InfrastructureError: it cannot be written.
        """
        line = {"at": time.time(), "boot": boot, "event": event, **what}
        try:
            with self._noting, self.path.open("a+b") as file:
                # What the line of a harness that was killed lacks.
                end = b"" if _ends_a_line(file) else b"\n"
                file.write(end + json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InfrastructureError(
                f"{self.path} cannot be written: {error.strerror}", hint="free some space there"
            ) from error

    def begin_campaign(self) -> str:
        """The id of the campaign in this directory, on disk before machines are held in its name.

        That of one that came no further stays.
        """
        for noted in self.noted():
            if noted["event"] == _CAMPAIGN:
                return str(noted["id"])
        made = secrets.token_hex(8)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.note("", _CAMPAIGN, id=made)
        return made

    def note_lease(self, host: str, left_s: float) -> None:
        """``host`` is ours for so long from now on."""
        self.note("", _LEASE, host=host, until=time.time() + left_s)

    def holds(self, host: str) -> bool:
        """Is ``host`` still ours, as far as was noted?"""
        until = 0.0
        for noted in self.noted():
            if noted["event"] == _LEASE and noted.get("host") == host:
                until = noted["until"]
        return time.time() < until

    def unfinished(self) -> dict[str, Notes]:
        """Boots that were begun and have no end, by name."""
        begun: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        for noted in self.noted():
            if noted["event"] == BEGIN:
                begun.pop(noted["boot"], None)
            begun[noted["boot"]][noted["event"]] = noted
        return {boot: said for boot, said in begun.items() if BEGIN in said and END not in said}

    def noted(self) -> Iterator[dict[str, Any]]:
        """Everything so far; a line that is cut short is left out."""
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
