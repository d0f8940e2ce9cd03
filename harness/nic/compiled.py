# SPDX-License-Identifier: MIT
"""The calls of the compiled data path, and what becomes of their results.

Joins the library with one function's memory, statistics and journal. ``receive``, ``queues`` and
``transmit`` use it where there is one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from harness.nic import datapath
from harness.nic.datapath import Deliverable, Library, Stage
from harness.nic.journal import Journal
from harness.nic.memory import GuestMemory, Int64s, Octets, Qwords
from harness.nic.stats import MacStats
from harness.nic.wire import SlotRing

_FRAME_COUNTS = (
    ("frames", "rx_frames"),
    ("delivered", "rx_delivered"),
    ("nodesc", "rx_nodesc"),
    ("filtered", "rx_filtered"),
    ("oversize", "rx_oversize"),
)
_MESSAGES = {
    "rx_bad_buffer": "%#x is not guest memory",
    "rxq_unmapped": "the ring is not guest memory",
    "txq_unmapped": "the ring is not guest memory",
    "evq_unmapped": "the ring is not guest memory",
    "evq_overrun": "an event that the driver has not read",
    "tx_bad_buffer": "%#x is not guest memory, or the frame is too long",
    "tx_bad_option": "descriptor %#x",
}


class Compiled:
    """The compiled data path of one function."""

    def __init__(
        self, library: Library, memory: GuestMemory, journal: Journal, stats: MacStats
    ) -> None:
        self.code = library
        self.stage = Stage()
        self.state = datapath.Receiver(memory=memory.table(), stats=stats.address)
        self._memory = memory
        self._journal = journal
        self._stats = stats
        self._address = ctypes.addressof(self.state)
        self._stage_address = ctypes.addressof(self.stage)
        self.outcome = self.state.outcome
        self._filters = (0, 0)
        self._arrays: tuple[Any, ...] = ()

    def use(self, rxqs: Mapping[int, Any]) -> None:
        """Let frames go to the receive queues ``rxqs``, by instance."""
        state = self.state
        ctypes.memset(ctypes.addressof(state.rxqs), 0, ctypes.sizeof(state.rxqs))
        for instance, rxq in rxqs.items():
            rxq.state.instance = instance
            state.rxqs[instance] = rxq.address

    def share_busy(self, instances: list[int]) -> None:
        """The queues that were used last, and their room, decide how many frames are taken."""
        state = self.state
        state.busy[: len(instances)] = instances
        state.busy_count = len(instances)

    def busy(self) -> list[int]:
        """The instances of the queues that were used last."""
        return list(self.state.busy[: self.state.busy_count])

    def receive(
        self, ring: SlotRing, filters: tuple[int, int], limit: int, *, evict: bool = False
    ) -> int | None:
        """Receive at most ``limit`` frames, and count them; returns how many.

        None if there is more to it: see :attr:`outcome`. It ends after an event that interrupts, or
        when the queues that were used last have no descriptors. With ``evict`` one batch is taken
        even then.
        """
        self._memory.table()
        if filters is not self._filters:
            self._filters = filters
            self.state.filters, self.state.filters_count = filters
        taken: int = self.code.receive(self._address, ring.compiled(), limit, evict)
        counts = self._journal.counts
        if taken >= 0:
            counts["rx_frames"] += taken
            counts["rx_delivered"] += taken
            return taken
        for name, counted in _FRAME_COUNTS:
            counts[counted] += getattr(self.outcome, name)
        self._note()
        return None

    def deliverable(
        self, buffer: Octets, offsets: Int64s, lengths: Int64s, events: Qwords
    ) -> Deliverable:
        """Frames to :meth:`deliver`; valid until the next ones are asked for."""
        offsets = np.ascontiguousarray(offsets, np.int64)
        lengths = np.ascontiguousarray(lengths, np.int64)
        events = np.ascontiguousarray(events, np.uint64)
        self._arrays = offsets, lengths, events
        return Deliverable(
            buffer.ctypes.data, offsets.ctypes.data, lengths.ctypes.data, events.ctypes.data,
            count=lengths.size, wrap=lengths.size,
        )  # fmt: skip

    def deliver(self, rxq: int, frames: Deliverable) -> int:
        """RxQueue.deliver: ``rxq`` is the address of its state."""
        self._memory.table()
        if self.code.deliver(self._address, rxq, ctypes.addressof(frames)):
            self._note()
        return int(self.outcome.delivered)

    def _note(self) -> None:
        outcome = self.outcome
        if outcome.truncated:
            self._journal.count("rx_truncated", outcome.truncated)
        self._note_all("rx_bad_buffer", outcome.bad_buffers, outcome.bad_address)
        self._note_all("rxq_unmapped", outcome.rx_unmapped)
        self._note_all("evq_unmapped", outcome.evq_unmapped)
        self._note_all("evq_overrun", outcome.evq_overrun)

    def _note_all(self, name: str, number: int, first: int = 0) -> None:
        """Note ``name`` so often, with the first of the addresses or descriptors."""
        if number:
            self._journal.counts[name] += number - 1
            self._journal.note(name, _MESSAGES[name], *([first] if "%" in _MESSAGES[name] else []))

    def transmit(self, txq: int, limit: int, send: Callable[[Stage], None]) -> bool:
        """TxQueue.transmit; returns whether its event interrupts."""
        stage, done = self.stage, 0
        memory = self._memory.table()
        while not done:
            limit -= self.code.transmit(memory, txq, self._stage_address, limit)
            done = stage.done
            if stage.count:
                send(stage)
            if stage.dropped:
                self._journal.count("tx_dropped", stage.dropped)
            self._note_all("txq_unmapped", stage.unmapped)
            self._note_all("tx_bad_buffer", stage.bad_buffers, stage.bad_address)
            self._note_all("tx_bad_option", stage.bad_options, stage.bad_option)
            self._note_all("evq_unmapped", stage.evq_unmapped)
            self._note_all("evq_overrun", stage.evq_overrun)
        return bool(stage.due)

    def count_sent(self, first: int, number: int) -> None:
        """Count staged frames in the MAC's statistics."""
        self.code.count_sent(self._stats.address, self._stage_address, first, number)
