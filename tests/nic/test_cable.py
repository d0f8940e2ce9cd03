# SPDX-License-Identifier: MIT
"""The cable between two devices of one process, and the process that serves both."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from harness.nic.cable import End, cable
from harness.nic.wire import LARGE_SLOT
from tests.nic.fake_wire import FakeWire
from tests.nic.frames import BROADCAST, MAC, PEER, udp4
from tests.nic.vhost_driver import MiniVhostDriver, VhostDriver

pytestmark = pytest.mark.nic

ARP = BROADCAST + PEER + b"\x08\x06" + bytes(46)


def taken(end: End) -> list[bytes]:
    """Every frame that waits at ``end``, as far as its slot has room for it."""
    found: list[bytes] = []
    while waiting := end.waiting():
        batch = end.take(waiting)
        kept = batch.captured.tolist()
        found += [batch.frames[row, :size].tobytes() for row, size in enumerate(kept)]
        end.release(batch.size)
    return found


# The cable itself.


def test_frames_come_in_order_around_the_ring() -> None:
    one, other = cable(slots=256)
    for turn in range(20):
        sent = [udp4(struct.pack("<II", turn, n) * (n + 1)) for n in range(100)]
        assert all(one.send(frame) for frame in sent)
        assert one.waiting() == 0, "nothing comes back to the sender"
        assert taken(other) == sent
    other.send(bytearray(ARP))
    assert taken(one) == [ARP]
    assert (one.frames, other.frames, one.ring_drops, other.ring_drops) == (1, 2000, 0, 0)


def test_a_full_ring_drops_and_counts_as_an_interface_does() -> None:
    one, other = cable(slots=64)
    sent = [udp4(bytes([n])) for n in range(70)]
    assert all(one.send(frame) for frame in sent)
    assert (other.frames, other.ring_drops) == (70, 6)
    assert taken(other) == sent[:64]
    assert one.send(sent[0])
    assert taken(other) == sent[:1]


def test_slots_grow_with_the_mtu_of_their_own_device() -> None:
    one, other = cable(slots=64)
    jumbo = udp4(b"j" * 8900)
    one.send(jumbo)
    batch = other.take(1)
    assert batch.lengths.tolist() == [len(jumbo)]
    assert batch.captured.tolist()[0] < len(jumbo), "it did not fit, as its length shows"
    other.resize(9000)
    assert other.take(1).ring.slot == LARGE_SLOT
    assert other.ring_drops == 1, "what waited went with the old ring"
    one.send(jumbo)
    assert taken(other) == [jumbo]
    other.resize(1518)
    one.resize(1518)
    one.send(ARP)
    assert taken(other) == [ARP]


# Two drivers, each with its device.


def driver_on(end: End) -> MiniVhostDriver:
    made = MiniVhostDriver(cast("FakeWire", end), megabytes=32)
    made.attach()
    made.set_irqs()
    made.probe()
    made.open(entries=1024, evq_entries=4096)
    return made


@pytest.fixture
def pair() -> Iterator[tuple[MiniVhostDriver, MiniVhostDriver]]:
    both = driver_on((ends := cable())[0]), driver_on(ends[1])
    yield both
    for driver in both:
        assert driver.nic.counters()["internal_errors"] == 0
        driver.close()


def test_what_one_transmits_the_other_receives(
    pair: tuple[MiniVhostDriver, MiniVhostDriver],
) -> None:
    for here, there in (pair, pair[::-1]):
        sent = [udp4(bytes([n]) * (1 + n * 9 % 1400), source_port=n + 1) for n in range(100)]
        for frame in sent:
            here.send(frame[:20], frame[20:])
        here.send(ARP)
        got = [frame for frame, _ in there.pass_wire()]
        there.refill()
        assert got == [frame.ljust(60, b"\0") for frame in (*sent, ARP)]
        counters = there.nic.counters()
        assert counters["wire_frames"] == counters["rx_delivered"] == 101
        assert here.nic.counters()["tx_frames"] == 101


def test_a_checksum_left_to_the_device_is_good_at_the_other(
    pair: tuple[MiniVhostDriver, MiniVhostDriver],
) -> None:
    here, there = pair
    here.send(udp4(b"some data", partial=True), options=(1 << 63 | 3,))
    assert [frame for frame, _ in there.pass_wire()] == [udp4(b"some data").ljust(60, b"\0")]


def test_a_cut_cable_carries_nothing_to_the_device_it_was_pulled_from(
    pair: tuple[MiniVhostDriver, MiniVhostDriver],
) -> None:
    here, there = pair
    there.nic.set_link(up=False)
    here.send(udp4())
    assert there.pass_wire() == []
    assert there.nic.counters()["rx_link_down"] == 1
    there.nic.set_link(up=True)
    here.send(udp4())
    assert len(there.pass_wire()) == 1


def test_streams_are_repeated_and_all_else_comes_once(
    pair: tuple[MiniVhostDriver, MiniVhostDriver],
) -> None:
    here, there = pair
    there.nic.pace_wire(repeat=0, burst=0)
    streams = [udp4(struct.pack("<I", n), source_port=4000 + n % 10) for n in range(100)]
    for frame in (*streams[:50], ARP, *streams[50:]):
        here.send(frame)
    got: list[bytes] = []
    for _ in range(10):
        got += [frame for frame, _ in there.pass_wire()]
        there.refill()
        there.clock.now_ns += 1_000_000
    assert got.count(ARP) == 1
    got.remove(ARP)
    assert len(got) > 5000
    padded = [frame.ljust(60, b"\0") for frame in streams]
    assert got[:4000] == padded * 40, "interleaving is kept"
    assert set(got) == set(padded)
    counters = there.nic.counters()
    assert counters["repeat_taken"] == 100
    assert counters["wire_frames"] == 101
    assert here.nic.counters()["rx_frames"] == 0, "only the dut's side repeats"


# The process.


class Process:
    """The model with two sockets, and what it has printed."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.sockets = directory / "nic", directory / "peer"
        self.control = directory / "control"
        command = [sys.executable, "-m", "harness.nic", "--mac", MAC.hex(":")]
        command += ["--vhost-user", str(self.sockets[0]), "--peer", str(self.sockets[1])]
        command += ["--peer-mac", PEER.hex(":"), "--control", str(self.control)]
        command += ["--log", str(directory / "log"), *options]
        self.popen = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert json.loads(self.line())["ready"]["socket"] == str(self.sockets[0])

    def line(self) -> str:
        assert self.popen.stdout is not None
        return self.popen.stdout.readline()

    def driver(self, number: int) -> VhostDriver:
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(self.sockets[number]))
        made = VhostDriver(client)
        made.mac = (MAC, PEER)[number]
        made.attach()
        made.set_irqs()
        made.probe()
        made.open(entries=1024, evq_entries=4096)
        return made

    def counters(self) -> dict[str, int]:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.control))
            line.sendall(b'{"call": "counters"}\n')
            found: dict[str, int] = json.loads(line.makefile().readline())["counters"]
            return found


@contextmanager
def process(directory: Path, *options: str) -> Iterator[Process]:
    up = Process(directory, *options)
    with up.popen as popen:
        try:
            yield up
        finally:
            popen.kill()


def until(true: Callable[[], bool], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_process_serves_both(tmp_path: Path) -> None:
    with process(tmp_path) as up:
        # The generator is there first, and what it sends to nobody is lost.
        generator = up.driver(1)
        generator.send(udp4(b"early"))
        until(lambda: up.counters()["rx_filtered"] == 1)
        dut = up.driver(0)
        for here, there, address in ((generator, dut, MAC), (dut, generator, PEER)):
            sent = [udp4(bytes([n]), to=address) for n in range(50)]
            for frame in sent:
                here.send(frame)
            got: list[bytes] = []

            def all_here(got: list[bytes] = got, there: VhostDriver = there) -> bool:
                got += [frame for frame, _ in there.receive()]
                return len(got) >= 50

            until(all_here)
            assert got == [frame.ljust(60, b"\0") for frame in sent]
            assert there.interrupts() > 0
        with socket.socket(socket.AF_UNIX) as second:
            second.connect(str(up.sockets[1]))
            assert second.recv(1) == b"", "each device has one client"
        # One may leave: the other's kernel still has its NIC.
        generator.close()
        dut.send(udp4(b"into the void"))
        until(lambda: up.counters()["tx_frames"] == 51)
        with socket.socket(socket.AF_UNIX) as late:
            late.connect(str(up.sockets[1]))
            assert late.recv(1) == b"", "nor another after it"
        dut.close()
        assert up.popen.wait(20) == 0
        counters, peer = (json.loads(up.line()) for _ in range(2))
        assert counters["counters"]["rx_delivered"] == peer["peer"]["rx_delivered"] == 50
        assert peer["peer"]["clients_refused"] == 2
        for each in (counters["counters"], peer["peer"]):
            assert each["internal_errors"] == 0
        assert not any(path.exists() for path in (*up.sockets, up.control))


def test_the_generator_is_served_while_its_streams_are_repeated(tmp_path: Path) -> None:
    with process(tmp_path, "--repeat", "0") as up:
        generator, dut = up.driver(1), up.driver(0)
        streams = [udp4(bytes([n]), source_port=4000 + n % 10) for n in range(40)]
        received, sent, last = 0, 0, -1
        deadline = time.monotonic() + 30
        while received < 30_000 and time.monotonic() < deadline:
            done = [event & 0xFFFF for event in generator.events() if event >> 60 == 2]
            last = done[-1] if done else last
            if (generator.channels[0].tx_written - 1 - last) % 1024 < 512:
                for frame in streams:
                    generator.send(frame)
                sent += len(streams)
            received += len(dut.receive())
            dut.refill()
            generator._next = generator.channels[0].buffer  # its buffers are used again
        assert received >= 30_000
        counters = up.counters()
        assert counters["repeat_taken"] > 1000
        assert counters["repeat_delivered"] > 5 * counters["repeat_taken"]
        until(lambda: up.counters()["wire_frames"] == sent)
        assert up.counters()["wire_ring_drops"] == 0
        # A request of its driver is answered meanwhile.
        begun_s = time.monotonic()
        for _ in range(20):
            generator.mcdi(0x55)
        assert time.monotonic() - begun_s < 2
        up.popen.send_signal(signal.SIGTERM)
        assert up.popen.wait(20) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--interface", "lo", "--peer", "x", "--peer-mac", PEER.hex(":")], "not allowed with"),
        (["--peer", "x"], "--peer and --peer-mac belong together"),
        (["--interface", "lo", "--peer-mac", PEER.hex(":")], "belong together"),
        (["--peer", "x", "--peer-mac", "01:00:00:00:00:01"], "--peer-mac"),
        ([], "--interface --peer"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, words: list[str], told: str) -> None:
    command = [sys.executable, "-m", "harness.nic", "--mac", MAC.hex(":")]
    command += ["--vhost-user", str(tmp_path / "nic"), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert told in done.stderr
