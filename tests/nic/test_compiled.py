# SPDX-License-Identifier: MIT
"""The compiled data path does what the Python one does: frame by frame, octet by octet.

Two drivers do the same at the same time, each with a model of its own. Besides, compiled code
writes nothing to the guest but what its events say.
"""

from __future__ import annotations

import ctypes
import random
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.nic import datapath
from harness.nic.datapath import build
from harness.nic.wire import LARGE_SLOT, SMALL_SLOT
from tests.nic import test_fuzz as fuzz
from tests.nic.conftest import PYTHON
from tests.nic.fake_wire import FakeWire
from tests.nic.frames import BROADCAST, MAC, udp4
from tests.nic.minidriver import MiniDriver

pytestmark = pytest.mark.nic

SLOW = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
CHANNELS = 3
ENTRIES = 64
READ_ONLY, EDGE = 1 << 33, 1 << 34
"""Where two more segments of guest memory are; the second one follows a page that is not there."""
PATTERN = 0xA5


class Pair:
    """A model with the compiled data path and one with the other, their drivers in step."""

    def __init__(self, compiled: datapath.Datapath, slot: int, *, scatter: bool) -> None:
        self.both = [
            MiniDriver(FakeWire(slots=128, slot=slot), path=path, megabytes=1, base=1 << 32)
            for path in (compiled, PYTHON)
        ]
        for driver in self.both:
            driver.attach()
            driver.set_irqs()
            assert driver.map(READ_ONLY, 8192, fd=driver.memfd, flags=1) == 0
            assert driver.map(EDGE, 4096, fd=driver.memfd, offset=driver.size - 4096) == 0
            driver.probe()
            driver.open(channels=CHANNELS, entries=ENTRIES, post=False)
            for channel, queues in enumerate(driver.channels):
                driver.mcdi(0x84, struct.pack("<I", channel))
                driver.mcdi(
                    0x81,
                    struct.pack(
                        "<7IQ", ENTRIES, channel, channel, channel, 0 if scatter else 1 << 9, 0, 0,
                        queues.rxq,
                    ),
                )  # fmt: skip
                driver.poke(queues.buffer, bytes([PATTERN]) * (ENTRIES * 2048))
                driver.refill(channel, ENTRIES - 8)
                driver.events(channel)

    def close(self) -> None:
        for driver in self.both:
            driver.close()


def do_receive(driver: MiniDriver, chance: random.Random) -> None:
    fuzz.receive(driver, chance)


def do_flood(driver: MiniDriver, chance: random.Random) -> None:
    """Frames that are alike, of one flow or of several, as a generator sends."""
    frames = [
        udp4(
            bytes(chance.choice((1, 18, 1472))),
            source=chance.randbytes(4),
            source_port=chance.randrange(5000),
            protocol=chance.choice((6, 17)),
        )
        for _ in range(chance.choice((1, 1, 4)))
    ]
    for _ in range(chance.randrange(1, 120)):
        driver.wire.inject(chance.choice(frames))


def do_post(driver: MiniDriver, chance: random.Random) -> None:
    driver.room = chance.choice((1792, 1792, 1792, 256, 100, 64, 20))
    channel = chance.randrange(CHANNELS)
    driver.refill(channel, 8 * chance.randrange(1, ENTRIES // 8))


def do_mistake(driver: MiniDriver, chance: random.Random) -> None:
    """Descriptors that no driver posts, and pointers beyond them."""
    channel = chance.randrange(CHANNELS)
    queues = driver.channels[channel]
    for _ in range(chance.randrange(1, 12)):
        address = chance.choice((
            queues.buffer, driver.base + driver.size - 40, READ_ONLY, READ_ONLY + 8192 - 20,
            EDGE + 4096 - 60, EDGE - 10, chance.getrandbits(48), 0,
        ))  # fmt: skip
        size = chance.choice((0, 1, 14, 60, 74, 1792, 2048, 16383))
        at = queues.rxq + 8 * chance.randrange(ENTRIES)
        driver.poke(at, struct.pack("<Q", address | size << 48 | chance.randrange(4) << 62))
    if chance.random() < 0.3:
        driver.writel(channel * 8192 + 0x830, chance.randrange(ENTRIES))


def do_steer(driver: MiniDriver, chance: random.Random) -> None:
    rss = None
    if chance.random() < 0.6:
        (rss,) = struct.unpack("<I", driver.mcdi(0x9E, struct.pack("<III", 0, 0, CHANNELS)))
        driver.mcdi(0xA0, struct.pack("<I", rss) + chance.randbytes(40))
        table = bytes(chance.randrange(CHANNELS + 1) for _ in range(128))
        driver.mcdi(0xA2, struct.pack("<I", rss) + table)
    driver.add_filter(
        chance.choice((MAC, BROADCAST, chance.randbytes(6))),
        match=chance.choice((0x10, 1 << 30, 1 << 31)),
        queue=chance.randrange(CHANNELS),
        rss=rss,
        dest=chance.choice((0, 1, 1, 1)),
    )


def do_surroundings(driver: MiniDriver, chance: random.Random) -> None:
    driver.clock.now_ns += chance.choice((1, 1000, 20_000_000))
    mtu = chance.choice((64, 1518, 1518, 9038))
    driver.mcdi(0x2C, struct.pack("<IIQIII", mtu, 0, 0, 0, 1, 0))
    driver.wire.refuse = chance.random() < 0.1


def do_pace(driver: MiniDriver, chance: random.Random) -> None:
    """The wire repeats, or delivers bursts."""
    driver.nic.pace_wire(repeat=chance.choice((0, 1, 1, 3)), burst=chance.choice((0, 0, 8)))


def do_transmit(driver: MiniDriver, chance: random.Random) -> None:
    for _ in range(chance.randrange(1, 6)):
        whole = fuzz.frame(chance)
        cuts = sorted(chance.randrange(len(whole) + 1) for _ in range(chance.choice((0, 0, 1, 3))))
        parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        descriptors: list[int] = []
        if chance.random() < 0.5:
            kind = chance.choice((0, 0, 0, 3))
            descriptors.append(1 << 63 | kind << 60 | chance.randrange(4))
        at = driver.base + driver.size - (128 << 10)  # where nothing is received
        for index, part in enumerate(parts):
            driver.poke(at, part)
            address, octets = at, len(part) & 0x3FFF
            if chance.random() < 0.05:
                address = chance.choice((0, READ_ONLY + 8192 - 20, chance.getrandbits(48)))
            if chance.random() < 0.05:
                octets = chance.choice((0, 1, 16383))
            cont = index < len(parts) - 1 or chance.random() < 0.05
            descriptors.append(address | octets << 48 | cont << 62)
            at += len(part)
        driver.post_tx(descriptors, chance.randrange(CHANNELS))


STEPS = (
    do_receive, do_receive, do_flood, do_flood, do_post, do_post, do_mistake, do_steer, do_steer,
    do_surroundings, do_pace, do_transmit, do_transmit,
)  # fmt: skip


class Step:
    """What both models do in one pass, compared."""

    def __init__(self, pair: Pair) -> None:
        self.ours, self.reference = pair.both
        before = self.ours.peek(self.ours.base, self.ours.size)
        for driver in pair.both:
            driver.nic.receive()
        assert self.rings(self.ours) == self.rings(self.reference)
        self.written = bytearray(before)
        self.pieces: list[tuple[int, int, int]] = []
        for channel, queues in enumerate(self.ours.channels):
            self.keep(queues.evq, queues.buffers * 8)
            for event in self.events(channel):
                if event >> 60 == 0:
                    self.received(channel, event)
        for index, (address, octets, _) in enumerate(self.pieces):
            if not self.overlapped(index):
                assert self.ours.peek(address, octets) == self.reference.peek(address, octets)

    @staticmethod
    def rings(driver: MiniDriver) -> list[bytes]:
        return [driver.peek(queues.evq, queues.buffers * 8) for queues in driver.channels]

    def events(self, channel: int) -> list[int]:
        """New ones, which both drivers take; then they wait for an interrupt, mostly."""
        found, _ = [driver.events(channel, ack=False) for driver in (self.ours, self.reference)]
        if len(found) % 3:
            for driver in (self.ours, self.reference):
                queues = driver.channels[channel]
                driver.writel(channel * 8192 + 0x400, queues.evq_rptr % queues.buffers)
        return found

    def received(self, channel: int, event: int) -> None:
        queues = self.ours.channels[channel]
        at = queues.rxq + queues.rx_removed % ENTRIES * 8
        descriptor = self.ours.qword(at)
        address, size, octets = (
            descriptor & (1 << 48) - 1,
            descriptor >> 48 & 0x3FFF,
            event & 0x3FFF,
        )
        for driver in (self.ours, self.reference):
            driver.channels[channel].rx_removed += 1
        if address >= EDGE and address + octets <= EDGE + 4096:
            address += self.ours.base + self.ours.size - 4096 - EDGE
        if self.ours.base <= address and address + octets <= self.ours.base + self.ours.size:
            self.pieces.append((address, octets, size))
            self.keep(address, octets)

    def keep(self, address: int, octets: int) -> None:
        """Ours may have written there."""
        start = address - self.ours.base
        self.written[start : start + octets] = self.ours.peek(address, octets)

    def overlapped(self, index: int) -> bool:
        """Another piece may have been written there; the reference writes whole groups."""
        address, octets, _ = self.pieces[index]
        return any(
            other < address + octets and address < other + size
            for at, (other, _, size) in enumerate(self.pieces)
            if at != index
        )


@SLOW
@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1 << 32)), min_size=4, max_size=25),
    st.sampled_from([SMALL_SLOT, LARGE_SLOT]),
    st.booleans(),
)
def test_both_do_the_same(
    compiled: datapath.Datapath, steps: list[tuple[object, int]], slot: int, scatter: bool
) -> None:
    pair = Pair(compiled, slot, scatter=scatter)
    ours, reference = pair.both
    try:
        for step, seed in steps:
            assert callable(step)
            for driver in pair.both:
                step(driver, random.Random(seed))
            done = Step(pair)
            # Cleared events are those that were kept above.
            for queues in ours.channels:
                done.keep(queues.evq, queues.buffers * 8)
            assert ours.peek(ours.base, ours.size) == bytes(done.written)
            assert ours.wire.sent == reference.wire.sent
            assert ours.nic.counters() == reference.nic.counters()
            assert [*ours.nic._stats._values] == [*reference.nic._stats._values]
            for vector in range(CHANNELS):
                assert ours.interrupts(vector) == reference.interrupts(vector)
    finally:
        pair.close()


def test_the_structures_are_the_same_in_both_languages(compiled: datapath.Datapath) -> None:
    assert compiled.code is not None
    assert compiled.code.sizes == [ctypes.sizeof(kind) for kind in datapath.STRUCTURES]


def test_a_library_of_other_sources_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: datapath.Datapath
) -> None:
    monkeypatch.setattr(build, "source_sum", lambda: 1)
    made = build.compile_library(tmp_path / "datapath.so")
    monkeypatch.undo()
    found = datapath.load(made)
    assert found.code is None
    assert "other sources" in str(found)
    assert "missing" in str(datapath.load(tmp_path / "none.so"))
    (tmp_path / "text.so").write_text("no library")
    assert "cannot be loaded" in str(datapath.load(tmp_path / "text.so"))


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(datapath.CHOICE, "python")
    assert datapath.chosen().code is None
    monkeypatch.setenv(datapath.CHOICE, "fortran")
    with pytest.raises(datapath.DatapathError, match="python, compiled or not set"):
        datapath.chosen()
    monkeypatch.setattr(datapath, "_loaded", lambda: datapath.Datapath(None, "missing"))
    monkeypatch.setenv(datapath.CHOICE, "compiled")
    with pytest.raises(datapath.DatapathError, match="missing"):
        datapath.chosen()
    monkeypatch.delenv(datapath.CHOICE)
    assert str(datapath.chosen()) == "Python (missing)"
