# SPDX-License-Identifier: MIT
"""A PCI device behind two virtqueues, as the user-mode kernel's ``virt-pci`` drives it.

One queue has the kernel's reads and writes (configuration space and BARs), the other
has interrupts. Sources: include/uapi/linux/virtio_pcidev.h, and
arch/um/drivers/virt-pci.c. The driver behaves as follows:

* It polls the ring for the answer to a read, and does not wait for a posted write. It
  frees the entries of posted writes when it is called, or at its next read. When no entry
  is free it silently drops a write, even a doorbell. So it is called at least every
  :data:`_CALL_EVERY` posted writes.
* It provides ten buffers for interrupts. With none left the vector stays pending.
* It sets BAR memory by a CFG_WRITE that names a BAR (um_pci_bar_set()), where the
  header has MMIO_MEMSET.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import Protocol

from harness.nic import pci
from harness.nic.datapath import Datapath
from harness.nic.journal import Journal
from harness.nic.virtqueue import RingError, Virtqueue

(CFG_READ, CFG_WRITE, MMIO_READ, MMIO_WRITE, MMIO_MEMSET, INT, MSI, PME) = range(1, 9)
MESSAGE = struct.Struct("<BBHIQ")  # op, bar, reserved, size, address
COMMANDS, INTERRUPTS = 0, 1
"""Indices of the queues."""

_CALL_EVERY = 64
_MAX_ANSWER = 4096
_NO_REGION = -1
_DWORD = struct.Struct(MESSAGE.format + "I")  # with the value to write
_LAST_REGISTER = pci.REGION_SIZES[pci.BAR2] - 4
_CALL = (1).to_bytes(8, "little")


class Device(Protocol):
    """What the commands access."""

    @property
    def interrupts(self) -> pci.Vectors: ...
    @property
    def path(self) -> Datapath: ...
    def region_read(self, region: int, offset: int, octets: int) -> bytes: ...
    def region_write(self, region: int, offset: int, data: bytes | bytearray) -> None: ...
    def write_dwords(self, offsets: list[int], values: list[int]) -> None: ...


class Caller:
    """The file descriptor that notifies the driver of a queue."""

    def __init__(self) -> None:
        self._fd: int | None = None

    def assign(self, fd: int | None) -> None:
        """Use another file descriptor (owned from now on), or none."""
        if self._fd is not None:
            os.close(self._fd)
        self._fd = fd
        if fd is not None:
            os.set_blocking(fd, False)  # a client must not be able to stop the model

    def call(self) -> None:
        # It is a pipe; the driver reads eight octets at a time. If it is full, the driver
        # has notifications enough.
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.write(self._fd, _CALL)


class PciDevice:
    """Serves the two queues; one that is not attached is None."""

    def __init__(self, device: Device, journal: Journal) -> None:
        self._device = device
        self._journal = journal
        self.queues: list[Virtqueue | None] = [None, None]
        self.callers = [Caller(), Caller()]
        self._uncalled = 0
        self._short_of_buffers = False
        self._broken: RingError | None = None

    def attach(self, index: int, queue: Virtqueue | None) -> None:
        """Start or stop a queue."""
        self.queues[index] = queue
        if index == INTERRUPTS:
            self._short_of_buffers = True  # to send interrupts that came too early
        if queue is not None:
            queue.quiet(index == INTERRUPTS)

    def serve(self) -> int:
        """Execute the waiting commands; returns how many they were.

        Raises:
            RingError: a ring of the driver is invalid.
        """
        queue = self.queues[COMMANDS]
        if self._short_of_buffers:
            self._device.interrupts.settle()
        if self._broken:
            raise self._broken
        if queue is None:
            return 0
        done = 0
        while done < queue.size and (number := queue.waiting()):
            taken = self._take_posted(queue, number)
            if taken:
                self._uncalled += taken
            else:
                self._one(queue)
            done += taken or 1
            if self._uncalled >= min(_CALL_EVERY, queue.size // 4):
                self._uncalled = 0
                if queue.wants_interrupts:
                    self.callers[COMMANDS].call()
        return done

    def send(self, address: int, data: int) -> bool:
        """Interrupt the driver with a vector's message; False: it has provided no buffer.

        The next :meth:`serve` raises the error of an invalid ring, which the caller of this
        could not handle.
        """
        queue = self.queues[INTERRUPTS]
        if queue is None or self._broken:
            return False
        try:
            return self._send(queue, address, data)
        except RingError as error:
            self._broken = error
            return False

    def _send(self, queue: Virtqueue, address: int, data: int) -> bool:
        if not queue.waiting():
            # From now on the driver must notify of new buffers.
            queue.quiet(False)
            self._short_of_buffers = True
            if not queue.waiting():
                return False
        self._short_of_buffers = False
        queue.quiet(True)
        message = MESSAGE.pack(MSI, 0, 0, 4, address) + data.to_bytes(4, "little")
        queue.answer(queue.take(), message)
        if queue.wants_interrupts:
            self.callers[INTERRUPTS].call()
        return True

    def _take_posted(self, queue: Virtqueue, number: int) -> int:
        """Take and execute posted writes of a dword, which usually are doorbells; how many."""
        library = self._device.path.code
        if library is not None:
            taken, offsets, values = queue.take_writes(library, number, _LAST_REGISTER)
            if taken:
                self._write(offsets, values)
            return taken
        heads, messages = queue.take_messages(number, _DWORD)
        if heads:
            self._posted(messages)
            queue.give(heads)
        return len(heads)

    def _posted(self, messages: list[tuple[int, ...]]) -> None:
        """Execute messages of the size of a posted write."""
        offsets, values = list[int](), list[int]()
        for op, bar, _, size, address, value in messages:
            if op != MMIO_WRITE or bar != pci.BAR2 or size != 4 or address > _LAST_REGISTER:
                break
            offsets.append(address)
            values.append(value)
        else:
            self._write(offsets, values)
            return
        for message in messages:
            self._execute(_DWORD.pack(*message), 0)

    def _write(self, offsets: list[int], values: list[int]) -> None:
        try:
            self._device.write_dwords(offsets, values)
        except Exception as error:  # noqa: BLE001 - as for a single one
            self._journal.mistake(error)

    def _one(self, queue: Virtqueue) -> None:
        chain = queue.take()
        room = sum(octets for _, octets in chain.room)
        queue.answer(chain, self._execute(chain.request, room))
        if not room:
            self._uncalled += 1

    def _execute(self, request: bytes, room: int) -> bytes:
        """Execute one command; returns its answer."""
        if len(request) < MESSAGE.size:
            self._journal.note("pcidev_bad_command", "%d octets", len(request))
            return b"\xff" * min(room, _MAX_ANSWER)
        op, bar, _, size, address = MESSAGE.unpack_from(request)
        data = request[MESSAGE.size :]
        try:
            return self._carry_out(op, bar, size, address, data, min(room, _MAX_ANSWER))
        except Exception as error:  # noqa: BLE001 - the session must continue
            self._journal.mistake(error)
            return b"\xff" * min(room, _MAX_ANSWER)

    def _carry_out(
        self, op: int, bar: int, size: int, address: int, data: bytes, room: int
    ) -> bytes:
        device = self._device
        if op == CFG_WRITE and bar:
            op = MMIO_MEMSET
        region = pci.CONFIG_REGION
        if op in (MMIO_READ, MMIO_WRITE, MMIO_MEMSET):
            region = bar if bar in (pci.BAR2, pci.BAR4) else _NO_REGION
        fits = size > 0 and address + size <= pci.REGION_SIZES.get(region, 0)
        if op in (CFG_READ, MMIO_READ):
            if fits and size <= room:
                return device.region_read(region, address, size)
        elif op in (CFG_WRITE, MMIO_WRITE):
            if fits and size <= len(data):
                device.region_write(region, address, data[:size])
                return b""
        elif op == MMIO_MEMSET and fits and data:
            device.region_write(region, address, data[:1] * size)
            return b""
        self._journal.note(
            "pcidev_bad_command", "op %d, BAR %d, %#x+%d, room %d", op, bar, address, size, room
        )
        return b"\xff" * min(size, room)
