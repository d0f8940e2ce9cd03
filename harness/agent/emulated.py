# SPDX-License-Identifier: MIT
"""What an emulator counts of its guest: instructions, and misses in a simulated icache.

The counters are memory of a PCI device; their layout is ``struct page`` of
``harness/hosts/icache.c``. Counting slows the guest down and is on while it is asked for.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .faults import AgentError
from .inventory import read_text

_DEVICES = Path("/sys/bus/pci/devices")
_VENDOR, _DEVICE = "0x1af4", "0x1110"
_MAGIC = 0x31686361636952
_PAGE_BYTES = 4096
_HEAD = struct.Struct("<8Q")
_WANTED = 8
_COUNTED = struct.Struct("<2Q")
_COUNTED_BYTES = 64
_SWITCH_S = 5.0
_SETTLE_S = 0.2


class Emulated:
    """The counters of the emulator this host runs in, if it has any."""

    @contextlib.contextmanager
    def over(self, cpu: int) -> Iterator[Watch]:
        """Counting, of ``cpu`` among others, until the context ends.

        Raises:
            AgentError: there are no such counters.
        """
        with _page() as page:
            try:
                page[_WANTED : _WANTED + 8] = (1).to_bytes(8, "little")
                deadline = time.monotonic() + _SWITCH_S
                while not _HEAD.unpack_from(page)[2]:
                    if time.monotonic() > deadline:
                        raise AgentError("the emulator does not begin to count")
                    time.sleep(0.01)
                time.sleep(_SETTLE_S)
                yield Watch(page, cpu)
            finally:
                page[_WANTED : _WANTED + 8] = bytes(8)


class Watch:
    """One window on one CPU."""

    def __init__(self, page: mmap.mmap, cpu: int) -> None:
        self._page = page
        self._cpu = cpu
        self._taken: list[tuple[float, int, int]] = []

    def open(self) -> None:
        """The window begins."""
        self._take()

    def close(self) -> None:
        """The window is over."""
        self._take()

    def read(self) -> dict[str, Any]:
        """By event, as :meth:`harness.agent.pmu.Watch.read`, and the cache that was simulated."""
        (began_s, *first), (ended_s, *last) = self._taken
        _, _, _, uncounted, octets, ways, line_octets, _ = _HEAD.unpack_from(self._page)
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

    def _take(self) -> None:
        at = _HEAD.size + self._cpu * _COUNTED_BYTES
        self._taken.append((time.monotonic(), *_COUNTED.unpack_from(self._page, at)))


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
    raise AgentError("this host is in no emulator that counts instructions")
