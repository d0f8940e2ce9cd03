# SPDX-License-Identifier: MIT
"""Transmit queues: descriptors, gathered into frames with their checksums finished."""

from __future__ import annotations

from collections.abc import Callable

from harness.nic import datapath, offload
from harness.nic.compiled import Compiled
from harness.nic.datapath import MAX_TX_FRAME, Stage
from harness.nic.journal import Journal
from harness.nic.memory import GuestAccessError, GuestMemory
from harness.nic.queues import ESF_DZ_EV_CODE, DescriptorQueue, DmaRing, EventQueue
from harness.nic.registers import Field

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
