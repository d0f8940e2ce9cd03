# SPDX-License-Identifier: MIT
from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import pytest

from harness.nic import receive
from tests.nic.fake_wire import FakeWire
from tests.nic.frames import BROADCAST, CSUMNOTREADY, MAC, PEER, checksum, udp4, udp6
from tests.nic.minidriver import InProcess, McRebootedError, MiniDriver
from tests.nic.vhost_driver import MiniVhostDriver

pytestmark = pytest.mark.nic


@pytest.fixture(params=[MiniDriver, MiniVhostDriver], ids=["vfio-user", "vhost-user"])
def driver(request: pytest.FixtureRequest) -> Iterator[InProcess]:
    made: InProcess = request.param()
    made.attach()
    made.set_irqs()
    made.probe()
    yield made
    made.close()


def bad_ip(event: int) -> int:
    return event >> 25 & 1


def bad_l4(event: int) -> int:
    return event >> 26 & 1


def l4_class(event: int) -> int:
    return event >> 45 & 3


def l3_class(event: int) -> int:
    return event >> 42 & 7


def test_frames_arrive_padded_in_order_and_classified(driver: InProcess) -> None:
    driver.open()
    sent = [udp4(bytes([n]) * (n + 1)) for n in range(40)]
    driver.wire.inject(*sent)
    got = driver.pass_wire()
    assert [frame for frame, _ in got] == [frame.ljust(60, b"\0") for frame in sent]
    assert all((l3_class(e), l4_class(e), bad_ip(e), bad_l4(e)) == (1, 2, 0, 0) for _, e in got)


def test_rings_wrap_many_times(driver: InProcess) -> None:
    driver.open(entries=64, evq_entries=128)
    for turn in range(50):
        sent = [udp4(struct.pack("<II", turn, n)) for n in range(37)]
        driver.wire.inject(*sent)
        assert [frame for frame, _ in driver.pass_wire()] == [f.ljust(60, b"\0") for f in sent]
        driver.refill()
    counters = driver.nic.counters()
    assert counters["rx_frames"] == counters["rx_delivered"] == 50 * 37
    assert counters.get("evq_overrun", 0) == 0


@pytest.mark.parametrize("size", [40, 1478, 1479, 1700, 4000, 8959])
def test_a_jumbo_frame_is_scattered(driver: InProcess, size: int) -> None:
    driver.mcdi(0x2C, struct.pack("<IIQIII", 9022 + 16, 0, 0, 0, 0, 0))
    driver.open()
    sent = [udp4(bytes(range(256)) * (size // 256) + bytes(n)) for n in (1, 0, size % 256)]
    driver.wire.inject(*sent)
    got = driver.pass_wire()
    assert [frame for frame, _ in got] == [frame.ljust(60, b"\0") for frame in sent]
    assert not any(bad_l4(event) for _, event in got)


def test_a_scattered_frame_waits_for_all_its_descriptors(driver: InProcess) -> None:
    driver.mcdi(0x2C, struct.pack("<IIQIII", 9022 + 16, 0, 0, 0, 0, 0))
    driver.open(post=False)
    driver.refill(number=8)
    driver.wire.inject(*[udp4(b"j" * 5000)] * 3)  # three descriptors each
    assert len(driver.pass_wire()) == 2
    counters = driver.nic.counters()
    assert counters["rx_delivered"] == 2
    assert counters["rx_delivered"] + counters["rx_nodesc"] + driver.wire.waiting() == 3


def test_oversized_and_truncated_frames_are_dropped_under_a_name(driver: InProcess) -> None:
    driver.open()
    driver.wire.inject(udp4(b"a" * 1500), udp4(b"b"), udp4(b"c" * 3000))
    assert [frame for frame, _ in driver.pass_wire()] == [udp4(b"b").ljust(60, b"\0")]
    assert driver.nic.counters()["rx_oversize"] == 2
    assert driver.stats()[0x2C] == 2


@pytest.mark.parametrize(
    "frame",
    [
        udp4(b"x"),
        udp4(b"odd"),
        udp4(b"y" * 700),
        udp4(b"t" * 100, protocol=6),
        udp6(b"six"),
        udp4(b"opt", options=b"\1\1\1\1"),
    ],
)
def test_an_unfinished_checksum_is_finished(driver: InProcess, frame: bytes) -> None:
    protocol = frame[23] if frame[12] == 8 else 17
    if frame[12] == 0x86:
        partial = udp6(b"six", partial=True)
    else:
        header = (frame[14] & 15) * 4
        payload = frame[14 + header + (8 if protocol == 17 else 20) :]
        partial = udp4(
            payload, protocol=protocol, partial=True, options=b"\1\1\1\1" * (header == 24)
        )
    assert partial != frame
    driver.open()
    driver.wire.inject(partial, status=CSUMNOTREADY)
    ((got, event),) = driver.pass_wire()
    assert got == frame.ljust(60, b"\0")
    assert not bad_l4(event)


def test_checksums_are_verified(driver: InProcess) -> None:
    driver.open()
    zero = bytearray(udp4(b"no sum"))
    zero[40:42] = b"\0\0"
    driver.wire.inject(
        udp4(b"good"),
        udp4(b"bad", good=False),
        udp4(b"t", protocol=6, good=False),
        udp4(b"t", protocol=6),
        udp6(b"good"),
        udp6(b"bad", good=False),
        udp4(b"head", ip_good=False),
        bytes(zero),
        udp4(b"piece", frag=0x2000, good=False),
        udp4(b"options", options=b"\1\1\1\1", good=False),
    )
    got = [(l4_class(e), bad_l4(e), bad_ip(e)) for _, e in driver.pass_wire()]
    assert got == [
        (2, 0, 0), (2, 1, 0), (1, 1, 0), (1, 0, 0), (2, 0, 0), (2, 1, 0),
        (0, 0, 1), (2, 0, 0), (0, 0, 0), (2, 1, 0),
    ]  # fmt: skip


def test_trailing_octets_do_not_count_for_the_checksum(driver: InProcess) -> None:
    driver.open()
    driver.wire.inject(udp4(b"q").ljust(60, b"\xee"), udp4(b"qq" * 40) + b"trailer")
    assert [bad_l4(e) for _, e in driver.pass_wire()] == [0, 0]


def test_without_descriptors_frames_wait_and_a_full_ring_drops() -> None:
    wire = FakeWire(slots=512)
    driver = MiniDriver(wire)
    driver.attach()
    driver.probe()
    driver.open(entries=64)
    wire.inject(*[udp4(struct.pack("<I", n)) for n in range(1000)])
    got = driver.pass_wire()
    for _ in range(9):
        assert wire.waiting()
        driver.refill()
        got += driver.pass_wire()
    assert [frame[42:46] for frame, _ in got] == [struct.pack("<I", n) for n in range(512)]
    counters = driver.nic.counters()
    assert counters["rx_frames"] == counters["rx_delivered"] == 512
    assert counters["wire_ring_drops"] == 488
    stats = driver.stats()
    assert (stats[0x36], stats[0x1C]) == (488, 1000)
    driver.close()


def test_frames_do_not_wait_for_ever(driver: InProcess) -> None:
    """A queue that nobody serves neither keeps old frames nor blocks another."""
    driver.open(channels=2, filters=False, entries=64)
    driver.add_filter(MAC, queue=0)
    driver.add_filter(BROADCAST, queue=1)
    driver.wire.inject(*[udp4()] * 56)
    assert len(driver.pass_wire()) == 56
    driver.wire.inject(*[udp4()] * 20, *[udp4(to=BROADCAST)] * 5)
    driver.nic.receive()
    assert driver.receive(1) == []
    driver.clock.now_ns += receive.RESIDENCE_NS
    driver.nic.receive()
    assert len(driver.receive(1)) == 5
    counters = driver.nic.counters()
    assert (counters["rx_delivered"], counters["rx_nodesc"]) == (61, 20)
    assert driver.stats()[0x36] == 20


def test_filters_decide(driver: InProcess) -> None:
    driver.open(filters=False)
    other = bytes.fromhex("020000000077")
    multicast = bytes.fromhex("01005e000001")

    def arrivals() -> int:
        driver.refill()
        driver.wire.inject(*[udp4(to=to) for to in (MAC, other, multicast, BROADCAST)])
        return sum(
            {MAC: 1, other: 2, multicast: 4, BROADCAST: 8}[f[:6]] for f, _ in driver.pass_wire()
        )

    assert arrivals() == 0
    station = driver.add_filter(MAC)
    assert arrivals() == 1
    all_multicast = driver.add_filter(match=1 << 30)
    assert arrivals() == 1 | 4 | 8
    driver.add_filter(match=1 << 31)
    assert arrivals() == 15
    drop = driver.add_filter(BROADCAST, dest=0)
    assert arrivals() == 7
    for handle in (station, all_multicast, drop):
        driver.mcdi(0x8A, struct.pack("<IQ", 1, handle))
    assert arrivals() == 3
    counters = driver.nic.counters()
    assert counters["rx_frames"] == counters["rx_delivered"] + counters["rx_filtered"]


def test_rss_spreads_by_the_table_and_only_by_it(driver: InProcess) -> None:
    driver.open(channels=2, filters=False, entries=512)
    (context,) = struct.unpack("<I", driver.mcdi(0x9E, struct.pack("<III", 0, 0, 2)))
    key = bytes.fromhex(
        "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
    )
    driver.mcdi(0xA0, struct.pack("<I", context) + key)
    driver.add_filter(MAC, rss=context)
    sources = [bytes((10, 1, n, 7)) for n in range(20)]
    driver.wire.inject(*[udp4(source=s) for s in sources])
    driver.nic.receive()
    counts = [len(driver.receive(0)), len(driver.receive(1))]
    assert sum(counts) == 20
    assert min(counts) > 2
    driver.mcdi(0xA2, struct.pack("<I", context) + bytes([1]) * 128)
    driver.wire.inject(*[udp4(source=s) for s in sources])
    driver.nic.receive()
    assert [len(driver.receive(0)), len(driver.receive(1))] == [0, 20]


def test_toeplitz_matches_the_published_vectors() -> None:
    from harness.nic.steering import toeplitz

    key = bytes.fromhex(
        "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
    )
    # 66.9.149.187:2794 → 161.142.100.80:1766, from Microsoft's RSS verification suite.
    words = np.array([0x4209, 0x95BB, 0xA18E, 0x6450, 2794, 1766], np.uint32).reshape(-1, 1)
    assert toeplitz(key, words[:4]).tolist() == [0x323E8FC2]
    assert toeplitz(key, words).tolist() == [0x51CCC178]


def test_link_down_stops_both_ways(driver: InProcess) -> None:
    driver.open()
    driver.nic.set_link(up=False)
    (event,) = driver.events()
    assert (event >> 60, event >> 44 & 0xFF, event >> 24 & 1) == (12, 4, 0)
    driver.wire.inject(udp4())
    assert driver.pass_wire() == []
    driver.send(udp4())
    assert driver.wire.sent == []
    driver.nic.set_link(up=True)
    assert any(event >> 44 & 0xFF == 4 and event >> 24 & 1 for event in driver.events())
    driver.wire.inject(udp4())
    assert len(driver.pass_wire()) == 1


def test_transmit_gathers_and_finishes_checksums(driver: InProcess) -> None:
    driver.open()
    whole = udp4(b"a longer payload" * 60)
    partial = bytearray(udp4(b"a longer payload" * 60, partial=True))
    partial[24:26] = b"\0\0"
    csum_on = 1 << 63 | 0b11
    driver.send(bytes(partial[:50]), bytes(partial[50:51]), bytes(partial[51:]), options=(csum_on,))
    driver.send(b"raw".ljust(14, b"."), options=(1 << 63,))
    assert driver.wire.sent[0] == whole
    assert checksum(driver.wire.sent[0][14:34]) == 0
    assert driver.wire.sent[1] == b"raw".ljust(14, b".").ljust(60, b"\0")
    completions = [e & 0xFFFF for e in driver.events() if e >> 60 == 2]
    assert completions == [3, 5]
    stats = driver.stats()
    assert stats[0x01] == 2


def test_transmit_ring_wraps_and_is_bounded(driver: InProcess) -> None:
    driver.open(entries=512)
    for turn in range(4):
        at = driver.allocate(512 * 64)
        descriptors = []
        for n in range(500):
            driver.poke(at + n * 64, struct.pack("<II", turn, n).rjust(22, b"\0"))
            descriptors.append(at + n * 64 | 22 << 48)
        driver.post_tx(descriptors)
        while driver.nic.wants_to_transmit:
            driver.nic.transmit()
    assert len(driver.wire.sent) == 2000
    assert driver.wire.sent[-1][14:22] == struct.pack("<II", 3, 499)


def test_statistics_add_up(driver: InProcess) -> None:
    driver.open()
    other = bytes.fromhex("020000000077")
    sizes = [1, 60, 200, 400, 900, 1400]
    frames = [udp4(b"p" * n) for n in sizes] + [udp4(to=other), udp4(to=BROADCAST)]
    frames += [PEER[:0] + bytes.fromhex("01005e000001") + udp4()[6:]]
    driver.wire.inject(*frames)
    driver.pass_wire()
    stats = driver.stats()
    assert stats[0x1C] == len(frames)
    assert (stats[0x20], stats[0x21], stats[0x22]) == (7, 1, 1)
    assert stats[0x23] == sum(max(len(f), 60) + 4 for f in frames)
    assert sum(stats[0x25:0x2D]) == len(frames)
    assert stats[0x25] == 4
    counters = driver.nic.counters()
    assert counters["rx_frames"] == counters["rx_delivered"] + counters["rx_filtered"]
    assert driver.stats(clear=True)[0x1C] == 0


def test_periodic_statistics(driver: InProcess) -> None:
    driver.open()
    at = driver.allocate(0x61 * 8)
    driver.mcdi(0x2E, struct.pack("<QIII", at, 0b1100 | 1000 << 16, 0x61 * 8, 0))
    driver.wire.inject(udp4())
    driver.pass_wire()
    driver.nic.tick()
    assert driver.qword(at) == 0
    driver.clock.now_ns += 1_000_000_000
    assert driver.nic.next_due_ns() is not None
    driver.nic.tick()
    assert driver.qword(at) == driver.qword(at + 0x60 * 8) != 0
    assert driver.qword(at + 0x1C * 8) == 1


def test_interrupts_are_armed_by_the_read_pointer(driver: InProcess) -> None:
    driver.open()
    driver.interrupts()
    driver.wire.inject(udp4())
    driver.nic.receive()
    driver.wire.inject(udp4())
    driver.nic.receive()
    assert driver.interrupts() == 1, "one interrupt until the queue is armed again"
    assert len(driver.receive(ack=False)) == 2
    driver.wire.inject(udp4())
    driver.nic.receive()
    assert driver.interrupts() == 0
    driver.writel(0x400, driver.channels[0].evq_rptr)
    assert driver.interrupts() == 1, "an event beyond the pointer interrupts at once"


def test_moderation_holds_interrupts_off(driver: InProcess) -> None:
    driver.open()
    ticks = 40  # of 1536 ns
    driver.writel(0x420, 3 << 14 | ticks | ticks << 16)
    driver.receive()
    driver.interrupts()
    driver.wire.inject(udp4())
    driver.nic.receive()
    assert driver.interrupts() == 0
    assert driver.nic.next_due_ns() == driver.clock.now_ns + ticks * 1536
    driver.clock.now_ns += ticks * 1536 - 1
    driver.nic.tick()
    assert driver.interrupts() == 0
    driver.clock.now_ns += 1
    driver.nic.tick()
    assert driver.interrupts() == 1
    driver.receive()
    driver.clock.now_ns += 1_000_000
    driver.wire.inject(udp4())
    driver.nic.receive()
    assert driver.interrupts() == 1, "after a quiet time there is nothing to hold off"
    driver.writel(0x420, 0)
    driver.receive()
    driver.wire.inject(udp4())
    driver.nic.receive()
    assert driver.interrupts() == 1


def test_close_and_open_again(driver: InProcess) -> None:
    driver.open()
    for command, code in ((0x84, 16), (0x85, 12)):
        driver.mcdi(command, struct.pack("<I", 0))
        (event,) = driver.events()
        assert (event >> 60, event >> 44 & 0xFF, event & 0xFFF) == (12, code, 0)
    driver.mcdi(0x83, struct.pack("<I", 0))
    driver.wire.inject(udp4())
    driver.nic.receive()
    assert driver.nic.counters()["rx_filtered"] == 1
    driver.channels.clear()
    driver.open(filters=False)
    driver.wire.inject(udp4())
    assert len(driver.pass_wire()) == 1


def test_a_reboot_of_the_management_cpu(driver: InProcess) -> None:
    driver.open()
    before = driver.read_region(2, 0x10, 4)
    with pytest.raises(McRebootedError):
        driver.mcdi(0x3D, bytes(4))
    after = driver.read_region(2, 0x10, 4)
    assert struct.unpack("<HH", after) == (struct.unpack("<HH", before)[0] + 1, 0xB007)
    driver.wire.inject(udp4())
    driver.nic.receive()
    assert driver.events(ack=False) == []
    driver.channels.clear()
    driver.probe()
    driver.open()
    driver.wire.inject(udp4())
    assert len(driver.pass_wire()) == 1
