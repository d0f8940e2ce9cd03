# SPDX-License-Identifier: MIT
"""The receive path: from the wire's packet ring to descriptors and events.

The packet ring is the packet buffer of the controller: frames wait there for
descriptors. When it is full, the kernel drops new frames, which count as NODESC. A
pass takes as many frames as there are descriptors, in batches: classes and checksums,
MAC statistics, filters, queues. When no descriptor has been posted for
:data:`RESIDENCE_NS`, the oldest frames are dropped, so that a queue that nobody serves
does not block the others.

So every frame of the wire (``wire_frames``, the kernel's own count) is still waiting, or
is in exactly one of: ``rx_delivered``, ``rx_nodesc``, ``rx_filtered``,
``rx_oversize``, ``rx_link_down``, ``rx_flushed`` (by a reset), ``rx_internal_drops``
(a bug of the model: 0), ``repeat_taken``, ``wire_ring_drops``. The driver's NODESC is
``rx_nodesc`` + ``wire_ring_drops``. Frames of the MAC's loopback (``tx_looped``) are
counted in the same way. Repeated frames count each time they are delivered, in
``repeat_delivered``, which is a part of ``rx_delivered``. A wire that repeats without
limit runs at the speed of the link: while a ring is full, the frames that it has no room
for are ``repeat_lost``. The driver finds them in NODESC; no other counter has them.

No step loops over frames. A batch of one flow, the usual case under load, takes a path
with a third of the calls; a test compares the two paths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import numpy as np

from harness.nic import offload, queues
from harness.nic.compiled import Compiled
from harness.nic.journal import Journal
from harness.nic.memory import Int64s, Qwords
from harness.nic.repeat import RESERVED, Repeater, Run, Template, WireRate
from harness.nic.stats import ETH_FCS_LEN, MacStats
from harness.nic.steering import DROP, Steering
from harness.nic.wire import (
    RX_PREFIX_SIZE,
    TP_STATUS_CSUMNOTREADY,
    Batch,
    Frames,
    SlotRing,
    Wire,
)

RESIDENCE_NS = 10_000_000
"""How long frames wait for a descriptor when none is posted."""

_BATCH = 1024
_BUDGET = 4096
_EVICTED = 256
_ELSEWHERE = DROP - 1
DRAIN_NS = 2_000_000
"""How long frames of the wire may wait while streams are repeated."""
_PATIENCE_NS = 10
"""How long doorbells may wait while streams are repeated, per descriptor of the ring."""


class Receiver:
    """Moves frames from ``wire`` to the ``rxqs`` (by instance) that the filters choose."""

    def __init__(
        self,
        wire: Wire,
        journal: Journal,
        stats: MacStats,
        steering: Steering,
        rxqs: Mapping[int, queues.RxQueue],
        clock_ns: Callable[[], int],
        compiled: Compiled | None,
    ) -> None:
        self._compiled = compiled
        self._wire = wire
        self._journal = journal
        self._stats = stats
        self._steering = steering
        self._rxqs = rxqs
        self._clock_ns = clock_ns
        self._busy: list[queues.RxQueue] = []
        self._busy_shared = self._busy
        """The list that compiled code knows."""
        self._blocked_since_ns: int | None = None
        self._drained_ns = 0
        self.repeater = Repeater()
        self.burst = 0
        """Deliver at most this many frames, then none until the driver has taken them; 0: no
        limit."""
        self.rate: WireRate | None = None
        """Of repeated frames; None: as fast as the link."""
        self.max_frame = 1518
        """The longest frame that the MAC accepts, including FCS."""
        self.carries = True
        """Frames reach the MAC from the wire."""
        self.link_mbps = 10_000
        self.looped: SlotRing | None = None
        """Frames of the MAC's loopback, if it is on."""
        self.stalled = False
        """The function may not write to memory: frames wait as if nothing were posted."""
        self._left = 0

    def queues_changed(self) -> None:
        """To be called when queues were created or removed."""
        self._busy = list(self._rxqs.values())
        self.repeater.forget()
        if self._compiled:
            self._compiled.use(self._rxqs)

    @property
    def starved(self) -> bool:
        """The next frames must wait for the guest.

        Either the function may not write to memory, or a recently used queue has less than
        half of its descriptors posted, or the driver is still processing a burst.
        """
        return self.stalled or self.blocked or any(rxq.starved for rxq in self._busy)

    @property
    def blocked(self) -> bool:
        """The driver is still processing a burst."""
        return bool(self.burst) and not all(rxq.evq.ready for rxq in self._busy)

    @property
    def repeating(self) -> bool:
        """There are repeated frames for the guest, even if none come from the wire."""
        return (
            self.repeater.on
            and self.carries
            and not self.stalled
            and self.repeater.active(self._clock_ns())
        )

    @property
    def patience_ns(self) -> int:
        """How long the guest's doorbells may wait while streams are repeated.

        A fast guest takes a frame in 200 ns. It must not use up half of its ring before the
        next pass has filled the other half. Serving doorbells costs 20 µs.
        """
        return _PATIENCE_NS * min((rxq.entries for rxq in self._busy), default=_BATCH)

    def receive(self) -> int:
        """One pass over the waiting frames; returns how many were processed."""
        if not self.repeater.on:
            return self._drain(self.burst or _BUDGET)
        done, now_ns = 0, self._clock_ns()
        if not self.repeating or now_ns - self._drained_ns >= DRAIN_NS:
            self._drained_ns = now_ns
            done = self._drain(_BUDGET)
        if self.repeating:
            done += self._repeat(now_ns)
        return done

    def flush(self) -> None:
        """Drop the waiting frames: a reset empties the packet buffer."""
        for _ in range(2):  # to the end of the ring, and from its start
            if waiting := self._wire.waiting():
                self._journal.count("rx_frames", waiting)
                self._journal.count("rx_flushed", waiting)
                self._wire.release(waiting)

    def _repeat(self, now_ns: int) -> int:
        """Deliver repeated frames to the posted descriptors."""
        done = 0
        repeated = self.repeater.templates()
        share = None if self.rate is None else self.rate.due(now_ns) // len(repeated)
        for queue, templates in repeated:
            rxq = self._rxqs.get(queue)
            if rxq is not None:
                try:
                    done += self._repeat_to(rxq, templates, share, now_ns)
                except Exception as error:  # noqa: BLE001 - costs the repeated frames
                    self._journal.mistake(error)
                    templates.clear()
            if not templates or rxq is None:
                self.repeater.done(queue)
        return done

    def _repeat_to(
        self, rxq: queues.RxQueue, templates: deque[Template], carried: int | None, now_ns: int
    ) -> int:
        """Deliver to one queue what the wire has ``carried`` to it (None: as much as it takes)."""
        done = 0
        while templates:
            template = templates[0]
            room = rxq.frames_posted(template.longest) - min(RESERVED, rxq.entries // 8)
            full = room <= rxq.entries // 2
            if self.burst:
                room = min(room, self.burst) if rxq.evq.ready else 0
            frames = max(room if carried is None else min(room, carried), 0)
            if not frames and not carried:
                break
            delivered = self._again(template, rxq, template.next(frames), now_ns) if frames else 0
            done += delivered
            lost = 0
            if template.left is None and not self.burst:
                if carried is None:
                    lost = template.lost(delivered, self.link_mbps, now_ns, full=full)
                elif full:
                    lost = carried - delivered
                self._journal.count("repeat_lost", lost)
            if carried is not None and self.rate is not None:
                self.rate.took(delivered + lost)
                carried -= delivered + lost
            if template.left == 0:
                templates.popleft()
            elif template.left is None or not delivered:
                break
        return done

    def _again(self, template: Template, rxq: queues.RxQueue, number: int, now_ns: int) -> int:
        if alike := template.alike():
            delivered = template.deliver(rxq, number, now_ns)
            self._stats.received_equal(alike[0], delivered, alike[1] - RX_PREFIX_SIZE)
        else:
            macs, lengths = template.described(number)
            delivered = template.deliver(rxq, number, now_ns)
            multicast = np.zeros(delivered, bool)
            self._stats.received(macs[:delivered], multicast, lengths[:delivered] - RX_PREFIX_SIZE)
        for name in ("rx_frames", "rx_delivered", "repeat_delivered"):
            self._journal.count(name, delivered)
        if rxq not in self._busy:
            self._busy = [*self._busy, rxq]
        return delivered

    def _keeps(self, frames: Batch | Frames) -> bool:
        """Whether streams of these are repeated: those of the wire, not of loopback."""
        return self.repeater.on and frames.ring is not self.looped

    def _keep(self, queue: int, run: Run) -> None:
        """Give frames to the repeater instead of delivering them."""
        lost = self.repeater.keep(queue, run, self._clock_ns())
        # The others are counted when they are delivered.
        self._journal.count("rx_frames", lost - run.size)
        self._settle("repeat_taken", run.size - lost)
        if lost:
            self._settle("rx_nodesc", lost)
            self._stats.received(run.macs, np.zeros(lost, bool), run.lengths - RX_PREFIX_SIZE)
            self._stats.no_descriptor(lost)

    def _keep_any(
        self,
        batch: Batch,
        classes: offload.Classes,
        lengths: Int64s,
        wanted: Int64s,
        events: Qwords,
    ) -> offload.Bools:
        """:meth:`_keep` the streams of a mixed batch, and remove them from ``wanted``."""
        chosen: offload.Bools = self.repeater.takes(classes.l3, classes.l4, classes.multicast)
        chosen &= (wanted >= 0) & ~classes.ip_bad & ~classes.l4_bad
        number = int(np.count_nonzero(chosen))
        if not number or not self.repeater.streams(number, self._clock_ns()):
            return np.zeros(batch.size, bool)
        octets = lengths + RX_PREFIX_SIZE
        for queue in np.unique(wanted[chosen]).tolist():
            at = np.flatnonzero(chosen & (wanted == queue))
            if queue not in self._rxqs:
                chosen[at] = False
                continue
            rows = batch.rows(int(octets[at].max()))[at]
            self._keep(queue, Run(rows, octets[at], events[at], classes.mac[at], alike=False))
            wanted[at] = _ELSEWHERE
        return chosen

    def _drain(self, budget: int) -> int:
        done = self._receive(self._wire, self.carries, budget)
        if self.looped is not None:
            done += self._receive(self.looped, True, budget)
        return done

    def _receive(self, frames: Frames, carries: bool, budget: int) -> int:
        compiled = self._compiled
        if compiled and carries and self._rxqs and not self.stalled and not self._keeps(frames):
            filters = self._steering.compiled()
            if filters is not None:
                return self._receive_compiled(compiled, filters, frames, budget)
        done = 0
        while done < budget:
            waiting = frames.waiting()
            if not waiting:
                self._blocked_since_ns = None
                break
            room = self._room(waiting) if carries else waiting
            room = min(room, budget - done)
            if not room:
                break
            size = self._left = min(room, _BATCH)
            try:
                batch = frames.take(size)
                size = self._left = batch.size
                self._take(batch, carries)
            except Exception as error:  # noqa: BLE001 - costs only these frames
                self._journal.mistake(error)
                self._settle("rx_internal_drops", self._left)
            self._journal.count("rx_frames", size)
            frames.release(size)
            done += size
        return done

    def _room(self, waiting: int) -> int:
        """How many of the waiting frames may be taken now."""
        room = waiting
        if self.repeating:
            return room  # most of them go to the repeater and need no descriptors
        if self.stalled or self.blocked:
            room = 0
        for rxq in self._busy:
            room = min(room, rxq.frames_posted(self.max_frame))
        if room:
            self._blocked_since_ns = None
            return room
        return min(waiting, _EVICTED) if self._waited_long() else 0

    def _waited_long(self) -> bool:
        """The oldest frames have waited for descriptors as long as they may."""
        now_ns = self._clock_ns()
        if self._blocked_since_ns is None:
            self._blocked_since_ns = now_ns
        return now_ns - self._blocked_since_ns >= RESIDENCE_NS

    def _receive_compiled(
        self, compiled: Compiled, filters: tuple[int, int], frames: Frames, budget: int
    ) -> int:
        """:meth:`_receive` where all frames go to descriptors at once."""
        done = 0
        compiled.state.max_frame = self.max_frame
        if self._busy is not self._busy_shared:
            self._busy_shared = self._busy
            compiled.share_busy([rxq.state.instance for rxq in self._busy])
        while done < budget:
            limit, taken, waits = budget - done, 0, True
            if not self.blocked:
                number = compiled.receive(frames.ring, filters, limit)
                if number is not None:  # and nothing waits, or the budget is used up
                    self._blocked_since_ns = None
                    return done + number
                taken, waits = self._completed(compiled)
            elif not frames.waiting():
                waits = False
            if taken or not waits:
                self._blocked_since_ns = None
            elif self._waited_long():
                compiled.receive(frames.ring, filters, min(limit, _EVICTED), evict=True)
                taken, _ = self._completed(compiled)
            if not taken:
                break
            done += taken
        return done

    def _completed(self, compiled: Compiled) -> tuple[int, bool]:
        """After a call: how many frames it took, and whether others wait for descriptors."""
        outcome = compiled.outcome
        if outcome.busy_changed:
            busy = [self._rxqs[instance] for instance in compiled.busy()]
            self._busy = self._busy_shared = busy
        if outcome.due:
            now_ns = self._clock_ns()
            for rxq in self._rxqs.values():
                rxq.evq.pushed(now_ns)
        return outcome.frames, outcome.blocked != 0

    def _take(self, batch: Batch, carries: bool) -> None:
        if not carries:
            self._settle("rx_link_down", batch.size)
        elif self.stalled:
            self._account(batch.size, 0)
        elif not self._rxqs:
            self._settle("rx_filtered", batch.size)
        elif not self._take_equal(batch):
            self._take_any(batch)

    def _settle(self, name: str, number: int) -> None:
        """``number`` frames of the batch ended under ``name``."""
        self._journal.count(name, number)
        self._left -= number

    def _take_equal(self, batch: Batch) -> bool:
        """Deliver frames of one length and class to one queue, as a flood sends; else False."""
        if batch.equal is None:
            return False
        status, length = batch.equal
        if length + ETH_FCS_LEN > self.max_frame:
            return False
        if length < offload.ETH_ZLEN:
            batch.frames[:, length : offload.ETH_ZLEN] = 0
            length = offload.ETH_ZLEN
        flow = offload.uniform(
            batch.frames, length, unfinished=bool(status & TP_STATUS_CSUMNOTREADY)
        )
        queue = None if flow is None else self._steering.queue_of(flow)
        rxq = None if queue is None else self._rxqs.get(queue)
        if flow is None or queue is None or rxq is None:
            return False
        batch.set_prefix(length, self._steering.hash_of(flow, batch.frames))
        octets = length + RX_PREFIX_SIZE
        event = queues.rx_event(flow)
        if (
            self._keeps(batch)
            and self.repeater.takes(flow.l3, flow.l4, flow.mac >> 40 & 1)
            and self.repeater.streams(batch.size, self._clock_ns())
        ):
            self._keep(
                queue,
                Run(
                    batch.rows(octets),
                    np.full(batch.size, octets),
                    np.full(batch.size, event, np.uint64),
                    np.full(batch.size, flow.mac, np.uint64),
                    alike=True,
                ),
            )
            return True
        event |= octets
        delivered = rxq.deliver_equal(batch.prefixed(octets), octets, event, self._clock_ns())
        if delivered is None:
            return False
        self._stats.received_equal(flow.mac, batch.size, length)
        self._account(batch.size, delivered)
        self._busy = [rxq]
        return True

    def _account(self, offered: int, delivered: int) -> None:
        self._settle("rx_delivered", delivered)
        if delivered < offered:
            self._settle("rx_nodesc", offered - delivered)
            self._stats.no_descriptor(offered - delivered)

    def _take_any(self, batch: Batch) -> None:
        settle, total = self._settle, batch.size
        lengths, captured = batch.lengths, batch.captured
        fits = (captured == lengths) & (lengths + ETH_FCS_LEN <= self.max_frame)
        if not fits.all():
            long = total - int(np.count_nonzero(fits))
            settle("rx_oversize", long)
            self._stats.oversized(long)
        unfinished = (batch.status & TP_STATUS_CSUMNOTREADY) != 0
        lengths = offload.pad(batch.frames, captured)
        classes = offload.classify(batch.frames, lengths, unfinished)
        wanted, hashes = self._steering.spread(classes)
        wanted[~fits] = _ELSEWHERE
        batch.set_prefix(lengths, hashes)
        events = queues.rx_events(classes)
        if self._keeps(batch):
            fits &= ~self._keep_any(batch, classes, lengths, wanted, events)
        if fits.all():
            self._stats.received(classes.mac, classes.multicast, lengths)
        elif fits.any():
            self._stats.received(classes.mac[fits], classes.multicast[fits], lengths[fits])
        filtered = int(np.count_nonzero(wanted == DROP))
        if filtered:
            settle("rx_filtered", filtered)
        arrivals = queues.Arrivals(
            batch.ring.buffer, batch.offsets, lengths + RX_PREFIX_SIZE, events
        )
        busy: list[queues.RxQueue] = []
        for queue in np.unique(wanted[wanted >= 0]).tolist():
            chosen: slice | Int64s = np.flatnonzero(wanted == queue)
            number = int(chosen.size)  # type: ignore[union-attr]
            if number == total:
                chosen = slice(0, total)
            rxq = self._rxqs.get(queue)
            if rxq is None:
                settle("rx_filtered", number)
                continue
            busy.append(rxq)
            delivered = rxq.deliver(arrivals.part(chosen), self._clock_ns())
            self._account(number, delivered)
        if busy:
            self._busy = busy
