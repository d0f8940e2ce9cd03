# SPDX-License-Identifier: MIT
"""The device: queues, filters, MAC and link, joined to registers, MCDI and wire.

Hides which part owns what: resets of all kinds, creation and removal of queues, link
changes, and who is notified. The receive path is in ``receive``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from harness.nic import commands, datapath, faults, pci, queues, registers
from harness.nic.commands import MAX_VIS, TMR_NS_PER_COUNT
from harness.nic.compiled import Compiled
from harness.nic.datapath import Datapath
from harness.nic.injection import Card, Injector
from harness.nic.journal import Journal
from harness.nic.mcdi import EINVAL, ENOENT, Command, Mcdi, McdiError
from harness.nic.memory import GuestAccessError, GuestMemory
from harness.nic.phy import Phy
from harness.nic.receive import Receiver
from harness.nic.registers import Field, Register, RegisterFile
from harness.nic.repeat import WireRate
from harness.nic.stats import GENERATION_START, MacStats
from harness.nic.steering import Steering
from harness.nic.transmit import Transmitter, TxQueue
from harness.nic.wire import Wire, loopback

TX_BUDGET = 256
"""Descriptors of a transmit queue in one pass."""
_WARM_BOOT = 0xB0070000
_DEFAULT_MAX_FRAME = 1518

_COUNTERS = (
    "rx_frames", "rx_delivered", "rx_nodesc", "rx_filtered", "rx_oversize", "rx_link_down",
    "rx_truncated", "rx_bad_buffer", "rx_flushed", "rx_internal_drops", "repeat_taken",
    "repeat_delivered", "repeat_lost", "tx_frames", "tx_looped", "tx_wire_drops", "tx_dropped",
    "tx_link_down", "tx_internal_drops", "evq_overrun", "mcdi_requests", "mcdi_unknown",
    "register_unknown", "clients_refused", "internal_errors",
)  # fmt: skip

_CODE_CMDDONE, _CODE_LINKCHANGE, _CODE_TX_FLUSH, _CODE_RX_FLUSH = 3, 4, 12, 16
_CMDDONE_SEQ, _CMDDONE_DATALEN, _CMDDONE_ERRNO = Field(0, 8), Field(8, 8), Field(16, 8)

_Queue = TypeVar("_Queue")


class Nic:
    """One virtual EF10 function on one wire.

    Args:
        mac: its permanent address.
        bare: it has BARs and MSI-X table itself, because its client keeps neither.
        clock_ns: monotonic time, for hold-offs and periodic statistics.
        path: what moves frames; None: what the environment asks for.
    """

    def __init__(
        self,
        wire: Wire,
        mac: bytes,
        *,
        journal: Journal | None = None,
        bare: bool = False,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        path: Datapath | None = None,
    ) -> None:
        self.mac = mac
        self.journal = journal or Journal()
        self.memory = GuestMemory()
        self.config = pci.ConfigSpace(
            self.journal, self._function_reset, self._power_changed, bare=bare
        )
        self.interrupts: pci.Vectors = (
            pci.MsixTable(self.journal, lambda: self.config.msix_enabled)
            if bare
            else pci.Interrupts(self.journal)
        )
        self.steering = Steering()
        self.phy = Phy(self._link_changed, self.entity_reset)
        self._wire = wire
        self._clock_ns = clock_ns
        self._stats = MacStats()
        self.path = path or datapath.chosen()
        library = self.path.code
        self._compiled = (
            Compiled(library, self.memory, self.journal, self._stats) if library else None
        )
        self._evqs: dict[int, queues.EventQueue] = {}
        self._held_off: set[queues.EventQueue] = set()
        self._rxqs: dict[int, queues.RxQueue] = {}
        self._txqs: dict[int, TxQueue] = {}
        self._tx_todo: dict[int, TxQueue] = {}
        self._receiver = Receiver(
            wire, self.journal, self._stats, self.steering, self._rxqs, clock_ns,
            self._compiled,
        )  # fmt: skip
        self._transmitter = Transmitter(
            wire, self.journal, self._stats, clock_ns, self._compiled,
            link_up=lambda: self.link_up, looped=lambda: self._receiver.looped,
        )  # fmt: skip
        self.injector = Injector(
            Card(
                plug=self.phy.plug,
                evqs=self._evqs,
                rxqs=self._rxqs,
                txqs=self._txqs,
                mc_reboot=self.mc_reboot,
                conditions_changed=self._conditions_changed,
            ),
            self.journal,
            clock_ns,
        )
        self._commands = commands.Commands(self)
        self._mcdi = Mcdi(
            self.memory, self.journal, self._commands.table, self._mcdi_completed, self.injector
        )
        self._warm_boots = 1
        self._mastered = True
        self._stats_period: tuple[int, int, int] | None = None  # address, qwords, period
        self._stats_due_ns = 0
        self._registers = self._register_file()

    def _register_file(self) -> RegisterFile:
        status = Register("BIU_MC_SFT_STATUS", 4, read=lambda _: _WARM_BOOT | self._warm_boots)
        return RegisterFile(
            self.journal,
            vis=MAX_VIS,
            function={
                registers.ER_DZ_BIU_HW_REV_ID: Register("BIU_HW_REV_ID", 4, read=lambda _: 0),
                registers.ER_DZ_BIU_MC_SFT_STATUS: status,
                registers.ER_DZ_BIU_MC_SFT_STATUS + 4: status,
                registers.ER_DZ_BIU_INT_ISR: Register("BIU_INT_ISR", 4, read=lambda _: 0),
                registers.ER_DZ_MC_DB_LWRD: Register(
                    "MC_DB_LWRD", 4, write=lambda _, value: self._mcdi.write_high(value)
                ),
                registers.ER_DZ_MC_DB_HWRD: Register(
                    "MC_DB_HWRD", 4, write=lambda _, value: self._command(value)
                ),
            },
            per_vi={
                registers.ER_DZ_EVQ_RPTR: Register(
                    "EVQ_RPTR", 4, write=self._evq_rptr, last_counts=True
                ),
                registers.ER_DZ_EVQ_TMR: Register("EVQ_TMR", 4, write=self._evq_tmr),
                registers.ER_DZ_RX_DESC_UPD: Register(
                    "RX_DESC_UPD", 4, write=self._rx_desc_upd, last_counts=True
                ),
                # The pushed descriptor is also in the ring, and is read from there.
                registers.ER_DZ_TX_DESC_UPD: Register("TX_DESC_UPD", 8, write=lambda _, __: None),
                registers.ER_DZ_TX_DESC_UPD_DWORD: Register(
                    "TX_DESC_UPD_DWORD", 8, write=self._tx_desc_upd, last_counts=True
                ),
            },
        )

    # Called by the client: transport.Device.

    def map(self, start: int, size: int, *, writable: bool, fd: int | None, offset: int) -> None:
        self.memory.map(start, size, writable=writable, fd=fd, offset=offset)

    def unmap(self, start: int, size: int) -> None:
        self.memory.unmap(start, size)

    def unmap_all(self) -> None:
        self.memory.unmap_all()

    def region_read(self, region: int, offset: int, octets: int) -> bytes:
        if self.injector.removed:
            return b"\xff" * octets
        if region == pci.CONFIG_REGION:
            return self.config.read(offset, octets)
        if not self.config.awake:
            self.journal.note("region_asleep", "read of region %d in D3hot", region)
            return b"\xff" * octets
        if region == pci.BAR2:
            return self._registers.read(offset, octets)
        if region == pci.BAR4:
            return self.interrupts.read(offset, octets)
        return bytes(octets)

    def region_write(self, region: int, offset: int, data: bytes | bytearray) -> None:
        if self.injector.removed:
            return
        if region == pci.CONFIG_REGION:
            self.config.write(offset, data)
            self.interrupts.settle()
        elif not self.config.awake:
            self.journal.note("region_asleep", "write to region %d in D3hot", region)
        elif region == pci.BAR2:
            self._registers.write(offset, data)
        elif region == pci.BAR4:
            self.interrupts.write(offset, data)

    def write_dwords(self, offsets: list[int], values: list[int]) -> None:
        """Many writes of four octets to BAR2, as if made in this order."""
        if self.config.awake and not self.injector.removed:
            self._registers.write_dwords(offsets, values)
        else:
            for offset in offsets:
                self.region_write(pci.BAR2, offset, bytes(4))

    def reset(self) -> None:
        """VFIO_USER_DEVICE_RESET: as at power-on, except for the cable."""
        self.journal.tell("device_resets", "by the client")
        self.config.reset()
        self._function_reset()

    def client_gone(self) -> None:
        """Release everything of the client's."""
        self._function_reset()
        self.memory.unmap_all()
        self.interrupts.disable()

    def _command(self, value: int) -> None:
        self._mcdi.doorbell(value)
        self.steering.stale = True

    # Called by MCDI: commands.Function.

    def entity_reset(self) -> None:
        self._evqs.clear()
        self._held_off.clear()
        self._rxqs.clear()
        self._txqs.clear()
        self._tx_todo.clear()
        self._receiver.queues_changed()
        self._receiver.flush()
        self._stats_period = None
        self.steering.reset()

    def mc_reboot(self) -> None:
        """Restart the management CPU: its allocations are gone, and its boot count shows it."""
        self.journal.tell("mc_reboots", "")
        self._warm_boots = (self._warm_boots + 1) & 0xFFFF
        self.injector.rebooted()
        self._commands.reset()
        self.entity_reset()
        self._port_reset()

    def init_evq(self, instance: int, *, start: int, entries: int, vector: int) -> None:
        if vector >= pci.VECTORS:
            raise McdiError(EINVAL, f"vector {vector}")
        evq = self._made(
            lambda: queues.EventQueue(
                self.memory,
                self.journal,
                start=start,
                entries=entries,
                interrupt=lambda: self.interrupts.raise_vector(vector),
                held_off=self._held_off,
            )
        )
        self.fini_queue("evq", instance)
        self._evqs[instance] = evq
        start_up = queues.ESF_DZ_EV_CODE.put(queues.EV_CODE_DRIVER)
        start_up |= queues.ESF_DZ_DRV_SUB_CODE.put(queues.DRV_START_UP_EV) | instance
        evq.push_one(start_up, self._clock_ns())

    def init_rxq(self, instance: int, ring: queues.DmaRing, *, scatter: bool) -> None:
        evq = self._evq(ring.evq)
        self._rxqs[instance] = self._made(
            lambda: queues.RxQueue(
                self.memory, self.journal, evq, ring, scatter=scatter, compiled=self._compiled
            )
        )
        self._receiver.queues_changed()

    def init_txq(
        self, instance: int, ring: queues.DmaRing, *, ip_csum: bool, l4_csum: bool
    ) -> None:
        evq = self._evq(ring.evq)
        self._tx_todo.pop(instance, None)
        self._txqs[instance] = self._made(
            lambda: TxQueue(self.memory, self.journal, evq, ring, ip_csum=ip_csum, l4_csum=l4_csum)
        )

    def fini_queue(self, kind: str, instance: int) -> bool:
        """Remove a queue; for a receive or transmit queue its event queue gets a flush event."""
        if kind == "evq":
            gone = self._evqs.pop(instance, None)
            if gone:
                gone.close()
            return gone is not None
        of_kind: dict[int, queues.RxQueue] | dict[int, TxQueue]
        of_kind, code = (
            (self._rxqs, _CODE_RX_FLUSH) if kind == "rxq" else (self._txqs, _CODE_TX_FLUSH)
        )
        queue = of_kind.pop(instance, None)
        if queue is None:
            return False
        if kind == "rxq":
            self._receiver.queues_changed()
        else:
            self._tx_todo.pop(instance, None)
        queue.evq.push_one(queues.mcdi_event(code) | instance, self._clock_ns())
        return True

    def write_evq_timer(self, instance: int, mode: int, holdoff_ns: int) -> None:
        self._evq(instance).write_timer(mode, holdoff_ns)

    def push_event(self, evq: int, event: int) -> bool:
        target = self._evqs.get(evq)
        if target is None:
            return False
        target.push_one(event, self._clock_ns())
        return True

    def trigger_interrupt(self, vector: int) -> bool:
        if vector >= pci.VECTORS:
            return False
        self.interrupts.raise_vector(vector)
        return True

    def set_max_frame(self, octets: int) -> None:
        """SET_MAC's MTU: the longest frame that the MAC accepts, including FCS."""
        self._receiver.max_frame = min(max(octets, 64), 9216 + 64)
        try:
            self._wire.resize(self._receiver.max_frame)
        except OSError as error:
            self.journal.note("wire_resize_failed", "%s", error)

    def mac_stats(self, address: int, qwords: int, *, clear: bool) -> bytes:
        """Write the statistics to ``address``: the last generation count first, the first one
        last."""
        self._wire.refresh()
        drops = self._wire.ring_drops + self.journal.counts["repeat_lost"]
        if clear:
            self._stats.clear(drops)
        if not qwords:
            return b""
        image = self._stats.image(qwords, drops)
        try:
            self.memory.write(address + len(image) - 8, image[-8:])
            self.memory.write(address + 8, image[8:-8])
            self.memory.write(address + 8 * GENERATION_START, image[:8])
        except GuestAccessError as error:
            self.journal.note("stats_bad_address", "%s", error)
        return image

    def mac_stats_period(self, address: int, qwords: int, period_ms: int) -> None:
        self._stats_period = (address, qwords, max(period_ms, 10)) if period_ms else None
        self._stats_due_ns = self._clock_ns() + max(period_ms, 10) * 1_000_000

    # Called by the server.

    @property
    def link_up(self) -> bool:
        return self.phy.up

    def set_link(self, up: bool) -> None:
        """Plug or unplug the cable."""
        self.phy.plug(up)

    def _link_changed(self) -> None:
        self._apply_link()
        speed = self.phy.speed_mbps
        self.journal.tell("link_changes", "%s", f"up, {speed} Mbit/s" if speed else "down")
        self.push_event(0, queues.mcdi_event(_CODE_LINKCHANGE) | self.phy.event())

    def _apply_link(self) -> None:
        receiver = self._receiver
        receiver.carries = self.phy.carries
        receiver.link_mbps = self.phy.speed_mbps
        if not self.phy.looped:
            receiver.looped = None
        elif receiver.looped is None:
            receiver.looped = loopback()

    def _power_changed(self) -> None:
        """Bus mastering or the power state may have changed."""
        masters_bus = self.config.masters_bus
        if masters_bus != self._mastered:
            self._mastered = masters_bus
            self.journal.tell("bus_mastering", "%s", "on" if masters_bus else "off")
            self._conditions_changed()

    def _conditions_changed(self) -> None:
        """Decide whether memory, interrupts and descriptors are usable."""
        injector = self.injector
        usable = self._mastered and not injector.removed
        reachable = usable and not injector.cut_off
        if reachable != self.memory.reachable:
            self.memory.reachable = reachable
        self.interrupts.sending = usable and not injector.muted
        self.interrupts.settle()
        self._receiver.stalled = not reachable or injector.starved or injector.halted

    @property
    def commands(self) -> Mapping[int, Command]:
        """The MCDI commands, by number."""
        return self._commands.table

    @property
    def asserted(self) -> bool:
        """The management CPU has failed an assertion."""
        return self.injector.asserted

    def next_due_ns(self) -> int | None:
        """When :meth:`tick` is due; None: it has nothing to do."""
        due = [self._stats_due_ns] if self._stats_period else []
        due += [evq.due_ns for evq in self._held_off if evq.due_ns is not None]
        if (injected_ns := self.injector.due_ns()) is not None:
            due.append(injected_ns)
        return min(due, default=None)

    def tick(self) -> None:
        """Send the held-off interrupts and periodic statistics that are due."""
        now_ns = self._clock_ns()
        self.injector.tick(now_ns)
        for evq in list(self._held_off):
            if evq.due_ns is not None and evq.due_ns <= now_ns:
                evq.expire()
        if self._stats_period and self._stats_due_ns <= now_ns:
            address, qwords, period_ms = self._stats_period
            self._stats_due_ns = now_ns + period_ms * 1_000_000
            if self.memory.reachable:
                self.mac_stats(address, qwords, clear=False)

    @property
    def wants_to_transmit(self) -> bool:
        return bool(self._tx_todo) and self.memory.reachable and not self.injector.halted

    def transmit(self, limit: int = TX_BUDGET) -> None:
        """Send what the driver has queued, at most ``limit`` descriptors per queue."""
        if not self.wants_to_transmit:
            return
        for instance, txq in list(self._tx_todo.items()):
            self._transmitter.transmit(txq, limit)
            if not txq.posted:
                del self._tx_todo[instance]

    @property
    def starved(self) -> bool:
        """See :attr:`Receiver.starved`."""
        return self._receiver.starved

    @property
    def blocked(self) -> bool:
        """See :attr:`Receiver.blocked`."""
        return self._receiver.blocked

    @property
    def repeating(self) -> bool:
        """See :attr:`Receiver.repeating`."""
        return self._receiver.repeating

    @property
    def repeats(self) -> bool:
        """Whether the wire repeats streams."""
        return self._receiver.repeater.on

    @property
    def patience_ns(self) -> int:
        """See :attr:`Receiver.patience_ns`."""
        return self._receiver.patience_ns

    def pace_wire(self, *, repeat: int, burst: int) -> None:
        """Set how often each datagram of a stream is delivered (0: without limit), and the
        size of bursts (0: as they come)."""
        self._receiver.repeater.times = repeat
        self._receiver.burst = burst

    def pace_repetition(self, pps: float | None) -> None:
        """Deliver so many repeated frames per second; None: as many as the link carries."""
        self._receiver.rate = None if pps is None else WireRate(pps)

    def receive(self) -> int:
        """One pass over the waiting frames; returns how many left the packet buffer."""
        return self._receiver.receive()

    def counters(self) -> dict[str, int]:
        """All counts since the start, by name."""
        self._wire.refresh()
        found = dict.fromkeys(_COUNTERS, 0) | self.journal.counts
        found["interrupts"] = self.interrupts.raised
        found["guest_pages_lost"] = faults.lost_pages()
        found["wire_ring_drops"] = self._wire.ring_drops
        found["wire_frames"] = self._wire.frames
        return found

    def _rung(self, register: str, of_vi: dict[int, _Queue], vi: int) -> _Queue | None:
        """The queue whose doorbell was written, if it exists."""
        found = of_vi.get(vi)
        if found is None:
            self.journal.note("doorbell_no_queue", "%s of %d", register, vi)
        return found

    def _evq_rptr(self, vi: int, value: int) -> None:
        if evq := self._rung("EVQ_RPTR", self._evqs, vi):
            evq.write_rptr(registers.ERF_DZ_EVQ_RPTR.of(value), self._clock_ns())

    def _evq_tmr(self, vi: int, value: int) -> None:
        if evq := self._rung("EVQ_TMR", self._evqs, vi):
            evq.write_timer(
                registers.ERF_DZ_TC_TIMER_MODE.of(value),
                registers.ERF_DZ_TC_TIMER_VAL.of(value) * TMR_NS_PER_COUNT,
            )

    def _rx_desc_upd(self, vi: int, value: int) -> None:
        if rxq := self._rung("RX_DESC_UPD", self._rxqs, vi):
            rxq.write_wptr(registers.ERF_DZ_RX_DESC_WPTR.of(value))

    def _tx_desc_upd(self, vi: int, value: int) -> None:
        if txq := self._rung("TX_DESC_UPD", self._txqs, vi):
            txq.write_wptr(registers.ERF_DZ_TX_DESC_WPTR_DWORD.of(value))
            self._tx_todo[vi] = txq

    def _mcdi_completed(self, sequence: int, length: int, failed: int) -> None:
        self.push_event(
            0,
            queues.mcdi_event(_CODE_CMDDONE)
            | _CMDDONE_SEQ.put(sequence)
            | _CMDDONE_DATALEN.put(length)
            | _CMDDONE_ERRNO.put(failed),
        )

    def _evq(self, instance: int) -> queues.EventQueue:
        found = self._evqs.get(instance)
        if found is None:
            raise McdiError(ENOENT, f"no event queue {instance}")
        return found

    @staticmethod
    def _made(make: Callable[[], _Queue]) -> _Queue:
        try:
            return make()
        except GuestAccessError as error:
            raise McdiError(EINVAL, str(error)) from error

    def _function_reset(self) -> None:
        self._commands.reset()
        self._mcdi.reset()
        self.entity_reset()
        self._port_reset()
        # Before _power_changed, so that interrupts that wait for bus mastering are dropped.
        self.interrupts.reset()
        self._power_changed()

    def _port_reset(self) -> None:
        self.phy.reset()
        self._apply_link()
        self.set_max_frame(_DEFAULT_MAX_FRAME)
