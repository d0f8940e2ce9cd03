# SPDX-License-Identifier: MIT
"""The memory BAR: registers by the driver's names, fields as (lbn, width).

Hides the address decoding: one table for the function's registers and one for
those of each VI's window. An access is handled, read-only or unknown; the last two
are logged. Source: ef10_regs.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.nic.journal import Journal

VI_STRIDE = 8192
ALL_ONES = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Field:
    """A bit field: lowest bit number and width, as in the driver's headers."""

    lbn: int
    width: int

    def of(self, value: int) -> int:
        """The field's content in ``value``."""
        return (value >> self.lbn) & ((1 << self.width) - 1)

    def put(self, content: int) -> int:
        """``content`` moved to the field's place; excess bits are cut off."""
        return (content & ((1 << self.width) - 1)) << self.lbn


ER_DZ_BIU_HW_REV_ID = 0x000
ER_DZ_BIU_MC_SFT_STATUS = 0x010
ER_DZ_BIU_INT_ISR = 0x090
ER_DZ_MC_DB_LWRD = 0x200
ER_DZ_MC_DB_HWRD = 0x204
ER_DZ_EVQ_RPTR = 0x400
ER_DZ_EVQ_TMR = 0x420
ER_DZ_RX_DESC_UPD = 0x830
ER_DZ_TX_DESC_UPD = 0xA10
ER_DZ_TX_DESC_UPD_DWORD = 0xA18

ERF_DZ_EVQ_RPTR = Field(0, 15)
ERF_DZ_TC_TIMER_MODE = Field(14, 2)
ERF_DZ_TC_TIMER_VAL = Field(0, 14)
ERF_DZ_RX_DESC_WPTR = Field(0, 12)
ERF_DZ_TX_DESC_WPTR_DWORD = Field(0, 12)

FFE_DZ_TC_TIMER_MODE_INT_HLDOFF = 3

# ER_DD_EVQ_INDIRECT is missing: this model does not offer the workaround of bug 35388.
Write = Callable[[int, int], None]
Read = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Register:
    """``write`` takes (VI, value), ``read`` takes (VI); None: not readable or writable.

    ``last_counts``: a doorbell with a ring pointer, so that of several waiting writes
    only the last one matters.
    """

    name: str
    octets: int
    write: Write | None = None
    read: Read | None = None
    last_counts: bool = False


class RegisterFile:
    """Decodes accesses to the memory BAR.

    Args:
        function: offset in the BAR → register.
        per_vi: offset in a VI's window → register.
        vis: the number of windows in the BAR.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        function: dict[int, Register],
        per_vi: dict[int, Register],
        vis: int,
    ) -> None:
        self._journal = journal
        self._function = function
        self._per_vi = per_vi
        self._vis = vis

    def write(self, offset: int, data: bytes | bytearray) -> None:
        vi, at = divmod(offset, VI_STRIDE)
        register = self._per_vi.get(at)
        if register is None and vi == 0:
            register = self._function.get(at)
        if register is None or vi >= self._vis or len(data) > register.octets:
            self._journal.note("register_unknown", "write %#x = %s", offset, data[:16].hex())
        elif register.write is None:
            self._journal.note("register_read_only", "write %s = %s", register.name, data.hex())
        else:
            register.write(vi, int.from_bytes(data, "little"))

    def write_dwords(self, offsets: list[int], values: list[int]) -> None:
        """Many writes of four octets each, in order; skips doorbells that a later one replaces."""
        per_vi = self._per_vi
        if len(offsets) > 1:
            last = dict(zip(offsets, values, strict=True))
            if all(
                (register := per_vi.get(offset % VI_STRIDE)) is not None and register.last_counts
                for offset in last
            ):
                offsets, values = list(last), list(last.values())
        for offset, value in zip(offsets, values, strict=True):
            vi, at = divmod(offset, VI_STRIDE)
            register = per_vi.get(at)
            if register is None or register.write is None or vi >= self._vis:
                self.write(offset, value.to_bytes(4, "little"))
            else:
                register.write(vi, value)

    def read(self, offset: int, octets: int) -> bytes:
        vi, at = divmod(offset, VI_STRIDE)
        register = self._function.get(at) if vi == 0 else None
        value = 0
        if register is None or register.read is None:
            self._journal.note("register_unknown", "read %#x, %d octets", offset, octets)
            value = (1 << 8 * octets) - 1
        else:
            value = register.read(vi)
        return (value & ((1 << 8 * octets) - 1)).to_bytes(octets, "little")
