# SPDX-License-Identifier: MIT
"""Random sessions of everything that a guest, a client and a sender can do.

Asserts more than that the model survives: no step is a mistake of the model, and each
frame of the wire is accounted for.
"""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.nic import pci, transport
from harness.nic.injection import FAULTS, MAX_MS, MAX_NUMBER, Request
from harness.nic.wire import LARGE_SLOT, SMALL_SLOT
from tests.nic.fake_wire import FakeWire
from tests.nic.frames import BROADCAST, MAC, PEER, tagged, udp4, udp6
from tests.nic.minidriver import McdiFailedError, McRebootedError, MiniDriver

pytestmark = pytest.mark.nic

FUZZ = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
ENDS = ("rx_delivered", "rx_nodesc", "rx_filtered", "rx_oversize", "rx_link_down", "rx_flushed")
WORDS = (0, 1, 2, 3, 7, 14, 63, 64, 65, 512, 1024, 4096, 1 << 20, 1 << 31, (1 << 32) - 1)


def frame(chance: random.Random) -> bytes:
    """Mostly input that passes the first checks of a parser."""
    payload = chance.randbytes(chance.choice((0, 1, 7, 40, 300, 1470, chance.randrange(3000))))
    options = b"\1" * 4 * chance.choice((0, 0, 1, chance.randrange(11)))
    made = chance.choice((
        lambda: udp4(payload, protocol=chance.choice((1, 6, 17, 132)), options=options,
                     good=chance.random() < 0.8, frag=chance.choice((0, 0, 0x2000, 0x1FFF)),
                     ip_good=chance.random() < 0.9, source=chance.randbytes(4)),
        lambda: udp6(payload, good=chance.random() < 0.8),
        lambda: udp6(payload, extension=bytes((chance.randrange(4),)) + chance.randbytes(6)),
        lambda: MAC + PEER + chance.choice((b"\x08\0", b"\x86\xdd", b"\x81\0")) + payload,
        lambda: chance.choice((MAC, BROADCAST, PEER)) + chance.randbytes(8) + payload,
    ))()  # fmt: skip
    made = tagged(made, *[chance.randrange(4096) for _ in range(chance.choice((0, 0, 1, 2, 3)))])
    if chance.random() < 0.3:
        at = chance.randrange(min(len(made), 60))
        made = made[:at] + chance.randbytes(1) + made[at + 1 :]
    if chance.random() < 0.3:
        made = made[: chance.randrange(1, len(made) + 1)]
    if chance.random() < 0.1:
        made += chance.randbytes(chance.choice((1, 1500, 9000)))
    return made


def receive(driver: MiniDriver, chance: random.Random) -> None:
    status = 1 | chance.choice((0, 0, 1 << 3, 1 << 4, 1 << 4 | 1 << 6, 1 << 3 | 1 << 4, 1 << 7))
    if chance.random() < 0.5:
        driver.wire.inject(*[frame(chance)] * chance.randrange(1, 14), status=status, tci=5)
    else:
        for _ in range(chance.randrange(1, 30)):
            driver.wire.inject(frame(chance), status=status)


def command(driver: MiniDriver, chance: random.Random) -> None:
    number = chance.choice((*driver.nic._commands.table, chance.randrange(1 << 15)))
    words = [chance.choice(WORDS) for _ in range(chance.randrange(40))]
    payload = struct.pack(f"<{len(words)}I", *words)[: chance.randrange(170)]
    if chance.random() < 0.3:
        payload = chance.randbytes(chance.randrange(1010))
    send(driver, number, payload, event=chance.random() < 0.5)


def send(driver: MiniDriver, number: int, payload: bytes, *, event: bool = False) -> None:
    # No answer: without memory or bus mastering, or something was written over it.
    with contextlib.suppress(McdiFailedError, McRebootedError, AssertionError, struct.error):
        driver.mcdi(number, payload, event=event)


def believable(driver: MiniDriver, chance: random.Random) -> None:
    """Commands with values that pass most checks."""
    queue, evq = chance.randrange(4), chance.randrange(4)
    entries = chance.choice((64, 128, 512, 500, 4096))
    ring = driver.base + 4096 * chance.randrange(driver.size // 4096 + 2)
    pages = b"".join(struct.pack("<Q", ring + at) for at in range(4096, 8 * entries, 4096))
    number, payload = chance.choice((
        (0x80, struct.pack("<9IQ", entries, evq, 0, 0, 1, 0, queue, 0, 0, ring) + pages),
        (0x81, struct.pack("<7IQ", entries, evq, queue, queue, chance.choice((0, 1 << 9)),
                           0, 0, ring) + pages),
        (0x82, struct.pack("<7IQ", entries, evq, queue, queue, 6, 0, 0, ring) + pages),
        (chance.choice((0x83, 0x84, 0x85)), struct.pack("<I", queue)),
        (0x86, struct.pack("<IQ", evq, chance.getrandbits(64))),
        (0x2A, struct.pack("<4I", chance.choice((0x3C0, 0x40, 0x400)), chance.choice((0, 0, 8)),
                           chance.choice((0, 1, 2)), 0)),
        (0x2C, struct.pack("<IIQIII", chance.choice((0, 64, 1518, 9038, 1 << 31)), 0, 0, 0,
                           chance.randrange(5), 0)),
        (0x2E, struct.pack("<QIII", ring + chance.choice((0, 4, 4000)),
                           chance.choice((1, 2, 3, 12 | 1000 << 16)), 0x61 * 8, 0)),
        (chance.choice((0x3D, 0xED, 0x20, 0x8C, 0x26)), bytes(4)),
        (0x25, struct.pack("<I", chance.randrange(9))),
        (0x9E, struct.pack("<III", 0, 0, chance.choice((0, 2, 4, 128)))),
        (0xA0, struct.pack("<I", chance.randrange(4)) + chance.randbytes(40)),
        (0xA2, struct.pack("<I", chance.randrange(4)) + chance.randbytes(128)),
        (chance.choice((0x38, 0x39, 0x3A, 0x3B, 0x3C)), struct.pack(
            "<3I", chance.choice((0x500, 0x5, 0x600, 0x400)), chance.choice((0, 4096, 65532)),
            chance.choice((1, 4, 1008, 4096, 65536)),
        ) + chance.randbytes(chance.choice((0, 4, 1008)))),
        (0x42, struct.pack("<QI", ring + chance.choice((0, 4092)), chance.choice((0, 16, 4096)))),
        (0x120, struct.pack("<4I", evq, 1 << chance.randrange(32), 0, chance.randrange(4))),
    ))  # fmt: skip
    send(driver, number, payload, event=chance.random() < 0.5)


def filters(driver: MiniDriver, chance: random.Random) -> None:
    with contextlib.suppress(McdiFailedError, McRebootedError, AssertionError, struct.error):
        driver.add_filter(
            chance.choice((MAC, BROADCAST)),
            match=chance.choice((0x10, 1 << 30, 1 << 31)),
            queue=chance.randrange(3),
            rss=chance.choice((None, 1, 2)),
            dest=chance.choice((0, 1, 1)),
        )


def registers(driver: MiniDriver, chance: random.Random) -> None:
    at = chance.choice((0, 0x10, 0x200, 0x204, 0x400, 0x420, 0x830, 0xA10, 0xA18, 4096))
    at += 8192 * chance.choice((0, 0, 1, 2, 1023))
    data = chance.randbytes(chance.choice((1, 2, 4, 4, 8, 16)))
    if at & 0x1FFF != 0x204:
        driver.write_region(pci.BAR2, at, data)
    driver.read_region(chance.choice((0, 2, 4, 7)), chance.randrange(200), chance.randrange(1, 50))


def configuration(driver: MiniDriver, chance: random.Random) -> None:
    at, data = chance.choice((
        (0x04, bytes((chance.choice((2, 6, 6)), 0))),
        (0x44, bytes((chance.randrange(4), 0))),
        (0x44, b"\0"),
        (0x78, b"\0\x80"),
        (chance.randrange(4000), chance.randbytes(chance.randrange(1, 90))),
    ))  # fmt: skip
    driver.write_region(pci.CONFIG_REGION, at, data)


def rings(driver: MiniDriver, chance: random.Random) -> None:
    queues = chance.choice(driver.channels)
    start = chance.choice((queues.rxq, queues.txq, queues.evq))
    for _ in range(chance.randrange(64)):
        address = chance.choice(
            (queues.buffer, driver.base + driver.size - 40, chance.getrandbits(48))
        )
        size = chance.choice((0, 1, 14, 60, 1792, 2048, 16383))
        value = address | size << 48 | chance.choice((0, 0, 1, 2, 3)) << 62
        driver.poke(start + 8 * chance.randrange(64), struct.pack("<Q", value))
    vi = chance.randrange(2) * 8192
    driver.writel(vi + chance.choice((0x830, 0xA18, 0x400)), chance.randrange(4096))


def client(driver: MiniDriver, chance: random.Random) -> None:
    at = chance.choice((driver.base, 1 << 32, 1 << 40)) + 4096 * chance.randrange(4)
    size = chance.choice((4096, 8192, driver.size, 1 << 41))
    what = chance.randrange(6)
    if what == 0:
        driver.map(at, size, fd=chance.choice((None, driver.memfd)), flags=chance.randrange(4))
    elif what == 1:
        driver.unmap(at, size)
    elif what == 2:
        driver.map(driver.base, driver.size, fd=driver.memfd)
    elif what == 3:
        driver.request(transport.DEVICE_RESET)
    else:
        flags = chance.choice((0x21, 0x22, 0x24))
        body = struct.pack("<5I", 20, flags, 2, chance.randrange(4), chance.randrange(3))
        driver.request(
            transport.DEVICE_SET_IRQS,
            body + bytes(4),
            tuple(driver.eventfds[: chance.randrange(3)]),
        )


def surroundings(driver: MiniDriver, chance: random.Random) -> None:
    driver.nic.set_link(up=chance.random() < 0.8)
    driver.clock.now_ns += chance.choice((1, 1000, 1_000_000, 20_000_000, 2_000_000_000))
    driver.wire.refuse = chance.random() < 0.1


def fault(driver: MiniDriver, chance: random.Random) -> None:
    asked = Request(
        chance.choice((1, 1, 3, MAX_NUMBER)),
        chance.choice((0, 1, 20, MAX_MS)),
        chance.choice((None, None, 0x2A, 0x3D)),
    )
    driver.nic.injector.inject(chance.choice(list(FAULTS)), asked)


STEPS = (
    receive, receive, receive, command, believable, believable, filters, registers,
    configuration, rings, rings, client, surroundings, fault,
)  # fmt: skip


@FUZZ
@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1 << 32)), min_size=5, max_size=50),
    st.sampled_from([SMALL_SLOT, LARGE_SLOT]),
)
def test_nothing_is_a_mistake_of_the_model(steps: list[tuple[object, int]], slot: int) -> None:
    wire = FakeWire(slots=64, slot=slot)
    driver = MiniDriver(wire, megabytes=2, base=1 << 32)
    try:
        driver.attach()
        driver.set_irqs()
        driver.probe()
        driver.open(channels=2)
        for step, seed in steps:
            assert callable(step)
            step(driver, random.Random(seed))
            driver.nic.receive()
            driver.nic.transmit()
            driver.nic.tick()
            counters = driver.nic.counters()
            assert counters["internal_errors"] == 0, step
            assert counters["rx_internal_drops"] == counters["tx_internal_drops"] == 0
            assert counters["rx_frames"] == sum(counters[name] for name in ENDS)
    finally:
        driver.close()
