# SPDX-License-Identifier: MIT
"""The wire that repeats, and bursts."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.nic import server
from harness.nic.receive import DRAIN_NS
from harness.nic.repeat import RESERVED
from tests.nic.fake_wire import FakeWire
from tests.nic.frames import BROADCAST, CSUMNOTREADY, MAC, PEER, udp4, udp6
from tests.nic.minidriver import InProcess, MiniDriver
from tests.nic.vhost_driver import MiniVhostDriver

pytestmark = pytest.mark.nic

SLOW = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
MS = 1_000_000
ENTRIES = 1024


def started(kind: type[InProcess] = MiniVhostDriver, **opened: Any) -> InProcess:
    made = kind(FakeWire(slots=4096), megabytes=32)
    made.attach()
    made.set_irqs()
    made.probe()
    made.open(entries=ENTRIES, evq_entries=4096, **opened)
    return made


@pytest.fixture(params=[MiniDriver, MiniVhostDriver], ids=["vfio-user", "vhost-user"])
def driver(request: pytest.FixtureRequest) -> Iterator[InProcess]:
    made = started(request.param)
    yield made
    made.close()


def flows(number: int, *, size: int = 8, first: int = 0) -> list[bytes]:
    """Datagrams of ten flows in turn, each with its own number."""
    return [
        udp4(struct.pack("<II", n, 7).ljust(size, b"."), source_port=4000 + n % 10)
        for n in range(first, first + number)
    ]


def padded(frames: list[bytes]) -> list[bytes]:
    return [frame.ljust(60, b"\0") for frame in frames]


def arrivals(driver: InProcess, passes: int = 1) -> list[bytes]:
    """The frames of ``passes`` passes; posts descriptors after each."""
    got: list[bytes] = []
    for _ in range(passes):
        driver.nic.receive()
        got += [frame for frame, _ in driver.receive()]
        driver.refill()
        driver.clock.now_ns += MS
    return got


def conserved(driver: InProcess) -> dict[str, int]:
    counters = driver.nic.counters()
    gone = sum(counters[name] for name in ("rx_nodesc", "rx_filtered", "rx_oversize"))
    once = counters["rx_delivered"] - counters["repeat_delivered"]
    put = driver.wire.tail_total - driver.wire.waiting()
    assert put == once + counters["repeat_taken"] + gone
    assert counters["rx_frames"] == counters["rx_delivered"] + gone
    assert counters["internal_errors"] == 0
    assert driver.stats()[0x1C] == counters["rx_frames"] + counters["repeat_lost"]
    return counters


@pytest.mark.parametrize("times", [2, 3, 7])
@pytest.mark.parametrize("number", [1, 9, 100, 500])
def test_each_frame_comes_so_often_and_in_order(driver: InProcess, times: int, number: int) -> None:
    driver.nic.pace_wire(repeat=times, burst=0)
    sent = padded(flows(number))
    driver.wire.inject(*sent)
    assert arrivals(driver, 8) == sent * times
    counters = conserved(driver)
    assert (counters["repeat_taken"], counters["repeat_delivered"]) == (number, number * times)
    assert driver.stats()[0x1C] == number * times


@pytest.mark.parametrize("times", [0, 4])
def test_a_small_ring_gets_them_as_well(times: int) -> None:
    driver = MiniVhostDriver(FakeWire(slots=4096))
    driver.attach()
    driver.probe()
    driver.open(entries=64)
    driver.nic.pace_wire(repeat=times, burst=0)
    sent = padded(flows(100))
    driver.wire.inject(*sent, OTHERS["tcp"])
    got = arrivals(driver, 16)
    assert got.index(OTHERS["tcp"]) <= 100
    got.remove(OTHERS["tcp"])
    # So many could be taken at first: repeated as one, the rest behind them.
    if times:
        assert got == sent[:56] * times + sent[56:] * times
    else:
        assert len(got) > 400
        assert set(got) == set(sent)
    driver.close()


def test_what_waits_to_be_repeated_is_bounded(driver: InProcess) -> None:
    driver.nic.pace_wire(repeat=1000, burst=0)
    for turn in range(3):
        driver.wire.inject(*flows(3000, first=3000 * turn))
        driver.nic.receive()
        driver.receive()
        driver.clock.now_ns += DRAIN_NS
    counters = conserved(driver)
    assert counters["rx_nodesc"] > 0
    assert driver.stats()[0x36] == counters["rx_nodesc"]


def test_without_end_the_latest_go_round_while_streams_last(driver: InProcess) -> None:
    driver.nic.pace_wire(repeat=0, burst=0)
    sent = padded(flows(100))
    driver.wire.inject(*sent)
    got = arrivals(driver, 20)
    room = ENTRIES - 8 - RESERVED
    assert len(got) == 20 * room
    # The template is a whole number of rounds but for its end.
    assert got[:4000] == sent * 40
    newer = padded(flows(4096, first=500))
    driver.wire.inject(*newer)
    got = arrivals(driver, 20)
    start = got.index(newer[0], room)
    assert got[start : start + 4096] == newer
    assert sent[0] not in got[room:]
    driver.clock.now_ns += 500 * MS  # stopped with its senders
    assert len(arrivals(driver, 5)) == 5 * room
    for _ in range(11):
        arrivals(driver)
        driver.clock.now_ns += 9 * MS
    assert arrivals(driver, 5) == []
    conserved(driver)


def test_what_a_link_carries_beyond_a_full_ring_is_lost(driver: InProcess) -> None:
    driver.nic.pace_wire(repeat=0, burst=0)
    driver.wire.inject(*flows(100))
    assert len(arrivals(driver)) == ENTRIES - 8 - RESERVED
    assert conserved(driver)["repeat_lost"] == 0
    # A frame of 60 octets occupies a link of 10 Gbit/s for 67.2 ns.
    carried = {MS // 10: 1488, MS: 14_880, 50 * MS: 14_880}
    arrivals(driver)
    lost = 0
    for passed_ns, frames in carried.items():
        driver.nic.receive()
        driver.receive()
        driver.refill(number=400)
        before = driver.nic.counters()["repeat_delivered"]
        driver.clock.now_ns += passed_ns
        driver.nic.receive()
        lost += frames - (driver.nic.counters()["repeat_delivered"] - before)
        counters = conserved(driver)
        assert counters["repeat_lost"] == driver.stats()[0x36] == lost
        driver.receive()
        driver.refill()
    # The driver has emptied the ring: then the wire was too slow, and nothing is lost.
    arrivals(driver, 3)
    assert conserved(driver)["repeat_lost"] == lost


def test_a_lone_datagram_is_no_stream(driver: InProcess) -> None:
    driver.nic.pace_wire(repeat=0, burst=0)
    sent = padded(flows(31))
    for turn in range(5):
        driver.wire.inject(*sent)
        assert arrivals(driver, 5) == sent, turn
        driver.clock.now_ns += 200 * MS
    driver.wire.inject(*padded(flows(32)))
    assert len(arrivals(driver, 5)) > 1000


OTHERS = {
    "arp": BROADCAST + PEER + b"\x08\x06" + bytes(46),
    "tcp": udp4(b"control", protocol=6).ljust(61, b"\0"),
    "icmp": udp4(b"ping", protocol=1).ljust(61, b"\0"),
    "broadcast": udp4(b"x", to=BROADCAST).ljust(60, b"\0"),
    "fragment": udp4(b"x", frag=0x2000).ljust(60, b"\0"),
    "bad": udp4(b"x", good=False).ljust(60, b"\0"),
    "options": udp4(b"x", options=b"\1\1\1\1", good=False).ljust(60, b"\0"),
}


@pytest.mark.parametrize("times", [0, 5])
def test_nothing_but_streams_is_repeated_and_nothing_else_waits(
    driver: InProcess, times: int
) -> None:
    driver.nic.pace_wire(repeat=times, burst=0)
    driver.wire.inject(*flows(1000))
    driver.nic.receive()
    driver.clock.now_ns += DRAIN_NS
    # The driver has not posted one descriptor since; all but the reserved ones are used.
    driver.wire.inject(*flows(200), *OTHERS.values(), *flows(200))
    driver.nic.receive()
    got = [frame for frame, _ in driver.receive()]
    assert [frame for frame in got if frame in OTHERS.values()] == list(OTHERS.values())
    driver.refill()
    assert not set(OTHERS.values()) & set(arrivals(driver, 10))
    conserved(driver)


@pytest.mark.parametrize("times", [0, 3])
def test_lengths_may_differ(driver: InProcess, times: int) -> None:
    driver.nic.pace_wire(repeat=times, burst=0)
    sent = [udp4(bytes([n]) * (n * 7 % 1400), source_port=n + 1) for n in range(90)]
    sent += [udp6(bytes([n])) for n in range(8)]
    driver.wire.inject(*sent)
    got = arrivals(driver, 8)
    assert got[: 3 * 98] == padded(sent) * 3
    if times:
        assert len(got) == 3 * 98
        conserved(driver)
    # And become alike again, in the same template.
    sent = padded(flows(1024))
    driver.wire.inject(*sent)
    got = arrivals(driver, 12)
    start = got.index(sent[0])
    assert got[start : start + 900] == sent[:900]


def test_unfinished_checksums_are_finished_once(driver: InProcess) -> None:
    driver.nic.pace_wire(repeat=4, burst=0)
    partial = udp4(b"some data", partial=True)
    driver.wire.inject(*[partial] * 20, status=CSUMNOTREADY)
    assert arrivals(driver, 2) == padded([udp4(b"some data")]) * 80


def test_jumbo_frames_are_scattered_again_and_again(driver: InProcess) -> None:
    driver.mcdi(0x2C, struct.pack("<IIQIII", 9022 + 16, 0, 0, 0, 0, 0))
    driver.nic.pace_wire(repeat=3, burst=0)
    sent = [udp4(struct.pack("<I", n) * 2000) for n in range(40)]
    driver.wire.inject(*sent)
    assert arrivals(driver, 6) == sent * 3
    conserved(driver)


def test_streams_of_two_queues() -> None:
    driver = started(channels=2, filters=False)
    driver.add_filter(MAC, queue=0)
    other = bytes.fromhex("020000000044")
    second = driver.add_filter(other, queue=1)
    driver.nic.pace_wire(repeat=0, burst=0)
    one = padded(flows(64))
    two = [other + frame[6:] for frame in one]
    driver.wire.inject(*[frame for pair in zip(one, two, strict=True) for frame in pair])
    driver.nic.receive()
    assert [frame for frame, _ in driver.receive(0)][:64] == one
    assert [frame for frame, _ in driver.receive(1)][:64] == two
    # A stream that goes elsewhere leaves nothing behind.
    driver.mcdi(0x8A, struct.pack("<IQ", 1, second))
    driver.add_filter(other, queue=0)
    for _ in range(15):
        driver.clock.now_ns += 10 * MS
        driver.wire.inject(*two)
        for queue in (0, 1):
            driver.refill(queue)
        driver.nic.receive()
        driver.receive(0)
        last = driver.receive(1)
    assert last == []
    driver.close()


def test_a_closed_queue_or_a_cut_cable_ends_it(driver: InProcess) -> None:
    driver.nic.pace_wire(repeat=0, burst=0)
    driver.wire.inject(*flows(100))
    assert arrivals(driver)
    driver.nic.set_link(up=False)
    assert arrivals(driver, 3) == []
    driver.nic.set_link(up=True)
    driver.wire.inject(*flows(100))
    assert arrivals(driver)
    driver.mcdi(0x84, struct.pack("<I", 0))
    driver.events()
    driver.nic.receive()
    assert not driver.nic.repeating
    assert driver.nic.counters()["internal_errors"] == 0


@pytest.mark.parametrize("length", [1, 2, 8, 33, 64])
@pytest.mark.parametrize("times", [0, 1, 16])
def test_bursts_are_of_one_length_and_wait_for_the_driver(
    driver: InProcess, length: int, times: int
) -> None:
    driver.nic.pace_wire(repeat=times, burst=length)
    driver.events()
    driver.interrupts()
    driver.wire.inject(*flows(1024))
    total = 0
    for _ in range(4096 // length + 8 if times == 0 else 12):
        for _ in range(3):
            driver.nic.receive()
        assert driver.interrupts() == 1
        assert driver.nic.blocked
        got = driver.receive(ack=False)
        assert len(got) == length
        total += length
        driver.nic.receive()
        assert driver.events(ack=False) == [], "nothing comes until the queue is armed again"
        driver.refill()
        driver.clock.now_ns += 10_000
        driver.writel(0x400, driver.channels[0].evq_rptr % 4096)
    assert total == driver.nic.counters()["rx_delivered"]


def test_bursts_wait_for_moderation(driver: InProcess) -> None:
    driver.nic.pace_wire(repeat=0, burst=8)
    driver.writel(0x420, 3 << 14 | 100 | 100 << 16)
    driver.receive()
    driver.interrupts()
    driver.wire.inject(*flows(100))
    driver.nic.receive()
    driver.nic.receive()
    assert driver.interrupts() == 0
    driver.clock.now_ns += 100 * 1536
    driver.nic.tick()
    assert driver.interrupts() == 1
    assert len(driver.receive()) == 8


@SLOW
@given(
    st.integers(2, 9),
    st.integers(0, 70),
    st.lists(st.tuples(st.integers(1, 400), st.booleans(), st.booleans()), max_size=8),
)
def test_counts_are_exact_whatever_comes(
    times: int, burst: int, batches: list[tuple[int, bool, bool]]
) -> None:
    driver = started()
    driver.nic.pace_wire(repeat=times, burst=burst)
    wanted: list[bytes] = []
    first = 0
    got: list[bytes] = []
    for number, mixed, tcp in batches:
        sent = flows(number, first=first)
        if mixed:
            sent = [frame if n % 3 else udp4(frame[42:] * 3) for n, frame in enumerate(sent)]
        first += number
        driver.wire.inject(*sent)
        if tcp:
            driver.wire.inject(OTHERS["tcp"])
        wanted += [frame for frame in padded(sent) for _ in range(times)]
        got += arrivals(driver, 3)
    while frames := arrivals(driver, 2):
        got += frames
    tcps = sum(1 for _, _, tcp in batches if tcp)
    assert sum(frame == OTHERS["tcp"] for frame in got) == tcps
    assert sorted(frame for frame in got if frame != OTHERS["tcp"]) == sorted(wanted)
    conserved(driver)
    driver.close()


@pytest.mark.parametrize(("times", "rests"), [(1, True), (0, False)])
def test_a_wire_that_repeats_takes_the_processor_it_needs(
    driver: InProcess, monkeypatch: pytest.MonkeyPatch, times: int, rests: bool
) -> None:
    """With the pause between passes a fast guest would run out of frames."""
    monkeypatch.setattr(server, "_CREDIT_NS", 0)
    driver.nic.pace_wire(repeat=times, burst=0)
    pace = server._Pace(driver.nic)
    driver.wire.inject(*flows(900))
    before_ns = time.monotonic_ns()  # a busy machine may come back after the price is paid
    pace.receive()
    rest_ns = pace.resting_until_ns(before_ns, starved=False)
    assert pace.last >= 900
    assert (rest_ns is not None) == rests


def test_a_ring_that_is_gone_does_not_keep_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "_CREDIT_NS", 0)
    driver = started(MiniDriver)
    driver.nic.pace_wire(repeat=0, burst=0)
    pace = server._Pace(driver.nic)
    driver.wire.inject(*flows(900))
    pace.receive()
    driver.refill()
    driver.unmap_all()
    for _ in range(5):
        before_ns = time.monotonic_ns()
        pace.receive()
        assert driver.nic.repeating
        assert pace.last == 0
        assert pace.resting_until_ns(before_ns, starved=False) is not None
    driver.close()


def test_doorbells_wait_no_longer_than_the_ring_allows(driver: InProcess) -> None:
    """Half a ring must suffice for a fast guest, which takes a frame in 200 ns."""
    assert 0 < driver.nic.patience_ns < ENTRIES // 2 * 200 // 4


def paced(driver: InProcess, passes: int, queues: int = 1) -> list[int]:
    """How many frames each queue gets in passes of a millisecond, while streams come."""
    got = [0] * queues
    for _ in range(passes):
        driver.wire.inject(*flows(40))
        driver.nic.receive()
        for queue in range(queues):
            got[queue] += len(driver.receive(queue))
            driver.refill(queue)
        driver.clock.now_ns += MS
    return got


@pytest.mark.parametrize("pps", [1000, 100_000, 400_500])
def test_repeated_frames_come_at_a_rate(driver: InProcess, pps: int) -> None:
    driver.nic.pace_wire(repeat=0, burst=0)
    driver.nic.pace_repetition(pps)
    paced(driver, 2)
    [got] = paced(driver, 100)
    assert abs(got - pps / 10) <= max(2, pps / 1000)
    assert conserved(driver)["repeat_lost"] == 0
    driver.nic.pace_repetition(0)
    assert paced(driver, 50) == [0]
    driver.nic.pace_repetition(None)
    [got] = paced(driver, 3)
    assert got > ENTRIES


def test_what_a_paced_wire_carries_to_a_full_ring_is_lost(driver: InProcess) -> None:
    driver.nic.pace_wire(repeat=0, burst=0)
    driver.nic.pace_repetition(1_000_000)
    for _ in range(10):  # no descriptor is posted again
        driver.wire.inject(*flows(40))
        driver.nic.receive()
        driver.clock.now_ns += MS
    counters = conserved(driver)
    delivered = counters["repeat_delivered"]
    assert delivered < ENTRIES
    assert abs(delivered + counters["repeat_lost"] - 9000) <= 1
    assert driver.stats()[0x1C] == counters["rx_frames"] + counters["repeat_lost"]


def test_a_stopped_model_carries_nothing_and_a_slow_one_catches_up(driver: InProcess) -> None:
    driver.nic.pace_wire(repeat=0, burst=0)
    driver.nic.pace_repetition(10_000)
    paced(driver, 2)
    for gap_ms, expected in ((10, 110), (500, 0)):
        driver.clock.now_ns += gap_ms * MS
        [got] = paced(driver, 1)
        assert abs(got - expected) <= 1
    assert conserved(driver)["repeat_lost"] == 0


def test_queues_share_a_rate() -> None:
    driver = started(channels=2, filters=False)
    driver.add_filter(MAC, queue=0)
    other = bytes.fromhex("020000000044")
    driver.add_filter(other, queue=1)
    driver.nic.pace_wire(repeat=0, burst=0)
    driver.nic.pace_repetition(100_000)
    driver.wire.inject(*[other + frame[6:] for frame in flows(64)])
    found = paced(driver, 40, queues=2)
    assert all(abs(one - 2000) < 100 for one in found), found
    driver.close()
