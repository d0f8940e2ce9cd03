# SPDX-License-Identifier: MIT
from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.nic import offload
from harness.nic.steering import SUPPORTED_MATCHES, Filter, Steering
from tests.nic.frames import MAC, PEER, udp4, udp6
from tests.nic.minidriver import InProcess, McdiFailedError, McRebootedError, MiniDriver
from tests.nic.vhost_driver import MiniVhostDriver

pytestmark = pytest.mark.nic

SLOW = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(params=[MiniDriver, MiniVhostDriver], ids=["vfio-user", "vhost-user"])
def driver(request: pytest.FixtureRequest) -> Iterator[InProcess]:
    made: InProcess = request.param(megabytes=4, base=1 << 32)
    made.attach()
    made.set_irqs()
    made.probe()
    yield made
    made.close()


def assert_alive(driver: InProcess) -> None:
    assert driver.journal.counts["internal_errors"] == 0
    assert driver.mcdi(0x55)[:6] == MAC


BAD_ADDRESSES = [0, 4095, (1 << 32) - 1, (1 << 32) - 700, (1 << 32) + (4 << 20) - 1, (1 << 48) - 1]


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_bad_receive_buffers_are_counted_and_nothing_else(driver: InProcess, address: int) -> None:
    driver.open(post=False)
    queues = driver.channels[0]
    for index in range(queues.entries):
        driver.poke(queues.rxq + 8 * index, struct.pack("<Q", address | 1792 << 48))
    driver.writel(0x830, 32)
    before = driver.peek(driver.base, driver.size)
    driver.wire.inject(*[udp4(bytes([n])) for n in range(5)])
    driver.wire.inject(udp4(b"longer" * 20))
    driver.nic.receive()
    after = driver.peek(driver.base, driver.size)
    pages = range(0, driver.size, 4096)
    changed = {at // 4096 for at in pages if before[at : at + 4096] != after[at : at + 4096]}
    own = {(at - driver.base) // 4096 for at in (queues.evq, *driver.interrupt_pages())}
    assert changed <= own
    assert driver.journal.counts["rx_bad_buffer"] >= 1
    assert len(driver.events()) == 6
    assert_alive(driver)


@pytest.mark.parametrize("room", [0, 1, 13, 14, 60, 73, 74, 16383])
def test_buffers_of_any_size_are_never_overrun(driver: InProcess, room: int) -> None:
    driver.room = room
    driver.open(post=False)
    queues = driver.channels[0]
    driver.poke(queues.buffer, b"\xaa" * (2048 * queues.entries))
    driver.refill()
    driver.wire.inject(*[udp4(b"abc")] * 3)
    driver.nic.receive()
    if room < 2048:
        for index in range(queues.entries):
            beyond = driver.peek(queues.buffer + index * 2048 + room, 2048 - room)
            assert beyond == b"\xaa" * (2048 - room)
    assert_alive(driver)


def test_mixed_buffer_sizes(driver: InProcess) -> None:
    driver.open(post=False)
    queues = driver.channels[0]
    sizes = [30, 0, 2000, 44, 1, 100] * 10
    for index, size in enumerate(sizes):
        address = queues.buffer + index * 2048
        driver.poke(queues.rxq + 8 * index, struct.pack("<Q", address | size << 48))
    driver.writel(0x830, 56)
    driver.wire.inject(*[udp4(bytes([n] * 40)) for n in range(4)])
    driver.nic.receive()
    total, count = b"", 0
    for index, event in enumerate(driver.events()):
        total += driver.peek(queues.buffer + index * 2048, event & 0x3FFF)
        if not event >> 14 & 1:
            assert total[14:] == udp4(bytes([count] * 40))
            total, count = b"", count + 1
    assert count == 4
    assert_alive(driver)


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_bad_transmit_buffers_send_nothing(driver: InProcess, address: int) -> None:
    driver.open()
    good = driver.allocate(4096)
    driver.poke(good, udp4(b"good"))
    size = len(udp4(b"good"))
    driver.post_tx([
        address | 1500 << 48,
        good | size << 48 | 1 << 62, address | 9 << 48,
        good | size << 48,
        *[good | 0x3FFF << 48 | 1 << 62] * 4, good | 1 << 48,
        good | 13 << 48,
        1 << 63 | 7 << 60, 1 << 63 | 1 << 60, 1 << 63 | 6 << 60,
        good | size << 48,
    ])  # fmt: skip
    assert driver.wire.sent == [udp4(b"good").ljust(60, b"\0")] * 2
    assert [e & 0xFFFF for e in driver.events() if e >> 60 == 2] == [13]
    assert_alive(driver)


def test_a_wire_that_refuses_is_counted(driver: InProcess) -> None:
    driver.open()
    driver.wire.refuse = True
    driver.send(udp4())
    assert driver.nic.counters()["tx_wire_drops"] == 1


def test_guest_memory_in_several_segments(driver: InProcess) -> None:
    """Buffers in two segments, one across their border, and a hole behind."""
    high = 5 << 32
    half = driver.size // 2
    assert driver.map(high, half, fd=driver.memfd) == 0
    assert driver.map(high + half, half, fd=driver.memfd, offset=half) == 0
    driver.open(post=False)
    queues = driver.channels[0]
    spots = [queues.buffer, high + 0x1000, high + half + 0x1000, high + half - 20]
    spots += [high + 2 * half - 74, high + 2 * half - 73]
    for index, spot in enumerate(spots):
        driver.poke(queues.rxq + 8 * index, struct.pack("<Q", spot | 1792 << 48))
    driver.writel(0x830, len(spots))
    driver.wire.inject(*[udp4(bytes([n])) for n in range(len(spots))])
    driver.nic.receive()
    got = [
        driver.peek(driver.base + (s - high if s >= high else s - driver.base), 74) for s in spots
    ]
    wanted = [udp4(bytes([n])).ljust(60, b"\0") for n in range(len(spots))]
    reached = [data[14:] == frame for data, frame in zip(got, wanted, strict=True)]
    assert reached == [True, True, True, False, True, False]


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (0x80, struct.pack("<9IQ", 500, 0, 0, 0, 1, 0, 0, 0, 0, 1 << 32)),  # no power of two
        (0x80, struct.pack("<9IQ", 512, 0, 0, 0, 1, 0, 0, 0, 0, (1 << 32) + 8)),  # not aligned
        (0x80, struct.pack("<9IQ", 512, 0, 0, 0, 1, 0, 0, 0, 0, 0)),  # no memory
        (0x80, struct.pack("<9IQ", 512, 0, 0, 0, 1, 0, 0, 0, 0, (1 << 64) - 4096)),
        (0x80, struct.pack("<9IQ", 512, 0, 0, 0, 1, 0, 32, 0, 0, 1 << 32)),  # no such vector
        (0x80, struct.pack("<9IQ", 512, 1024, 0, 0, 1, 0, 0, 0, 0, 1 << 32)),  # no such VI
        (0x80, struct.pack("<9IQQ", 1024, 0, 0, 0, 1, 0, 0, 0, 0, 1 << 32, 1 << 33)),
        (0x80, b"short"),
        (0x81, struct.pack("<7IQ", 1024, 9, 0, 0, 0, 0, 0, 1 << 32)),  # no event queue
        (0x81, struct.pack("<7IQ", 1 << 31, 0, 0, 0, 0, 0, 0, 1 << 32)),
        (0x82, struct.pack("<7IQ", 1024, 9, 0, 0, 0, 0, 0, 1 << 32)),
        (0x83, struct.pack("<I", 7)),
        (0x84, struct.pack("<I", 7)),
        (0x85, b""),
        (0x86, struct.pack("<IQ", 7, 0)),
        (0x8A, struct.pack("<IQ", 1, 99)),
        (0x8A, struct.pack("<IQ", 0, 0)),
        (0x8A, struct.pack("<IQIIIIII", 0, 0, 0, 0x3, 1, 0, 0, 0).ljust(108, b"\0")),
        (0x8A, struct.pack("<IQIIIIII", 0, 0, 0, 0x10, 1, 0, 1, 99).ljust(108, b"\0")),
        (0x8A, struct.pack("<IQIIIIII", 0, 0, 0, 0x10, 1, 1 << 31, 0, 0).ljust(108, b"\0")),
        (0x8B, struct.pack("<II", 1, 1)),
        (0xA2, struct.pack("<I", 1)),
        (0x9F, struct.pack("<I", 5)),
        (0xE3, struct.pack("<I", 99)),
        (0x2E, struct.pack("<QIII", 0, 1, 8, 0)),
        (0x2E, struct.pack("<QIII", 0, 1, 1 << 31, 0)),
        (0x3FFF, b""),
    ],
)
def test_a_malformed_command_fails_and_that_is_all(
    driver: InProcess, command: int, payload: bytes
) -> None:
    with pytest.raises(McdiFailedError):
        driver.mcdi(command, payload)
    assert_alive(driver)


def test_requests_outside_memory_are_counted(driver: InProcess) -> None:
    for high, low in ((0, 0x1000), (0xFFFFFFFF, 0xFFFFFFFC), (1, (4 << 20) - 4)):
        driver.writel(0x200, high)
        driver.writel(0x204, low)
    assert driver.journal.counts["mcdi_bad_address"] == 3
    assert_alive(driver)


def test_completions_are_signalled_only_when_asked(driver: InProcess) -> None:
    driver.open()
    driver.mcdi(0x55)
    assert driver.events() == []
    driver.mcdi(0x55, event=True)
    (event,) = driver.events()
    assert (event >> 60, event >> 44 & 0xFF, event & 0xFF) == (12, 3, driver._sequence)


def test_a_queue_of_a_finished_event_queue_writes_nothing(driver: InProcess) -> None:
    driver.open()
    driver.mcdi(0x83, struct.pack("<I", 0))
    driver.wire.inject(udp4())
    driver.nic.receive()
    assert driver.events(ack=False) == []
    assert_alive(driver)


COMMANDS = sorted(MiniDriver(megabytes=1).nic._commands.table)


@SLOW
@given(
    st.lists(
        st.tuples(
            st.one_of(st.sampled_from(COMMANDS), st.integers(0, 0x7FFF)),
            st.lists(
                st.one_of(
                    st.sampled_from([0, 1, 2, 64, 512, 1024, 4096, 1 << 20, (1 << 32) - 1]),
                    st.integers(0, (1 << 32) - 1),
                ),
                max_size=30,
            ),
        ),
        max_size=20,
    )
)
def test_random_commands_end_nothing(commands: list[tuple[int, list[int]]]) -> None:
    driver = MiniDriver(megabytes=2)
    driver.attach()
    driver.set_irqs()
    driver.probe()
    driver.open()
    safe = driver.mcdi_at
    for command, words in commands:
        try:
            driver.mcdi(command, struct.pack(f"<{len(words)}I", *words))
        except (McdiFailedError, McRebootedError):
            pass
        except AssertionError:
            # Statistics or events were pointed at the mailbox; it is the guest's memory.
            driver.mcdi_at = safe
        driver.wire.inject(udp4(), udp4(b"y" * 1000))
        driver.nic.receive()
        driver.nic.transmit()
        driver.clock.now_ns += 1_000_000
        driver.nic.tick()
    assert driver.journal.counts["internal_errors"] == 0
    driver.close()


def frames_of(seed: int, count: int, *, same: bool) -> list[bytes]:
    chance = random.Random(seed)
    size = chance.randrange(200)
    frames = []
    for _ in range(count):
        kind = 0 if same else chance.randrange(8)
        payload = chance.randbytes(size if same else chance.randrange(300))
        good = chance.random() < 0.95
        if kind < 4:
            frames.append(
                udp4(
                    payload,
                    good=good,
                    protocol=chance.choice([6, 17]) if not same else 17,
                    ip_good=chance.random() < 0.98,
                    source_port=chance.randrange(65536),
                )
            )
        elif kind == 4:
            frames.append(udp6(payload, good=good))
        elif kind == 5:
            frames.append(MAC + PEER + b"\x08\x06" + payload)
        elif kind == 6:
            frames.append(udp4(payload, options=b"\1\1\1\1", good=good))
        else:
            frames.append(MAC + PEER + chance.randbytes(60))
    return frames


def packed(frames: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    slots = np.full((len(frames), 1700), 0xA5, np.uint8)[:, 66:]
    for row, frame in enumerate(frames):
        slots[row, : len(frame)] = np.frombuffer(frame, np.uint8)
    lengths = np.array([len(frame) for frame in frames], np.int64)
    return slots, offload.pad(slots, lengths)


@SLOW
@given(st.integers(0, 1 << 32), st.integers(1, 20), st.booleans())
def test_the_verdicts_are_those_of_the_plain_way(seed: int, count: int, same: bool) -> None:
    frames = frames_of(seed, count, same=same)
    slots, lengths = packed(frames)
    found = offload.classify(slots, lengths, np.zeros(count, bool))
    for row, frame in enumerate(frames):
        l4 = int(found.l4[row])
        if l4 == offload.L4_UNKNOWN:
            continue
        fixed = bytearray(frame)
        assert offload.finish_checksums(fixed, ip=False, l4=True)
        assert bool(found.l4_bad[row]) == (bytes(fixed) != frame)


@SLOW
@given(st.integers(0, 1 << 32), st.integers(2, 20), st.booleans())
def test_the_fast_path_agrees_with_the_general_one(seed: int, count: int, todo: bool) -> None:
    frames = frames_of(seed, count, same=True)
    slots, lengths = packed(frames)
    quick = slots.copy()
    flow = offload.uniform(quick, int(lengths[0]), unfinished=todo)
    found = offload.classify(slots, lengths, np.full(count, todo))
    if flow is None:
        assert (found.l4_bad | found.ip_bad).any()
    else:
        assert not (found.l4_bad | found.ip_bad).any()
        assert (found.l4 == flow.l4).all()
        assert (found.l3 == flow.l3).all()
        assert (found.mac == flow.mac).all()
        assert (quick == slots).all()


def test_the_fast_path_wants_equal_frames() -> None:
    base = udp4(b"abcd")
    other = bytes.fromhex("020000000077")
    for odd in (
        udp4(b"abcd", to=other),
        udp4(b"abcd", frag=0x2000),
        udp4(b"abcd", options=b"\1\1\1\1"),
        udp4(b"abcd", ip_good=False),
        udp4(b"abcd", good=False),
        udp6(b"abcd"),
    ):
        slots, lengths = packed([base, odd.ljust(len(base), b"\0")[: len(base)], base])
        assert offload.uniform(slots, int(lengths[0]), unfinished=False) is None


@SLOW
@given(st.integers(0, 1 << 32), st.booleans())
def test_a_flow_goes_where_its_frames_would(seed: int, only: bool) -> None:
    chance = random.Random(seed)
    table = Steering()
    context = table.allocate_context(1 if only else 4)
    assert context is not None
    table.contexts[context].key = chance.randbytes(40)
    mac = int.from_bytes(MAC, "big")
    for _ in range(chance.randrange(4)):
        match = chance.choice(SUPPORTED_MATCHES)
        rss = chance.choice([None, context])
        table.insert(Filter(match, chance.choice([mac, 5]), chance.choice([-1, 0, 3]), rss))
    protocol = chance.choice([6, 17])
    ports = [chance.randrange(1 << 16)] * 3 if chance.random() < 0.5 else [1, 2, 3]
    frames = [udp4(b"abcd", protocol=protocol, source_port=port) for port in ports]
    slots, lengths = packed(frames)
    flow = offload.uniform(slots, int(lengths[0]), unfinished=False)
    assert flow is not None
    queues = table.queues(offload.classify(slots, lengths, np.zeros(3, bool))).tolist()
    found = table.queue_of(flow)
    assert queues == [found] * 3 if found is not None else flow.hashed is None
