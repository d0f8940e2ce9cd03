# SPDX-License-Identifier: MIT
from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.nic import pci, transport
from harness.nic.stream import SessionEnd
from tests.nic.frames import udp4
from tests.nic.minidriver import MiniDriver

pytestmark = pytest.mark.nic

SLOW = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def driver() -> Iterator[MiniDriver]:
    made = MiniDriver(megabytes=4)
    made.attach()
    yield made
    made.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_what_qemu_asks_at_start(driver: MiniDriver) -> None:
    info = driver.request(transport.DEVICE_GET_INFO, struct.pack("<IIII", 16, 0, 0, 0))
    assert info == (0, struct.pack("<IIII", 16, 3, 9, 5))
    for index, size in ((0, 256), (1, 0), (2, 8 << 20), (4, 16384), (6, 0), (7, 4096), (8, 0)):
        error, reply = driver.request(
            transport.DEVICE_GET_REGION_INFO, struct.pack("<IIIIQQ", 32, 0, index, 0, 0, 0)
        )
        assert error == 0
        assert struct.unpack("<IIIIQQ", reply)[4] == size
    for index, count in enumerate((0, 0, 32, 0, 0)):
        error, reply = driver.request(
            transport.DEVICE_GET_IRQ_INFO, struct.pack("<IIII", 16, 0, index, 0)
        )
        assert struct.unpack("<IIII", reply)[3] == count
    config = driver.read_region(pci.CONFIG_REGION, 0, 256)
    assert struct.unpack_from("<HH", config) == (0x1924, 0x0923)
    capabilities = []
    at = config[0x34]
    while at:
        capabilities.append(config[at])
        at = config[at + 1]
    assert capabilities == [0x01, 0x10, 0x11]


@pytest.mark.parametrize(
    ("command", "payload", "expected"),
    [
        (transport.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 0x1000, 0x1000), errno.EEXIST),
        (transport.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 1 << 48, 0x1000), errno.EINVAL),
        (transport.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 1 << 63, 1 << 63), errno.EINVAL),
        (transport.DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, 1 << 30, 0), errno.EINVAL),
        (transport.DMA_MAP, b"short", errno.EINVAL),
        (transport.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0x1000, 0x1000), errno.ENOENT),
        (transport.DMA_UNMAP, struct.pack("<IIQQ", 24, 0, 0, 0x1000), errno.EINVAL),
        (transport.DEVICE_GET_REGION_INFO, struct.pack("<III", 32, 0, 9), errno.EINVAL),
        (transport.DEVICE_GET_REGION_INFO, struct.pack("<III", 16, 0, 2), errno.EINVAL),
        (transport.DEVICE_GET_IRQ_INFO, struct.pack("<III", 16, 0, 5), errno.EINVAL),
        (transport.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x24, 2, 31, 2), errno.EINVAL),
        (transport.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x24, 7, 0, 1), errno.EINVAL),
        (transport.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x22, 2, 0, 4), errno.EINVAL),
        (transport.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x27, 2, 0, 4), errno.EINVAL),
        (transport.REGION_READ, struct.pack("<QII", 4090, 7, 8), errno.EINVAL),
        (transport.REGION_READ, struct.pack("<QII", 0, 9, 4), errno.EINVAL),
        (transport.REGION_READ, struct.pack("<QII", 0, 2, 0), errno.EINVAL),
        (transport.REGION_READ, struct.pack("<QII", 0, 2, 1 << 31), errno.EINVAL),
        (transport.REGION_READ, struct.pack("<QII", (1 << 64) - 4, 2, 8), errno.EINVAL),
        (transport.REGION_WRITE, struct.pack("<QII", 0x400, 2, 4), errno.EINVAL),
        (transport.REGION_WRITE_MULTI, struct.pack("<Q", 1 << 60), errno.EINVAL),
        (transport.REGION_WRITE_MULTI, struct.pack("<QQIIQ", 1, 0, 2, 9, 0), errno.EINVAL),
        (transport.VERSION, struct.pack("<HH", 1, 0), errno.EPROTONOSUPPORT),
        (transport.DMA_READ, bytes(16), errno.EOPNOTSUPP),
        (transport.DEVICE_GET_REGION_IO_FDS, bytes(16), errno.EOPNOTSUPP),
        (999, b"", errno.EOPNOTSUPP),
    ],
)
def test_a_bad_request_is_answered_and_the_session_goes_on(
    driver: MiniDriver, command: int, payload: bytes, expected: int
) -> None:
    assert driver.request(command, payload)[0] == expected
    assert driver.read_region(pci.CONFIG_REGION, 0, 4) == b"\x24\x19\x23\x09"
    assert driver.journal.counts["internal_errors"] == 0


@pytest.mark.parametrize("size", [0, 15, (1 << 20) + 4096, (1 << 32) - 1])
def test_a_stream_that_cannot_be_split_ends_the_session(driver: MiniDriver, size: int) -> None:
    driver.socket.send(struct.pack("<HHIII", 1, 9, size, 0, 0))
    with pytest.raises(SessionEnd):
        driver.connection.serve()


def test_the_client_leaving_ends_the_session(driver: MiniDriver) -> None:
    driver.socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(SessionEnd):
        driver.connection.serve()


def test_messages_arrive_in_any_pieces(driver: MiniDriver) -> None:
    payload = struct.pack("<QII", 0, pci.CONFIG_REGION, 4)
    message = struct.pack("<HHIII", 7, transport.REGION_READ, 32, 0, 0) + payload
    for cut in range(1, 2 * len(message)):
        stream = message * 2
        driver.socket.send(stream[:cut])
        driver.connection.serve()
        driver.socket.send(stream[cut:])
        driver.connection.serve()
        driver._message = 7
        for _ in range(2):
            assert driver.reply()[1][16:] == b"\x24\x19\x23\x09"


def test_descriptors_go_with_their_message(driver: MiniDriver) -> None:
    """Even when messages without one were sent just before."""
    quiet = struct.pack("<HHIII", 1, transport.REGION_WRITE, 36, 0x10, 0)
    quiet += struct.pack("<QIII", 0x400, 2, 4, 0)
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    for vector in range(3):
        driver.socket.send(quiet * 5)
        header = struct.pack("<HHIII", 1, transport.DEVICE_SET_IRQS, 36, 0x10, 0)
        body = struct.pack("<IIIII", 20, 0x24, 2, vector, 1)
        socket.send_fds(driver.socket, [header + body], [eventfd])
        driver.socket.send(quiet * 5)
    driver.connection.serve(reads=20)
    for vector in range(3):
        driver.nic.interrupts.raise_vector(vector)
    assert os.eventfd_read(eventfd) == 3
    os.close(eventfd)


def test_no_descriptor_is_kept_or_lost(driver: MiniDriver) -> None:
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    before = open_fds()
    irqs = struct.pack("<IIIII", 20, 0x24, 2, 0, 2)
    for _ in range(10):
        assert driver.request(transport.DEVICE_SET_IRQS, irqs, (eventfd, eventfd))[0] == 0
    assert open_fds() == before + 2
    # Three descriptors for two vectors; descriptors nobody asked for.
    assert driver.request(transport.DEVICE_SET_IRQS, irqs, (eventfd,) * 3)[0] == errno.EINVAL
    driver.request(transport.DEVICE_GET_INFO, bytes(16), (eventfd,) * 5)
    assert driver.map(1 << 30, 4096, fd=eventfd) == errno.EINVAL
    assert open_fds() == before + 2
    driver.request(transport.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, 2, 0, 0))
    assert open_fds() == before
    os.close(eventfd)


def test_an_interrupt_without_a_descriptor_stays_pending(driver: MiniDriver) -> None:
    driver.set_irqs(4)
    take_away = struct.pack("<IIIII", 20, 0x24, 2, 1, 1)
    assert driver.request(transport.DEVICE_SET_IRQS, take_away)[0] == 0
    driver.nic.interrupts.raise_vector(1)
    assert driver.read_region(pci.BAR4, 0x2000, 8) == struct.pack("<Q", 2)
    assert driver.interrupts(1) == 0
    error, _ = driver.request(transport.DEVICE_SET_IRQS, take_away, (driver.eventfds[1],))
    assert error == 0
    assert driver.interrupts(1) == 1
    assert driver.read_region(pci.BAR4, 0x2000, 8) == bytes(8)
    # And the client may raise one itself.
    driver.request(transport.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x21, 2, 2, 1))
    flags = struct.pack("<IIIII", 21, 0x22, 2, 3, 1) + b"\1"
    driver.request(transport.DEVICE_SET_IRQS, flags)
    assert (driver.interrupts(2), driver.interrupts(3)) == (1, 1)


def test_a_segment_must_be_backed_by_its_file(driver: MiniDriver) -> None:
    at = 1 << 30
    assert driver.map(at, 4096, fd=driver.memfd, offset=driver.size) == errno.EINVAL
    assert driver.map(at, 4096, fd=driver.memfd, offset=5) == errno.EINVAL
    assert driver.map(at, 8192, fd=driver.memfd, offset=driver.size - 4096) == errno.EINVAL
    assert driver.map(at, 4096, fd=driver.memfd, flags=1) == 0
    assert driver.map(at + 4096, 4096, fd=None) == 0
    assert driver.map(at + 8192, 4096, fd=driver.memfd) == 0


def test_memory_may_be_mapped_anew_under_running_queues(driver: MiniDriver) -> None:
    driver.set_irqs()
    driver.probe()
    driver.open()
    driver.wire.inject(udp4(b"one"))
    assert len(driver.pass_wire()) == 1
    assert driver.unmap(driver.base, driver.size) == 0
    driver.wire.inject(udp4(b"two"))
    driver.nic.receive()
    driver.writel(0xA18, 5)
    driver.nic.transmit()
    assert driver.journal.counts["rxq_unmapped"] == 1
    assert driver.journal.counts["txq_unmapped"] == 1
    assert driver.map(driver.base, driver.size, fd=driver.memfd) == 0
    driver.wire.inject(udp4(b"three"))
    assert len(driver.pass_wire()) == 1


@pytest.mark.parametrize("how", ["message", "flr"])
def test_reset_forgets_everything(driver: MiniDriver, how: str) -> None:
    driver.set_irqs()
    driver.probe()
    driver.open()
    for _ in range(3):
        if how == "message":
            assert driver.request(transport.DEVICE_RESET)[0] == 0
        else:
            driver.write_region(pci.CONFIG_REGION, 0x78, struct.pack("<H", 0x8000))
        driver.wire.inject(udp4())
        driver.nic.receive()
        assert driver.events(ack=False) == []
        driver.channels.clear()
        driver.mcdi_at = driver.allocate(4096)
        driver.probe()
        driver.open()
        driver.wire.inject(udp4())
        assert len(driver.pass_wire()) == 1
        driver._next = driver.base + 4096


def test_configuration_space_keeps_what_is_the_drivers(driver: MiniDriver) -> None:
    region = pci.CONFIG_REGION
    before = driver.read_region(region, 0, 256)
    for at in range(0, 256, 4):
        if at != 0x78:
            driver.write_region(region, at, b"\xff" * 4)
    after = driver.read_region(region, 0, 256)
    changed = {at & ~1 for at in range(256) if before[at] != after[at]}
    assert changed == {0x04, 0x0C, 0x3C, 0x44, 0x80, 0x98, 0xB2}
    driver.write_region(region, 0x04, b"\x06")
    assert driver.read_region(region, 0x04, 2)[0] == 0x06


@SLOW
@given(
    st.lists(
        st.tuples(
            st.integers(0, 20), st.binary(max_size=80), st.integers(0, 3), st.sampled_from([0, 16])
        ),
        max_size=12,
    )
)
def test_random_requests_end_nothing(
    requests: list[tuple[int, bytes, int, int]],
) -> None:
    driver = MiniDriver(megabytes=1)
    before = open_fds()
    driver.attach()
    for command, payload, fds, flags in requests:
        driver.request(command, payload, (driver.memfd,) * fds, flags)
    driver.nic.tick()
    driver.nic.transmit()
    assert driver.journal.counts["internal_errors"] == 0
    driver.connection.close()
    driver.nic.client_gone()
    driver.socket.close()
    assert open_fds() == before - 2
    os.close(driver.memfd)


@SLOW
@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from([0, 0x10, 0x200, 0x204, 0x400, 0x420, 0x830, 0xA10, 0xA18]),
                st.integers(0, 1023),
                st.binary(min_size=1, max_size=8),
            ),
            st.tuples(st.integers(0, (8 << 20) - 9), st.just(0), st.binary(min_size=1, max_size=8)),
        ),
        max_size=40,
    )
)
def test_random_register_accesses_end_nothing(accesses: list[tuple[int, int, bytes]]) -> None:
    driver = MiniDriver(megabytes=2)
    driver.attach()
    driver.set_irqs()
    driver.probe()
    driver.open()
    for offset, vi, data in accesses:
        at = (offset + vi % 2 * 8192) if offset < 8192 else offset
        driver.write_region(pci.BAR2, at, data)
        driver.read_region(pci.BAR2, at, len(data))
        driver.wire.inject(udp4())
        driver.nic.receive()
        driver.nic.transmit()
        driver.nic.tick()
    counters = driver.nic.counters()
    assert counters.get("internal_errors", 0) == 0
    driver.close()


def test_unknown_and_read_only_registers_are_logged(
    driver: MiniDriver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.writel(0x3F0, 1)
    assert driver.read_region(pci.BAR2, 0x3F0, 4) == b"\xff" * 4
    driver.writel(0x10, 1)
    assert driver.journal.counts["register_unknown"] == 2
    assert driver.journal.counts["register_read_only"] == 1
    assert "0x3f0" in caplog.text
    assert "BIU_MC_SFT_STATUS" in caplog.text
    for _ in range(1000):
        driver.writel(0x3F4, 1)
    assert caplog.text.count("0x3f4") < 30, "a guest cannot fill the log"


def test_a_mistake_of_the_model_costs_one_request(
    driver: MiniDriver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(driver.nic, "region_write", broken)
    assert driver.write_region(pci.BAR2, 0x400, bytes(4), flags=0) == errno.EIO
    for _ in range(100):
        driver.writel(0x400, 0)
    assert driver.journal.counts["internal_errors"] == 101
    assert 0 < caplog.text.count("ZeroDivisionError") < 50
    assert driver.read_region(pci.CONFIG_REGION, 0, 2) == b"\x24\x19"


def raw(command: int, payload: bytes, flags: int = 0, number: int = 1) -> bytes:
    return struct.pack("<HHIII", number, command, 16 + len(payload), flags, 0) + payload


@pytest.mark.parametrize("command", range(17))
@pytest.mark.parametrize("size", [0, 1, 3, 7, 8, 15, 16, 19, 20, 23, 31, 33, 64])
def test_every_message_in_any_size_and_with_any_descriptors(
    driver: MiniDriver, command: int, size: int
) -> None:
    """Each is answered, nothing leaks, and the model counts no internal error."""
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    before = open_fds()
    mapped = len(driver.nic.memory)
    for fds in ((), (eventfd,), (driver.memfd, eventfd, eventfd), (eventfd,) * 32):
        for fill in (b"\0", b"\xff", b"\x20"):
            error, _ = driver.request(command, fill * size, fds)
            assert error != errno.EIO
            driver.request(command, fill * size, fds, flags=0x10)
    assert driver.journal.counts["internal_errors"] == 0
    assert len(driver.nic.memory) <= mapped
    driver.nic.interrupts.disable()
    assert open_fds() == before
    os.close(eventfd)


def test_a_client_that_leaves_amid_a_message_leaves_nothing(driver: MiniDriver) -> None:
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    before = open_fds()
    message = raw(transport.DEVICE_SET_IRQS, struct.pack("<IIIII", 20, 0x24, 2, 0, 1))
    socket.send_fds(driver.socket, [message[:-1]], [eventfd] * 5)
    driver.connection.serve()
    assert open_fds() == before + 5
    driver.socket.shutdown(socket.SHUT_WR)
    with pytest.raises(SessionEnd):
        driver.connection.serve()
    driver.connection.close()
    assert open_fds() == before + 5 - 6
    os.close(eventfd)


def test_descriptors_without_a_message_end_the_session(driver: MiniDriver) -> None:
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    before = open_fds()
    driver.socket.send(raw(transport.DEVICE_GET_INFO, bytes(4096))[:20])
    with pytest.raises(SessionEnd, match="descriptors"):
        for _ in range(1000):
            socket.send_fds(driver.socket, [b"x"], [eventfd] * 32)
            driver.connection.serve()
            assert open_fds() < before + 300
    driver.connection.close()
    assert open_fds() == before - 1
    os.close(eventfd)


def test_a_client_that_does_not_read_its_answers_is_left(driver: MiniDriver) -> None:
    """A client can fill neither the model's loop nor its memory."""
    asked = raw(transport.REGION_READ, struct.pack("<QII", 0, pci.BAR2, 1 << 20))
    driver.socket.setblocking(False)
    driver.socket.send(asked * 400)
    with pytest.raises(SessionEnd, match="read"):
        driver.connection.serve()
    assert len(driver.connection._stream.unsent) < 8 << 20


def test_a_slow_client_gets_all_its_answers(driver: MiniDriver) -> None:
    asked = raw(transport.REGION_READ, struct.pack("<QII", 0, pci.CONFIG_REGION, 4096))
    for _ in range(10):
        driver.socket.send(asked * 50)
        driver.connection.serve()
    assert driver.connection.wants_to_write
    got = b""
    while len(got) < 500 * (32 + 4096):
        got += driver.socket.recv(1 << 16)
        driver.connection.flush()
    assert len(got) == 500 * (32 + 4096)
    assert not driver.connection.wants_to_write


def test_other_kinds_of_interrupt_are_none_of_msix(driver: MiniDriver) -> None:
    driver.set_irqs(2)
    for index in (0, 1, 3, 4):
        off = struct.pack("<IIIII", 20, 0x21, index, 0, 0)
        assert driver.request(transport.DEVICE_SET_IRQS, off)[0] == 0
        one = struct.pack("<IIIII", 20, 0x24, index, 0, 1)
        assert driver.request(transport.DEVICE_SET_IRQS, one)[0] == errno.EINVAL
    driver.nic.interrupts.raise_vector(1)
    assert driver.interrupts(1) == 1


def test_a_guest_cannot_fill_the_log_with_what_is_allowed(
    driver: MiniDriver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for turn in range(200):
        driver.write_command(4 * (turn % 2))
        driver.write_region(pci.CONFIG_REGION, 0x78, struct.pack("<H", 0x8000))
        driver.request(transport.DEVICE_RESET)
        driver.request(transport.VERSION, struct.pack("<HH", 0, 0) + b"x" * 5000)
        driver.mcdi(0x2A, struct.pack("<4I", 0x3C0, 8 * (turn % 2), 0, 0))
    assert len(caplog.records) < 200
    assert len(caplog.text) < 100_000
