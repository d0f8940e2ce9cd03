# SPDX-License-Identifier: MIT
"""Counters of the emulator that runs this guest: instructions, and simulated icache misses.

They are in memory of a PCI device; the layout is ``struct page`` of
``harness/beds/virtual/icache.c``. Counting slows the guest down and is on only when asked for.
"""

from __future__ import annotations

import bisect
import contextlib
import mmap
import os
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.agent.faults import AgentError
from harness.agent.foreign import read_text

_DEVICES = Path("/sys/bus/pci/devices")
_VENDOR, _DEVICE = "0x1af4", "0x1110"
_MAGIC = 0x31686361636952
_PAGE_BYTES = 4096
_HEAD = struct.Struct("<7Q")
_WANTED, _COUNTING = 8, 2
_COUNTED = struct.Struct("<2Q")
_KALLSYMS = Path("/proc/kallsyms")
_KERNEL = 1 << 63
_SWITCH_S = 5.0
_SETTLE_S = 0.2


class Emulated:
    """The counters of the emulator that this host runs in."""

    @contextlib.contextmanager
    def over(self, cpu: int) -> Iterator[Watch]:
        """Count on ``cpu`` until the context ends.

        Raises:
            AgentError: the host has no such counters.
        """
        with _page() as page:
            try:
                _switch(page, cpu + 1)
                time.sleep(_SETTLE_S)
                yield Watch(page, cpu)
            finally:
                _switch(page, 0)


class Watch:
    """One window on one CPU."""

    def __init__(self, page: mmap.mmap, cpu: int) -> None:
        self._page = page
        self._cpu = cpu
        self._taken: list[tuple[float, int, int]] = []

    def open(self) -> None:
        """The window begins."""
        self._taken.append((time.monotonic(), *_COUNTED.unpack_from(self._page, _HEAD.size)))

    def close(self) -> None:
        """The window is over."""
        self.open()

    def read(self) -> dict[str, Any]:
        """As :meth:`.pmu.Watch.read`, with the simulated cache as ``icache``."""
        (began_s, *first), (ended_s, *last) = self._taken
        _, _, _, uncounted, octets, ways, line_octets = _HEAD.unpack_from(self._page)
        names = ("instructions", "L1-icache-load-misses")
        counts = {
            name: {"count": now - before, "on_s": ended_s - began_s, "running": 1.0}
            for name, before, now in zip(names, first, last)
        }
        absent = dict.fromkeys(names, f"{uncounted} blocks of code were not counted")
        return {
            "cpu": self._cpu,
            "counts": {} if uncounted else counts,
            "absent": absent if uncounted else {},
            "icache": {"octets": octets, "ways": ways, "line_octets": line_octets},
        }


def symbols(addresses: Sequence[int]) -> list[tuple[str, int]]:
    """For each address its function and offset; all user addresses are the function (user)."""
    starts: list[int] = []
    names: list[str] = []
    for line in sorted(_KALLSYMS.read_text(errors="replace").splitlines()):
        start, kind, name = line.split()[:3]
        if kind in "tTwW":
            starts.append(int(start, 16))
            names.append(name)
    found = []
    for address in addresses:
        place = bisect.bisect_right(starts, address) - 1
        if address < _KERNEL or place < 0:
            found.append(("(user)", 1))
        else:
            found.append((names[place], address - starts[place]))
    return found


def _switch(page: mmap.mmap, wanted: int) -> None:
    page[_WANTED : _WANTED + 8] = wanted.to_bytes(8, "little")
    deadline = time.monotonic() + _SWITCH_S
    while _HEAD.unpack_from(page)[_COUNTING] != wanted:
        if time.monotonic() > deadline:
            raise AgentError(f"the emulator does not {'start' if wanted else 'stop'} counting")
        time.sleep(0.01)


@contextlib.contextmanager
def _page() -> Iterator[mmap.mmap]:
    for device in sorted(_DEVICES.iterdir() if _DEVICES.is_dir() else ()):
        ids = read_text(device / "vendor"), read_text(device / "device")
        if ids != (_VENDOR, _DEVICE):
            continue
        (device / "enable").write_text("1")
        file = os.open(device / "resource2", os.O_RDWR | os.O_CLOEXEC)
        try:
            page = mmap.mmap(file, _PAGE_BYTES)
        finally:
            os.close(file)
        with contextlib.closing(page):
            if _HEAD.unpack_from(page)[0] == _MAGIC:
                yield page
                return
    raise AgentError("this host does not run in an emulator that counts instructions")
