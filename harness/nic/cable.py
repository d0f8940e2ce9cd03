# SPDX-License-Identifier: MIT
"""A cable: the wire between two devices of one process.

What one device sends is in the receive ring of the other at once. So it needs neither a
network interface nor any right. A full ring drops frames, as an interface of the kernel
does. Both devices must belong to one thread.
"""

from __future__ import annotations

import ctypes

import numpy as np

from harness.nic.datapath import Library, Stage
from harness.nic.wire import SMALL_SLOT, Ringed, SlotRing, slot_for


def cable(*, slots: int = 4096) -> tuple[End, End]:
    """Both ends of a new cable; each has a ring of ``slots`` frames."""
    one, other = End(slots), End(slots)
    one.other, other.other = other, one
    return one, other


class End(Ringed):
    """One end of a cable: the wire of the device that is attached to it."""

    other: End

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._ring = self._made(SMALL_SLOT)
        self.frames = 0
        self.ring_drops = 0

    def _made(self, slot: int) -> SlotRing:
        slots = self._slots if slot == SMALL_SLOT else self._slots // 4
        return SlotRing(np.zeros(slots * slot, np.uint8), slot)

    def fileno(self) -> None:
        """It has none: whoever serves both devices sees what they send."""

    def send(self, frame: bytes | bytearray) -> bool:
        """Put one frame into the ring of the other end; True even if that is full."""
        other = self.other
        other.frames += 1
        if not other._ring.put(frame):
            other.ring_drops += 1
        return True

    def send_staged(self, library: Library, stage: Stage) -> list[tuple[int, int]]:
        """See :meth:`Wire.send_staged`."""
        other, total = self.other, int(stage.count)
        other.frames += total
        other.ring_drops += total - library.put(other._ring.compiled(), ctypes.addressof(stage))
        return [(0, total)]

    def resize(self, max_frame: int) -> None:
        """Make slots for frames of ``max_frame`` octets; drops the waiting frames."""
        slot = slot_for(max_frame)
        if slot != self._ring.slot:
            self.ring_drops += self._ring.held()
            self._ring = self._made(slot)

    def refresh(self) -> None:
        """Both counts are always up to date."""

    def settle(self) -> bool:
        return True

    def close(self) -> None:
        """It holds nothing that has to be closed."""
