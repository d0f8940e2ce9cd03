# SPDX-License-Identifier: MIT
"""vfio-user: messages of one client over a unix socket, with their file descriptors.

Hides framing, negotiation, replies and errors; a valid request becomes a call of
:class:`Device`. Source: docs/interop/vfio-user.rst of QEMU. An invalid request is
answered with an error; only a stream that cannot be split into messages ends the
session.
"""

from __future__ import annotations

import errno
import json
import socket
import struct
from collections.abc import Callable, Collection
from typing import Protocol

from harness.nic import pci
from harness.nic.journal import Journal, log
from harness.nic.memory import MAX_SEGMENTS, MapError
from harness.nic.stream import SessionEnd, Stream, close_all, is_eventfd

(
    VERSION, DMA_MAP, DMA_UNMAP, DEVICE_GET_INFO, DEVICE_GET_REGION_INFO,
    DEVICE_GET_REGION_IO_FDS, DEVICE_GET_IRQ_INFO, DEVICE_SET_IRQS, REGION_READ,
    REGION_WRITE, DMA_READ, DMA_WRITE, DEVICE_RESET, _, REGION_WRITE_MULTI,
) = range(1, 16)  # fmt: skip

_HEADER = struct.Struct("<HHIII")
_REGION = struct.Struct("<QII")
_WRITE = struct.Struct("<HHIIIQII")  # both
_TYPE_MASK, _REPLY, _NO_REPLY, _ERROR = 0xF, 0x1, 0x10, 0x20

MAX_DATA = 1 << 20
_MAX_MESSAGE = _HEADER.size + _REGION.size + MAX_DATA
_LOGGED = 400

_DEVICE_FLAGS_RESET, _DEVICE_FLAGS_PCI = 1, 2
_REGION_FLAGS_READ, _REGION_FLAGS_WRITE = 1, 2
_IRQ_INFO_EVENTFD, _IRQ_INFO_NORESIZE = 1, 8
_IRQ_DATA_NONE, _IRQ_DATA_BOOL, _IRQ_DATA_EVENTFD = 1, 2, 4
_IRQ_ACTION_MASK, _IRQ_ACTION_UNMASK, _IRQ_ACTION_TRIGGER = 8, 16, 32
_DMA_WRITEABLE = 2
_DMA_UNMAP_ALL = 2


class Device(Protocol):
    """What a client controls by its messages."""

    @property
    def interrupts(self) -> pci.Vectors: ...

    def map(
        self, start: int, size: int, *, writable: bool, fd: int | None, offset: int
    ) -> None: ...

    def unmap(self, start: int, size: int) -> None: ...
    def unmap_all(self) -> None: ...
    def region_read(self, region: int, offset: int, octets: int) -> bytes: ...
    def region_write(self, region: int, offset: int, data: bytes | bytearray) -> None: ...
    def reset(self) -> None: ...


class RequestError(Exception):
    """A request fails with an errno value."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.errno = number


class Connection:
    """One client's session over ``connected`` (owned from now on)."""

    patience_ns = 1_000_000
    """How long the guest's writes may wait when they only report posted descriptors."""

    def __init__(self, connected: socket.socket, device: Device, journal: Journal) -> None:
        self._stream = Stream(connected)
        self._device = device
        interrupts = device.interrupts
        assert isinstance(interrupts, pci.Interrupts), "this client keeps the MSI-X table"
        self._interrupts = interrupts
        self._journal = journal
        self._commands: dict[int, Callable[[bytes, list[int]], bytes]] = {
            VERSION: self._version,
            DMA_MAP: self._dma_map,
            DMA_UNMAP: self._dma_unmap,
            DEVICE_GET_INFO: self._get_info,
            DEVICE_GET_REGION_INFO: self._get_region_info,
            DEVICE_GET_IRQ_INFO: self._get_irq_info,
            DEVICE_SET_IRQS: self._set_irqs,
            REGION_READ: self._region_read,
            REGION_WRITE: self._region_write,
            DEVICE_RESET: self._reset,
            REGION_WRITE_MULTI: self._region_write_multi,
        }

    # Called by the server: server.Session.

    def filenos(self) -> list[int]:
        return [self._stream.fileno()]

    @property
    def wants_to_write(self) -> list[int]:
        return [self._stream.fileno()] if self._stream.unsent else []

    def due_ns(self, now_ns: int) -> int | None:  # noqa: ARG002
        return None

    def close(self) -> None:
        self._stream.close()

    def serve(self, ready: Collection[int] = (), reads: int = 4) -> None:  # noqa: ARG002
        """Read what has arrived, in at most ``reads`` pieces, and act on whole messages.

        Raises:
            SessionEnd: see there.
        """
        self._stream.take(self._split, reads)
        self._stream.flush()

    def flush(self) -> None:
        self._stream.flush()

    def _split(self) -> None:
        """Act on the whole messages received so far."""
        stream, at = self._stream, 0
        received = stream.received
        while len(received) - at >= _HEADER.size:
            number, command, size, flags, _error = _HEADER.unpack_from(received, at)
            if not _HEADER.size <= size <= _MAX_MESSAGE:
                raise SessionEnd(f"a message of {size} octets")
            if len(received) - at < size:
                break
            if command == REGION_WRITE and flags == _NO_REPLY and not stream.fds:
                # A doorbell: by far the most frequent message.
                self._posted_write(received, at, size)
                at += size
                continue
            payload = bytes(received[at + _HEADER.size : at + size])
            at += size
            self._message(number, command, flags, payload, stream.fds_until(at))
        stream.consume(at)

    def _posted_write(self, received: bytearray, at: int, size: int) -> None:
        if size >= _WRITE.size:
            *_, offset, region, count = _WRITE.unpack_from(received, at)
            if (
                size == _WRITE.size + count
                and region == pci.BAR2
                and offset + count <= pci.REGION_SIZES[pci.BAR2]
            ):
                first = at + _WRITE.size
                try:
                    self._device.region_write(region, offset, received[first : first + count])
                except Exception as error:  # noqa: BLE001 - as for any other message
                    self._journal.mistake(error)
                return
        payload = bytes(received[at + _HEADER.size : at + size])
        self._message(0, REGION_WRITE, _NO_REPLY, payload, [])

    def _message(
        self, number: int, command: int, flags: int, payload: bytes, fds: list[int]
    ) -> None:
        if flags & _TYPE_MASK:
            self._journal.note("vfio_bad_message", "type %d is not a request", flags & 15)
            close_all(fds)
            return
        failed, answer = 0, b""
        try:
            answer = self._commands.get(command, _unsupported)(payload, fds)
        except RequestError as error:
            failed = error.errno
            self._journal.note("vfio_request_errors", "command %d: %s", command, error)
        except struct.error:
            failed = errno.EINVAL
            self._journal.note("vfio_request_errors", "command %d: too short", command)
        except Exception as error:  # noqa: BLE001 - the session must continue
            failed = errno.EIO
            self._journal.mistake(error)
        finally:
            close_all(fds)
        if flags & _NO_REPLY:
            return
        kind = _REPLY | (_ERROR if failed else 0)
        size = _HEADER.size + len(answer)
        self._stream.send(_HEADER.pack(number, command, size, kind, failed) + answer)

    def _version(self, payload: bytes, _: list[int]) -> bytes:
        major, minor = struct.unpack_from("<HH", payload)
        if major != 0:
            raise RequestError(errno.EPROTONOSUPPORT, f"protocol version {major}.{minor}")
        said = payload[4:].rstrip(b"\0")[:_LOGGED]
        self._journal.tell("vfio_versions", "client speaks %d.%d: %s", major, minor, said)
        capabilities = {
            "max_msg_fds": 16,
            "max_data_xfer_size": MAX_DATA,
            "max_dma_maps": MAX_SEGMENTS,
            "write_multiple": True,
        }
        text = json.dumps({"capabilities": capabilities}, separators=(",", ":"))
        return struct.pack("<HH", 0, 0) + text.encode() + b"\0"

    def _dma_map(self, payload: bytes, fds: list[int]) -> bytes:
        _, flags, offset, start, size = struct.unpack_from("<IIQQQ", payload)
        try:
            self._device.map(
                start,
                size,
                writable=bool(flags & _DMA_WRITEABLE),
                fd=fds[0] if fds else None,
                offset=offset,
            )
        except MapError as error:
            raise RequestError(error.errno, str(error)) from error
        log.debug("DMA map %#x+%#x flags %d fd %s", start, size, flags, bool(fds))
        return b""

    def _dma_unmap(self, payload: bytes, _: list[int]) -> bytes:
        _, flags, start, size = struct.unpack_from("<IIQQ", payload)
        if flags & ~_DMA_UNMAP_ALL:
            raise RequestError(errno.EINVAL, f"flags {flags:#x}: dirty pages are not tracked")
        if flags & _DMA_UNMAP_ALL:
            if start or size:
                raise RequestError(errno.EINVAL, "unmap-all with a range")
            self._device.unmap_all()
            return payload[:24]
        try:
            self._device.unmap(start, size)
        except MapError as error:
            raise RequestError(error.errno, str(error)) from error
        log.debug("DMA unmap %#x+%#x", start, size)
        return payload[:24]

    def _get_info(self, payload: bytes, _: list[int]) -> bytes:
        struct.unpack_from("<I", payload)
        flags = _DEVICE_FLAGS_RESET | _DEVICE_FLAGS_PCI
        return struct.pack("<IIII", 16, flags, pci.REGIONS, len(pci.IRQ_COUNTS))

    def _get_region_info(self, payload: bytes, _: list[int]) -> bytes:
        argsz, _, index = struct.unpack_from("<III", payload)
        if index >= pci.REGIONS or argsz < 32:
            raise RequestError(errno.EINVAL, f"region {index}, argsz {argsz}")
        size = pci.REGION_SIZES.get(index, 0)
        flags = _REGION_FLAGS_READ | _REGION_FLAGS_WRITE if size else 0
        return struct.pack("<IIIIQQ", 32, flags, index, 0, size, 0)

    def _get_irq_info(self, payload: bytes, _: list[int]) -> bytes:
        _, _, index = struct.unpack_from("<III", payload)
        if index >= len(pci.IRQ_COUNTS):
            raise RequestError(errno.EINVAL, f"interrupt index {index}")
        count = pci.IRQ_COUNTS[index]
        flags = _IRQ_INFO_EVENTFD | _IRQ_INFO_NORESIZE if count else 0
        return struct.pack("<IIII", 16, flags, index, count)

    def _set_irqs(self, payload: bytes, fds: list[int]) -> bytes:
        _, flags, index, start, count = struct.unpack_from("<IIIII", payload)
        if index >= len(pci.IRQ_COUNTS) or start + count > pci.IRQ_COUNTS[index]:
            raise RequestError(errno.EINVAL, f"interrupts {index}: {start}+{count}")
        if index != pci.MSIX_IRQ_INDEX:
            return b""  # the device has no interrupts of this kind
        interrupts = self._interrupts
        data, action = flags & 7, flags & ~7
        vectors = range(start, start + count)
        if action in (_IRQ_ACTION_MASK, _IRQ_ACTION_UNMASK):
            return b""  # QEMU masks a vector by removing its descriptor
        if action != _IRQ_ACTION_TRIGGER:
            raise RequestError(errno.EINVAL, f"flags {flags:#x}")
        if data == _IRQ_DATA_EVENTFD:
            if fds and len(fds) != count:
                raise RequestError(errno.EINVAL, f"{len(fds)} descriptors for {count} vectors")
            if not all(map(is_eventfd, fds)):
                raise RequestError(errno.EINVAL, "a descriptor that is not an eventfd")
            for vector in vectors:
                interrupts.assign(vector, fds.pop(0) if fds else None)
        elif data == _IRQ_DATA_NONE and count == 0:
            interrupts.disable()
        elif data == _IRQ_DATA_NONE:
            for vector in vectors:
                interrupts.raise_vector(vector)
        elif data == _IRQ_DATA_BOOL:
            if len(payload) < 20 + count:
                raise RequestError(errno.EINVAL, "too few flags")
            for vector in vectors:
                if payload[20 + vector - start]:
                    interrupts.raise_vector(vector)
        else:
            raise RequestError(errno.EINVAL, f"flags {flags:#x}")
        return b""

    def _region_read(self, payload: bytes, _: list[int]) -> bytes:
        offset, region, count = _REGION.unpack_from(payload)
        _check_access(region, offset, count)
        return payload[: _REGION.size] + self._device.region_read(region, offset, count)

    def _region_write(self, payload: bytes, _: list[int]) -> bytes:
        offset, region, count = _REGION.unpack_from(payload)
        _check_access(region, offset, count)
        if len(payload) < _REGION.size + count:
            raise RequestError(errno.EINVAL, f"{count} octets announced, fewer sent")
        data = payload[_REGION.size : _REGION.size + count]
        self._device.region_write(region, offset, data)
        return payload[: _REGION.size]

    def _region_write_multi(self, payload: bytes, _: list[int]) -> bytes:
        (count,) = struct.unpack_from("<Q", payload)
        if count * 24 != len(payload) - 8:
            raise RequestError(errno.EINVAL, f"{count} writes in {len(payload)} octets")
        for at in range(8, len(payload), 24):
            offset, region, octets = _REGION.unpack_from(payload, at)
            if octets > 8:
                raise RequestError(errno.EINVAL, f"a write of {octets} octets")
            _check_access(region, offset, octets)
            data = payload[at + _REGION.size : at + _REGION.size + octets]
            self._device.region_write(region, offset, data)
        return payload[:8]

    def _reset(self, _: bytes, __: list[int]) -> bytes:
        self._device.reset()
        return b""


def _check_access(region: int, offset: int, count: int) -> None:
    size = pci.REGION_SIZES.get(region, 0)
    if not 0 < count <= MAX_DATA or offset + count > size:
        raise RequestError(errno.EINVAL, f"region {region}: {offset:#x}+{count}")


def _unsupported(_: bytes, __: list[int]) -> bytes:
    raise RequestError(errno.EOPNOTSUPP, "not supported")
