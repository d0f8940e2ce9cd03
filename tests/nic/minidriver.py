# SPDX-License-Identifier: MIT
"""A miniature sfc driver and its client by vfio-user: MCDI and rings.

Against a model in the same thread each request is written to a socket pair and the
connection served until the reply is there; against a process it just waits. Guest
memory is a memfd.
"""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import time
from dataclasses import dataclass, field

from harness.nic import transport
from harness.nic.datapath import Datapath
from harness.nic.device import Nic
from harness.nic.journal import Journal
from harness.nic.transport import Connection
from harness.nic.vhost import Backend
from tests.nic.fake_wire import Clock, FakeWire
from tests.nic.frames import BROADCAST, MAC

BAR2, CONFIG = 2, 7
BUS_MASTER = 4
PAGE = 4096
EMPTY = (1 << 64) - 1
_NONBLOCKING = socket.SOCK_STREAM | socket.SOCK_NONBLOCK


class McRebootedError(Exception):
    pass


class McdiFailedError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Queues:
    """The driver's state of one channel's three queues."""

    evq: int
    rxq: int
    txq: int
    entries: int
    buffer: int
    buffers: int = 0
    evq_rptr: int = 0
    rx_added: int = 0
    rx_removed: int = 0
    tx_written: int = 0
    tx_done: int = -1
    scatter: list[bytes] = field(default_factory=list)


class Driver:
    """A client with ``megabytes`` of memory at ``base``, and a driver on top.

    ``pump`` lets a model in the same process act on what was written.
    """

    mac = MAC

    def __init__(
        self, connected: socket.socket, *, megabytes: int = 16, base: int = 0, room: int = 1792
    ) -> None:
        self.socket = connected
        self.room = room
        self.base = base
        self.size = megabytes << 20
        self.memfd = os.memfd_create("guest")
        os.ftruncate(self.memfd, self.size)
        self.memory = mmap.mmap(self.memfd, self.size)
        self._next = base + PAGE
        self._message = 0
        self._sequence = 0
        self.eventfds: list[int] = []
        self.mcdi_at = self.allocate(PAGE)
        self.channels: list[Queues] = []

    patience_s = 10.0

    def pump(self) -> None:
        pass

    # vfio-user

    def request(
        self, command: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 0
    ) -> tuple[int, bytes]:
        """(errno, reply payload)."""
        self._message = (self._message + 1) & 0xFFFF
        header = struct.pack("<HHIII", self._message, command, 16 + len(payload), flags, 0)
        socket.send_fds(self.socket, [header + payload], list(fds))
        self.pump()
        if flags & 0x10:
            return 0, b""
        return self.reply()

    def reply(self) -> tuple[int, bytes]:
        header = self._receive(16)
        number, _, size, flags, error = struct.unpack("<HHIII", header)
        assert flags & 0xF == 1
        assert number == self._message
        return (error if flags & 0x20 else 0), self._receive(size - 16)

    def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            ready, _, _ = select.select([self.socket], [], [], 1)
            assert ready, "no reply"
            data += self.socket.recv(size - len(data))
        return data

    def attach(self) -> None:
        """What QEMU does before the guest runs."""
        error, reply = self.request(
            transport.VERSION,
            struct.pack("<HH", 0, 0) + b'{"capabilities":{"max_msg_fds":16}}\0',
        )
        assert error == 0
        assert reply.endswith(b"\0")
        assert self.map(self.base, self.size, fd=self.memfd) == 0

    def map(self, start: int, size: int, *, fd: int | None, offset: int = 0, flags: int = 3) -> int:
        payload = struct.pack("<IIQQQ", 32, flags, offset, start, size)
        return self.request(transport.DMA_MAP, payload, () if fd is None else (fd,))[0]

    def unmap(self, start: int, size: int) -> int:
        return self.request(transport.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, start, size))[0]

    def unmap_all(self, start: int = 0, size: int = 0) -> int:
        return self.request(transport.DMA_UNMAP, struct.pack("<IIQQ", 24, 2, start, size))[0]

    def set_irqs(self, count: int = 4) -> None:
        self.eventfds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count)]
        error, _ = self.request(
            transport.DEVICE_SET_IRQS,
            struct.pack("<IIIII", 20, 0x24, 2, 0, count),
            tuple(self.eventfds),
        )
        assert error == 0

    def interrupts(self, vector: int = 0) -> int:
        """How often a vector was signalled since the last call."""
        try:
            return os.eventfd_read(self.eventfds[vector])
        except BlockingIOError:
            return 0

    def write_region(self, region: int, offset: int, data: bytes, flags: int = 0x10) -> int:
        payload = struct.pack("<QII", offset, region, len(data)) + data
        return self.request(transport.REGION_WRITE, payload, flags=flags)[0]

    def read_region(self, region: int, offset: int, octets: int) -> bytes:
        error, reply = self.request(
            transport.REGION_READ, struct.pack("<QII", offset, region, octets)
        )
        assert error == 0
        return reply[16:]

    def writel(self, offset: int, value: int) -> None:
        self.write_region(BAR2, offset, struct.pack("<I", value))

    def writeq(self, offset: int, value: int) -> None:
        self.write_region(BAR2, offset, struct.pack("<Q", value))

    def write_command(self, value: int) -> None:
        """Write the PCI command register; the client handles memory accesses itself."""
        self.write_region(CONFIG, 4, struct.pack("<H", value | 2), flags=0)

    def write_power(self, state: int) -> None:
        """The power state of PMCSR: 0 is D0, 3 is D3hot."""
        self.write_region(CONFIG, 0x44, struct.pack("<H", state), flags=0)

    def interrupt_pages(self) -> set[int]:
        """Pages of guest memory that an interrupt writes to."""
        return set()

    # memory

    def allocate(self, size: int) -> int:
        at = self._next
        self._next += -(-size // PAGE) * PAGE
        assert self._next <= self.base + self.size
        return at

    def peek(self, address: int, size: int) -> bytes:
        at = address - self.base
        return self.memory[at : at + size]

    def poke(self, address: int, data: bytes) -> None:
        at = address - self.base
        self.memory[at : at + len(data)] = data

    def put_word(self, address: int, value: int) -> None:
        """With one store: a copy of two octets may take two, the higher one first."""
        with memoryview(self.memory) as view, view.cast("H") as words:
            words[(address - self.base) // 2] = value

    def word(self, address: int) -> int:
        """The same, read with one load."""
        with memoryview(self.memory) as view, view.cast("H") as words:
            return words[(address - self.base) // 2]

    def qword(self, address: int) -> int:
        return int.from_bytes(self.peek(address, 8), "little")

    # MCDI

    def mcdi(self, command: int, payload: bytes = b"", *, event: bool = False) -> bytes:
        """The response; :class:`McdiFailedError` when it is an error."""
        self._sequence = (self._sequence + 1) & 15
        header0 = 0x7F | self._sequence << 16 | (1 << 24 if event else 0)
        header1 = command | len(payload) << 16
        self.poke(self.mcdi_at, struct.pack("<II", header0, header1) + payload)
        self.writel(0x200, self.mcdi_at >> 32)
        self.writel(0x204, self.mcdi_at & 0xFFFFFFFF)
        deadline = time.monotonic() + self.patience_s
        while not self.peek(self.mcdi_at + 2, 1)[0] >> 7 and time.monotonic() < deadline:
            time.sleep(0.001)
        header0, header1 = struct.unpack("<II", self.peek(self.mcdi_at, 8))
        assert header0 >> 23 & 1, "no response"
        assert header0 >> 16 & 15 == self._sequence
        data = self.peek(self.mcdi_at + 8, header1 >> 16 & 0x3FF)
        if header0 >> 22 & 1:
            if not data:
                raise McRebootedError
            raise McdiFailedError(struct.unpack_from("<I", data)[0])
        return data

    def probe(self) -> None:
        """The state-changing commands of a probe, in the driver's order."""
        self.write_command(BUS_MASTER)
        assert self.read_region(BAR2, 0x10, 4)[2:] == b"\x07\xb0"
        self.writel(0x204, 1)
        self.mcdi(0x06, struct.pack("<I", 1))
        self.mcdi(0x1C, struct.pack("<III", 1, 1, 1))
        self.mcdi(0x20, struct.pack("<I", 1))
        flags1 = struct.unpack_from("<I", self.mcdi(0xBE))[0]
        assert flags1 >> 23 & 1, "RX_PREFIX_LEN_14"
        assert self.mcdi(0x55)[:6] == self.mac
        assert struct.unpack("<II", self.mcdi(0x8B, struct.pack("<II", 1, 8)))[0] == 8

    def open(
        self,
        *,
        entries: int = 64,
        evq_entries: int = 512,
        channels: int = 1,
        filters: bool = True,
        post: bool = True,
    ) -> None:
        """Queues, buffers and filters of ``channels``; descriptors posted."""
        for index in range(channels):
            queues = Queues(
                evq=self.allocate(evq_entries * 8),
                rxq=self.allocate(entries * 8),
                txq=self.allocate(entries * 8),
                entries=entries,
                buffer=self.allocate(entries * 2048),
                buffers=evq_entries,
            )
            self.channels.append(queues)
            self.poke(queues.evq, b"\xff" * (evq_entries * 8))
            self.mcdi(
                0x80,
                struct.pack("<9IQ", evq_entries, index, 0, 0, 1, 0, index, 0, 0, queues.evq)
                + b"".join(
                    struct.pack("<Q", queues.evq + at) for at in range(PAGE, evq_entries * 8, PAGE)
                ),
            )
            self.writel(index * 8192 + 0x400, 0)
            for command, ring in ((0x82, queues.txq), (0x81, queues.rxq)):
                self.mcdi(
                    command,
                    struct.pack("<7IQ", entries, index, index, index, 6, 0, 0, ring),
                )
            if post:
                self.refill(index, entries - 8)
        if filters:
            for mac in (self.mac, BROADCAST):
                self.add_filter(mac)
        self.events()

    def add_filter(
        self,
        mac: bytes = bytes(6),
        *,
        match: int = 0x10,
        queue: int = 0,
        rss: int | None = None,
        dest: int = 1,
    ) -> int:
        payload = bytearray(108)
        mode = 0 if rss is None else 1
        struct.pack_into("<IQIIIIII", payload, 0, 0, 0, 0, match, dest, queue, mode, rss or 0)
        payload[52:58] = mac
        return int(struct.unpack("<IQ", self.mcdi(0x8A, bytes(payload)))[1])

    def refill(self, channel: int = 0, number: int | None = None) -> None:
        """Post buffers up to ``number`` (a multiple of 8) outstanding ones."""
        queues = self.channels[channel]
        number = queues.entries - 8 if number is None else number
        while queues.rx_added - queues.rx_removed < number:
            index = queues.rx_added % queues.entries
            address = queues.buffer + index * 2048
            self.poke(queues.rxq + index * 8, struct.pack("<Q", address | self.room << 48))
            queues.rx_added += 1
        wptr = (queues.rx_added & ~7) % queues.entries
        self.writel(channel * 8192 + 0x830, wptr)

    def events(self, channel: int = 0, *, ack: bool = True) -> list[int]:
        """Consume events as the driver does: in order, up to the first empty one."""
        queues = self.channels[channel]
        found: list[int] = []
        while True:
            at = queues.evq + queues.evq_rptr % queues.buffers * 8
            event = self.qword(at)
            if event == EMPTY:
                break
            self.poke(at, b"\xff" * 8)
            queues.evq_rptr += 1
            found.append(event)
        if ack:
            self.writel(channel * 8192 + 0x400, queues.evq_rptr % queues.buffers)
        return found

    def receive(self, channel: int = 0, *, ack: bool = True) -> list[tuple[bytes, int]]:
        """Received (frame, event) pairs; checks the events as the driver does."""
        return [(frame, event) for frame, event, _ in self.receive_hashed(channel, ack=ack)]

    def receive_hashed(self, channel: int = 0, *, ack: bool = True) -> list[tuple[bytes, int, int]]:
        """:meth:`receive` with the hash of the prefix (efx_rx_buf_hash)."""
        queues = self.channels[channel]
        frames: list[tuple[bytes, int, int]] = []
        for event in self.events(channel, ack=ack):
            if event >> 60 != 0:
                continue
            assert event >> 48 & 15 == (queues.rx_removed + 1) & 15, "lbits"
            assert event >> 16 & 31 == channel, "label"
            octets = event & 0x3FFF
            address = queues.buffer + queues.rx_removed % queues.entries * 2048
            queues.scatter.append(self.peek(address, octets))
            queues.rx_removed += 1
            if not event >> 14 & 1:
                data = b"".join(queues.scatter)
                queues.scatter.clear()
                assert struct.unpack_from("<H", data, 8)[0] == len(data) - 14, "prefix"
                frames.append((data[14:], event, struct.unpack_from("<I", data)[0]))
        return frames

    def send(self, *pieces: bytes, channel: int = 0, options: tuple[int, ...] = ()) -> None:
        """One frame from ``pieces``, each in its own buffer, after ``options``."""
        descriptors = list(options)
        for index, piece in enumerate(pieces):
            at = self.allocate(max(len(piece), 1))
            self.poke(at, piece)
            cont = index < len(pieces) - 1
            descriptors.append(at | len(piece) << 48 | cont << 62)
        self.post_tx(descriptors, channel)

    def post_tx(self, descriptors: list[int], channel: int = 0) -> None:
        queues = self.channels[channel]
        for descriptor in descriptors:
            at = queues.txq + queues.tx_written % queues.entries * 8
            self.poke(at, struct.pack("<Q", descriptor))
            queues.tx_written += 1
        self.writel(channel * 8192 + 0xA18, queues.tx_written % queues.entries)

    def stats(self, *, clear: bool = False) -> list[int]:
        at = self.allocate(0x61 * 8)
        self.mcdi(0x2E, struct.pack("<QIII", at, 1 | clear << 1, 0x61 * 8, 0))
        values = struct.unpack("<97Q", self.peek(at, 0x61 * 8))
        assert values[0] == values[0x60], "generations"
        return list(values)

    def close(self) -> None:
        self.socket.close()
        self.memory.close()
        os.close(self.memfd)
        for fd in self.eventfds:
            os.close(fd)


class InProcess(Driver):
    """In one process and thread with a model on a :class:`FakeWire`."""

    patience_s = 0.0
    bare = False
    connection: Connection | Backend

    def __init__(
        self, wire: FakeWire | None = None, *, path: Datapath | None = None, **options: int
    ) -> None:
        self.wire = wire or FakeWire()
        self.clock = Clock()
        self.journal = Journal()
        self.nic = Nic(
            self.wire, MAC, journal=self.journal, clock_ns=self.clock, bare=self.bare, path=path
        )
        ours, theirs = socket.socketpair()
        self.connection = self.connect(theirs)
        super().__init__(ours, **options)

    def connect(self, theirs: socket.socket) -> Connection | Backend:
        raise NotImplementedError

    def pump(self) -> None:
        self.connection.serve(self.connection.filenos())

    def pass_wire(self) -> list[tuple[bytes, int]]:
        """Run one receive pass of the model; returns what the driver receives."""
        self.nic.receive()
        return self.receive()

    def post_tx(self, descriptors: list[int], channel: int = 0) -> None:
        super().post_tx(descriptors, channel)
        self.nic.transmit()

    def close(self) -> None:
        self.connection.close()
        self.nic.client_gone()
        super().close()


class MiniDriver(InProcess, Driver):
    """By vfio-user."""

    connection: Connection

    def connect(self, theirs: socket.socket) -> Connection:
        return Connection(theirs, self.nic, self.journal)
