# SPDX-License-Identifier: MIT
"""The transmit path: descriptors, gathered into frames with their checksums finished, to the wire.

Each frame ends in exactly one of: ``tx_frames`` (``tx_looped`` of them by the MAC's loopback),
``tx_link_down``, ``tx_wire_drops``, ``tx_dropped`` (malformed), ``tx_internal_drops`` (a bug of
the model: 0).
"""

from __future__ import annotations

from collections.abc import Callable

from harness.nic import datapath, offload
from harness.nic.compiled import Compiled
from harness.nic.datapath import MAX_TX_FRAME, Stage
from harness.nic.journal import Journal
from harness.nic.memory import GuestAccessError, GuestMemory
from harness.nic.queues import ESF_DZ_EV_CODE, DescriptorQueue, DmaRing, EventQueue
from harness.nic.registers import Field
from harness.nic.stats import MacStats
from harness.nic.wire import SlotRing, Wire

EV_CODE_TX = 2
ESF_DZ_TX_QLABEL = Field(16, 5)
ESF_DZ_TX_DESCR_INDX = Field(0, 16)
ESF_DZ_TX_DESC_IS_OPT = Field(63, 1)
ESF_DZ_TX_OPTION_TYPE = Field(60, 3)
ESF_DZ_TX_OPTION_UDP_TCP_CSUM = Field(1, 1)
ESF_DZ_TX_OPTION_IP_CSUM = Field(0, 1)
ESF_DZ_TX_KER_CONT = Field(62, 1)
ESF_DZ_TX_KER_BYTE_CNT = Field(48, 14)
ESF_DZ_TX_KER_BUF_ADDR = Field(0, 48)
TX_OPTION_DESC_CRC_CSUM = 0


class TxQueue(DescriptorQueue):
    """Transmit descriptors, gathered into frames with their checksums finished."""

    def __init__(
        self,
        memory: GuestMemory,
        journal: Journal,
        evq: EventQueue,
        ring: DmaRing,
        *,
        ip_csum: bool,
        l4_csum: bool,
    ) -> None:
        label = ESF_DZ_TX_QLABEL.put(ring.label)
        state = datapath.Txq(ip_csum=ip_csum, l4_csum=l4_csum, label=label)
        super().__init__(memory, journal, evq, ring, state)
        self._label = label
        self._ip_csum = ip_csum
        self._l4_csum = l4_csum
        self._frame = bytearray()
        self._broken = False

    def abandon(self, now_ns: int) -> int:
        """Complete the posted descriptors without sending them; returns how many."""
        left, self._rptr, self._frame = self.posted, self._wptr, bytearray()
        self.state.gathered = self.state.broken = 0
        if left:
            self._complete(now_ns)
        return left

    def transmit_compiled(
        self, compiled: Compiled, limit: int, send: Callable[[Stage], None], now_ns: int
    ) -> None:
        """:meth:`transmit` with many frames at a time."""
        if compiled.transmit(self.address, limit, send):
            self.evq.pushed(now_ns)

    def transmit(self, limit: int, send: Callable[[bytearray], None], now_ns: int) -> None:
        """Pass the frames of up to ``limit`` descriptors to ``send``; one event completes them."""
        count = min(self.posted, limit)
        if not count:
            return
        try:
            at = self._ring.places(self._rptr, count)
            descriptors: list[int] = self._ring.view()[at].tolist()
        except GuestAccessError as error:
            self._journal.note("txq_unmapped", "%s", error)
            self._rptr = self._wptr
            return
        for descriptor in descriptors:
            if descriptor >> 63:
                self._option(descriptor)
            else:
                self._data(descriptor, send)
        self._rptr = (self._rptr + count) & self._ring.mask
        self._complete(now_ns)

    def _complete(self, now_ns: int) -> None:
        self.evq.push_one(
            ESF_DZ_EV_CODE.put(EV_CODE_TX)
            | self._label
            | ESF_DZ_TX_DESCR_INDX.put((self._rptr - 1) & self._ring.mask),
            now_ns,
        )

    def _option(self, descriptor: int) -> None:
        if ESF_DZ_TX_OPTION_TYPE.of(descriptor) == TX_OPTION_DESC_CRC_CSUM:
            self._ip_csum = bool(ESF_DZ_TX_OPTION_IP_CSUM.of(descriptor))
            self._l4_csum = bool(ESF_DZ_TX_OPTION_UDP_TCP_CSUM.of(descriptor))
        else:
            self._journal.note("tx_bad_option", "descriptor %#x", descriptor)

    def _data(self, descriptor: int, send: Callable[[bytearray], None]) -> None:
        length = ESF_DZ_TX_KER_BYTE_CNT.of(descriptor)
        frame = self._frame
        if len(frame) + length > MAX_TX_FRAME:
            self._broken = True
            self._journal.note("tx_bad_buffer", "a frame of more than %d octets", MAX_TX_FRAME)
        else:
            try:
                frame += self._memory.read(ESF_DZ_TX_KER_BUF_ADDR.of(descriptor), length)
            except GuestAccessError as error:
                self._broken = True
                self._journal.note("tx_bad_buffer", "%s", error)
        if ESF_DZ_TX_KER_CONT.of(descriptor):
            return
        self._frame = bytearray()
        if self._broken or len(frame) < offload.ETH_HLEN:
            self._broken = False
            self._journal.count("tx_dropped")
            return
        if self._ip_csum or self._l4_csum:
            offload.finish_checksums(frame, ip=self._ip_csum, l4=self._l4_csum)
        if len(frame) < offload.ETH_ZLEN:
            frame.extend(bytes(offload.ETH_ZLEN - len(frame)))
        send(frame)


class Transmitter:
    """Moves the frames of transmit queues to ``wire``, or to the MAC's loopback."""

    def __init__(
        self,
        wire: Wire,
        journal: Journal,
        stats: MacStats,
        clock_ns: Callable[[], int],
        compiled: Compiled | None,
        *,
        link_up: Callable[[], bool],
        looped: Callable[[], SlotRing | None],
    ) -> None:
        self._wire = wire
        self._journal = journal
        self._stats = stats
        self._clock_ns = clock_ns
        self._compiled = compiled
        self._link_up = link_up
        self._looped = looped

    def transmit(self, txq: TxQueue, limit: int) -> None:
        """Send what the driver has queued, at most ``limit`` descriptors."""
        try:
            if self._compiled:
                txq.transmit_compiled(self._compiled, limit, self._send_staged, self._clock_ns())
            else:
                self._transmit(txq, limit)
        except Exception as error:  # noqa: BLE001 - costs what this queue had posted
            self._journal.mistake(error)
            self._journal.count("tx_internal_drops", txq.abandon(self._clock_ns()))

    def _transmit(self, txq: TxQueue, limit: int) -> None:
        sent: list[tuple[int, int]] = []

        def send(frame: bytearray) -> None:
            if self._send(frame):
                sent.append((int.from_bytes(frame[:6], "big"), len(frame)))

        try:
            txq.transmit(limit, send, self._clock_ns())
        finally:
            if sent:
                self._journal.count("tx_frames", len(sent))
                self._stats.sent(sent)

    def _send_staged(self, stage: Stage) -> None:
        """:meth:`_send` and count many frames."""
        compiled, total = self._compiled, int(stage.count)
        assert compiled is not None
        if self._looped() is not None or not self._link_up():
            runs = [(index, 1) for index in range(total) if self._send(stage.frame(index))]
        else:
            runs = self._wire.send_staged(compiled.code, stage)
            refused = total - sum(number for _, number in runs)
            if refused:
                self._journal.count("tx_wire_drops", refused)
        for first, number in runs:
            compiled.count_sent(first, number)
            self._journal.count("tx_frames", number)

    def _send(self, frame: bytearray) -> bool:
        looped = self._looped()
        if looped is not None and looped.put(frame):
            self._journal.count("tx_looped")
            return True
        if not self._link_up():
            self._journal.count("tx_link_down")
            return False
        if looped is None and self._wire.send(frame):
            return True
        self._journal.count("tx_wire_drops")
        return False
