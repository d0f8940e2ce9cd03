# SPDX-License-Identifier: MIT
"""Which receive queue a frame goes to: the filters and RSS contexts of the driver.

The driver is offered only matches on the destination address (an exact address, and
any unknown unicast or multicast one), so every filter it can install is implemented.
A frame that matches no filter is not delivered.

The hash of a frame comes from the RSS context of its filter. It covers the fields of
RSS_CONTEXT_GET_FLAGS (the addresses of IP, and the ports of TCP) and goes into the
receive prefix. Without a context, as the driver's filters are with one receive queue,
the hash is 0.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from harness.nic import datapath, offload
from harness.nic.memory import Int64s, Octets

# MC_CMD_FILTER_OP_IN_MATCH_*_LBN.
MATCH_DST_MAC = 1 << 4
MATCH_UNKNOWN_MCAST_DST = 1 << 30
MATCH_UNKNOWN_UCAST_DST = 1 << 31
SUPPORTED_MATCHES = (MATCH_DST_MAC, MATCH_UNKNOWN_MCAST_DST, MATCH_UNKNOWN_UCAST_DST)

RX_MODE_RSS = 1
DROP = -1
_MAX_FILTERS = 4096
_MAX_CONTEXTS = 64
_TABLE_LENGTH = 128
_KEY_LENGTH = 40
_MOST_HASHED = 36  # octets: the addresses of IPv6 and two ports


@dataclass(frozen=True, slots=True)
class Filter:
    """One installed filter; ``queue`` is :data:`DROP` for the drop destination."""

    match: int
    mac: int
    queue: int
    rss_context: int | None


@dataclass(slots=True)
class RssContext:
    """An indirection table and a Toeplitz key."""

    table: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(_TABLE_LENGTH, np.int64))
    key: bytes = bytes(_KEY_LENGTH)
    only: int | None = 0
    """The queue in the table if all entries are the same."""

    def set_table(self, queues: list[int]) -> None:
        self.table[:] = queues
        self.only = queues[0] if len(set(queues)) == 1 else None


@functools.lru_cache(maxsize=8)
def _toeplitz_tables(key: bytes, octets: int) -> npt.NDArray[np.uint32]:
    """For each position of an input octet, the contribution of each of its 256 values."""
    bits = int.from_bytes(key, "big")
    total = 8 * len(key)
    tables = np.zeros((octets, 256), np.uint32)
    values = np.arange(256, dtype=np.uint32)
    for position in range(octets):
        for bit in range(8):
            window = (bits >> (total - 32 - 8 * position - bit)) & 0xFFFFFFFF
            chosen = (values >> np.uint32(7 - bit)) & np.uint32(1)
            tables[position] ^= chosen * np.uint32(window)
    return tables


def toeplitz(key: bytes, data: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Microsoft's RSS hash of each column of 16-bit words in host order."""
    tables = _toeplitz_tables(key, 2 * data.shape[0])
    found = np.zeros(data.shape[1], np.uint32)
    for row, words in enumerate(data):
        found ^= tables[2 * row][words >> 8]
        found ^= tables[2 * row + 1][words & 0xFF]
    return found


@functools.lru_cache(maxsize=1024)
def _toeplitz_one(key: bytes, words: tuple[int, ...]) -> int:
    return int(toeplitz(key, np.array(words, np.uint32).reshape(-1, 1))[0])


class Steering:
    """The filter table and the RSS contexts of the function."""

    def __init__(self) -> None:
        self.filters: dict[int, Filter] = {}
        self.contexts: dict[int, RssContext] = {}
        self._next_handle = 1
        self._next_context = 1
        self.stale = True
        """The filters or contexts have changed since :meth:`compiled`."""
        self._compiled: tuple[int, int] | None = None
        self._kept: list[object] = []

    def reset(self) -> None:
        self.filters.clear()
        self.contexts.clear()
        self.stale = True

    def compiled(self) -> tuple[int, int] | None:
        """Address and number of the filters for compiled code; None: one that it does not know."""
        if self.stale:
            self._compiled, self.stale = self._compile(), False
        return self._compiled

    def _compile(self) -> tuple[int, int] | None:
        ordered = self._ordered()
        if any(wanted.match not in SUPPORTED_MATCHES for _, wanted in ordered):
            return None
        contexts: dict[int, datapath.Rss] = {}
        table = (datapath.Filter * len(ordered))()
        self._kept = [table, contexts]
        for entry, (_, wanted) in zip(table, ordered, strict=True):
            entry.match, entry.mac, entry.queue = wanted.match, wanted.mac, wanted.queue
            number = wanted.rss_context
            if number is None or number not in self.contexts:
                continue
            if number not in contexts:
                context = self.contexts[number]
                key = _toeplitz_tables(context.key, _MOST_HASHED)
                self._kept += [context, key]
                contexts[number] = datapath.Rss(context.table.ctypes.data, key.ctypes.data)
            entry.rss = ctypes.addressof(contexts[number])
        return ctypes.addressof(table), len(ordered)

    def _ordered(self) -> list[tuple[int, Filter]]:
        """Exact filters before those for unknown addresses, later ones before earlier ones."""
        return sorted(
            self.filters.items(), key=lambda item: (item[1].match != MATCH_DST_MAC, -item[0])
        )

    def insert(self, new: Filter) -> int | None:
        """Install a filter; returns its handle, or None if the table is full."""
        if len(self.filters) >= _MAX_FILTERS:
            return None
        handle = self._next_handle
        self._next_handle += 1
        self.filters[handle] = new
        return handle

    def allocate_context(self, queues: int) -> int | None:
        """Allocate a context that spreads evenly over ``queues``; None if there are too many."""
        if len(self.contexts) >= _MAX_CONTEXTS:
            return None
        handle = self._next_context
        self._next_context += 1
        context = RssContext()
        context.set_table([index % max(1, queues) for index in range(_TABLE_LENGTH)])
        self.contexts[handle] = context
        return handle

    def queue_of(self, flow: offload.Flow) -> int | None:
        """The queue of all frames of a flow; None if they must be hashed one by one."""
        chosen, context = self._of_flow(flow)
        if chosen is None:
            return DROP
        if context is None:
            return chosen.queue
        if context.only is not None:
            return chosen.queue + context.only
        if flow.hashed is None:
            return None
        hashed = _toeplitz_one(context.key, flow.hashed)
        return chosen.queue + int(context.table[hashed % _TABLE_LENGTH])

    def hash_of(self, flow: offload.Flow, frames: Octets) -> npt.NDArray[np.uint32] | int:
        """The hash of the flow, or of each of its ``frames``; 0 without an RSS context."""
        _, context = self._of_flow(flow)
        if context is None:
            return 0
        if flow.hashed is None:
            return toeplitz(context.key, flow.to_hash(frames))
        return _toeplitz_one(context.key, flow.hashed)

    def _of_flow(self, flow: offload.Flow) -> tuple[Filter | None, RssContext | None]:
        wanted = None
        for handle, candidate in self.filters.items():
            if candidate.match == MATCH_DST_MAC:
                hit = candidate.mac == flow.mac
            else:
                hit = (candidate.match == MATCH_UNKNOWN_MCAST_DST) == bool(flow.mac >> 40 & 1)
            rank = (candidate.match == MATCH_DST_MAC, handle)
            if hit and (wanted is None or rank > wanted[0]):
                wanted = rank, candidate
        if wanted is None:
            return None, None
        chosen = wanted[1]
        if chosen.rss_context is None or chosen.queue == DROP:
            return chosen, None
        return chosen, self.contexts.get(chosen.rss_context)

    def queues(self, classes: offload.Classes) -> Int64s:
        """The queue of each frame (:data:`DROP`: none), the same as :meth:`queue_of`."""
        return self.spread(classes)[0]

    def spread(self, classes: offload.Classes) -> tuple[Int64s, npt.NDArray[np.uint32]]:
        """The queue and the hash of each frame; the hash is 0 without an RSS context."""
        count = classes.mac.size
        queues = np.full(count, DROP, np.int64)
        hashes = np.zeros(count, np.uint32)
        undecided = np.ones(count, bool)
        for _, wanted in self._ordered():
            if wanted.match == MATCH_DST_MAC:
                hit = undecided & (classes.mac == np.uint64(wanted.mac))
            elif wanted.match == MATCH_UNKNOWN_MCAST_DST:
                hit = undecided & classes.multicast
            else:
                hit = undecided & ~classes.multicast
            if not hit.any():
                continue
            undecided &= ~hit
            queues[hit] = wanted.queue
            context = None if wanted.rss_context is None else self.contexts.get(wanted.rss_context)
            if wanted.queue != DROP and context is not None:
                hashes[hit] = self._hash(context, classes)[hit]
                queues[hit] += context.table[hashes[hit] & (_TABLE_LENGTH - 1)]
            if not undecided.any():
                break
        return queues, hashes

    @staticmethod
    def _hash(context: RssContext, classes: offload.Classes) -> npt.NDArray[np.uint32]:
        """Addresses for IP, addresses and ports for TCP, 0 for anything else."""
        hashes = np.zeros(classes.mac.size, np.uint32)
        for kinds, first, last in (
            ((offload.L3_IP4, offload.L3_IP4_FRAG), 13, 17),
            ((offload.L3_IP6, offload.L3_IP6_FRAG), 11, 27),
        ):
            of_family = (classes.l3 == kinds[0]) | (classes.l3 == kinds[1])
            tcp = of_family & (classes.l4 == offload.L4_TCP)
            for chosen, end in ((of_family & ~tcp, last), (tcp, last + 2)):
                at = np.flatnonzero(chosen)
                if at.size:
                    hashes[at] = toeplitz(context.key, classes.head[first:end][:, at])
        return hashes
