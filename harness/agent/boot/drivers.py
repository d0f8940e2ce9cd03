# SPDX-License-Identifier: MIT
"""The drivers this host needs to boot and to be reached through its test interface: those of the
root file system, of the devices below it up to the bus, and of the NIC.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from harness.agent.foreign import read_text

_DEEPEST = 16


def drivers(*, interface: str, root: str = "/") -> dict[str, str]:
    """Driver name to what needs it; names are those of modules, also for built-in drivers."""
    base = Path(root)
    found: dict[str, str] = {}
    for kind, device in mounted(_text(base / "proc/self/mountinfo")):
        found.setdefault(kind, f"the root file system is {kind}")
        for name in _below(base / "sys/dev/block" / device, base, _DEEPEST):
            found.setdefault(name, "the root file system's disk needs it")
    for name in _drivers(base / "sys/class/net" / interface / "device", base):
        found.setdefault(name, f"{interface} needs it")
    return found


def mounted(mountinfo: str) -> list[tuple[str, str]]:
    """File system and device (``major:minor``) of the last root mount; empty if unknown."""
    rows = []
    for line in mountinfo.splitlines():
        words = line.split()
        if "-" not in words[6:] or len(words) < 10 or words[4] != "/":
            continue
        kind = words[words.index("-", 6) + 1]
        if re.fullmatch(r"\d+:\d+", words[2]) and re.fullmatch(r"[\w.-]{1,32}", kind):
            rows.append((kind, words[2]))
    return rows[-1:]


def _below(block: Path, base: Path, depth: int) -> Iterator[str]:
    """Drivers of a block device and of those below it: mapped, RAID, partition, disk."""
    at = _resolved(block)
    if depth == 0 or at is None:
        return
    if uuid := _text(at / "dm/uuid"):
        yield "dm_mod"
        if uuid.startswith("CRYPT-"):
            yield "dm_crypt"
    level = _text(at / "md/level")
    if re.fullmatch(r"(raid(0|1|10|4|5|6)|linear)", level):
        yield "raid456" if level in ("raid4", "raid5", "raid6") else level
    yield from _drivers(at, base)
    for slave in sorted((at / "slaves").glob("*")):
        yield from _below(slave, base, depth - 1)


def _drivers(device: Path, base: Path) -> Iterator[str]:
    """The modules of the drivers of ``device`` and of its parent devices."""
    at = _resolved(device)
    top = base / "sys/devices"
    while at is not None and top in at.parents:
        driver = _resolved(at / "driver/module")
        if driver is not None and re.fullmatch(r"\w{1,63}", driver.name):
            yield driver.name
        at = at.parent


def _resolved(path: Path) -> Path | None:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError):
        return None


def _text(path: Path) -> str:
    return read_text(path) or ""
