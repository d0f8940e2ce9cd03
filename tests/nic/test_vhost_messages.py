# SPDX-License-Identifier: MIT
"""vhost-user: messages and file descriptors of an untrusted client."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.nic import faults, pci, vhost
from harness.nic.stream import SessionEnd
from tests.nic.frames import udp4
from tests.nic.vhost_driver import MiniVhostDriver, assert_alive, open_fds, running

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


# Messages.


@pytest.mark.parametrize(
    ("request_", "payload", "fds"),
    [
        (vhost.SET_FEATURES, struct.pack("<Q", 1 << 28), 0),
        (vhost.SET_FEATURES, b"", 0),
        (vhost.SET_PROTOCOL_FEATURES, struct.pack("<Q", 1 << 14), 0),
        (vhost.SET_MEM_TABLE, struct.pack("<II", 0, 0), 0),
        (vhost.SET_MEM_TABLE, struct.pack("<II", 1, 0) + bytes(32), 0),
        (vhost.SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0, 4096, 0, 0), 2),
        (vhost.SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0, 4096, 0, 7), 1),
        (vhost.SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0, 1 << 40, 0, 0), 1),
        (vhost.SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 1 << 63, 4096, 0, 0), 1),
        (vhost.SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, 0, 0, 0, 0), 1),
        (vhost.SET_MEM_TABLE, struct.pack("<II", 2, 0) + bytes(40), 2),
        (vhost.SET_MEM_TABLE, struct.pack("<II", 1 << 31, 0) + bytes(64), 1),
        (vhost.SET_VRING_NUM, struct.pack("<II", 2, 256), 0),
        (vhost.SET_VRING_BASE, struct.pack("<II", 1 << 31, 0), 0),
        (vhost.SET_VRING_ADDR, struct.pack("<IIQQQQ", 9, 0, 0, 0, 0, 0), 0),
        (vhost.SET_VRING_ADDR, b"short", 0),
        (vhost.SET_VRING_KICK, struct.pack("<Q", 0), 0),
        (vhost.SET_VRING_KICK, struct.pack("<Q", 0), 3),
        (vhost.SET_VRING_KICK, struct.pack("<Q", 0), 1),  # a memfd is no notification
        (vhost.SET_VRING_CALL, struct.pack("<Q", 0), 1),
        (vhost.SET_VRING_CALL, struct.pack("<Q", 200), 1),
        (vhost.SET_SLAVE_REQ_FD, b"", 9),
        (6, bytes(16), 0),
        (99, b"", 0),
        (35, struct.pack("<II", 0, 0), 0),
    ],
)
def test_a_bad_request_is_refused_and_the_session_goes_on(
    driver: MiniVhostDriver, request_: int, payload: bytes, fds: int
) -> None:
    before = open_fds()
    assert driver.ask(request_, payload, (driver.memfd,) * fds) == struct.pack("<Q", 1)
    assert open_fds() <= before
    assert driver.journal.counts["vhost_request_errors"] == 1
    assert driver.journal.counts["internal_errors"] == 0
    # The queues may be gone with the memory, which is what was asked for.
    assert driver.share()
    driver.enable(0)
    assert open_fds() == before
    assert_alive(driver)


@pytest.mark.parametrize(
    "ring",
    [
        (0, 0, 0),
        (1 << 22, 1 << 22, (1 << 22) + (8 << 20) - 100),
        ((1 << 22) + 8, 1 << 22, 1 << 22),
        (1 << 22, (1 << 22) + 1, 1 << 22),
        (1 << 22, 1 << 22, (1 << 22) + 2),
        ((1 << 64) - 16, 1 << 22, 1 << 22),
    ],
)
@pytest.mark.parametrize("size", [256, 0, 100, 1 << 20])
def test_rings_in_impossible_places(
    driver: MiniVhostDriver, ring: tuple[int, int, int], size: int
) -> None:
    desc, avail, used = ring
    index = 1
    assert driver.acknowledged(vhost.SET_VRING_NUM, struct.pack("<II", index, size))
    payload = struct.pack("<IIQQQQ", index, 0, desc, used, avail, 0)
    assert driver.acknowledged(vhost.SET_VRING_ADDR, payload)
    assert not driver.acknowledged(vhost.SET_VRING_ENABLE, struct.pack("<II", index, 1))
    assert_alive(driver)


@pytest.mark.parametrize("size", [4097, (1 << 32) - 1])
def test_a_stream_that_cannot_be_split_ends_the_session(driver: MiniVhostDriver, size: int) -> None:
    driver.socket.send(struct.pack("<III", 1, 1, size))
    with pytest.raises(SessionEnd):
        driver.pump()


def test_messages_arrive_in_any_pieces(driver: MiniVhostDriver) -> None:
    stream = struct.pack("<IIIQ", vhost.SET_FEATURES, 9, 8, 1 << 32) * 2
    for cut in range(1, len(stream)):
        driver.socket.send(stream[:cut])
        driver.pump()
        driver.socket.send(stream[cut:])
        driver.pump()
        for _ in range(2):
            assert driver._receive(20) == struct.pack("<IIIQ", vhost.SET_FEATURES, 5, 8, 0)


def test_what_is_asked_for_is_answered(driver: MiniVhostDriver) -> None:
    config = struct.pack("<III", 0, 20, 0) + bytes(20)
    assert driver.ask(vhost.GET_CONFIG, config, flags=1) == config
    assert driver.ask(vhost.GET_QUEUE_NUM, flags=1) == struct.pack("<Q", 2)
    base = driver.ask(vhost.GET_VRING_BASE, struct.pack("<II", 1, 0), flags=1)
    assert base == struct.pack("<II", 1, 0)
    # A stopped queue goes on where it was.
    for _ in range(5):
        driver.read_region(pci.CONFIG_REGION, 0, 4)
    base = driver.ask(vhost.GET_VRING_BASE, struct.pack("<II", 0, 0), flags=1)
    assert base == struct.pack("<II", 0, 5)
    driver.enable(0)
    assert_alive(driver)


def test_memory_may_be_shared_anew_under_running_queues() -> None:
    driver = running()
    driver.wire.inject(udp4(b"one"))
    assert len(driver.pass_wire()) == 1
    assert driver.share()
    driver.wire.inject(udp4(b"two"))
    assert len(driver.pass_wire()) == 1
    assert not driver.acknowledged(vhost.SET_MEM_TABLE, struct.pack("<II", 1, 0) + bytes(32))
    driver.wire.inject(udp4(b"three"))
    assert len(driver.pass_wire()) == 1
    bad = struct.pack("<IIQQQQ", 1, 0, 4096, 4096, 0, 3)
    assert not driver.acknowledged(vhost.SET_MEM_TABLE, bad, (driver.memfd,))
    driver.wire.inject(udp4(b"four"))
    driver.nic.receive()
    assert driver.journal.counts["rxq_unmapped"] == 1
    assert driver.share()
    driver.enable(0)
    driver.enable(1)
    driver.close()


def test_a_reset_of_the_function_by_its_owner() -> None:
    driver = running()
    assert driver.acknowledged(vhost.RESET_OWNER)
    driver.wire.inject(udp4())
    driver.nic.receive()
    assert driver.nic.counters()["rx_filtered"] == 1
    driver.close()


# Descriptors.


def test_no_descriptor_is_kept_or_lost() -> None:
    before = open_fds()
    for _ in range(3):
        driver = running()
        for _ in range(5):
            driver.enable(0)
            driver.enable(1)
        assert driver.acknowledged(vhost.SET_VRING_CALL, struct.pack("<Q", 1 << 8))
        assert driver.acknowledged(vhost.SET_VRING_KICK, struct.pack("<Q", 1 << 8))
        # Some that arrive with half a message.
        socket.send_fds(driver.socket, [b"\5\0\0\0"], [driver.memfd] * 4)
        driver.pump()
        driver.close()
    assert open_fds() == before


def test_a_kick_whose_other_end_is_gone_does_not_wake_for_ever(driver: MiniVhostDriver) -> None:
    reader, writer = os.pipe()
    payload = struct.pack("<Q", 0)
    assert driver.acknowledged(vhost.SET_VRING_KICK, payload, (reader,))
    assert len(driver.connection.filenos()) == 3
    os.close(writer)
    os.close(reader)
    driver.pump()
    assert len(driver.connection.filenos()) == 2


def test_a_call_that_cannot_be_made_stops_nothing(driver: MiniVhostDriver) -> None:
    """Nobody reads one pipe, and the other has no reader."""
    full, gone = os.pipe(), os.pipe()
    os.set_blocking(full[1], False)
    with pytest.raises(BlockingIOError):
        while os.write(full[1], bytes(4096)):
            pass
    os.set_blocking(full[1], True)
    os.close(gone[0])
    for index, (_, writer) in enumerate((full, gone)):
        payload = struct.pack("<Q", index)
        assert driver.acknowledged(vhost.SET_VRING_CALL, payload, (writer,))
        os.close(writer)
    for _ in range(200):
        driver.write_region(pci.BAR2, 0x3F0, bytes(4))
    driver.set_irqs()
    driver.nic.interrupts.raise_vector(0)
    assert_alive(driver)
    os.close(full[0])


def test_memory_that_shrinks_is_survived() -> None:
    driver = running()
    driver.wire.inject(*[udp4()] * 5)
    os.ftruncate(driver.memfd, 4096)
    lost = faults.lost_pages()
    driver.nic.receive()
    driver.nic.transmit()
    driver.nic.tick()
    with pytest.raises(SessionEnd):
        driver.pump()
    assert faults.lost_pages() > lost
    assert driver.journal.counts["internal_errors"] == 0
    driver.connection.close()
    driver.nic.client_gone()
    driver.socket.close()


# And at random.


@SLOW
@given(
    st.lists(
        st.tuples(
            st.integers(0, 40),
            st.one_of(
                st.binary(max_size=100),
                st.lists(
                    st.sampled_from([0, 1, 2, 256, 4096, 1 << 22, (1 << 22) + 4096, 1 << 48]),
                    max_size=10,
                ).map(lambda words: struct.pack(f"<{len(words)}Q", *words)),
            ),
            st.integers(0, 4),
            st.sampled_from(["memory", "pipe", "eventfd", "null"]),
            st.sampled_from([1, 9, 1, 9, 0, 5]),
        ),
        max_size=15,
    )
)
def test_random_messages_end_nothing(
    messages: list[tuple[int, bytes, int, str, int]],
) -> None:
    before = open_fds(memory=False)
    driver = running()
    null = os.open("/dev/null", os.O_RDWR)
    kinds = {"memory": driver.memfd, "pipe": driver.calls[0][1], "eventfd": driver.kicks[0]}
    for request, payload, fds, kind, flags in messages:
        message = struct.pack("<III", request, flags, len(payload)) + payload
        socket.send_fds(driver.socket, [message], [kinds.get(kind, null)] * fds)
        driver.wire.inject(udp4())
        try:
            driver.pump()
            driver.nic.receive()
            driver.nic.tick()
        except SessionEnd:
            break
        driver.clock.now_ns += 1_000_000
    assert driver.journal.counts["internal_errors"] == 0
    driver.close()
    os.close(null)
    assert open_fds(memory=False) == before
