# SPDX-License-Identifier: MIT
"""Receive events and receive prefixes: classes, checksum verdicts, the hash."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from harness.nic import offload
from tests.nic.frames import BROADCAST, CSUMNOTREADY, MAC, PEER, tagged, udp4, udp6
from tests.nic.minidriver import MiniDriver

pytestmark = pytest.mark.nic

VLAN_VALID = 1 | 1 << 4 | 1 << 6
KEY = bytes.fromhex(
    "6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa"
)


@pytest.fixture
def driver() -> Iterator[MiniDriver]:
    made = MiniDriver()
    made.attach()
    made.set_irqs()
    made.probe()
    yield made
    made.close()


def classes(event: int) -> tuple[int, int, int, int, int]:
    """Tags, L3, L4, bad IP header, bad L4 checksum."""
    return event >> 39 & 7, event >> 42 & 7, event >> 45 & 3, event >> 25 & 1, event >> 26 & 1


def toeplitz(data: bytes) -> int:
    """The hash bit by bit, as it is defined."""
    key = int.from_bytes(KEY, "big")
    found = 0
    for index in range(8 * len(data)):
        if data[index // 8] >> (7 - index % 8) & 1:
            found ^= key >> (320 - 32 - index) & 0xFFFFFFFF
    return found


@pytest.mark.parametrize("count", range(1, 20))
@pytest.mark.parametrize("shape", ["tag in the header", "longer than a slot", "mixed"])
def test_frames_that_are_alike_never_stop_the_receive_path(
    driver: MiniDriver, count: int, shape: str
) -> None:
    driver.open()
    kept = udp4(b"tagged" * 10)
    if shape == "tag in the header":
        driver.wire.inject(*[kept] * count, status=VLAN_VALID, tci=5)
        wanted = [tagged(kept, 5)] * count
    elif shape == "longer than a slot":
        driver.wire.inject(*[udp4(b"j" * 3000)] * count)
        wanted = []
    else:
        driver.wire.inject(*[kept] * count, status=VLAN_VALID, tci=5)
        driver.wire.inject(*[udp4(b"j" * 3000)] * count)
        wanted = [tagged(kept, 5)] * count
    assert [frame for frame, _ in driver.pass_wire()] == wanted
    driver.wire.inject(kept)
    assert [frame for frame, _ in driver.pass_wire()] == [kept]
    counters = driver.nic.counters()
    assert counters["rx_frames"] == counters["rx_delivered"] + counters["rx_oversize"]
    assert counters["internal_errors"] == 0


@pytest.mark.parametrize("tags", [(), (5,), (7, 4095)])
def test_tags_hide_nothing(driver: MiniDriver, tags: tuple[int, ...]) -> None:
    driver.open()
    sent = [
        udp4(b"udp" * 20),
        udp4(b"tcp" * 20, protocol=6),
        udp4(b"bad" * 20, good=False),
        udp4(b"head" * 20, ip_good=False),
        udp4(b"piece" * 20, frag=0x2000),
        udp4(b"options" * 20, options=b"\1\1\1\1"),
        udp6(b"six" * 20),
        udp6(b"six" * 20, good=False),
        MAC + PEER + b"\x08\x06" + bytes(46),
        MAC + PEER + b"\x88\xcc" + bytes(46),
        udp4(b"to all" * 20, to=BROADCAST),
    ]
    driver.wire.inject(*[tagged(frame, *tags) for frame in sent])
    got = driver.pass_wire()
    assert [frame for frame, _ in got] == [tagged(frame, *tags) for frame in sent]
    assert [classes(event)[1:] for _, event in got] == [
        (1, 2, 0, 0), (1, 1, 0, 0), (1, 2, 0, 1), (1, 0, 1, 0), (4, 0, 0, 0), (1, 2, 0, 0),
        (2, 2, 0, 0), (2, 2, 0, 1), (5, 0, 0, 0), (0, 0, 0, 0), (1, 2, 0, 0),
    ]  # fmt: skip
    assert {classes(event)[0] for _, event in got} == {len(tags)}


def test_two_tags_are_all_that_is_parsed(driver: MiniDriver) -> None:
    driver.open()
    driver.wire.inject(tagged(udp4(b"deep" * 20), 1, 2, 3))
    ((_, event),) = driver.pass_wire()
    assert classes(event) == (2, 0, 0, 0, 0)


@pytest.mark.parametrize("protocol", [6, 17])
@pytest.mark.parametrize("words", range(11))
def test_options_of_any_length(driver: MiniDriver, words: int, protocol: int) -> None:
    driver.open()
    options = b"\1\1\1\1" * words
    driver.wire.inject(
        *[
            udp4(b"text" * 9, protocol=protocol, options=options, **verdict)  # type: ignore[arg-type]
            for verdict in ({}, {"good": False}, {"ip_good": False})
        ]
    )
    l4 = 2 if protocol == 17 else 1
    got = [classes(event)[1:] for _, event in driver.pass_wire()]
    assert got == [(1, l4, 0, 0), (1, l4, 0, 1), (1, 0, 1, 0)]


def test_extension_headers_are_the_stacks_to_look_into(driver: MiniDriver) -> None:
    driver.open()
    driver.wire.inject(udp6(b"behind", extension=b"\0" + bytes(6)))
    driver.wire.inject(udp6(b"behind", extension=b"\0" + bytes(6), good=False))
    assert [classes(event)[1:] for _, event in driver.pass_wire()] == [(2, 0, 0, 0)] * 2


@pytest.mark.parametrize("tags", [(), (5,), (7, 9)])
@pytest.mark.parametrize(
    "make",
    [
        lambda partial: udp4(b"text" * 9, partial=partial),
        lambda partial: udp4(b"text" * 9, partial=partial, protocol=6),
        lambda partial: udp4(b"text" * 9, partial=partial, options=b"\1\1\1\1" * 10),
        lambda partial: udp6(b"text" * 9, partial=partial),
        lambda partial: udp6(b"text" * 9, partial=partial, extension=b"\1" + bytes(14)),
    ],
    ids=["udp", "tcp", "options", "six", "extension"],
)
def test_what_the_sender_left_undone_is_done(
    driver: MiniDriver, make: object, tags: tuple[int, ...]
) -> None:
    assert callable(make)
    driver.open()
    driver.wire.inject(tagged(make(partial=True), *tags), status=CSUMNOTREADY)
    driver.wire.inject(udp4(b"another, so that they differ"))
    (got, event), _ = driver.pass_wire()
    assert got == tagged(make(partial=False), *tags)
    assert classes(event)[3:] == (0, 0)


@pytest.mark.parametrize("cut", range(0, 80, 3))
def test_frames_cut_short_are_only_what_they_hold(driver: MiniDriver, cut: int) -> None:
    """A short frame must not contain octets of an earlier frame in its slot."""
    driver.open()
    whole = [
        tagged(udp4(b"text" * 9, options=b"\1\1\1\1" * 10), 1, 2),
        tagged(udp6(b"text" * 9), 1, 2),
        udp6(b"text" * 9, extension=b"\1" + bytes(14)),
        udp4(b"text" * 9, protocol=6),
    ]
    for frame in whole:
        driver.wire.ring.frames[:] = 0xA5
        driver.wire.inject(frame[: 14 + cut], status=CSUMNOTREADY)
        ((stale, event),) = driver.pass_wire()
        driver.wire.ring.frames[:] = 0
        driver.wire.inject(frame[: 14 + cut], status=CSUMNOTREADY)
        ((clean, again),) = driver.pass_wire()
        mask = ~(15 << 48)  # but for the place in the ring
        assert (stale, event & mask) == (clean, again & mask)
        assert stale[14 + cut :] == b"\0" * (len(stale) - 14 - cut)
        driver.refill()
    assert driver.journal.counts["internal_errors"] == 0


def rss(driver: MiniDriver, channels: int) -> None:
    driver.open(channels=channels, filters=False, entries=512)
    (context,) = struct.unpack("<I", driver.mcdi(0x9E, struct.pack("<III", 0, 0, channels)))
    driver.mcdi(0xA0, struct.pack("<I", context) + KEY)
    driver.add_filter(MAC, rss=context)
    driver.add_filter(BROADCAST)


HASHED = {
    "udp": udp4(b"udp" * 10),
    "tcp": udp4(b"tcp" * 10, protocol=6, source_port=4321),
    "options": udp4(b"tcp" * 10, protocol=6, source_port=4321, options=b"\1\1\1\1" * 10),
    "piece": udp4(b"piece" * 10, frag=0x2000, protocol=6),
    "six": udp6(b"six" * 10),
    "arp": MAC + PEER + b"\x08\x06" + bytes(46),
}


def to_hash(kind: str) -> bytes:
    frame = HASHED[kind]
    if kind == "six":
        return frame[22:54]
    ports = struct.pack(">HH", 4321, 5000) if kind in ("tcp", "options") else b""
    return frame[26:34] + ports


@pytest.mark.parametrize("tags", [(), (5,), (7, 9)])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", HASHED)
def test_the_prefix_holds_the_hash_the_queue_was_chosen_by(
    driver: MiniDriver, kind: str, channels: int, tags: tuple[int, ...]
) -> None:
    rss(driver, channels)
    frame = tagged(HASHED[kind], *tags)
    wanted = 0 if kind == "arp" else toeplitz(to_hash(kind))
    for count in (1, 12):  # a lone one, and a batch of them
        driver.wire.inject(*[frame] * count)
        driver.nic.receive()
        found = [driver.receive_hashed(channel) for channel in range(channels)]
        chosen = wanted % 128 % channels
        assert [hashed for _, _, hashed in found[chosen]] == [wanted] * count
        assert sum(map(len, found)) == count


@pytest.mark.parametrize("channels", [1, 2])
def test_many_connections_have_a_hash_each(driver: MiniDriver, channels: int) -> None:
    rss(driver, channels)
    frames = [udp4(b"abcd", protocol=6, source_port=port) for port in range(1000, 1040)]
    driver.wire.inject(*frames)
    driver.nic.receive()
    for channel in range(channels):
        for frame, _, hashed in driver.receive_hashed(channel):
            assert hashed == toeplitz(frame[26:38])


def test_without_a_context_nothing_is_hashed_and_nothing_is_left_over(driver: MiniDriver) -> None:
    rss(driver, 1)
    driver.wire.inject(*[udp4()] * 64)
    driver.nic.receive()
    assert all(hashed for _, _, hashed in driver.receive_hashed())
    driver.refill()
    driver.wire.inject(*[udp4(to=BROADCAST)] * 64)
    driver.nic.receive()
    assert [hashed for _, _, hashed in driver.receive_hashed()] == [0] * 64


def test_the_published_vectors_arrive() -> None:
    """66.9.149.187:2794 → 161.142.100.80:1766, of Microsoft's RSS verification suite."""
    pair = (
        ipaddress.ip_address("66.9.149.187").packed + ipaddress.ip_address("161.142.100.80").packed
    )
    assert toeplitz(pair) == 0x323E8FC2
    assert toeplitz(pair + struct.pack(">HH", 2794, 1766)) == 0x51CCC178


def test_a_header_checksum_is_written_whatever_the_length_says() -> None:
    frame = bytearray(udp4(b"longer than said"))
    frame[16:18] = (1500).to_bytes(2, "big")
    frame[24:26] = b"\xde\xad"
    assert not offload.finish_checksums(frame, ip=True, l4=True)
    assert int(np.frombuffer(bytes(frame[14:34]), ">u2").sum(dtype=np.uint32)) % 0xFFFF == 0


def test_a_hash_that_is_everywhere_gives_way_to_another(driver: MiniDriver) -> None:
    """In any order, and from any position in the ring."""
    rss(driver, 1)
    flows = [udp4(b"udp" * 10, source=bytes((10, 0, 0, n))) for n in range(3)]
    mixed = [*flows, udp4(b"tcp" * 10, protocol=6)]
    for turn, count in enumerate((64, 1, 64, 65, 3, 64, 64, 1, 63, 64, 2, 100, 1, 64, 64)):
        sent = mixed if turn % 5 == 3 else [flows[turn // 2 % 3]] * count
        for at in range(0, len(sent), 20):
            driver.refill()
            driver.wire.inject(*sent[at : at + 20])
            driver.nic.receive()
            for frame, _, hashed in driver.receive_hashed():
                assert hashed == toeplitz(frame[26 : 38 if frame[23] == 6 else 34])
