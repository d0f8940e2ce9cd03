# SPDX-License-Identifier: MIT
"""The three kinds of queue: rings of qwords in guest memory, and the meaning of a qword.

Event, receive and transmit queues know only guest memory and each other (a receive or
transmit queue reports to an event queue). Descriptors are read as the guest wrote
them, and checked where they are used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.nic import datapath, offload
from harness.nic.compiled import Compiled
from harness.nic.datapath import Deliverable
from harness.nic.journal import Journal
from harness.nic.memory import GuestAccessError, GuestMemory, Int64s, Octets, Qwords, Ring
from harness.nic.registers import FFE_DZ_TC_TIMER_MODE_INT_HLDOFF, Field

EMPTY_EVENT = (1 << 64) - 1

# ESE_DZ_EV_CODE_* at ESF_DZ_EV_CODE.
ESF_DZ_EV_CODE = Field(60, 4)
EV_CODE_DRIVER, EV_CODE_MCDI = 5, 12
ESF_DZ_DRV_SUB_CODE = Field(56, 4)
DRV_START_UP_EV = 2
MCDI_EVENT_CODE = Field(44, 8)

ESF_DZ_RX_BYTES = Field(0, 14)
ESF_DZ_RX_CONT = Field(14, 1)
ESF_DZ_RX_QLABEL = Field(16, 5)
ESF_DZ_RX_IPCKSUM_ERR = Field(25, 1)
ESF_DZ_RX_TCPUDP_CKSUM_ERR = Field(26, 1)
ESF_DZ_RX_MAC_CLASS = Field(35, 1)
ESF_DZ_RX_ETH_TAG_CLASS = Field(39, 3)
ESF_DZ_RX_L3_CLASS = Field(42, 3)
ESF_FZ_RX_L4_CLASS = Field(45, 2)
ESF_DZ_RX_DSC_PTR_LBITS = Field(48, 4)

ESF_DZ_RX_KER_BYTE_CNT = Field(48, 14)
ESF_DZ_RX_KER_BUF_ADDR = Field(0, 48)


_SIZE_LBN = np.uint64(ESF_DZ_RX_KER_BYTE_CNT.lbn)
_LEAST_BUFFER = 64
_MAX_ROOM = (1 << ESF_DZ_RX_KER_BYTE_CNT.width) - 1
# ESF_DZ_RX_DSC_PTR_LBITS of the events for descriptors 0, 1, …: the descriptor's number + 1.
_LOW_BITS: Qwords = (np.arange(1, 4097, dtype=np.uint64) & np.uint64(15)) << np.uint64(
    ESF_DZ_RX_DSC_PTR_LBITS.lbn
)
_ADDRESS_MASK = np.uint64((1 << 48) - 1)


def mcdi_event(code: int) -> int:
    """An event of the management CPU: MCDI_EVENT_CODE_*, without data."""
    return ESF_DZ_EV_CODE.put(EV_CODE_MCDI) | MCDI_EVENT_CODE.put(code)


class EventQueue:
    """Events to the driver, and when they interrupt it.

    A write of the read pointer arms the queue: it interrupts when there is an event
    beyond that pointer. In hold-off mode the same write starts the timer, and the queue
    does not interrupt before the timer expires; meanwhile it is in the set
    ``held_off``. All times are nanoseconds of one clock.
    """

    def __init__(
        self,
        memory: GuestMemory,
        journal: Journal,
        *,
        start: int,
        entries: int,
        interrupt: Callable[[], None],
        held_off: set[EventQueue],
    ) -> None:
        self._ring = Ring(memory, start, entries, write=True)
        self._journal = journal
        self._interrupt = interrupt
        self._held_off = held_off
        self.state = datapath.Evq(start=start, mask=entries - 1, live=True)
        self._holdoff_ns = 0
        self._quiet_until_ns = 0
        self.due_ns: int | None = None
        """When a held-off interrupt is due; the queue is in ``held_off`` until then."""

    @property
    def ready(self) -> bool:
        """The driver has taken all events, and the next one interrupts."""
        return bool(self.state.armed) and self.due_ns is None

    def push(self, events: Qwords, now_ns: int) -> None:
        """Write events, each with one 8-octet store, and interrupt if armed."""
        mask, state = self._ring.mask, self.state
        if not state.live:
            return
        try:
            ring = self._ring.view()
        except GuestAccessError as error:
            self._journal.note("evq_unmapped", "%s", error)
            return
        last = (state.wptr + events.size - 1) & mask
        if ring[last] != EMPTY_EVENT:
            self._journal.note("evq_overrun", "at %d", last)
        # Indexed, not sliced: a memcpy may store an octet twice, and the driver may
        # consume and clear the event in between.
        ring[self._ring.places(state.wptr, events.size)] = events
        state.wptr = (last + 1) & mask
        if state.armed:
            self._trigger(now_ns)

    def pushed(self, now_ns: int) -> None:
        """Interrupt if compiled code has pushed events to the armed queue."""
        if self.state.due:
            self.state.due = False
            self._trigger(now_ns)

    def close(self) -> None:
        """Ignore further events of queues that still report here."""
        self.state.live = False
        self._settle()

    def push_one(self, event: int, now_ns: int) -> None:
        """:meth:`push` for a single event."""
        state = self.state
        if not state.live:
            return
        try:
            ring = self._ring.view()
        except GuestAccessError as error:
            self._journal.note("evq_unmapped", "%s", error)
            return
        wptr = state.wptr
        if ring[wptr] != EMPTY_EVENT:
            self._journal.note("evq_overrun", "at %d", wptr)
        ring[wptr] = event
        state.wptr = (wptr + 1) & self._ring.mask
        if state.armed:
            self._trigger(now_ns)

    def write_rptr(self, rptr: int, now_ns: int) -> None:
        self.state.armed = True
        self._quiet_until_ns = now_ns + self._holdoff_ns
        self._settle()
        if rptr & self._ring.mask != self.state.wptr:
            self._trigger(now_ns)

    def write_timer(self, mode: int, holdoff_ns: int) -> None:
        self._holdoff_ns = holdoff_ns if mode == FFE_DZ_TC_TIMER_MODE_INT_HLDOFF else 0

    def expire(self) -> None:
        """The hold-off has run out."""
        self._settle()
        if self.state.armed:
            self.state.armed = False
            self._interrupt()

    def _settle(self) -> None:
        if self.due_ns is not None:
            self.due_ns = None
            self._held_off.discard(self)

    def _trigger(self, now_ns: int) -> None:
        if now_ns < self._quiet_until_ns:
            self.due_ns = self._quiet_until_ns
            self._held_off.add(self)
        else:
            self._settle()
            self.state.armed = False
            self._interrupt()


@dataclass(slots=True)
class Arrivals:
    """Frames for one receive queue: the place of each with its prefix, and its class.

    ``lengths`` include the prefix. ``events`` lack only the fields that depend on the
    descriptors (bytes, CONT, label, low bits of the pointer).
    """

    buffer: Octets
    offsets: Int64s
    lengths: Int64s
    events: Qwords

    def part(self, index: slice | Int64s) -> Arrivals:
        return Arrivals(self.buffer, self.offsets[index], self.lengths[index], self.events[index])


@dataclass(frozen=True, slots=True)
class DmaRing:
    """The ring of a receive or transmit queue, as INIT_RXQ and INIT_TXQ describe it."""

    start: int
    entries: int
    evq: int
    """The instance of the event queue to which it reports."""
    label: int


class DescriptorQueue:
    """The descriptors of a receive or transmit queue that reports to ``evq``."""

    def __init__(
        self, memory: GuestMemory, journal: Journal, evq: EventQueue, ring: DmaRing, state: Any
    ) -> None:
        self._memory = memory
        self._journal = journal
        self._ring = Ring(memory, ring.start, ring.entries, write=False)
        self.evq = evq
        self.label = ring.label
        self.entries = ring.entries
        self.state = state
        """What compiled code uses as well."""
        self.address = ctypes.addressof(state)
        state.evq = ctypes.addressof(evq.state)
        state.start, state.mask = ring.start, self._ring.mask

    @property
    def _wptr(self) -> int:
        return int(self.state.wptr)

    @_wptr.setter
    def _wptr(self, wptr: int) -> None:
        self.state.wptr = wptr

    @property
    def _rptr(self) -> int:
        return int(self.state.rptr)

    @_rptr.setter
    def _rptr(self, rptr: int) -> None:
        self.state.rptr = rptr

    @property
    def posted(self) -> int:
        """Descriptors that the driver has posted and that are not used yet."""
        return (self._wptr - self._rptr) & self._ring.mask

    @property
    def completed(self) -> int:
        """The index after that of the last used descriptor."""
        return self._rptr

    def skip(self, number: int) -> int:
        """Use up to ``number`` descriptors without an event (a fault); returns how many."""
        used = min(number, self.posted)
        self._rptr = (self._rptr + used) & self._ring.mask
        return used

    def write_wptr(self, wptr: int) -> None:
        self._wptr = wptr & self._ring.mask


class RxQueue(DescriptorQueue):
    """Receive descriptors, and the copying of frames into their buffers."""

    def __init__(
        self,
        memory: GuestMemory,
        journal: Journal,
        evq: EventQueue,
        ring: DmaRing,
        *,
        scatter: bool,
        compiled: Compiled | None,
    ) -> None:
        label = ESF_DZ_RX_QLABEL.put(ring.label)
        state = datapath.Rxq(scatter=scatter, label=label, buffer=_MAX_ROOM)
        super().__init__(memory, journal, evq, ring, state)
        self.compiled = compiled
        self._scatter = scatter
        self._label = label

    @property
    def starved(self) -> bool:
        """Less than half of the descriptors are posted."""
        return 2 * self.posted <= self._ring.mask

    def frames_posted(self, octets: int) -> int:
        """How many frames of up to ``octets`` octets fit into the posted descriptors."""
        buffer: int = self.state.buffer
        return self.posted if octets <= buffer else self.posted // -(-octets // buffer)

    def deliver(self, arrivals: Arrivals, now_ns: int) -> int:
        """Deliver frames in order while there are descriptors; returns how many.

        A frame whose buffer is not guest memory uses its descriptor and its event,
        as the driver expects, and is counted.
        """
        if self.compiled:
            return self.deliver_compiled(
                self.compiled,
                self.compiled.deliverable(
                    arrivals.buffer, arrivals.offsets, arrivals.lengths, arrivals.events
                ),
                now_ns,
            )
        posted = min(self.posted, self._ring.mask)
        count = min(posted, arrivals.lengths.size)
        if not count:
            return 0
        try:
            descriptors = self._ring.view()[self._ring.places(self._rptr, posted)]
        except GuestAccessError as error:
            self._journal.note("rxq_unmapped", "%s", error)
            return 0
        sizes = (descriptors >> _SIZE_LBN).astype(np.int64) & 0x3FFF
        room = int(sizes.min())
        self.state.buffer = max(int(sizes[0]), _LEAST_BUFFER)
        if room == 0 or room != int(sizes.max()):
            return self._deliver_uneven(arrivals, descriptors, sizes, now_ns)
        addresses = (descriptors & _ADDRESS_MASK).astype(np.int64)
        if int(arrivals.lengths[:count].max()) <= room:
            arrivals = arrivals.part(slice(0, count))
            self._place(
                addresses[:count], arrivals.buffer, arrivals.offsets, arrivals.lengths, room
            )
            self._complete(arrivals.events, arrivals.lengths, None, now_ns)
            return count
        return self._deliver_scattered(arrivals, addresses, room, now_ns)

    def deliver_compiled(self, compiled: Compiled, frames: Deliverable, now_ns: int) -> int:
        """:meth:`deliver` in compiled code."""
        delivered = compiled.deliver(self.address, frames)
        self.evq.pushed(now_ns)
        return delivered

    def deliver_equal(
        self, pieces: npt.NDArray[Any], octets: int, event: int, now_ns: int
    ) -> int | None:
        """:meth:`deliver` for frames of one length and class, the fast path.

        ``pieces`` have prefix and frame, ``octets`` long. Returns None and does nothing
        unless all descriptors have one size that is large enough, and all their buffers
        are in one segment.
        """
        count = min(self.posted, pieces.size, _LOW_BITS.size - 16)
        if not count:
            return 0
        try:
            descriptors = self._ring.view()[self._ring.places(self._rptr, count)]
        except GuestAccessError as error:
            self._journal.note("rxq_unmapped", "%s", error)
            return 0
        # With equal sizes in the high bits, this compares addresses.
        low, high = int(descriptors.min()), int(descriptors.max())
        room = low >> ESF_DZ_RX_KER_BYTE_CNT.lbn
        if room != high >> ESF_DZ_RX_KER_BYTE_CNT.lbn or not octets <= room <= _MAX_ROOM:
            return None
        self.state.buffer = room
        descriptors &= _ADDRESS_MASK
        low, high = ESF_DZ_RX_KER_BUF_ADDR.of(low), ESF_DZ_RX_KER_BUF_ADDR.of(high)
        if not self._memory.scatter_whole(descriptors, low, high, pieces[:count], octets):
            return None
        first = self._rptr & 15
        events = _LOW_BITS[first : first + count] | np.uint64(event | self._label)
        self._rptr = (self._rptr + count) & self._ring.mask
        self.evq.push(events, now_ns)
        return count

    def _deliver_scattered(
        self, arrivals: Arrivals, addresses: Int64s, room: int, now_ns: int
    ) -> int:
        pieces = -(-arrivals.lengths // room)
        long = pieces > 1
        if not self._scatter:
            pieces[:] = 1
        ends = np.cumsum(pieces)
        count = int(np.searchsorted(ends, addresses.size, side="right"))
        if not count:
            return 0
        if not self._scatter:
            self._journal.count("rx_truncated", int(np.count_nonzero(long[:count])))
        arrivals, pieces, ends = arrivals.part(slice(0, count)), pieces[:count], ends[:count]
        total = int(ends[-1])
        piece = np.arange(total) - np.repeat(ends - pieces, pieces)
        last = np.zeros(total, bool)
        last[ends - 1] = True
        lengths = np.minimum(np.repeat(arrivals.lengths, pieces) - piece * room, room)
        offsets = np.repeat(arrivals.offsets, pieces) + piece * room
        self._place(addresses[:total], arrivals.buffer, offsets, lengths, room)
        self._complete(np.repeat(arrivals.events, pieces), lengths, ~last, now_ns)
        return count

    def _deliver_uneven(
        self, arrivals: Arrivals, descriptors: Qwords, sizes: Int64s, now_ns: int
    ) -> int:
        """Buffers of different sizes, which the driver never posts: one frame at a time."""
        used = count = 0
        for index in range(arrivals.lengths.size):
            one = arrivals.part(slice(index, index + 1))
            offset, left = int(one.offsets[0]), int(one.lengths[0])
            pieces: list[tuple[int, int, int]] = []
            for at in range(used, sizes.size):
                size = min(left, int(sizes[at]))
                pieces.append((int(descriptors[at] & _ADDRESS_MASK), offset, size))
                offset, left = offset + size, left - size
                if left == 0 or not self._scatter:
                    break
            else:
                break
            if left:
                self._journal.count("rx_truncated")
            for address, start, size in pieces:
                try:
                    self._memory.write(address, one.buffer[start : start + size].tobytes())
                except GuestAccessError as error:
                    self._journal.note("rx_bad_buffer", "%s", error)
            lengths = np.array([size for _, _, size in pieces])
            cont = np.arange(len(pieces)) < len(pieces) - 1
            self._complete(np.repeat(one.events, len(pieces)), lengths, cont, now_ns)
            used += len(pieces)
            count += 1
        return count

    def _place(
        self, addresses: Int64s, buffer: Octets, offsets: Int64s, lengths: Int64s, room: int
    ) -> None:
        """Copy pieces at once, or short and long ones separately: one copy has one length."""
        longest = int(lengths.max())
        if longest > 512 and int(lengths.min()) <= 256:
            short = lengths <= 256
            parts = [np.flatnonzero(short), np.flatnonzero(~short)]
        else:
            parts = [np.arange(lengths.size)] if lengths.size else []
        for part in parts:
            octets = min(room, -(-int(lengths[part].max()) // 16) * 16)
            # Do not read beyond the end of the packet ring.
            octets = min(
                octets, max(int(lengths[part].max()), buffer.size - int(offsets[part].max()))
            )
            missed = self._memory.scatter(addresses[part], buffer, offsets[part], octets)
            if missed.size:
                self._exact(
                    addresses[part][missed], buffer, offsets[part][missed], lengths[part][missed]
                )

    def _exact(self, addresses: Int64s, buffer: Octets, offsets: Int64s, lengths: Int64s) -> None:
        """Copy pieces near the end of a segment exactly; count those outside all segments."""
        for address, offset, length in zip(
            addresses.tolist(), offsets.tolist(), lengths.tolist(), strict=True
        ):
            try:
                self._memory.write(address, buffer[offset : offset + length].tobytes())
            except GuestAccessError as error:
                self._journal.note("rx_bad_buffer", "%s", error)

    def _complete(
        self, events: Qwords, lengths: Int64s, cont: offload.Bools | None, now_ns: int
    ) -> None:
        pointers = self._rptr + 1 + np.arange(lengths.size)
        events = (
            events
            | (lengths & 0x3FFF).astype(np.uint64)
            | ((pointers & 15).astype(np.uint64) << np.uint64(ESF_DZ_RX_DSC_PTR_LBITS.lbn))
            | np.uint64(self._label)
        )
        if cont is not None:
            events |= cont.astype(np.uint64) << np.uint64(ESF_DZ_RX_CONT.lbn)
        self._rptr = (self._rptr + lengths.size) & self._ring.mask
        self.evq.push(events, now_ns)


def rx_events(classes: offload.Classes) -> Qwords:
    """The class fields of receive events."""
    events: Qwords = (
        (classes.l3.astype(np.uint64) << np.uint64(ESF_DZ_RX_L3_CLASS.lbn))
        | (classes.l4.astype(np.uint64) << np.uint64(ESF_FZ_RX_L4_CLASS.lbn))
        | (classes.multicast.astype(np.uint64) << np.uint64(ESF_DZ_RX_MAC_CLASS.lbn))
        | (classes.tags.astype(np.uint64) << np.uint64(ESF_DZ_RX_ETH_TAG_CLASS.lbn))
        | (classes.ip_bad.astype(np.uint64) << np.uint64(ESF_DZ_RX_IPCKSUM_ERR.lbn))
        | (classes.l4_bad.astype(np.uint64) << np.uint64(ESF_DZ_RX_TCPUDP_CKSUM_ERR.lbn))
    )
    return events


def rx_event(flow: offload.Flow) -> int:
    """The same for frames that all belong to ``flow``."""
    return (
        ESF_DZ_RX_L3_CLASS.put(flow.l3)
        | ESF_FZ_RX_L4_CLASS.put(flow.l4)
        | ESF_DZ_RX_MAC_CLASS.put(flow.mac >> 40)
    )
