# SPDX-License-Identifier: MIT
"""A miniature sfc driver and its clients: vfio-user or vhost-user, MCDI and rings.

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

import numpy as np

from harness.nic import pci, pcidev, transport, vhost
from harness.nic.device import Nic
from harness.nic.journal import Journal
from harness.nic.transport import Connection
from harness.nic.vhost import Backend
from harness.nic.wire import SMALL_SLOT, TP_STATUS_CSUMNOTREADY, Batch, SlotRing

MAC = bytes.fromhex("020000000042")
PEER = bytes.fromhex("020000000001")
BROADCAST = b"\xff" * 6
BAR2, CONFIG = 2, 7
BUS_MASTER = 4
PAGE = 4096
EMPTY = (1 << 64) - 1
_NONBLOCKING = socket.SOCK_STREAM | socket.SOCK_NONBLOCK


class Clock:
    def __init__(self) -> None:
        self.now_ns = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ns


class FakeWire:
    """Frames put into slots as the kernel does it; what is sent is kept."""

    def __init__(self, slots: int = 64, slot: int = SMALL_SLOT) -> None:
        self.ring = SlotRing(np.zeros(slots * slot, np.uint8), slot)
        self.tail = 0
        self.tail_total = 0
        self.sent: list[bytes] = []
        self.ring_drops = 0
        self.frames = 0
        self.refuse = False

    def inject(self, *frames: bytes, status: int = 1, tci: int = 0) -> None:
        for frame in frames:
            header = self.ring.headers[self.tail]
            if header["status"]:
                self.ring_drops += 1
                continue
            kept = frame[: self.ring.room]
            at = self.tail * self.ring.slot + 66
            self.ring.buffer[at : at + len(kept)] = np.frombuffer(kept, np.uint8)
            header["len"], header["snaplen"], header["mac"] = len(frame), len(kept), 66
            header["vlan_tci"], header["vlan_tpid"] = tci, 0x8100
            header["status"] = status
            self.tail_total += 1
            self.tail = (self.tail + 1) % self.ring.slots

    def fileno(self) -> int:
        return -1

    def waiting(self) -> int:
        return self.ring.waiting()

    def take(self, limit: int) -> Batch:
        return self.ring.take(limit)

    def release(self, number: int) -> None:
        self.ring.release(number)

    def send(self, frame: bytes | bytearray) -> bool:
        if self.refuse:
            return False
        self.sent.append(bytes(frame))
        return True

    def resize(self, max_frame: int) -> None:
        if max_frame > self.ring.room:
            self.ring = SlotRing(np.zeros(self.ring.slots * 9536, np.uint8), 9536)
            self.tail = 0

    def refresh(self) -> None:
        pass

    def settle(self) -> bool:
        return True

    def close(self) -> None:
        pass


class McRebootedError(Exception):
    pass


class McdiFailedError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Queues:
    """What the driver holds of one channel's three queues."""

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
        """The PCI command register; memory accesses are the client's own affair."""
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
        """With one store. A copy of two octets may be two, the higher one first."""
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
        """The commands of a probe that change anything, in the driver's order."""
        self.write_command(BUS_MASTER)
        assert self.read_region(BAR2, 0x10, 4)[2:] == b"\x07\xb0"
        self.writel(0x204, 1)
        self.mcdi(0x06, struct.pack("<I", 1))
        self.mcdi(0x1C, struct.pack("<III", 1, 1, 1))
        self.mcdi(0x20, struct.pack("<I", 1))
        flags1 = struct.unpack_from("<I", self.mcdi(0xBE))[0]
        assert flags1 >> 23 & 1, "RX_PREFIX_LEN_14"
        assert self.mcdi(0x55)[:6] == MAC
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
            for mac in (MAC, BROADCAST):
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
        """Received (frame, event) pairs; checks what the driver checks of the events."""
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
        """One frame from ``pieces``, each in a buffer of its own, behind ``options``."""
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


class VhostDriver(Driver):
    """The same behind vhost-user: what virtio_uml and virt-pci of a user-mode kernel do.

    ``called`` counts the calls of the command queue.
    """

    entries = 256
    irq_buffers = 10

    def __init__(self, connected: socket.socket, *, base: int = 1 << 22, **options: int) -> None:
        super().__init__(connected, base=base, **options)
        self.rings: list[tuple[int, int, int]] = []
        self.kicks = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
        # os_pipe() of a user-mode kernel makes pairs of sockets.
        self.calls = [
            tuple(end.detach() for end in socket.socketpair(type=_NONBLOCKING)) for _ in range(2)
        ]
        self.request_pipe = os.pipe2(os.O_NONBLOCK)
        self.table = [(self.base, self.size, self.memfd, 0)]
        self.added = [0, 0]
        self.seen = [0, 0]
        self.free = list(range(0, self.entries, 2))
        self.buffers = 0
        self.delivered: dict[int, int] = {}
        self.called = 0

    # messages

    def ask(
        self, request: int, payload: bytes = b"", fds: tuple[int, ...] = (), flags: int = 9
    ) -> bytes:
        """The reply's payload; a request that only acknowledges gives 8 octets, too."""
        message = struct.pack("<III", request, flags, len(payload)) + payload
        socket.send_fds(self.socket, [message], list(fds))
        self.pump()
        answered, kind, size = struct.unpack("<III", self._receive(12))
        assert (answered, kind) == (request, 5)
        return self._receive(size)

    def acknowledged(self, request: int, payload: bytes = b"", fds: tuple[int, ...] = ()) -> bool:
        return self.ask(request, payload, fds) == bytes(8)

    def attach(self) -> None:
        """In the order in which virtio_uml does it."""
        assert self.acknowledged(vhost.SET_OWNER)
        features = struct.unpack("<Q", self.ask(vhost.GET_FEATURES, flags=1))[0]
        assert features == 1 << 30 | 1 << 32
        protocol = struct.unpack("<Q", self.ask(vhost.GET_PROTOCOL_FEATURES, flags=1))[0]
        assert protocol == 1 << 3 | 1 << 5
        assert self.acknowledged(vhost.SET_PROTOCOL_FEATURES, struct.pack("<Q", protocol))
        assert self.acknowledged(vhost.SET_SLAVE_REQ_FD, b"", (self.request_pipe[1],))
        assert self.acknowledged(vhost.SET_FEATURES, struct.pack("<Q", features))
        assert self.share()
        self.buffers = self.allocate(64 * (self.entries + self.irq_buffers))
        for index in range(2):
            self.set_up(index)
        for index in range(2):
            self.enable(index)
        self.post_interrupt_buffers(self.irq_buffers)

    def share(self) -> bool:
        regions = [
            struct.pack("<QQQQ", start, size, start, offset)
            for start, size, _, offset in self.table
        ]
        # One region is used as a rule, and the message has room for two.
        payload = struct.pack("<II", len(regions), 0) + b"".join(regions).ljust(64, b"\0")
        fds = tuple(fd for _, _, fd, _ in self.table)
        return self.acknowledged(vhost.SET_MEM_TABLE, payload, fds)

    def map(self, start: int, size: int, *, fd: int | None, offset: int = 0, flags: int = 3) -> int:
        """Share one piece more; the queues run on in what was there before."""
        assert (fd is not None, flags) == (True, 3)
        self.table.append((start, size, fd or 0, offset))
        return 0 if self.share() else 1

    def set_up(self, index: int) -> None:
        ring = self.allocate(16 * self.entries), self.allocate(4096), self.allocate(4096)
        self.rings.append(ring)
        state = struct.pack("<II", index, self.entries)
        assert self.acknowledged(
            vhost.SET_VRING_CALL, struct.pack("<Q", index), (self.calls[index][1],)
        )
        assert self.acknowledged(vhost.SET_VRING_NUM, state)
        assert self.acknowledged(vhost.SET_VRING_BASE, struct.pack("<II", index, 0))
        desc, avail, used = ring
        assert self.acknowledged(
            vhost.SET_VRING_ADDR, struct.pack("<IIQQQQ", index, 0, desc, used, avail, (1 << 64) - 1)
        )

    def enable(self, index: int) -> None:
        assert self.acknowledged(
            vhost.SET_VRING_KICK, struct.pack("<Q", index), (self.kicks[index],)
        )
        assert self.acknowledged(vhost.SET_VRING_ENABLE, struct.pack("<II", index, 1))

    # virtqueues

    def post(self, index: int, *chain: tuple[int, int, int], head: int) -> None:
        """Make (address, octets, flags) available as descriptors from ``head`` on."""
        desc, avail, used = self.rings[index]
        for at, (address, octets, flags) in enumerate(chain):
            following = at < len(chain) - 1
            self.poke(
                desc + 16 * (head + at),
                struct.pack("<QIHH", address, octets, flags | following, head + at + 1),
            )
        slot = self.added[index] % self.entries
        self.poke(avail + 4 + 2 * slot, struct.pack("<H", head))
        self.added[index] = (self.added[index] + 1) & 0xFFFF
        self.put_word(avail + 2, self.added[index])
        if not self.peek(used, 1)[0] & 1:
            os.eventfd_write(self.kicks[index], 1)

    def taken_back(self, index: int) -> list[tuple[int, int]]:
        """(head, octets written) of what the model has given back since the last call."""
        _, _, used = self.rings[index]
        upto = self.word(used + 2)
        found = []
        while self.seen[index] != upto:
            at = used + 4 + 8 * (self.seen[index] % self.entries)
            found.append(struct.unpack("<II", self.peek(at, 8)))
            self.seen[index] = (self.seen[index] + 1) & 0xFFFF
        return found

    def command(self, request: bytes, answer: int = 0) -> bytes:
        """Post one command; what was answered, for which it waits when there is room for it."""
        deadline = time.monotonic() + self.patience_s
        while not self.free:
            self.hear()
            assert self.free or time.monotonic() < deadline, "no call for posted writes"
        head = self.free.pop()
        at = self.buffers + 64 * head
        self.poke(at, request.ljust(64, b"\0")[:64])
        self.poke(at + 64, b"\xa5" * 64)
        chain = [(at, len(request), 0)]
        if answer:
            chain.append((at + 64, answer, 2))
        self.post(0, *chain, head=head)
        self.pump()
        if not answer:
            return b""
        deadline = time.monotonic() + max(self.patience_s, 0.1)
        while time.monotonic() < deadline:
            for other, written in self.taken_back(0):
                self.free.append(other)
                if other == head:
                    return self.peek(at + 64, written)
        raise AssertionError("no answer")

    def hear(self) -> None:
        """What the callback of the command queue does: free what was posted."""
        try:
            while data := os.read(self.calls[0][0], 8):
                assert data == struct.pack("<Q", 1)
                self.called += 1
        except BlockingIOError:
            pass
        self.free += [head for head, _ in self.taken_back(0)]

    def post_interrupt_buffers(self, number: int) -> None:
        first = 2 * len(self.delivered)
        for index in range(first, first + number):
            at = self.buffers + 64 * (self.entries + index % self.irq_buffers)
            self.post(1, (at, 20, 2), head=index % self.irq_buffers)
        self.pump()

    def set_irqs(self, count: int = 4) -> None:
        """Fill the MSI-X table as the kernel does, with all masked while it does."""
        self.write_region(pci.CONFIG_REGION, 0xB2, struct.pack("<H", 0xC000))
        for vector in range(count):
            entry = struct.pack("<III", 0xA0000, 0, 40 + vector)
            for at in range(0, 12, 4):
                self.write_region(pci.BAR4, 16 * vector + at, entry[at : at + 4])
            self.write_region(pci.BAR4, 16 * vector + 12, bytes(4))
        self.write_region(pci.CONFIG_REGION, 0xB2, struct.pack("<H", 0x8000))

    def interrupts(self, vector: int = 0) -> int:
        self.take_interrupts()
        return self.delivered.pop(40 + vector, 0)

    def interrupt_pages(self) -> set[int]:
        first = self.buffers + 64 * self.entries
        return {self.rings[1][2], first, first + 64 * self.irq_buffers}

    def take_interrupts(self, *, again: bool = True) -> None:
        """Count what has come in :attr:`delivered`, by data; post the buffers ``again``."""
        for head, written in self.taken_back(1):
            at = self.buffers + 64 * (self.entries + head)
            op, _, _, size, address, data = struct.unpack("<BBHIQI", self.peek(at, 20))
            assert (written, op, size, address) == (20, 7, 4, 0xA0000)
            # The call follows the buffer.
            select.select([self.calls[1][0]], [], [], self.patience_s)
            assert os.read(self.calls[1][0], 8) == struct.pack("<Q", 1)
            self.delivered[data] = self.delivered.get(data, 0) + 1
            if again:
                self.post(1, (at, 20, 2), head=head)
                self.pump()

    def write_region(self, region: int, offset: int, data: bytes, flags: int = 0x10) -> int:
        if region == pci.CONFIG_REGION:
            header = struct.pack("<BBHIQ", pcidev.CFG_WRITE, 0, 0, len(data), offset)
            self.command(header + data.ljust(8, b"\0"))
        else:
            header = struct.pack("<BBHIQ", pcidev.MMIO_WRITE, region, 0, len(data), offset)
            self.command(header + data)
        return 0

    def read_region(self, region: int, offset: int, octets: int) -> bytes:
        op, bar = (pcidev.MMIO_READ, region)
        if region == pci.CONFIG_REGION:
            op, bar = pcidev.CFG_READ, 0
        return self.command(struct.pack("<BBHIQ", op, bar, 0, octets, offset), octets)

    def close(self) -> None:
        super().close()
        for fd in (*self.kicks, *self.calls[0], *self.calls[1], *self.request_pipe):
            os.close(fd)


class InProcess(Driver):
    """In one process and thread with a model on a :class:`FakeWire`."""

    patience_s = 0.0
    bare = False
    connection: Connection | Backend

    def __init__(self, wire: FakeWire | None = None, **options: int) -> None:
        self.wire = wire or FakeWire()
        self.clock = Clock()
        self.journal = Journal()
        self.nic = Nic(self.wire, MAC, journal=self.journal, clock_ns=self.clock, bare=self.bare)
        ours, theirs = socket.socketpair()
        self.connection = self.connect(theirs)
        super().__init__(ours, **options)

    def connect(self, theirs: socket.socket) -> Connection | Backend:
        raise NotImplementedError

    def pump(self) -> None:
        self.connection.serve(self.connection.filenos())

    def pass_wire(self) -> list[tuple[bytes, int]]:
        """One receive pass of the model, then what the driver gets of it."""
        self.nic.receive()
        return self.receive()

    def post_tx(self, descriptors: list[int], channel: int = 0) -> None:
        super().post_tx(descriptors, channel)
        self.nic.transmit()

    def close(self) -> None:
        self.connection.close()
        self.nic.client_gone()
        super().close()


def checksum(data: bytes) -> int:
    """The Internet checksum the plain way (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def udp4(
    payload: bytes = b"x",
    *,
    to: bytes = MAC,
    good: bool = True,
    partial: bool = False,
    protocol: int = 17,
    source: bytes = bytes((10, 0, 0, 1)),
    source_port: int = 4000,
    ip_good: bool = True,
    options: bytes = b"",
    frag: int = 0,
) -> bytes:
    """An IPv4 UDP or TCP frame; ``partial``: the L4 checksum as a stack leaves it."""
    ports = struct.pack(">HH", source_port, 5000)
    if protocol == 17:
        l4 = ports + struct.pack(">HH", 8 + len(payload), 0) + payload
        field_at = 6
    else:
        l4 = ports + struct.pack(">IIHHHH", 1, 2, 0x5010, 1000, 0, 0) + payload
        field_at = 16
    addresses = source + bytes((10, 0, 0, 2))
    pseudo = addresses + struct.pack(">BBH", 0, protocol, len(l4))
    value = (checksum(pseudo) ^ 0xFFFF) if partial else checksum(pseudo + l4) or 0xFFFF
    if not good:
        value ^= 0x1234
    l4 = l4[:field_at] + struct.pack(">H", value) + l4[field_at + 2 :]
    words = 5 + len(options) // 4
    ip = struct.pack(">BBHHHBBH", 0x40 | words, 0, words * 4 + len(l4), 1, frag, 64, protocol, 0)
    ip += addresses + options
    ip_value = checksum(ip) if ip_good else checksum(ip) ^ 0x55
    ip = ip[:10] + struct.pack(">H", ip_value) + ip[12:]
    return to + PEER + b"\x08\x00" + ip + l4


def udp6(
    payload: bytes = b"x", *, good: bool = True, partial: bool = False, extension: bytes = b""
) -> bytes:
    """An IPv6 UDP frame; ``extension``: a header of destination options, without its type."""
    addresses = bytes.fromhex("fe80" + "00" * 13 + "01" + "fe80" + "00" * 13 + "02")
    l4 = struct.pack(">HHHH", 4000, 5000, 8 + len(payload), 0) + payload
    pseudo = addresses + struct.pack(">IHBB", len(l4), 0, 0, 17)
    value = (checksum(pseudo) ^ 0xFFFF) if partial else checksum(pseudo + l4) or 0xFFFF
    if not good:
        value ^= 0x1234
    l4 = l4[:6] + struct.pack(">H", value) + l4[8:]
    if extension:
        l4 = b"\x11" + extension + l4
    ip = struct.pack(">IHBB", 6 << 28, len(l4), 60 if extension else 17, 64) + addresses
    return MAC + PEER + b"\x86\xdd" + ip + l4


def tagged(frame: bytes, *tags: int) -> bytes:
    """``frame`` behind VLAN tags, the outer ones of 802.1ad."""
    if not tags:
        return frame
    tpids = [0x88A8] * (len(tags) - 1) + [0x8100]
    stack = b"".join(struct.pack(">HH", *tag) for tag in zip(tpids, tags, strict=True))
    return frame[:12] + stack + frame[12:]


class MiniDriver(InProcess, Driver):
    """By vfio-user."""

    connection: Connection

    def connect(self, theirs: socket.socket) -> Connection:
        return Connection(theirs, self.nic, self.journal)


class MiniVhostDriver(InProcess, VhostDriver):
    """By vhost-user."""

    bare = True
    connection: Backend

    def connect(self, theirs: socket.socket) -> Backend:
        return Backend(theirs, self.nic, self.journal, self.clock)


CSUMNOTREADY = 1 | TP_STATUS_CSUMNOTREADY
