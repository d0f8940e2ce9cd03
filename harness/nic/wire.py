# SPDX-License-Identifier: MIT
"""The wire: its ring of frames, and an AF_PACKET socket that fills one.

Hides the packet ring (TPACKET_V2) and its layout. The kernel writes each frame
into its own slot. The model reads, completes and forwards a batch of slots
through numpy views without copying it first. The 14 octets before a frame are
unused by the kernel: the receive prefix goes there, so that prefix and frame reach
the guest in one copy.

The ring is also the controller's packet buffer: frames wait in it for descriptors.
Frames that the kernel drops because the ring is full are counted separately
(:attr:`Wire.ring_drops`); the controller reports them as part of NODESC.

The sender's interface must not send frames longer than the MTU (TSO, GSO): a real
wire does not carry them, and they count as oversized.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import socket
import struct
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from harness.nic import datapath
from harness.nic.datapath import Library, Stage
from harness.nic.memory import Int64s, Octets

RX_PREFIX_SIZE = 14
_PKTLEN_OFFSET = 8

TP_STATUS_KERNEL, _TP_STATUS_USER = 0, 1
TP_STATUS_CSUMNOTREADY = 1 << 3
TP_STATUS_VLAN_VALID = 1 << 4
TP_STATUS_VLAN_TPID_VALID = 1 << 6

# TPACKET_ALIGN(TPACKET2_HDRLEN + 16) - ETH_HLEN of linux/if_packet.h.
_MAC_OFFSET = 66
_PREFIX_OFFSET = _MAC_OFFSET - RX_PREFIX_SIZE
_TPACKET_V2 = 1
_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP, _PACKET_RX_RING, _PACKET_STATISTICS = 1, 5, 6
_PACKET_VERSION, _PACKET_QDISC_BYPASS, _PACKET_IGNORE_OUTGOING = 10, 20, 23
_PACKET_MR_PROMISC = 1
_ETH_P_ALL = 3

# A slot size divides a block of whole pages and is a multiple of a cache line. It is not
# a power of two, so that neighbouring slots use different cache sets.
SMALL_SLOT, LARGE_SLOT = 1664, 9536
_SLOTS_PER_BLOCK = 64
_WORTHWHILE = 8
# The driver's self-test sends up to 256 frames before it receives the first.
_LOOPBACK_SLOTS = 512

_HEADER = np.dtype(
    {
        "names": ["status", "len", "snaplen", "mac", "vlan_tci", "vlan_tpid"],
        "formats": ["<u4", "<u4", "<u4", "<u2", "<u2", "<u2"],
        "offsets": [0, 4, 8, 12, 24, 26],
        "itemsize": 32,
    }
)


class Batch:
    """Consecutive slots taken from the ring; valid until they are released.

    Attributes:
        size: the number of slots.
        words: (size, 3) TP_STATUS_* bits, length, captured length.
        frames: (size, room) octets, one frame per row, writable, from its MAC header on.
        equal: (TP_STATUS_* bits, length) if these are the same in all frames and none
            was truncated, else None.
    """

    def __init__(self, ring: SlotRing, first: int, last: int) -> None:
        self.ring = ring
        self.first = first
        self.last = last
        self.size = last - first
        self.frames: Octets = ring.frames[first:last]
        self.equal: tuple[int, int] | None = None
        self.words = ring.head_words[first:last]
        if (self.words == self.words[0]).all():
            status, length, captured = self.words[0].tolist()
            if length == captured and not status & TP_STATUS_VLAN_VALID:
                self.equal = status, length

    @property
    def status(self) -> npt.NDArray[np.uint32]:
        """TP_STATUS_* bits of each frame."""
        return self.ring.headers["status"][self.first : self.last].copy()

    @property
    def lengths(self) -> Int64s:
        """Octets of each frame on the wire, without FCS."""
        return self.ring.headers["len"][self.first : self.last].astype(np.int64)

    @property
    def captured(self) -> Int64s:
        """Octets of each frame that were captured."""
        return self.ring.headers["snaplen"][self.first : self.last].astype(np.int64)

    @property
    def offsets(self) -> Int64s:
        """Offset of each frame's receive prefix in the ring's buffer."""
        return np.arange(self.first, self.last) * self.ring.slot + _PREFIX_OFFSET

    def set_prefix(self, lengths: Int64s | int, hashes: npt.NDArray[np.uint32] | int) -> None:
        """Write the receive prefixes: ES_DZ_RX_PREFIX_HASH and …_PKTLEN."""
        self.ring.prefix_lengths[self.first : self.last] = lengths
        self.ring.set_hashes(self.first, self.last, hashes)

    def rows(self, octets: int) -> Octets:
        """Prefix and frame of each, ``octets`` in total, as rows."""
        ring = self.ring
        at = self.first * ring.slot + _PREFIX_OFFSET
        return np.ndarray((self.size, octets), np.uint8, ring.buffer.data, at, (ring.slot, 1))

    def prefixed(self, octets: int) -> npt.NDArray[Any]:
        """Prefix and frame of each, ``octets`` in total, as elements of a void type."""
        return self.ring.groups(octets)[self.first : self.last]


class Frames(Protocol):
    """Frames that wait to be received."""

    @property
    def ring(self) -> SlotRing: ...
    def waiting(self) -> int: ...
    def take(self, limit: int) -> Batch: ...
    def release(self, number: int) -> None: ...


class Ringed:
    """Frames that wait in :attr:`_ring`."""

    _ring: SlotRing

    @property
    def ring(self) -> SlotRing:
        """Another one after each change of the size of slots."""
        return self._ring

    def waiting(self) -> int:
        return self._ring.waiting()

    def take(self, limit: int) -> Batch:
        return self._ring.take(limit)

    def release(self, number: int) -> None:
        self._ring.release(number)


class Wire(Frames, Protocol):
    """What the model needs of a wire."""

    frames: int
    ring_drops: int

    def fileno(self) -> int | None:
        """Readable while frames arrive; None: :meth:`waiting` alone shows them."""

    def send(self, frame: bytes | bytearray) -> bool: ...
    def send_staged(self, library: Library, stage: Stage) -> list[tuple[int, int]]:
        """:meth:`send` all frames of the stage; returns (first, number) of those it accepted."""

    def resize(self, max_frame: int) -> None: ...
    def refresh(self) -> None: ...
    def settle(self) -> bool: ...
    def close(self) -> None: ...


class SlotRing:
    """Frames in equal slots of one buffer, in the layout of TPACKET_V2."""

    def __init__(self, buffer: Octets, slot: int) -> None:
        self.buffer = buffer
        self.slots = buffer.size // slot
        self.slot = slot
        self.room = slot - _MAC_OFFSET
        self.headers = np.ndarray(self.slots, _HEADER, buffer.data, 0, (slot,))
        # For single words a memoryview is five times faster than numpy.
        self._words = buffer.data.cast("I")
        self._octets = buffer.data
        self._stride = slot // 4
        self.head_words: npt.NDArray[np.uint32] = np.ndarray(
            (self.slots, 3), "<u4", buffer.data, 0, (slot, 4)
        )
        self.frames: Octets = np.ndarray(
            (self.slots, self.room), np.uint8, buffer.data, _MAC_OFFSET, (slot, 1)
        )
        self.prefix_lengths: npt.NDArray[np.uint16] = np.ndarray(
            self.slots, "<u2", buffer.data, _PREFIX_OFFSET + _PKTLEN_OFFSET, (slot,)
        )
        self.prefix_hashes: npt.NDArray[np.uint32] = np.ndarray(
            self.slots, "<u4", buffer.data, _PREFIX_OFFSET, (slot,)
        )
        # The hash that was written last, and to how many consecutive slots.
        self._hash_run: tuple[int | None, int] = (0, self.slots)
        self._groups: dict[int, npt.NDArray[Any]] = {}
        self._state = datapath.Slots(buffer.ctypes.data, self.slots, slot, 0, 0)
        self._address = ctypes.addressof(self._state)

    @property
    def ring(self) -> SlotRing:
        """Itself: it is also a source of frames."""
        return self

    @property
    def head(self) -> int:
        """The slot of the oldest frame."""
        return int(self._state.head)

    def compiled(self) -> int:
        """The address of its state, for compiled code, which also writes prefixes."""
        self._hash_run = (None, 0)
        return self._address

    def groups(self, octets: int) -> npt.NDArray[Any]:
        """``octets`` from the prefix on of every slot, as void elements."""
        found = self._groups.get(octets)
        if found is None:
            found = self._groups[octets] = np.ndarray(
                self.slots, f"V{octets}", self.buffer.data, _PREFIX_OFFSET, (self.slot,)
            )
        return found

    def set_hashes(self, first: int, last: int, hashes: npt.NDArray[np.uint32] | int) -> None:
        """Write the hashes of consecutive slots; skips slots that all have the same one."""
        alike = hashes if isinstance(hashes, int) else None
        value, run = self._hash_run
        if alike is None or alike != value:
            run = 0
        elif run >= self.slots:
            return
        self.prefix_hashes[first:last] = hashes
        self._hash_run = alike, run + last - first

    def put(self, frame: bytes | bytearray) -> bool:
        """Fill the next slot, as the kernel would; False if it is not free."""
        words, tail = self._words, self._state.tail
        at = tail * self._stride
        if words[at] != TP_STATUS_KERNEL:
            return False
        kept, start = min(len(frame), self.room), tail * self.slot + _MAC_OFFSET
        self._octets[start : start + kept] = frame[:kept]
        words[at + 1], words[at + 2], words[at + 3] = len(frame), kept, _MAC_OFFSET
        words[at] = _TP_STATUS_USER
        self._state.tail = (tail + 1) % self.slots
        return True

    def waiting(self) -> int:
        """How many consecutive frames can be taken, up to the end of the ring or a gap.

        Filled slots are contiguous, except briefly when two senders fill two slots at
        once. So a bisection finds their end without reading all headers; ``take`` handles
        gaps.
        """
        words, stride, head = self._words, self._stride, self.head
        if words[head * stride] == TP_STATUS_KERNEL:
            return 0
        low, high, step = head, self.slots, 64
        while low + step < high:
            if words[(low + step) * stride] == TP_STATUS_KERNEL:
                high = low + step
                break
            low += step
            step *= 2
        while high - low > 1:
            middle = (low + high) // 2
            if words[middle * stride] == TP_STATUS_KERNEL:
                high = middle
            else:
                low = middle
        return high - head

    def held(self) -> int:
        """How many frames are in the ring."""
        return int(np.count_nonzero(self.headers["status"]))

    def take(self, limit: int) -> Batch:
        """Up to ``limit`` frames from the head. They stay in the ring until released.

        If frames of one length come first, only those are taken: such a batch is
        cheaper than any other.
        """
        first = self.head
        batch = Batch(self, first, min(first + limit, self.slots))
        if not batch.equal and batch.size > 1:
            alike = (batch.words == batch.words[0]).all(axis=1)
            # argmin is also 0 if all are true, that is, if the whole batch is alike.
            leading = batch.size if alike.all() else int(np.argmin(alike))
            if leading >= _WORTHWHILE or batch.size <= _WORTHWHILE:
                batch = Batch(self, first, first + leading)
        if batch.equal:
            return batch
        status = batch.status
        if not status.all():
            batch = Batch(self, first, first + int(np.argmin(status != TP_STATUS_KERNEL)))
        for row in np.flatnonzero(batch.status & TP_STATUS_VLAN_VALID).tolist():
            self._restore_tag(first + row)
        return batch

    def _restore_tag(self, slot: int) -> None:
        """Put back the VLAN tag that the kernel removed from a frame; seldom needed."""
        frame, header = self.frames[slot], self.headers[slot]
        kept = int(header["snaplen"])
        if kept + 4 > self.room:
            return
        known = int(header["status"]) & TP_STATUS_VLAN_TPID_VALID
        tag = struct.pack(
            ">HH", int(header["vlan_tpid"]) if known else 0x8100, int(header["vlan_tci"])
        )
        frame[16 : kept + 4] = frame[12:kept].copy()
        frame[12:16] = np.frombuffer(tag, np.uint8)
        header["len"] += 4
        header["snaplen"] += 4
        header["status"] &= ~np.uint32(TP_STATUS_VLAN_VALID)

    def release(self, number: int) -> None:
        """Free the first ``number`` slots."""
        head = self.head
        self.headers["status"][head : head + number] = TP_STATUS_KERNEL
        self._state.head = (head + number) % self.slots


def slot_for(max_frame: int) -> int:
    """The size of slots for frames of ``max_frame`` octets."""
    return SMALL_SLOT if max_frame <= SMALL_SLOT - _MAC_OFFSET else LARGE_SLOT


def loopback() -> SlotRing:
    """A ring for frames of the MAC's loopback."""
    return SlotRing(np.zeros(_LOOPBACK_SLOTS * LARGE_SLOT, np.uint8), LARGE_SLOT)


class PacketWire(Ringed):
    """The wire on a network interface of this network namespace.

    Args:
        interface: its name. It needs no address. The model sends through it and
            receives every frame that arrives on it.
        slots: how many frames the ring holds.

    Raises:
        OSError: no such interface, or no permission to open packet sockets.
    """

    def __init__(self, interface: str, *, slots: int = 4096) -> None:
        self._interface = interface
        self._slots = slots
        self.frames = 0
        self.ring_drops = 0
        self._socket, self._ring = self._open(SMALL_SLOT)

    def _open(self, slot: int) -> tuple[socket.socket, SlotRing]:
        slots = self._slots if slot == SMALL_SLOT else self._slots // 4
        blocks = max(1, slots // _SLOTS_PER_BLOCK)
        with contextlib.ExitStack() as undo:
            # Protocol 0: nothing arrives before the ring exists.
            opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            undo.callback(opened.close)
            opened.setblocking(False)
            opened.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
            opened.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            opened.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            request = struct.pack(
                "IIII", slot * _SLOTS_PER_BLOCK, blocks, slot, blocks * _SLOTS_PER_BLOCK
            )
            opened.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
            size = slot * _SLOTS_PER_BLOCK * blocks
            area = mmap.mmap(opened.fileno(), size, mmap.MAP_SHARED)
            opened.bind((self._interface, _ETH_P_ALL))
            index = socket.if_nametoindex(self._interface)
            membership = struct.pack("iHH8s", index, _PACKET_MR_PROMISC, 0, b"")
            opened.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
            undo.pop_all()
        return opened, SlotRing(np.frombuffer(area, np.uint8), slot)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, frame: bytes | bytearray) -> bool:
        """Send one frame; False if the interface refused it."""
        try:
            self._socket.send(frame)
        except OSError:
            return False
        return True

    def send_staged(self, library: Library, stage: Stage) -> list[tuple[int, int]]:
        """See :meth:`Wire.send_staged`."""
        accepted: list[tuple[int, int]] = []
        at, total = 0, int(stage.count)
        while at < total:
            number = library.send(self._socket.fileno(), ctypes.addressof(stage), at)
            if number:
                accepted.append((at, number))
            at += number + 1  # the interface refused the next one
        return accepted

    def resize(self, max_frame: int) -> None:
        """Make slots for frames of ``max_frame`` octets; drops the waiting frames."""
        slot = slot_for(max_frame)
        if slot == self._ring.slot:
            return
        opened, ring = self._open(slot)
        self.refresh()
        self.ring_drops += self._ring.held()
        self._socket.close()
        self._socket, self._ring = opened, ring

    def refresh(self) -> None:
        """Update :attr:`frames` and :attr:`ring_drops`.

        ``frames`` are all that arrived, including those dropped for a full ring.
        """
        raw: Any = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        frames, drops = struct.unpack("II", raw)  # reading them clears them
        self.frames += frames
        self.ring_drops += drops

    def settle(self) -> bool:
        """Clear the error that made the socket readable; False: the interface is gone."""
        pending = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return pending not in (errno.ENODEV, errno.ENXIO)

    def close(self) -> None:
        self._socket.close()
