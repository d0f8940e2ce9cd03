# SPDX-License-Identifier: MIT
"""Repeats the datagrams of streams, to load a receiver more than the senders can.

A receiver processes several times the frames that senders on the same machine can make.
So the datagrams of streams are kept in the order of their arrival, and each is delivered
``times`` times. With 0 there is no limit: the most recent ones are repeated as fast as
the receiver posts descriptors, while the streams last (and at most about 100 ms longer).
Single datagrams are not a stream: at least :data:`_STREAM` must come within
:data:`_SPELL_NS`.

Only frames that :meth:`Repeater.takes` accepts are kept. All others are delivered once
and go first: while streams are repeated, :data:`RESERVED` descriptors (an eighth of a
small ring) are reserved for them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.nic import offload, queues
from harness.nic.datapath import Deliverable
from harness.nic.memory import Int64s, Octets, Qwords
from harness.nic.wire import RX_PREFIX_SIZE

RESERVED = 64
_STREAM = 32
_SPELL_NS = 50_000_000
_MANY = 4096
_FEW = 1024
_SHORT = 256
_SPARE = 16384
_FRAMING = 24
"""Octets on the link besides a frame: preamble, FCS and gap."""
_LONGEST_PASS_NS = 1_000_000
"""A longer time without a call means that the model was stopped, and the link with it."""
_STOPPED_NS = 20_000_000
"""A longer time between two passes: the model was stopped, and the senders with it."""
_MAX_WAITING = 4096
"""The most frames that may wait to be repeated a given number of times: the size of the
packet buffer."""


@dataclass(slots=True)
class Run:
    """Consecutive frames of streams for one queue; each row has prefix and frame.

    ``lengths`` include the prefix. Frames that are ``alike`` have the same length, event
    and address.
    """

    rows: Octets
    lengths: Int64s
    events: Qwords
    macs: Qwords
    alike: bool

    @property
    def size(self) -> int:
        return self.lengths.size


class WireRate:
    """A wire that carries ``pps`` frames per second."""

    def __init__(self, pps: float) -> None:
        self._pps = pps
        self._due = 0.0
        self._asked_ns: int | None = None

    def due(self, now_ns: int) -> int:
        """How many frames it has carried that were not :meth:`took`.

        Nothing while the model was stopped, and the link with it.
        """
        if self._asked_ns is not None:
            past_ns = now_ns - self._asked_ns
            self._due += self._pps * (past_ns if past_ns < _STOPPED_NS else 0) / 1e9
            self._due = min(self._due, self._pps * _STOPPED_NS / 1e9)
        self._asked_ns = now_ns
        return int(self._due)

    def took(self, frames: int) -> None:
        """So many of them were delivered, or lost."""
        self._due -= frames


class Template:
    """A circular sequence of frames to deliver.

    Args:
        left: how many deliveries are left; None: no limit.

    Attributes:
        newest_ns: when the last frames came.
    """

    def __init__(self, run: Run, size: int, left: int | None, now_ns: int) -> None:
        self.size = size
        self.left = left
        self.newest_ns = now_ns
        self._passed_ns = now_ns
        self._at = 0
        self._octets: float | None = None
        self._newest = run.size % size
        self._alike = size if run.alike else 0
        index = np.arange(size) % run.size
        self._make_rows(run.rows.shape[1])
        self._rows[:] = run.rows[index]
        self._lengths, self._events, self._macs = (
            run.lengths[index].astype(np.int64), run.events[index], run.macs[index],
        )  # fmt: skip
        self._frames = Deliverable(
            lengths=self._lengths.ctypes.data, events=self._events.ctypes.data, wrap=size
        )
        self._share_rows()

    def overwrite(self, run: Run, now_ns: int) -> None:
        """Replace the oldest frames by a run, which is not longer than the template."""
        self.newest_ns = now_ns
        width = run.rows.shape[1]
        if width > self._rows.shape[1]:
            narrower = self._rows
            self._make_rows(width)
            self._rows[:, : narrower.shape[1]] = narrower
            self._share_rows()
        first = min(run.size, self.size - self._newest)
        for to, part in (
            (slice(self._newest, self._newest + first), slice(0, first)),
            (slice(0, run.size - first), slice(first, run.size)),
        ):
            self._rows[to, :width] = run.rows[part]
            self._lengths[to] = run.lengths[part]
            self._events[to] = run.events[part]
            self._macs[to] = run.macs[part]
        self._octets = None
        last = self._newest - 1
        newest = self._newest
        self._newest = (newest + run.size) % self.size
        same = run.alike and (
            self._lengths[last] == run.lengths[0]
            and self._events[last] == run.events[0]
            and self._macs[last] == run.macs[0]
        )
        self._alike = (self._alike if same else 0) + run.size if run.alike else 0

    def next(self, limit: int) -> int:
        """How many frames to deliver next, at most ``limit``."""
        number = min(limit, self.size)
        return number if self.left is None else min(number, self.left)

    def _part(self, number: int) -> slice | Int64s:
        """The indices of the next frames."""
        if self._at + number <= self.size:
            return slice(self._at, self._at + number)
        return np.arange(self._at, self._at + number) % self.size

    def deliver(self, rxq: queues.RxQueue, number: int, now_ns: int) -> int:
        """Deliver the next ``number`` frames; returns how many found descriptors."""
        delivered = None
        if rxq.compiled:
            self._frames.first, self._frames.count = self._at, number
            delivered = rxq.deliver_compiled(rxq.compiled, self._frames, now_ns)
        elif self._alike >= self.size:
            octets = int(self._lengths[0])
            delivered = rxq.deliver_equal(
                self._pieces(octets)[self._part(number)], octets, int(self._events[0]) | octets,
                now_ns,
            )  # fmt: skip
        if delivered is None:
            part = self._part(number)
            at = np.arange(part.start, part.stop) if isinstance(part, slice) else part
            offsets = at * self._rows.shape[1]
            arrivals = queues.Arrivals(
                self._buffer, offsets, self._lengths[part], self._events[part]
            )
            delivered = rxq.deliver(arrivals, now_ns)
        self._at = (self._at + delivered) % self.size
        if self.left is not None:
            self.left -= delivered
        return delivered

    def lost(self, delivered: int, mbps: int, now_ns: int, *, full: bool) -> int:
        """How many frames more than ``delivered`` a link has carried since the last call.

        Only if the ring was ``full``, the driver at most half way through it, all the time:
        otherwise the wire may have been too slow for the driver.
        """
        passed_ns = min(now_ns - self._passed_ns, _LONGEST_PASS_NS)
        self._passed_ns = now_ns
        if not full:
            return 0
        if self._octets is None:
            self._octets = float(self._lengths.mean())
        octets = self._octets - RX_PREFIX_SIZE + _FRAMING
        return max(0, int(passed_ns * mbps / 1000 / (8 * octets)) - delivered)

    def alike(self) -> tuple[int, int] | None:
        """(address, length with prefix) of all frames, or None if they differ."""
        if self._alike < self.size:
            return None
        return int(self._macs[0]), int(self._lengths[0])

    def described(self, number: int) -> tuple[Qwords, Int64s]:
        """Addresses and lengths (with prefix) of the next ``number`` frames."""
        part = self._part(number)
        return self._macs[part], self._lengths[part]

    @property
    def longest(self) -> int:
        return int(self._rows.shape[1])

    def _make_rows(self, width: int) -> None:
        # A queue may copy up to a whole buffer from the start of the last piece on.
        self._buffer: Octets = np.zeros(self.size * width + _SPARE, np.uint8)
        self._rows = self._buffer[: self.size * width].reshape(self.size, width)

    def _share_rows(self) -> None:
        self._frames.buffer = self._buffer.ctypes.data
        self._frames.distance = self._rows.shape[1]

    def _pieces(self, octets: int) -> npt.NDArray[Any]:
        return np.ndarray(self.size, f"V{octets}", self._rows.data, 0, (self._rows.shape[1],))


class Repeater:
    """The frames to repeat, by receive queue."""

    def __init__(self) -> None:
        self._times = 1
        self._templates: dict[int, deque[Template]] = {}
        self._spell_ns = 0
        self._seen = 0
        self._seen_before = 0
        self._called_ns = 0

    @property
    def times(self) -> int:
        """How often each frame is delivered; 1: no repetition, 0: no limit."""
        return self._times

    @times.setter
    def times(self, times: int) -> None:
        self._times = times
        self.forget()

    @property
    def on(self) -> bool:
        return self._times != 1

    def forget(self) -> None:
        self._templates.clear()
        self._seen = self._seen_before = 0

    @staticmethod
    def takes(l3: Int64s | int, l4: Int64s | int, multicast: Any) -> Any:
        """Which frames may belong to a stream: whole UDP datagrams to one receiver."""
        whole = (l3 == offload.L3_IP4) | (l3 == offload.L3_IP6)
        return whole & (l4 == offload.L4_UDP) & np.logical_not(multicast)

    def streams(self, more: int, now_ns: int) -> bool:
        """Whether ``more`` datagrams, which have just come, belong to a stream."""
        if self._times:
            return True
        self._turn(now_ns)
        self._seen += more
        return self._flowing()

    def keep(self, queue: int, run: Run, now_ns: int) -> int:
        """Keep a run for repetition; returns how many of its frames found no room."""
        kept = self._templates.setdefault(queue, deque())
        if self._times == 0:
            size = _MANY if run.rows.shape[1] <= _SHORT else _FEW
            if kept:
                kept[0].overwrite(run, now_ns)
            else:
                kept.append(Template(run, size, None, now_ns))
            return 0
        waiting = sum(-(-(template.left or 0) // self._times) for template in kept)
        if waiting + run.size > _MAX_WAITING:
            return run.size
        turns = min(self._times, -(-_FEW // run.size))
        kept.append(Template(run, run.size * turns, run.size * self._times, now_ns))
        return 0

    def active(self, now_ns: int) -> bool:
        """Whether there is anything to repeat; to be called in every pass."""
        gap_ns, self._called_ns = now_ns - self._called_ns, now_ns
        if not self._templates:
            return False
        if self._times == 0:
            if gap_ns > _STOPPED_NS:
                self._spell_ns += gap_ns
                for kept in self._templates.values():
                    kept[0].newest_ns += gap_ns
            self._turn(now_ns)
            for queue, kept in list(self._templates.items()):
                # Its streams have ended, or go to another queue now.
                if now_ns - kept[0].newest_ns > 2 * _SPELL_NS or not self._flowing():
                    del self._templates[queue]
        return bool(self._templates)

    def templates(self) -> list[tuple[int, deque[Template]]]:
        """The templates of each queue; the first one is next."""
        return list(self._templates.items())

    def done(self, queue: int) -> None:
        """Forget a queue that has nothing left to repeat."""
        self._templates.pop(queue, None)

    def _flowing(self) -> bool:
        return self._seen >= _STREAM or self._seen_before >= _STREAM

    def _turn(self, now_ns: int) -> None:
        past_ns = now_ns - self._spell_ns
        if past_ns >= _SPELL_NS:
            self._seen_before = self._seen if past_ns < 2 * _SPELL_NS else 0
            self._seen = 0
            self._spell_ns = now_ns
