# SPDX-License-Identifier: MIT
"""vhost-user: configuration space, commands and rings of an untrusted guest."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.nic import pci, pcidev
from harness.nic.stream import SessionEnd
from tests.nic.frames import MAC, udp4
from tests.nic.vhost_driver import MiniVhostDriver, assert_alive, running

pytestmark = pytest.mark.nic

SLOW = settings(
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def driver() -> Iterator[MiniVhostDriver]:
    made = MiniVhostDriver(megabytes=8)
    made.attach()
    yield made
    made.close()


# Configuration space of a bare function.


def test_bars_tell_their_size_and_keep_their_address(driver: MiniVhostDriver) -> None:
    sizes = {}
    for at in (0x10, 0x18, 0x20):
        driver.write_region(pci.CONFIG_REGION, at, b"\xff" * 4)
        driver.write_region(pci.CONFIG_REGION, at + 4, b"\xff" * 4)
        low, high = struct.unpack("<II", driver.read_region(pci.CONFIG_REGION, at, 8))
        assert low & 15 == (0 if at == 0x10 else 4)
        sizes[at] = (~(high << 32 | low & ~15) + 1) & ((1 << 64) - 1) if low else 0
        driver.write_region(pci.CONFIG_REGION, at, struct.pack("<Q", 0xF0800000 + at << 16))
    assert sizes == {0x10: 0, 0x18: 8 << 20, 0x20: 16 << 10}
    (address,) = struct.unpack("<Q", driver.read_region(pci.CONFIG_REGION, 0x18, 8))
    assert address & ~15 == (0xF0800000 + 0x18 << 16) & ~((8 << 20) - 1)
    assert driver.read_region(pci.CONFIG_REGION, 0x30, 4) == bytes(4), "no ROM"


def test_reads_of_every_width(driver: MiniVhostDriver) -> None:
    whole = driver.read_region(pci.CONFIG_REGION, 0, 8)
    assert whole[:4] == b"\x24\x19\x23\x09"
    for width in (1, 2, 4, 8):
        got = b"".join(
            driver.read_region(pci.CONFIG_REGION, at, width) for at in range(0, 8, width)
        )
        assert got == whole


def test_the_msix_table_is_the_functions(driver: MiniVhostDriver) -> None:
    assert driver.read_region(pci.BAR4, 12, 4) == struct.pack("<I", 1), "masked at first"
    interrupts = driver.nic.interrupts
    interrupts.raise_vector(2)
    assert driver.read_region(pci.BAR4, 0x2000, 8) == struct.pack("<Q", 4)
    driver.set_irqs()
    assert driver.interrupts(2) == 1
    assert driver.read_region(pci.BAR4, 0x2000, 8) == bytes(8)
    assert driver.read_region(pci.BAR4, 16, 16) == struct.pack("<IIII", 0xA0000, 0, 41, 0)
    # The vector's own mask, then all of the function's, then MSI-X as a whole.
    driver.write_region(pci.BAR4, 12, b"\1\0\0\0")
    interrupts.raise_vector(0)
    interrupts.raise_vector(0)
    assert driver.interrupts(0) == 0
    driver.write_region(pci.BAR4, 12, bytes(4))
    assert driver.interrupts(0) == 1
    for held in (0xC000, 0x0000):
        driver.write_region(pci.CONFIG_REGION, 0xB2, struct.pack("<H", held))
        interrupts.raise_vector(1)
        assert driver.interrupts(1) == 0
        driver.write_region(pci.CONFIG_REGION, 0xB2, struct.pack("<H", 0x8000))
        assert driver.interrupts(1) == 1
    # Pending bits cannot be written, and a reset masks everything.
    driver.write_region(pci.BAR4, 0x2000, b"\xff" * 4)
    assert driver.read_region(pci.BAR4, 0x2000, 8) == bytes(8)
    driver.write_region(pci.CONFIG_REGION, 0x78, struct.pack("<H", 0x8000))
    assert driver.read_region(pci.BAR4, 12, 4) == struct.pack("<I", 1)
    interrupts.raise_vector(99)
    assert_alive(driver)


def test_interrupts_wait_for_buffers(driver: MiniVhostDriver) -> None:
    driver.set_irqs(20)
    for vector in range(20):
        driver.nic.interrupts.raise_vector(vector)
    driver.take_interrupts(again=False)
    assert sum(driver.delivered.values()) == 10
    (pending,) = struct.unpack("<Q", driver.read_region(pci.BAR4, 0x2000, 8))
    assert pending == 0xFFC00
    # The kick of a buffer that comes back is heard, and nothing else makes it go on.
    assert not driver.peek(driver.rings[1][2], 1)[0] & 1
    for head in range(10):
        at = driver.buffers + 64 * (driver.entries + head)
        driver.post(1, (at, 20, 2), head=head)
    driver.pump()
    driver.take_interrupts()
    assert [driver.delivered.get(40 + vector) for vector in range(20)] == [1] * 20
    assert driver.peek(driver.rings[1][2], 1)[0] & 1


# What the driver makes of the rings.


def test_a_call_comes_for_posted_writes_and_none_for_reads(driver: MiniVhostDriver) -> None:
    driver.set_irqs()
    driver.hear()
    driver.called = 0
    for _ in range(1000):
        driver.write_region(pci.BAR2, 0x3F0, bytes(4))
    driver.hear()
    assert 1000 // 64 - 1 <= driver.called <= 1000 // 64 + 1
    driver.called = 0
    for _ in range(200):
        driver.read_region(pci.CONFIG_REGION, 0, 4)
    driver.hear()
    assert driver.called == 0
    # A driver that wants no interrupts gets none.
    driver.poke(driver.rings[0][1], b"\1\0")
    for _ in range(120):
        driver.write_region(pci.BAR2, 0x3F0, bytes(4))
    driver.hear()
    assert driver.called == 0


def test_kicks_are_wanted_only_while_the_model_sleeps(driver: MiniVhostDriver) -> None:
    used = driver.rings[0][2]
    driver.read_region(pci.CONFIG_REGION, 0, 4)
    assert driver.peek(used, 2) == b"\1\0"
    assert driver.connection.due_ns(driver.clock.now_ns) == driver.clock.now_ns + 10_000
    driver.clock.now_ns += 1_000_000
    driver.connection.serve(())
    assert driver.peek(used, 2) == b"\0\0"
    due = driver.connection.due_ns(driver.clock.now_ns)
    assert due is not None
    assert due - driver.clock.now_ns > 10_000_000
    driver.read_region(pci.CONFIG_REGION, 0, 4)
    assert driver.peek(used, 2) == b"\1\0"


@pytest.mark.parametrize("number", [1, 7, 8, 9, 64, 128])
def test_doorbells_that_wait_together_count_like_one_by_one(number: int) -> None:
    driver = running(512)
    pump, driver.pump = driver.pump, lambda: None  # type: ignore[method-assign]
    driver.hear()
    free = len(driver.free)
    for n in range(number):
        if n % 3 == 0:
            driver.refill(number=8 + n)
        elif n % 3 == 1:
            driver.writel(0x400, driver.channels[0].evq_rptr)
        else:
            driver.writel(0xA18, n)
    assert len(driver.free) == free - number
    pump()
    driver.pump = pump  # type: ignore[method-assign]
    driver.hear()
    driver.nic.transmit()
    counters = driver.nic.counters()
    assert counters["register_unknown"] == counters["internal_errors"] == 0
    driver.receive()
    driver.interrupts()
    driver.wire.inject(udp4(b"x"))
    driver.nic.receive()
    assert driver.interrupts() == 1
    assert len(driver.receive()) == 1
    # What is no doorbell keeps its order among them.
    driver.pump = lambda: None  # type: ignore[method-assign]
    for _ in range(20):
        driver.writel(0x400, driver.channels[0].evq_rptr)
    driver._sequence = 3
    driver.poke(driver.mcdi_at, struct.pack("<II", 0x7F | 3 << 16, 0x55))
    driver.writel(0x200, 0)
    driver.writel(0x204, driver.mcdi_at)
    pump()
    assert driver.peek(driver.mcdi_at + 8, 6) == MAC
    driver.close()


def test_writes_of_all_kinds(driver: MiniVhostDriver) -> None:
    """A CFG_WRITE that names a BAR is a memset: um_pci_bar_set()."""
    driver.set_irqs()
    for op in (pcidev.MMIO_MEMSET, pcidev.CFG_WRITE):
        driver.command(struct.pack("<BBHIQ", op, pci.BAR4, 0, 32, 64) + b"\x5a".ljust(8, b"\0"))
        assert driver.read_region(pci.BAR4, 64, 32) == b"\x5a" * 32
        driver.command(struct.pack("<BBHIQ", op, pci.BAR4, 0, 32, 64) + bytes(8))
    # A message in two pieces, as when the kernel has no memory to spare.
    at = driver.buffers + 64 * 200
    driver.poke(at, struct.pack("<BBHIQ", pcidev.MMIO_WRITE, pci.BAR4, 0, 4, 16))
    driver.poke(at + 16, b"\xde\xad\xbe\xef")
    driver.post(0, (at, 16, 0), (at + 16, 4, 0), head=200)
    driver.pump()
    assert driver.read_region(pci.BAR4, 16, 4) == b"\xde\xad\xbe\xef"
    assert_alive(driver)


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"short",
        struct.pack("<BBHIQ", 0, 0, 0, 4, 0),
        struct.pack("<BBHIQ", pcidev.MSI, 0, 0, 4, 0),
        struct.pack("<BBHIQ", 255, 255, 0, 4, 0),
        struct.pack("<BBHIQ", pcidev.CFG_READ, 0, 0, 4, 4094),
        struct.pack("<BBHIQ", pcidev.CFG_READ, 0, 0, 0, 0),
        struct.pack("<BBHIQ", pcidev.CFG_READ, 0, 0, (1 << 32) - 1, 0),
        struct.pack("<BBHIQ", pcidev.CFG_READ, 0, 0, 4, (1 << 64) - 4),
        struct.pack("<BBHIQ", pcidev.CFG_WRITE, 0, 0, 8, 0) + b"four",
        struct.pack("<BBHIQ", pcidev.MMIO_READ, 0, 0, 4, 0),
        struct.pack("<BBHIQ", pcidev.MMIO_READ, pci.CONFIG_REGION, 0, 4, 0),
        struct.pack("<BBHIQ", pcidev.MMIO_READ, 2, 0, 4, (8 << 20) - 2),
        struct.pack("<BBHIQ", pcidev.MMIO_WRITE, 2, 0, 4, 8 << 20) + bytes(4),
        struct.pack("<BBHIQ", pcidev.MMIO_WRITE, 1, 0, 4, 0) + bytes(4),
        struct.pack("<BBHIQ", pcidev.MMIO_MEMSET, 2, 0, 8 << 20, 8) + b"\xff",
        struct.pack("<BBHIQ", pcidev.MMIO_MEMSET, 2, 0, 64, 0),
    ],
)
def test_a_command_that_makes_no_sense_is_answered(
    driver: MiniVhostDriver, request_: bytes
) -> None:
    answer = driver.command(request_, 8)
    assert set(answer) <= {0xFF}
    driver.command(request_)
    assert driver.journal.counts["pcidev_bad_command"] == 2
    assert_alive(driver)


# Rings that make no sense end the session, and nothing worse.


def chain(driver: MiniVhostDriver, *descriptors: tuple[int, int, int, int], head: int = 0) -> None:
    """Descriptors as (address, octets, flags, next), available at ``head``."""
    desc, avail, _ = driver.rings[0]
    for index, descriptor in enumerate(descriptors):
        driver.poke(desc + 16 * index, struct.pack("<QIHH", *descriptor))
    driver.poke(avail + 4 + 2 * (driver.added[0] % driver.entries), struct.pack("<H", head))
    driver.added[0] += 1
    driver.poke(avail + 2, struct.pack("<H", driver.added[0] & 0xFFFF))


GOOD = 1 << 22
BAD_CHAINS = {
    "head out of the table": ([(GOOD, 16, 0, 0)], 256),
    "next out of the table": ([(GOOD, 16, 1, 300)], 0),
    "in a circle": ([(GOOD, 16, 1, 1), (GOOD, 16, 1, 0)], 0),
    "to itself": ([(GOOD, 0, 1, 0)], 0),
    "indirect": ([(GOOD, 16, 4, 0)], 0),
    "readable behind writable": ([(GOOD, 16, 3, 1), (GOOD, 16, 0, 0)], 0),
    "not in memory": ([(0, 16, 0, 0)], 0),
    "beyond the end": ([(GOOD + (8 << 20) - 8, 16, 0, 0)], 0),
    "address that wraps": ([((1 << 64) - 8, 16, 0, 0)], 0),
    "four gigabytes": ([(GOOD, (1 << 32) - 1, 0, 0)], 0),
    "answer not in memory": (
        [(GOOD, 16, 1, 1), (8, 8, 2, 0)],
        0,
    ),
}


@pytest.mark.parametrize("what", BAD_CHAINS)
def test_a_broken_chain_ends_the_session(driver: MiniVhostDriver, what: str) -> None:
    descriptors, head = BAD_CHAINS[what]
    driver.poke(GOOD, struct.pack("<BBHIQ", pcidev.CFG_READ, 0, 0, 4, 0))
    chain(driver, *descriptors, head=head)
    with pytest.raises(SessionEnd):
        driver.pump()
    assert driver.journal.counts["internal_errors"] == 0


def test_more_buffers_than_the_queue_has(driver: MiniVhostDriver) -> None:
    driver.poke(driver.rings[0][1] + 2, struct.pack("<H", (driver.added[0] + 257) & 0xFFFF))
    with pytest.raises(SessionEnd):
        driver.pump()


def test_a_broken_interrupt_ring_ends_the_session_wherever_it_is_met() -> None:
    driver = running()
    driver.wire.inject(udp4())
    desc, _, _ = driver.rings[1]
    for index in range(256):
        driver.poke(desc + 16 * index, struct.pack("<QIHH", 0, 20, 2, 0))
    driver.nic.receive()  # which interrupts
    assert driver.journal.counts["internal_errors"] == 0
    with pytest.raises(SessionEnd):
        driver.pump()
    driver.close()


def test_a_full_circle_of_ones_is_bounded(driver: MiniVhostDriver) -> None:
    """A chain as long as the queue, and a queue that is always full."""
    desc = driver.rings[0][0]
    for index in range(256):
        driver.poke(desc + 16 * index, struct.pack("<QIHH", GOOD, 0, index < 255, index + 1))
    for _ in range(256):
        slot = driver.added[0] % 256
        driver.poke(driver.rings[0][1] + 4 + 2 * slot, struct.pack("<H", 0))
        driver.added[0] += 1
    driver.poke(driver.rings[0][1] + 2, struct.pack("<H", driver.added[0] & 0xFFFF))
    driver.pump()
    assert driver.journal.counts["pcidev_bad_command"] == 256


# And at random.


@SLOW
@given(st.integers(0, 1 << 32), st.integers(0, 1))
def test_random_rings_end_nothing(seed: int, index: int) -> None:
    chance = random.Random(seed)
    driver = running()
    areas = driver.rings[index]
    sizes = (16 * driver.entries, 4 + 2 * driver.entries, 4 + 8 * driver.entries)
    words = [0, 1, 2, 3, 4, 16, 20, 255, 256, 0xFFFF, 1 << 22, (1 << 22) + 4096, (1 << 32) - 1]
    try:
        for _ in range(chance.randrange(1, 30)):
            area, size = chance.choice(list(zip(areas, sizes, strict=True)))
            at = chance.randrange(0, min(size, 200) - 8, 2)
            value = chance.choice([chance.randrange(1 << 16), chance.choice(words)])
            driver.poke(area + at, struct.pack(chance.choice(["<H", "<Q"]), value % (1 << 16)))
            if chance.random() < 0.5:
                _, avail, _ = areas
                (added,) = struct.unpack("<H", driver.peek(avail + 2, 2))
                more = (added + chance.choice([1, 2, 9, 64])) & 0xFFFF
                driver.poke(avail + 2, struct.pack("<H", more))
            driver.wire.inject(udp4())
            driver.nic.receive()
            driver.nic.interrupts.raise_vector(chance.randrange(4))
            driver.pump()
            driver.clock.now_ns += 500_000
    except SessionEnd:
        pass
    assert driver.journal.counts["internal_errors"] == 0
    driver.close()


@SLOW
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10),
            st.integers(0, 7),
            st.sampled_from([0, 1, 2, 4, 8, 9, 4096, (1 << 32) - 1]),
            st.one_of(
                st.integers(0, 0x2010),
                st.sampled_from([0x200, 0x204, 0x400, 0x830, 0xA18, (8 << 20) - 4, 1 << 63]),
            ),
            st.binary(max_size=40),
            st.integers(0, 64),
        ),
        max_size=40,
    )
)
def test_random_commands_end_nothing(
    commands: list[tuple[int, int, int, int, bytes, int]],
) -> None:
    driver = running()
    for op, bar, size, address, data, room in commands:
        request = struct.pack("<BBHIQ", op, bar, 0, size, address) + data
        assert len(driver.command(request, room)) <= room
        driver.wire.inject(udp4())
        driver.nic.receive()
        driver.nic.transmit()
        driver.clock.now_ns += 100_000
        driver.nic.tick()
    assert driver.journal.counts["internal_errors"] == 0
    driver.close()
