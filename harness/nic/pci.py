# SPDX-License-Identifier: MIT
"""The PCI function: configuration space, regions and MSI-X interrupts.

Hides the reset values and write masks of configuration space, and how vectors reach
the client. QEMU keeps BARs and MSI-X table itself (:class:`Interrupts`); it masks and
unmasks a vector by removing and restoring its eventfd. Any other client sees a *bare*
function, which has BARs and table (:class:`MsixTable`) itself. An interrupt that cannot
be sent stays pending and is visible in the PBA.
"""

from __future__ import annotations

import abc
import contextlib
import os
import struct
from collections.abc import Callable

from harness.nic.journal import Journal

VECTORS = 32

BAR0, BAR2, BAR4, CONFIG_REGION = 0, 2, 4, 7
REGION_SIZES = {BAR0: 256, BAR2: 8 << 20, BAR4: 16 << 10, CONFIG_REGION: 4096}
REGIONS = 9

MSIX_IRQ_INDEX = 2
IRQ_COUNTS = (0, 0, VECTORS, 0, 0)  # INTx, MSI, MSI-X, ERR, REQ

_PBA = 0x2000
_SOLARFLARE, _SFC9140 = 0x1924, 0x0923
_PM, _PCIE, _MSIX = 0x40, 0x70, 0xB0
_COMMAND, _PMCSR, _DEVCTL, _LNKCTL, _MSIX_CTRL = 0x04, _PM + 4, _PCIE + 8, _PCIE + 16, _MSIX + 2
_DEVCTL_FLR = 0x8000
_BUS_MASTER = 0x0004
_POWER_STATE, _D0, _D3HOT = 0x0003, 0, 3

# offset of a 16-bit register → writable bits.
_WRITABLE = {
    _COMMAND: 0x0547,
    0x0C: 0x00FF,  # cache line size
    0x3C: 0x00FF,  # interrupt line
    _PMCSR: 0x0003,
    _DEVCTL: 0x7FFF,
    _LNKCTL: 0x0FFF,
    _PCIE + 0x28: 0xFFFF,  # device control 2
    _MSIX_CTRL: 0xC000,
}
# A BAR's address is a multiple of its size: the lower bits are not writable, which
# reveals the size. Only for clients that do not keep the BARs themselves.
_WRITABLE_BARS = {
    at + 2 * word: (~(REGION_SIZES[bar] - 1) >> 16 * word) & 0xFFFF
    for bar, at in ((BAR2, 0x18), (BAR4, 0x20))
    for word in range(4)
}
_MSIX_ENABLE, _MSIX_MASKALL = 0x8000, 0x4000
_ENTRY = struct.Struct("<QII")  # address, data, vector control
_ENTRY_MASKED = 1


def _reset_values() -> bytearray:
    config = bytearray(REGION_SIZES[CONFIG_REGION])
    put = struct.pack_into
    put("<HHHHBBBB", config, 0x00, _SOLARFLARE, _SFC9140, 0, 0x0010, 1, 0, 0x00, 0x02)
    put("<I", config, 0x10, 0x1)  # BAR0: I/O
    put("<I", config, 0x18, 0x4)  # BAR2: memory, 64 bits
    put("<I", config, 0x20, 0x4)  # BAR4: memory, 64 bits
    put("<HH", config, 0x2C, _SOLARFLARE, 0x8011)
    put("<B", config, 0x34, _PM)
    put("<BBHHH", config, _PM, 0x01, _PCIE, 0x0003, 0x0008, 0)  # no soft reset
    # Endpoint, version 2; function-level reset; link: width x8, 8 GT/s.
    put("<BBHIHH", config, _PCIE, 0x10, _MSIX, 0x0002, 0x10008002, 0x2810, 0)
    put("<IHH", config, _PCIE + 12, 0x00000083, 0, 0x0083)
    put("<I", config, _PCIE + 0x2C, 0x0000000E)
    put("<HH", config, _PCIE + 0x30, 0x0003, 0)
    put("<BBHII", config, _MSIX, 0x11, 0, VECTORS - 1, BAR4, _PBA | BAR4)
    return config


class ConfigSpace:
    """Configuration space.

    Args:
        function_reset: called for a function-level reset.
        power_changed: called when ``awake`` or ``masters_bus`` may have changed.
        bare: it has its own BARs, but no I/O BAR, because its client has no I/O space.
    """

    def __init__(
        self,
        journal: Journal,
        function_reset: Callable[[], None],
        power_changed: Callable[[], None],
        *,
        bare: bool = False,
    ) -> None:
        self._journal = journal
        self._function_reset = function_reset
        self._power_changed = power_changed
        self._bare = bare
        self._writable = _WRITABLE | _WRITABLE_BARS if bare else _WRITABLE
        self.reset()

    def reset(self) -> None:
        self._config = _reset_values()
        self._commanded = False
        if self._bare:
            self._config[0x10:0x14] = bytes(4)

    @property
    def msix_enabled(self) -> bool:
        """MSI-X is enabled and the function mask is clear."""
        control = int.from_bytes(self._config[_MSIX_CTRL : _MSIX_CTRL + 2], "little")
        return control & (_MSIX_ENABLE | _MSIX_MASKALL) == _MSIX_ENABLE

    @property
    def awake(self) -> bool:
        """In D0; in D3hot a function answers only configuration accesses."""
        return not self._config[_PMCSR] & _POWER_STATE

    @property
    def masters_bus(self) -> bool:
        """The function may read and write memory, and therefore interrupt.

        It also may as long as the client has not written the command register since the
        reset: then it only does what the client starts by doorbells.
        """
        return self.awake and (not self._commanded or bool(self._config[_COMMAND] & _BUS_MASTER))

    def read(self, offset: int, octets: int) -> bytes:
        return bytes(self._config[offset : offset + octets])

    def write(self, offset: int, data: bytes | bytearray) -> None:
        flr = power = False
        for at in range(offset & ~1, offset + len(data), 2):
            mask = self._writable.get(at, 0)
            value = mask_of_written = 0
            for index in (at, at + 1):
                if offset <= index < offset + len(data):
                    value |= data[index - offset] << 8 * (index - at)
                    mask_of_written |= 0xFF << 8 * (index - at)
            flr |= at == _DEVCTL and bool(value & _DEVCTL_FLR)
            mask &= mask_of_written
            if at == _PMCSR and value & _POWER_STATE not in (_D0, _D3HOT):
                mask &= ~_POWER_STATE  # neither D1 nor D2 is supported
            power |= bool(mask) and at in (_COMMAND, _PMCSR)
            self._commanded |= bool(mask) and at == _COMMAND
            old = int.from_bytes(self._config[at : at + 2], "little")
            self._config[at : at + 2] = (old & ~mask | value & mask).to_bytes(2, "little")
        if flr:
            self._journal.tell("function_level_resets", "by the driver")
            command = bytes(self._config[_MSIX_CTRL : _MSIX_CTRL + 2])
            self.reset()
            if not self._bare:  # QEMU tracks MSI-X itself and does not see this reset.
                self._config[_MSIX_CTRL : _MSIX_CTRL + 2] = command
            self._function_reset()
        elif power:
            self._power_changed()


class Vectors(abc.ABC):
    """The function's interrupts; those that cannot be sent stay pending.

    Attributes:
        sending: whether the function may send interrupts.
        raised: how many were raised, sent or not.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._pending = 0
        self.sending = True
        self.raised = 0

    def raise_vector(self, vector: int) -> None:
        if not 0 <= vector < VECTORS:
            self._journal.note("irq_bad_vector", "vector %d", vector)
            return
        self.raised += 1
        if not self.sending or not self._sent(vector):
            self._pending |= 1 << vector

    def settle(self) -> None:
        """Try again to send pending interrupts."""
        pending = self._pending if self.sending else 0
        while pending:
            lowest = pending & -pending
            pending ^= lowest
            if self._sent(lowest.bit_length() - 1):
                self._pending ^= lowest

    def reset(self) -> None:
        """Back to the state at power-on, except for what the client keeps."""
        self._pending = 0

    def read(self, offset: int, octets: int) -> bytes:
        """Octets of BAR4; everything but table and pending bits reads as 0."""
        bar = bytearray(REGION_SIZES[BAR4])
        bar[_PBA : _PBA + 8] = self._pending.to_bytes(8, "little")
        return bytes(bar[offset : offset + octets])

    @abc.abstractmethod
    def write(self, offset: int, data: bytes | bytearray) -> None:
        """Write to BAR4."""

    @abc.abstractmethod
    def disable(self) -> None:
        """To be called when the client has left."""

    @abc.abstractmethod
    def _sent(self, vector: int) -> bool:
        """Send an interrupt; False if that is not possible now."""


class Interrupts(Vectors):
    """MSI-X vectors with their eventfds, for a client that keeps the table."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self._fds: list[int | None] = [None] * VECTORS

    def assign(self, vector: int, fd: int | None) -> None:
        """Set the eventfd of a vector (owned from now on), or remove it."""
        old = self._fds[vector]
        self._fds[vector] = fd
        if old is not None:
            os.close(old)
        if fd is not None:
            os.set_blocking(fd, False)  # a client must not be able to stop the model
            self.settle()

    def disable(self) -> None:
        """Forget all eventfds and all pending interrupts."""
        for vector in range(VECTORS):
            self.assign(vector, None)
        self._pending = 0

    def write(self, offset: int, data: bytes | bytearray) -> None:
        """Does nothing: the client keeps the table, and pending bits are read-only."""

    def _sent(self, vector: int) -> bool:
        fd = self._fds[vector]
        if fd is None:
            return False
        # If the eventfd's counter is full, the client has notifications enough.
        with contextlib.suppress(OSError):
            os.write(fd, b"\1\0\0\0\0\0\0\0")
        return True


class MsixTable(Vectors):
    """The MSI-X table in BAR4, for a client that does not keep it.

    Args:
        enabled: whether MSI-X is enabled and the function mask is clear.

    Attributes:
        send: called with (address, data) of an unmasked vector; returns False if the
            client has no room for it, which leaves it pending.
    """

    def __init__(self, journal: Journal, enabled: Callable[[], bool]) -> None:
        super().__init__(journal)
        self._enabled = enabled
        self.send: Callable[[int, int], bool] = _nobody
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._table = bytearray(_ENTRY.pack(0, 0, _ENTRY_MASKED) * VECTORS)

    def disable(self) -> None:
        self.reset()
        self.send = _nobody

    def read(self, offset: int, octets: int) -> bytes:
        table = self._table[offset : offset + octets]
        return bytes(table) + super().read(offset + len(table), octets - len(table))

    def write(self, offset: int, data: bytes | bytearray) -> None:
        size = min(len(data), len(self._table) - offset)
        if size <= 0:
            self._journal.note("register_read_only", "write to BAR4 at %#x", offset)
            return
        self._table[offset : offset + size] = data[:size]
        self.settle()

    def _sent(self, vector: int) -> bool:
        address, data, control = _ENTRY.unpack_from(self._table, vector * _ENTRY.size)
        if control & _ENTRY_MASKED or not self._enabled():
            return False
        return self.send(address, data)


def _nobody(_address: int, _data: int) -> bool:
    return False
