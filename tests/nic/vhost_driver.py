# SPDX-License-Identifier: MIT
"""The miniature driver over vhost-user, in place of virtio_uml and virt-pci."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import struct
import time
from pathlib import Path

from harness.nic import pci, pcidev, vhost
from harness.nic.vhost import Backend
from tests.nic.minidriver import _NONBLOCKING, Driver, InProcess


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
        """Share one more segment; the queues stay in the earlier ones."""
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
        """(head, octets written) of each buffer that the model gave back since the last call."""
        _, _, used = self.rings[index]
        upto = self.word(used + 2)
        found = []
        while self.seen[index] != upto:
            at = used + 4 + 8 * (self.seen[index] % self.entries)
            found.append(struct.unpack("<II", self.peek(at, 8)))
            self.seen[index] = (self.seen[index] + 1) & 0xFFFF
        return found

    def command(self, request: bytes, answer: int = 0) -> bytes:
        """Post one command; waits for its answer if there is room for one."""
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
        """The callback of the command queue: frees posted writes."""
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
        """Fill the MSI-X table as the kernel does, with all vectors masked meanwhile."""
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


class MiniVhostDriver(InProcess, VhostDriver):
    """By vhost-user."""

    bare = True
    connection: Backend

    def connect(self, theirs: socket.socket) -> Backend:
        return Backend(theirs, self.nic, self.journal, self.clock)


def running(entries: int = 64) -> MiniVhostDriver:
    made = MiniVhostDriver(megabytes=8)
    made.attach()
    made.set_irqs()
    made.probe()
    made.open(entries=entries)
    return made


def open_fds(*, memory: bool = True) -> int:
    """How many there are; a mapping of ``memory`` goes with the garbage and keeps one."""
    if memory:
        gc.collect()
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += memory or not str(fd.readlink()).startswith("/memfd:")
    return found


def assert_alive(driver: MiniVhostDriver) -> None:
    assert driver.journal.counts["internal_errors"] == 0
    assert driver.read_region(pci.CONFIG_REGION, 0, 4) == b"\x24\x19\x23\x09"
