# SPDX-License-Identifier: MIT
"""MAC statistics, as MC_CMD_MAC_STATS gives them to the driver.

``RX_PKTS`` has every frame from the wire. Frames that were not delivered are in
``RX_NODESC_DROPS`` (no descriptor, or the packet ring was full), in ``RX_JABBER``
(longer than SET_MAC's limit), or in the model's own counter of frames that matched no
filter.
"""

from __future__ import annotations

import bisect
import ctypes
import struct

import numpy as np

from harness.nic.memory import Int64s, Qwords
from harness.nic.offload import Bools

ETH_FCS_LEN = 4
GENERATION_START = 0x00
NSTATS = 0x61

# MC_CMD_MAC_* qword indices.
_TX_PKTS, _TX_UNICAST, _TX_MULTICAST, _TX_BROADCAST, _TX_BYTES = 0x01, 0x04, 0x05, 0x06, 0x07
_TX_SIZES = 0x09
_RX_PKTS, _RX_GOOD_PKTS = 0x1C, 0x1E
_RX_UNICAST, _RX_MULTICAST, _RX_BROADCAST, _RX_BYTES = 0x20, 0x21, 0x22, 0x23
_RX_SIZES = 0x25
_RX_GTJUMBO, _RX_JABBER, _RX_NODESC_DROPS = 0x2C, 0x35, 0x36
_BROADCAST = (1 << 48) - 1

# Upper limits, FCS included: 64, 65–127, … 1024–15xx, 15xx–jumbo.
_RX_LIMITS = [64, 127, 255, 511, 1023, 1518, 9600]
_TX_LIMITS = [63, *_RX_LIMITS]


class MacStats:
    """The counters of the port, by qword index."""

    def __init__(self) -> None:
        self._values = (ctypes.c_uint64 * NSTATS)()
        self._cleared_ring_drops = 0
        self.generation = 0

    @property
    def address(self) -> int:
        """Where compiled code counts."""
        return ctypes.addressof(self._values)

    def clear(self, ring_drops: int) -> None:
        self._values[:] = [0] * NSTATS
        self._cleared_ring_drops = ring_drops

    def received(self, mac: Qwords, multicast: Bools, lengths: Int64s) -> None:
        """Count frames that reached the MAC, delivered or not."""
        count = lengths.size
        multi = int(np.count_nonzero(multicast))
        broad = int(np.count_nonzero(mac == np.uint64(_BROADCAST))) if multi else 0
        octets = lengths + ETH_FCS_LEN
        self._received(count, multi, broad, int(octets.sum()))
        self._sizes(_RX_SIZES, _RX_LIMITS, octets)

    def received_equal(self, mac: int, count: int, length: int) -> None:
        """Count frames of one length to one address."""
        multi = count if mac >> 40 & 1 else 0
        octets = length + ETH_FCS_LEN
        self._received(count, multi, count if mac == _BROADCAST else 0, count * octets)
        self._size(_RX_SIZES, _RX_LIMITS, octets, count)

    def _received(self, count: int, multi: int, broad: int, octets: int) -> None:
        values = self._values
        values[_RX_PKTS] += count
        values[_RX_GOOD_PKTS] += count
        values[_RX_UNICAST] += count - multi
        values[_RX_MULTICAST] += multi - broad
        values[_RX_BROADCAST] += broad
        values[_RX_BYTES] += octets

    def oversized(self, number: int) -> None:
        for index in (_RX_PKTS, _RX_GTJUMBO, _RX_JABBER):
            self._values[index] += number

    def no_descriptor(self, number: int) -> None:
        self._values[_RX_NODESC_DROPS] += number

    def sent(self, frames: list[tuple[int, int]]) -> None:
        """Count sent frames: (destination as a number, length without FCS)."""
        values = self._values
        multi = sum(1 for mac, _ in frames if mac >> 40 & 1)
        broad = sum(1 for mac, _ in frames if mac == _BROADCAST)
        values[_TX_PKTS] += len(frames)
        values[_TX_UNICAST] += len(frames) - multi
        values[_TX_MULTICAST] += multi - broad
        values[_TX_BROADCAST] += broad
        for _, length in frames:
            values[_TX_BYTES] += length + ETH_FCS_LEN
            self._size(_TX_SIZES, _TX_LIMITS, length + ETH_FCS_LEN, 1)

    def _size(self, first: int, limits: list[int], octets: int, count: int) -> None:
        bin_ = bisect.bisect_left(limits, octets)
        if bin_ < len(limits):
            self._values[first + bin_] += count

    def _sizes(self, first: int, limits: list[int], octets: Int64s) -> None:
        counts = np.bincount(np.searchsorted(limits, octets), minlength=len(limits) + 1)
        for index, number in enumerate(counts[: len(limits)].tolist()):
            self._values[first + index] += number

    def image(self, qwords: int, ring_drops: int) -> bytes:
        """The block for the driver: ``qwords`` counters between the generation counts.

        Drops of the packet ring count as frames that the MAC received and had no room for.
        """
        self.generation += 1
        values = ([*self._values] + [0] * qwords)[:qwords]
        lost = max(0, ring_drops - self._cleared_ring_drops)
        for index in (_RX_PKTS, _RX_GOOD_PKTS, _RX_UNICAST, _RX_NODESC_DROPS):
            if index < qwords - 1:
                values[index] += lost
        values[GENERATION_START] = values[qwords - 1] = self.generation
        return struct.pack(f"<{qwords}Q", *values)
