# SPDX-License-Identifier: MIT
"""MAC statistics, as MC_CMD_MAC_STATS hands them to the driver.

Every frame the wire brought is in ``RX_PKTS``. What was not delivered is in
``RX_NODESC_DROPS`` (no descriptor, or the packet ring was full), ``RX_JABBER``
(longer than the MAC was told to take) or in the model's own counters of frames
no filter wanted.
"""

from __future__ import annotations

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
_RX_LIMITS = np.array([64, 127, 255, 511, 1023, 1518, 9600])
_TX_LIMITS = np.array([63, *_RX_LIMITS.tolist()])


class MacStats:
    """The counters of the port, by qword index."""

    def __init__(self) -> None:
        self._values = np.zeros(NSTATS, np.uint64)
        self._cleared_ring_drops = 0
        self.generation = 0

    def clear(self, ring_drops: int) -> None:
        self._values[:] = 0
        self._cleared_ring_drops = ring_drops

    def received(self, mac: Qwords, multicast: Bools, lengths: Int64s) -> None:
        """Count frames that reached the MAC, delivered or not."""
        values, count = self._values, lengths.size
        octets = lengths + ETH_FCS_LEN
        multi = int(np.count_nonzero(multicast))
        broad = int(np.count_nonzero(mac == np.uint64(_BROADCAST))) if multi else 0
        values[_RX_PKTS] += np.uint64(count)
        values[_RX_GOOD_PKTS] += np.uint64(count)
        values[_RX_UNICAST] += np.uint64(count - multi)
        values[_RX_MULTICAST] += np.uint64(multi - broad)
        values[_RX_BROADCAST] += np.uint64(broad)
        values[_RX_BYTES] += np.uint64(int(octets.sum()))
        self._sizes(_RX_SIZES, _RX_LIMITS, octets)

    def oversized(self, number: int) -> None:
        self._values[_RX_PKTS] += np.uint64(number)
        self._values[_RX_GTJUMBO] += np.uint64(number)
        self._values[_RX_JABBER] += np.uint64(number)

    def no_descriptor(self, number: int) -> None:
        self._values[_RX_NODESC_DROPS] += np.uint64(number)

    def sent(self, frames: list[tuple[int, int]]) -> None:
        """Count sent frames: (first address octets as a number, length without FCS)."""
        values = self._values
        multi = sum(1 for mac, _ in frames if mac >> 40 & 1)
        broad = sum(1 for mac, _ in frames if mac == _BROADCAST)
        octets = np.array([length + ETH_FCS_LEN for _, length in frames])
        values[_TX_PKTS] += np.uint64(len(frames))
        values[_TX_UNICAST] += np.uint64(len(frames) - multi)
        values[_TX_MULTICAST] += np.uint64(multi - broad)
        values[_TX_BROADCAST] += np.uint64(broad)
        values[_TX_BYTES] += np.uint64(int(octets.sum()))
        self._sizes(_TX_SIZES, _TX_LIMITS, octets)

    def _sizes(self, first: int, limits: Int64s, octets: Int64s) -> None:
        if int(octets.min()) == int(octets.max()):
            bins = int(np.searchsorted(limits, int(octets[0])))
            if bins < limits.size:
                self._values[first + bins] += np.uint64(octets.size)
            return
        counts = np.bincount(np.searchsorted(limits, octets), minlength=limits.size + 1)
        self._values[first : first + limits.size] += counts[: limits.size].astype(np.uint64)

    def image(self, qwords: int, ring_drops: int) -> bytes:
        """What is written to the driver: ``qwords`` counters between the generations.

        Drops of the packet ring are frames the MAC received and had no room for.
        """
        self.generation += 1
        values = np.zeros(max(qwords, 2), np.uint64)
        shown = min(qwords - 1, NSTATS - 1)
        values[:shown] = self._values[:shown]
        lost = np.uint64(max(0, ring_drops - self._cleared_ring_drops))
        for index in (_RX_PKTS, _RX_GOOD_PKTS, _RX_UNICAST, _RX_NODESC_DROPS):
            if index < shown:
                values[index] += lost
        values[GENERATION_START] = values[qwords - 1] = self.generation
        return values.astype("<u8").tobytes()
