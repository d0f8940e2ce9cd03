# SPDX-License-Identifier: MIT
"""A wire in memory, and a clock that tests set."""

from __future__ import annotations

import numpy as np

from harness.nic.datapath import Library, Stage
from harness.nic.wire import SMALL_SLOT, Batch, SlotRing


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns


class FakeWire:
    """Puts frames into slots as the kernel does, and keeps what is sent."""

    def __init__(self, slots: int = 64, slot: int = SMALL_SLOT) -> None:
        self.ring = SlotRing(np.zeros(slots * slot, np.uint8), slot)
        self.tail = 0
        self.tail_total = 0
        self.sent: list[bytes] = []
        self.ring_drops = 0
        self.frames = 0
        self.refuse = False

    def inject(self, *frames: bytes, status: int = 1, tci: int = 0) -> None:
        for frame in frames:
            header = self.ring.headers[self.tail]
            if header["status"]:
                self.ring_drops += 1
                continue
            kept = frame[: self.ring.room]
            at = self.tail * self.ring.slot + 66
            self.ring.buffer[at : at + len(kept)] = np.frombuffer(kept, np.uint8)
            header["len"], header["snaplen"], header["mac"] = len(frame), len(kept), 66
            header["vlan_tci"], header["vlan_tpid"] = tci, 0x8100
            header["status"] = status
            self.tail_total += 1
            self.tail = (self.tail + 1) % self.ring.slots

    def fileno(self) -> int:
        return -1

    def waiting(self) -> int:
        return self.ring.waiting()

    def take(self, limit: int) -> Batch:
        return self.ring.take(limit)

    def release(self, number: int) -> None:
        self.ring.release(number)

    def send(self, frame: bytes | bytearray) -> bool:
        if self.refuse:
            return False
        self.sent.append(bytes(frame))
        return True

    def send_staged(self, library: Library, stage: Stage) -> list[tuple[int, int]]:
        return [(index, 1) for index in range(stage.count) if self.send(stage.frame(index))]

    def resize(self, max_frame: int) -> None:
        if max_frame > self.ring.room:
            self.ring = SlotRing(np.zeros(self.ring.slots * 9536, np.uint8), 9536)
            self.tail = 0

    def refresh(self) -> None:
        pass

    def settle(self) -> bool:
        return True

    def close(self) -> None:
        pass
