# SPDX-License-Identifier: MIT
"""The lease of this host: it expires, and is on disk to survive a reboot.

The holder reboots the host that it holds. Within one boot, time is counted on CLOCK_BOOTTIME,
which does not follow changes of the date. Across a reboot only the date is left, and it may
have been set back; but at least the age of this boot has passed, so a lease never lasts longer
than its time from the start of the boot.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .faults import AgentError

PATH = Path("/var/lib/receive-batching/lease.json")
LOCK = Path("/run/receive-batching/lease.lock")
"""In /run, so that nothing is left after a boot."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LONGEST_S = 4 * 3600.0
_LINE = 200


class Lease:
    """The lease of this host; a call changes it under a lock, and it is on disk on return."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or PATH
        self._lock = path.with_suffix(".lock") if path else LOCK

    def take(
        self, *, owner: str, holder: str, ttl_s: float, campaign: str | None = None
    ) -> dict[str, Any]:
        """Take the lease for ``ttl_s`` seconds; its ``holder`` may take it again.

        Others are shown ``owner`` and ``campaign``.

        Raises:
            AgentError: somebody else has it; the message says who, and for how long.
        """
        ttl_s = _ttl(ttl_s)
        if not holder:
            raise AgentError("a lease needs a holder", kind="configuration")
        with self._locked():
            found = self._read()
            if found and found["holder"] != holder and _left_s(found) > 0:
                raise AgentError(
                    f"held by {_named(found)} for {_left_s(found):.0f} s more, "
                    + time.strftime("since %Y-%m-%d %H:%M UTC", time.gmtime(found["since_s"])),
                    kind="busy",
                    hint="wait until it is free; if nobody uses the host any more, "
                    "`harness hosts release HOST --break` ends the lease",
                )
            names = {"owner": _line(owner), "campaign": _line(campaign or "")}
            again = found is not None and found["holder"] == holder
            since_s = found["since_s"] if found and again else time.time()
            return self._write({"holder": holder, **names, "since_s": since_s}, ttl_s)

    def refresh(self, *, holder: str, ttl_s: float) -> dict[str, Any]:
        """Extend it to ``ttl_s`` seconds from now; ``held`` is False if it is not ``holder``'s.

        An expired lease is taken again, unless somebody else took it in between.
        """
        ttl_s = _ttl(ttl_s)
        with self._locked():
            found = self._read()
            if found is None or found["holder"] != holder:
                return {"held": False, **_shown(found)}
            return {"held": True, **self._write(found, ttl_s)}

    def free(self, *, holder: str) -> dict[str, Any]:
        """End the lease of ``holder``; ``freed`` is False if there was none.

        Raises:
            AgentError: somebody else holds it.
        """
        with self._locked():
            found = self._read()
            if found and found["holder"] != holder and _left_s(found) > 0:
                raise AgentError(
                    f"the lease is not yours: held by {_named(found)}",
                    hint="only --break ends a lease of somebody else",
                )
            self._remove()
            return {"freed": found is not None}

    def broken(self) -> dict[str, Any]:
        """End any lease, by an operator's decision; returns what it was."""
        with self._locked():
            try:
                found = self._read()
            except AgentError:
                found = None  # an unreadable lease may be the reason to break it
            self._remove()
            return _shown(found)

    def state(self) -> dict[str, Any]:
        """``owner`` (None if the host is free), ``holder``, ``campaign``, ``since_s``, ``left_s``.

        ``since_s`` is seconds since the epoch by the clock of this host.
        """
        return _shown(self._read())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            for at in (self._path, self._lock):
                at.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self._lock.open("a")
        except OSError as error:
            raise self._not_kept(error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self) -> dict[str, Any] | None:
        try:
            return _record(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise AgentError(
                f"the lease in {self._path} cannot be read: {error}",
                hint="`harness hosts release HOST --break` removes it",
            ) from error

    def _write(self, record: dict[str, Any], ttl_s: float) -> dict[str, Any]:
        record = {
            **record,
            "ttl_s": ttl_s,
            "boot_id": _boot_id(),
            "at_boot_s": time.clock_gettime(time.CLOCK_BOOTTIME),
            "at_s": time.time(),
        }
        part = self._path.with_suffix(".part")
        try:
            with part.open("w", encoding="utf-8") as file:
                json.dump(record, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path)
            self._sync_directory()
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise self._not_kept(error) from error
        return _shown(record)

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
            self._sync_directory()
        with contextlib.suppress(OSError):  # not empty: the record of kernels is there, too
            self._path.parent.rmdir()

    def _sync_directory(self) -> None:
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _not_kept(self, error: OSError) -> AgentError:
        return AgentError(
            f"no lease can be kept in {self._path.parent}: {error.strerror}",
            hint="free some space there, or make it writable for root",
        )


def _record(text: str) -> dict[str, Any]:
    found = json.loads(text)
    return {
        **{name: str(found[name]) for name in ("holder", "owner", "campaign", "boot_id")},
        **{name: float(found[name]) for name in ("ttl_s", "at_boot_s", "at_s")},
        # Not in a lease that an earlier version has written.
        "since_s": float(found.get("since_s", found["at_s"])),
    }


def _left_s(record: dict[str, Any]) -> float:
    boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    if record["boot_id"] == _boot_id():
        passed_s = boot_s - record["at_boot_s"]
    else:
        passed_s = max(time.time() - record["at_s"], boot_s)
    left_s: float = min(record["ttl_s"], _LONGEST_S) - max(0.0, passed_s)
    return max(0.0, left_s)


def _shown(record: dict[str, Any] | None) -> dict[str, Any]:
    left_s = _left_s(record) if record else 0.0
    if record is None or left_s == 0.0:
        return {"owner": None, "holder": None, "campaign": None, "since_s": None, "left_s": 0.0}
    return {
        "owner": record["owner"],
        "holder": record["holder"],
        "campaign": record["campaign"] or None,
        "since_s": record["since_s"],
        "left_s": left_s,
    }


def _named(record: dict[str, Any]) -> str:
    of = f" (campaign {record['campaign']})" if record["campaign"] else ""
    return f"{record['owner']}{of}"


def _ttl(ttl_s: float) -> float:
    if not 1 <= ttl_s <= _LONGEST_S:
        raise AgentError(
            f"a lease of {ttl_s} s; expected 1 to {_LONGEST_S:.0f}", kind="configuration"
        )
    return float(ttl_s)


def _line(text: str) -> str:
    """``text`` made safe to print on another user's terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:_LINE]


def _boot_id() -> str:
    return _BOOT_ID.read_text(encoding="ascii").strip()
