# SPDX-License-Identifier: MIT
"""The wire: an AF_PACKET socket with a memory-mapped receive ring.

Hides the packet ring (TPACKET_V2) and its layout. The kernel writes each frame
into a slot of its own; the model reads, finishes and forwards a batch of slots
through numpy views without copying it first. The 14 octets in front of a frame
lie behind the kernel's header and are free: the receive prefix goes there, so
that prefix and frame reach the guest as one piece.

The ring is also the controller's packet buffer: frames wait in it for
descriptors. What the kernel drops because the ring is full is counted apart
(:attr:`Wire.ring_drops`) and is part of what the controller reports as NODESC.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import socket
import struct
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from harness.nic.memory import Int64s, Octets

RX_PREFIX_SIZE = 14
_PKTLEN_OFFSET = 8

TP_STATUS_KERNEL = 0
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

# A slot size that divides a block of whole pages, is a multiple of a cache line
# and is no power of two, so that neighbouring slots do not fight for cache sets.
SMALL_SLOT, LARGE_SLOT = 1664, 9536
_SLOTS_PER_BLOCK = 64

_HEADER = np.dtype(
    {
        "names": ["status", "len", "snaplen", "mac", "vlan_tci", "vlan_tpid"],
        "formats": ["<u4", "<u4", "<u4", "<u2", "<u2", "<u2"],
        "offsets": [0, 4, 8, 12, 24, 26],
        "itemsize": 32,
    }
)


@dataclass(slots=True)
class Batch:
    """Consecutive slots taken from the ring; valid until they are released.

    Attributes:
        buffer: the whole ring, in octets.
        frames: (n, room) octets, a frame a row, writable, from its MAC header on.
        offsets: where in ``buffer`` the receive prefix of each frame starts.
        lengths: octets of each frame on the wire, without FCS.
        captured: octets of it that are there.
        status: TP_STATUS_* bits.
        prefix_lengths: where the length of each goes in its prefix.
    """

    buffer: Octets
    frames: Octets
    offsets: Int64s
    lengths: Int64s
    captured: Int64s
    status: npt.NDArray[np.uint32]
    prefix_lengths: npt.NDArray[np.uint16]

    def set_prefix(self, lengths: Int64s | int) -> None:
        """Write the packet length of the receive prefix (ES_DZ_RX_PREFIX_PKTLEN)."""
        self.prefix_lengths[:] = lengths


class Wire(Protocol):
    """What the model needs of a wire."""

    frames: int
    ring_drops: int

    def fileno(self) -> int: ...
    def waiting(self) -> int: ...
    def take(self, limit: int) -> Batch: ...
    def release(self, number: int) -> None: ...
    def send(self, frame: bytes | bytearray) -> bool: ...
    def resize(self, max_frame: int) -> None: ...
    def refresh(self) -> None: ...
    def settle(self) -> bool: ...
    def close(self) -> None: ...


class SlotRing:
    """Frames in equal slots of one buffer, as the kernel's TPACKET_V2 leaves them."""

    def __init__(self, buffer: Octets, slot: int) -> None:
        self.buffer = buffer
        self.slots = buffer.size // slot
        self.slot = slot
        self.room = slot - _MAC_OFFSET
        self.headers = np.ndarray(self.slots, _HEADER, buffer.data, 0, (slot,))
        self._status = self.headers["status"]
        self._len = self.headers["len"]
        self._snaplen = self.headers["snaplen"]
        self._frames: Octets = np.ndarray(
            (self.slots, self.room), np.uint8, buffer.data, _MAC_OFFSET, (slot, 1)
        )
        self._offsets = np.arange(self.slots, dtype=np.int64) * slot + _PREFIX_OFFSET
        self._prefix_lengths: npt.NDArray[np.uint16] = np.ndarray(
            self.slots, "<u2", buffer.data, _PREFIX_OFFSET + _PKTLEN_OFFSET, (slot,)
        )
        self.head = 0

    def waiting(self) -> int:
        """Frames that can be taken in one piece, from the head to the end or a gap.

        Filled slots are contiguous but for a short time when two senders fill two
        at once, so a bisection finds their end without touching all headers;
        ``take`` settles the rest.
        """
        status, head = self._status, self.head
        if status[head] == TP_STATUS_KERNEL:
            return 0
        low, high = head, self.slots
        step = 1
        while low + step < high and status[low + step] != TP_STATUS_KERNEL:
            low += step
            step *= 2
        high = min(high, low + step)
        while high - low > 1:
            middle = (low + high) // 2
            if status[middle] == TP_STATUS_KERNEL:
                high = middle
            else:
                low = middle
        return high - head

    def held(self) -> int:
        """All frames in the ring, wherever they are."""
        return int(np.count_nonzero(self._status))

    def take(self, limit: int) -> Batch:
        """Up to ``limit`` frames from the head. They stay there until released."""
        first, last = self.head, min(self.head + limit, self.slots)
        status: npt.NDArray[np.uint32] = self._status[first:last].copy()
        if not status.all():
            last = first + int(np.argmin(status != TP_STATUS_KERNEL))
            status = status[: last - first]
        batch = Batch(
            buffer=self.buffer,
            frames=self._frames[first:last],
            offsets=self._offsets[first:last],
            lengths=self._len[first:last].astype(np.int64),
            captured=self._snaplen[first:last].astype(np.int64),
            status=status,
            prefix_lengths=self._prefix_lengths[first:last],
        )
        if (status & TP_STATUS_VLAN_VALID).any():
            self._restore_tags(batch, self.headers[first:last])
        return batch

    def _restore_tags(self, batch: Batch, headers: npt.NDArray[Any]) -> None:
        """Put the VLAN tags back that the kernel took out of frames; seldom needed."""
        for row in np.flatnonzero(batch.status & TP_STATUS_VLAN_VALID).tolist():
            frame, header = batch.frames[row], headers[row]
            kept = int(batch.captured[row])
            if kept + 4 > self.room:
                continue
            known = batch.status[row] & TP_STATUS_VLAN_TPID_VALID
            tag = struct.pack(
                ">HH", int(header["vlan_tpid"]) if known else 0x8100, int(header["vlan_tci"])
            )
            frame[16 : kept + 4] = frame[12:kept].copy()
            frame[12:16] = np.frombuffer(tag, np.uint8)
            batch.lengths[row] += 4
            batch.captured[row] += 4

    def release(self, number: int) -> None:
        """Give the first ``number`` slots back to whoever fills them."""
        self._status[self.head : self.head + number] = TP_STATUS_KERNEL
        self.head = (self.head + number) % self.slots


class PacketWire:
    """The wire on a network interface of this network namespace.

    Args:
        interface: its name. It needs no address; what the model sends leaves
            through it and what arrives there is what the controller receives.
        slots: frames the ring holds.

    Raises:
        OSError: no such interface, or no right to open packet sockets.
    """

    def __init__(self, interface: str, *, slots: int = 8192) -> None:
        self._interface = interface
        self._slots = slots
        self.frames = 0
        self.ring_drops = 0
        self._socket, self._ring = self._open(SMALL_SLOT)

    def _open(self, slot: int) -> tuple[socket.socket, SlotRing]:
        slots = self._slots if slot == SMALL_SLOT else self._slots // 4
        blocks = max(1, slots // _SLOTS_PER_BLOCK)
        with contextlib.ExitStack() as undo:
            # Protocol 0: nothing arrives before the ring is there.
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

    def waiting(self) -> int:
        return self._ring.waiting()

    def take(self, limit: int) -> Batch:
        return self._ring.take(limit)

    def release(self, number: int) -> None:
        self._ring.release(number)

    def send(self, frame: bytes | bytearray) -> bool:
        """Put one frame on the wire; False when the interface would not take it."""
        try:
            self._socket.send(frame)
        except OSError:
            return False
        return True

    def resize(self, max_frame: int) -> None:
        """Make slots that hold frames of ``max_frame`` octets; drops what waits."""
        slot = SMALL_SLOT if max_frame <= SMALL_SLOT - _MAC_OFFSET else LARGE_SLOT
        if slot == self._ring.slot:
            return
        opened, ring = self._open(slot)
        self.refresh()
        self.ring_drops += self._ring.held()
        self._socket.close()
        self._socket, self._ring = opened, ring

    def refresh(self) -> None:
        """Bring :attr:`frames` and :attr:`ring_drops` up to date.

        ``frames`` are all that came, those dropped for a full ring included.
        """
        raw: Any = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        frames, drops = struct.unpack("II", raw)  # reading them clears them
        self.frames += frames
        self.ring_drops += drops

    def settle(self) -> bool:
        """Clear what made the socket readable without a frame; False: it is gone."""
        pending = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return pending not in (errno.ENODEV, errno.ENXIO)

    def close(self) -> None:
        self._socket.close()
