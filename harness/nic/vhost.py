# SPDX-License-Identifier: MIT
"""vhost-user: the messages of one user-mode kernel, and the queues they set up.

Hides framing, negotiation, the table of shared memory and when the rings are polled;
``pcidev`` processes their contents. Sources: docs/interop/vhost-user.rst of QEMU, and
arch/um/drivers/virtio_uml.c, the client. An invalid request is answered with an error.
A stream that cannot be split into messages, or an invalid ring, ends the session.

A kick costs the kernel a system call and wakes the model late. So while commands come,
the rings are polled every :data:`_NAP_NS` and kicks are disabled. After
:data:`_AWAKE_NS` without a command kicks are enabled, and the model sleeps.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from harness.nic import pci
from harness.nic.datapath import Datapath
from harness.nic.journal import Journal
from harness.nic.memory import GuestMemory, MapError
from harness.nic.pcidev import COMMANDS, PciDevice
from harness.nic.stream import SessionEnd, Stream, close_all, is_eventfd
from harness.nic.virtqueue import RingError, Virtqueue

# enum vhost_user_request
GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE = 1, 2, 3, 4, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM = 15, 16, 17
SET_VRING_ENABLE, SET_SLAVE_REQ_FD, GET_CONFIG, SET_CONFIG = 18, 21, 24, 25

F_PROTOCOL_FEATURES, F_VERSION_1 = 1 << 30, 1 << 32
# Without SLAVE_REQ the kernel has no interrupt for the device (virtio_uml.c, vu_dev->irq).
PROTOCOL_F_REPLY_ACK, PROTOCOL_F_SLAVE_REQ = 1 << 3, 1 << 5
FEATURES = F_PROTOCOL_FEATURES | F_VERSION_1
PROTOCOL_FEATURES = PROTOCOL_F_REPLY_ACK | PROTOCOL_F_SLAVE_REQ

_HEADER = struct.Struct("<III")
_REGION = struct.Struct("<QQQQ")
_U64 = struct.Struct("<Q")
_STATE = struct.Struct("<II")
_ADDRESSES = struct.Struct("<IIQQQQ")
_VERSION, _VERSION_MASK, _REPLY, _NEED_REPLY = 1, 3, 4, 8
_MAX_PAYLOAD = 4096
_MAX_REGIONS = 32
_INDEX_MASK, _NO_FD = 0xFF, 1 << 8

_NAP_NS = 10_000
_AWAKE_NS = 300_000
_LOOK_NS = 100_000_000


class Device(Protocol):
    """What a client controls by its messages and queues."""

    memory: GuestMemory

    @property
    def interrupts(self) -> pci.Vectors: ...
    @property
    def path(self) -> Datapath: ...
    def map(
        self, start: int, size: int, *, writable: bool, fd: int | None, offset: int
    ) -> None: ...

    def unmap_all(self) -> None: ...
    def region_read(self, region: int, offset: int, octets: int) -> bytes: ...
    def region_write(self, region: int, offset: int, data: bytes | bytearray) -> None: ...
    def write_dwords(self, offsets: list[int], values: list[int]) -> None: ...
    def reset(self) -> None: ...


class RequestError(Exception):
    """A request is invalid."""


@dataclass(slots=True)
class _Setup:
    """The client's settings of one queue."""

    size: int = 0
    base: int = 0
    addresses: tuple[int, int, int] | None = None
    """Descriptors, used ring and available ring, in the client's own addresses."""
    enabled: bool = False
    kick: int | None = None


class Backend:
    """One client's session over ``connected`` (owned from now on)."""

    patience_ns = 0
    """Not used: :meth:`due_ns` decides when it is served."""

    def __init__(
        self,
        connected: socket.socket,
        device: Device,
        journal: Journal,
        clock_ns: Callable[[], int],
    ) -> None:
        self._stream = Stream(connected)
        self._device = device
        self._journal = journal
        self._clock_ns = clock_ns
        interrupts = device.interrupts
        assert isinstance(interrupts, pci.MsixTable), "this client keeps no MSI-X table"
        self._pcidev = PciDevice(device, journal)
        interrupts.send = self._pcidev.send
        self._setups = [_Setup(), _Setup()]
        self._regions: list[tuple[int, int, int]] = []
        self._other_fds: list[int] = []
        self._awake_until_ns = 0
        self._quiet = False
        self._looked_ns = 0
        self._answers: dict[int, Callable[[], int]] = {
            GET_FEATURES: lambda: FEATURES,
            GET_PROTOCOL_FEATURES: lambda: PROTOCOL_FEATURES,
            GET_QUEUE_NUM: lambda: len(self._setups),
        }
        self._requests: dict[int, Callable[[bytes, list[int]], None]] = {
            SET_FEATURES: self._set_features,
            SET_PROTOCOL_FEATURES: self._set_protocol_features,
            SET_OWNER: lambda _, __: None,
            RESET_OWNER: lambda _, __: self._forget(),
            SET_MEM_TABLE: self._set_mem_table,
            SET_VRING_NUM: self._set_vring_num,
            SET_VRING_ADDR: self._set_vring_addr,
            SET_VRING_BASE: self._set_vring_base,
            SET_VRING_KICK: self._set_vring_kick,
            SET_VRING_CALL: self._set_vring_call,
            SET_VRING_ERR: self._keep,
            SET_VRING_ENABLE: self._set_vring_enable,
            SET_SLAVE_REQ_FD: self._keep,
            SET_CONFIG: lambda _, __: None,
        }

    # Called by the server: server.Session.

    def filenos(self) -> list[int]:
        kicks = [setup.kick for setup in self._setups if setup.kick is not None]
        return [self._stream.fileno(), *kicks]

    @property
    def wants_to_write(self) -> list[int]:
        return [self._stream.fileno()] if self._stream.unsent else []

    def due_ns(self, now_ns: int) -> int | None:
        """When to poll the rings even if nothing is readable."""
        if now_ns < self._awake_until_ns or self._quiet:
            return now_ns + _NAP_NS
        return self._looked_ns + _LOOK_NS if self._pcidev.queues[COMMANDS] else None

    def serve(self, ready: Collection[int]) -> None:
        """Process the client's messages and its rings.

        Raises:
            SessionEnd: it has left, or its messages or rings are invalid.
        """
        if ready:
            if self._stream.fileno() in ready:
                self._stream.take(self._split)
            for setup in self._setups:
                if setup.kick in ready:
                    self._heard(setup)
        try:
            self._look()
        except RingError as error:
            self._journal.note("vring_broken", "%s", error)
            raise SessionEnd(f"the driver's ring is invalid: {error}") from error
        self._stream.flush()

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        self._forget()
        close_all(self._other_fds)
        self._stream.close()

    def _look(self) -> None:
        """Serve the rings, and enable or disable kicks."""
        now_ns = self._looked_ns = self._clock_ns()
        if self._pcidev.serve():
            self._awake_until_ns = now_ns + _AWAKE_NS
        queue = self._pcidev.queues[COMMANDS]
        awake = now_ns < self._awake_until_ns
        if queue is None or awake == self._quiet:
            return
        self._quiet = awake
        queue.quiet(awake)
        if not awake and queue.waiting():
            # A command came while kicks were disabled.
            self._awake_until_ns = now_ns + _AWAKE_NS

    def _heard(self, setup: _Setup) -> None:
        """Clear a kick, and close a file descriptor that would stay readable forever."""
        assert setup.kick is not None
        try:
            if os.read(setup.kick, 4096):
                return
        except BlockingIOError:
            return
        except OSError as error:
            self._journal.note("vhost_bad_kick", "%s", error)
        os.close(setup.kick)
        setup.kick = None

    def _split(self) -> None:
        """Process all complete messages."""
        stream, at = self._stream, 0
        received = stream.received
        while len(received) - at >= _HEADER.size:
            request, flags, size = _HEADER.unpack_from(received, at)
            if size > _MAX_PAYLOAD:
                raise SessionEnd(f"a message of {size} octets")
            end = at + _HEADER.size + size
            if len(received) < end:
                break
            payload = bytes(received[at + _HEADER.size : end])
            at = end
            self._message(request, flags, payload, stream.fds_until(at))
        stream.consume(at)

    def _message(self, request: int, flags: int, payload: bytes, fds: list[int]) -> None:
        failed = 0
        try:
            if flags & ~_NEED_REPLY == _VERSION and self._answered(request, payload):
                return
            run = self._requests.get(request) if flags & ~_NEED_REPLY == _VERSION else None
            (run or _unsupported)(payload, fds)
        except (RequestError, RingError, MapError) as error:
            failed = 1
            self._journal.note("vhost_request_errors", "request %d: %s", request, error)
        except struct.error:
            failed = 1
            self._journal.note("vhost_request_errors", "request %d: too short", request)
        except SessionEnd:
            raise
        except Exception as error:  # noqa: BLE001 - the session must continue
            failed = 1
            self._journal.mistake(error)
        finally:
            close_all(fds)
        if flags & _NEED_REPLY:
            self._reply(request, _U64.pack(failed))

    def _answered(self, request: int, payload: bytes) -> bool:
        """Answer a request that asks for a value; False if it is another one."""
        if request in self._answers:
            self._reply(request, _U64.pack(self._answers[request]()))
        elif request == GET_VRING_BASE:
            index = self._index(_STATE.unpack_from(payload)[0])
            self._stop(index)
            self._setups[index].enabled = False
            self._reply(request, _STATE.pack(index, self._setups[index].base))
        elif request == GET_CONFIG:
            # A PCI device over virtio has no configuration; it reads as 0.
            self._reply(request, payload[:12] + bytes(len(payload[12:])))
        else:
            return False
        return True

    def _reply(self, request: int, payload: bytes) -> None:
        self._stream.send(_HEADER.pack(request, _VERSION | _REPLY, len(payload)) + payload)

    def _set_features(self, payload: bytes, _: list[int]) -> None:
        (features,) = _U64.unpack_from(payload)
        if features & ~FEATURES:
            raise RequestError(f"features {features:#x} were not offered")

    def _set_protocol_features(self, payload: bytes, _: list[int]) -> None:
        (features,) = _U64.unpack_from(payload)
        if features & ~PROTOCOL_FEATURES:
            raise RequestError(f"protocol features {features:#x} were not offered")

    def _set_mem_table(self, payload: bytes, fds: list[int]) -> None:
        number, _ = _STATE.unpack_from(payload)
        if not 0 < number <= _MAX_REGIONS or len(fds) != number:
            raise RequestError(f"{number} regions with {len(fds)} descriptors")
        found = [_REGION.unpack_from(payload, 8 + 32 * index) for index in range(number)]
        self._regions.clear()
        self._device.unmap_all()
        try:
            for (start, size, user, offset), fd in zip(found, fds, strict=True):
                self._device.map(start, size, writable=True, fd=fd, offset=offset)
                self._regions.append((user, size, start))
                self._journal.tell("vhost_regions", "guest memory %#x+%#x", start, size)
        except MapError:
            self._regions.clear()
            self._device.unmap_all()
            raise
        finally:
            # Rings point into the old memory: stop all of them before any is started.
            for index in range(len(self._setups)):
                self._stop(index)
            for index in range(len(self._setups)):
                self._start(index)

    def _set_vring_num(self, payload: bytes, _: list[int]) -> None:
        index, size = _STATE.unpack_from(payload)
        self._setups[self._index(index)].size = size

    def _set_vring_base(self, payload: bytes, _: list[int]) -> None:
        index, base = _STATE.unpack_from(payload)
        self._setups[self._index(index)].base = base & 0xFFFF

    def _set_vring_addr(self, payload: bytes, _: list[int]) -> None:
        index, _flags, desc, used, avail, _log = _ADDRESSES.unpack_from(payload)
        self._setups[self._index(index)].addresses = desc, used, avail

    def _set_vring_kick(self, payload: bytes, fds: list[int]) -> None:
        index, fd = self._one_fd(payload, fds)
        setup = self._setups[index]
        if setup.kick is not None:
            os.close(setup.kick)
        setup.kick = fd
        if fd is not None:
            os.set_blocking(fd, False)

    def _set_vring_call(self, payload: bytes, fds: list[int]) -> None:
        index, fd = self._one_fd(payload, fds)
        self._pcidev.callers[index].assign(fd)

    def _set_vring_enable(self, payload: bytes, _: list[int]) -> None:
        index, enable = _STATE.unpack_from(payload)
        setup = self._setups[self._index(index)]
        self._stop(index)
        setup.enabled = bool(enable)
        try:
            self._start(index)
        except (RequestError, RingError):
            setup.enabled = False
            raise

    def _keep(self, _: bytes, fds: list[int]) -> None:
        """Keep file descriptors open, because the client uses their other end."""
        if len(fds) > 1 or len(self._other_fds) > 2 * len(self._setups):
            raise RequestError("too many descriptors")
        self._other_fds += fds
        fds.clear()

    def _stop(self, index: int) -> None:
        running = self._pcidev.queues[index]
        if running is not None:
            self._setups[index].base = running.taken
        self._pcidev.attach(index, None)
        if index == COMMANDS:
            self._quiet = False

    def _start(self, index: int) -> None:
        setup = self._setups[index]
        if not setup.enabled or setup.addresses is None:
            return
        desc, used, avail = map(self._guest_address, setup.addresses)
        queue = Virtqueue(
            self._device.memory.shared,
            setup.size,
            desc=desc,
            avail=avail,
            used=used,
            base=setup.base,
        )
        self._pcidev.attach(index, queue)
        self._awake_until_ns = self._clock_ns() + _AWAKE_NS

    def _guest_address(self, user: int) -> int:
        """The guest address of ``user``, an address of the client's own."""
        for start, size, guest in self._regions:
            if start <= user < start + size:
                return guest + user - start
        raise RequestError(f"{user:#x} is not in the memory table")

    def _one_fd(self, payload: bytes, fds: list[int]) -> tuple[int, int | None]:
        (value,) = _U64.unpack_from(payload)
        index = self._index(value & _INDEX_MASK)
        if value & _NO_FD:
            return index, None
        if len(fds) != 1:
            raise RequestError(f"{len(fds)} descriptors where one is needed")
        if not _is_notification(fds[0]):
            raise RequestError("a descriptor that is neither a pipe nor an eventfd")
        return index, fds.pop()

    def _index(self, index: int) -> int:
        if not 0 <= index < len(self._setups):
            raise RequestError(f"no queue {index}")
        return index

    def _forget(self) -> None:
        """Stop the queues and release everything of the client's."""
        for index, setup in enumerate(self._setups):
            self._pcidev.attach(index, None)
            self._pcidev.callers[index].assign(None)
            if setup.kick is not None:
                os.close(setup.kick)
            self._setups[index] = _Setup()
        self._quiet = False
        self._regions.clear()
        self._device.reset()


def _unsupported(_: bytes, __: list[int]) -> None:
    raise RequestError("not supported")


def _is_notification(fd: int) -> bool:
    """Whether eight octets can be read and written without side effects and without blocking."""
    kind = os.fstat(fd).st_mode
    # virtio_uml's os_pipe() makes a pair of sockets.
    pipe = stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)
    return pipe or is_eventfd(fd)
