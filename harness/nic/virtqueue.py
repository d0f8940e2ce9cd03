# SPDX-License-Identifier: MIT
"""A split virtqueue in guest memory, from the device's side (Virtio 1.2, 2.7).

Hides the three areas, wrapping indices, chains of descriptors, and the flag that
disables notifications. Indirect descriptors and event indices are not offered to the
driver.

The guest wrote everything here. A request is copied before it is parsed, so that it
cannot change in between, and the size of a chain is limited.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass

from harness.nic import datapath
from harness.nic.datapath import Library
from harness.nic.memory import GuestAccessError, Octets, Segment, Segments

MAX_SIZE = 1024
_DESCRIPTOR = struct.Struct("<QIHH")
_NEXT, _WRITE = 1, 2
_NO_NOTIFY, _NO_INTERRUPT = 1, 1
_MAX_REQUEST = 64 << 10


class RingError(Exception):
    """The driver's ring is invalid; the device can only stop using it."""


@dataclass(slots=True)
class Chain:
    """One buffer of the driver: the request, and room for an answer."""

    head: int
    request: bytes
    room: list[tuple[int, int]]
    """(guest address, octets) of the writable parts."""


class Virtqueue:
    """One ring of ``size`` entries at three guest addresses.

    Args:
        base: the index of the first buffer to take.

    Raises:
        RingError: it is not in guest memory, or its size is invalid.
    """

    def __init__(
        self, memory: Segments, size: int, *, desc: int, avail: int, used: int, base: int
    ) -> None:
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise RingError(f"a queue of {size} entries")
        if desc % 16 or avail % 2 or used % 4:
            raise RingError(f"rings at {desc:#x}, {avail:#x}, {used:#x} are not aligned")
        self.memory = memory
        self.size = size
        self._mask = size - 1
        areas = [
            self._area(start, octets)
            for start, octets in ((desc, 16 * size), (avail, 4 + 2 * size), (used, 4 + 8 * size))
        ]
        self._desc = areas[0].data
        self._avail = areas[1].data.cast("H")
        self._used = areas[2][:4].data.cast("H")
        self._used_ring = areas[2][4:].data.cast("I")
        # For compiled code; the views above keep the areas mapped.
        self._state = datapath.Vq(*(int(area.ctypes.data) for area in areas), size=size)
        self._state.taken, self._state.given = base & 0xFFFF, self._used[1]
        self._address = ctypes.addressof(self._state)

    @property
    def taken(self) -> int:
        """The index of the next buffer to take."""
        return int(self._state.taken)

    def quiet(self, quiet: bool) -> None:
        """Disable the driver's notifications (the device polls), or enable them."""
        self._used[0] = _NO_NOTIFY if quiet else 0

    @property
    def wants_interrupts(self) -> bool:
        return not self._avail[0] & _NO_INTERRUPT

    def waiting(self) -> int:
        """How many buffers the driver has made available and the device has not taken.

        Raises:
            RingError: more than the size of the queue.
        """
        number: int = (self._avail[1] - self._state.taken) & 0xFFFF
        if number > self.size:
            raise RingError(f"{number} buffers in a queue of {self.size}")
        return number

    def take(self) -> Chain:
        """Take the next buffer; there must be one.

        Raises:
            RingError: the chain of its descriptors is broken.
        """
        head = self._avail[2 + (self._state.taken & self._mask)]
        self._state.taken = (self._state.taken + 1) & 0xFFFF
        request, room, at = b"", list[tuple[int, int]](), head
        for _ in range(self.size):
            if at >= self.size:
                raise RingError(f"descriptor {at} of {self.size}")
            address, octets, flags, following = _DESCRIPTOR.unpack_from(self._desc, 16 * at)
            if flags & ~(_NEXT | _WRITE):
                raise RingError(f"descriptor {at} with flags {flags:#x}")
            if flags & _WRITE:
                room.append((address, octets))
            elif room:
                raise RingError("a readable descriptor after a writable one")
            elif len(request) + octets > _MAX_REQUEST:
                raise RingError(f"a request of more than {_MAX_REQUEST} octets")
            else:
                request += self._read(address, octets)
            if not flags & _NEXT:
                return Chain(head, request, room)
            at = following
        raise RingError("a loop of descriptors")

    def take_messages(
        self, limit: int, layout: struct.Struct
    ) -> tuple[list[int], list[tuple[int, ...]]]:
        """Take the next buffers that consist of one readable descriptor of ``layout``.

        At most ``limit``, up to the first buffer of another form. Returns their heads and
        their contents. Costs a tenth of :meth:`take`.
        """
        heads, found = list[int](), list[tuple[int, ...]]()
        segment: Segment | None = None
        for _ in range(limit):
            head = self._avail[2 + (self._state.taken & self._mask)]
            if head >= self.size:
                break
            address, octets, flags, _following = _DESCRIPTOR.unpack_from(self._desc, 16 * head)
            if flags or octets != layout.size:
                break
            if segment is None or not segment.start <= address <= segment.end - octets:
                try:
                    segment = self.memory.segment(address, octets, write=False)
                except GuestAccessError:
                    break
            found.append(layout.unpack_from(segment.view, address - segment.start))
            heads.append(head)
            self._state.taken = (self._state.taken + 1) & 0xFFFF
        return heads, found

    def take_writes(
        self, library: Library, limit: int, last_register: int
    ) -> tuple[int, list[int], list[int]]:
        """Take the next posted writes of a dword to BAR2, and give their buffers back.

        At most ``limit``, up to the first message of another kind. Returns how many, and the
        offsets and values to write, without doorbells that a later one replaces.
        """
        state = self._state
        state.last_register = last_register
        taken: int = library.take_writes(self._address, self.memory.table(), limit)
        count = state.count
        return taken, state.offsets[:count], state.values[:count]

    def answer(self, chain: Chain, data: bytes) -> None:
        """Write as much of ``data`` as fits into the buffer, and give it back.

        Raises:
            RingError: its room is not in guest memory.
        """
        written = 0
        for address, octets in chain.room:
            part = data[written : written + octets]
            if not part:
                break
            try:
                self.memory.write(address, part)
            except GuestAccessError as error:
                raise RingError(f"an answer's buffer: {error}") from error
            written += len(part)
        self._give(chain.head, written)
        # The index last: the driver reads the entry when the index has moved.
        self._used[1] = self._state.given

    def give(self, heads: list[int]) -> None:
        """Give many buffers back at once, without answers."""
        for head in heads:
            self._give(head, 0)
        self._used[1] = self._state.given

    def _give(self, head: int, written: int) -> None:
        at = 2 * (self._state.given & self._mask)
        self._used_ring[at] = head
        self._used_ring[at + 1] = written
        self._state.given = (self._state.given + 1) & 0xFFFF

    def _read(self, address: int, octets: int) -> bytes:
        try:
            return self.memory.read(address, octets)
        except GuestAccessError as error:
            raise RingError(f"a request's buffer: {error}") from error

    def _area(self, start: int, octets: int) -> Octets:
        try:
            found = self.memory.segment(start, octets, write=True)
        except GuestAccessError as error:
            raise RingError(f"a ring: {error}") from error
        at = start - found.start
        return found.octets[at : at + octets]
