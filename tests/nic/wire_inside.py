# SPDX-License-Identifier: MIT
"""What ``test_wire`` runs inside ``unshare -Urn``: it needs a network of its own."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.nic.wire import LARGE_SLOT, TP_STATUS_CSUMNOTREADY, PacketWire
from tests.nic.minidriver import MAC, Driver, udp4

pytestmark = pytest.mark.nic


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def veth() -> Iterator[None]:
    ip("link", "add", "gen0", "mtu", "9000", "type", "veth", "peer", "name", "wire0")
    for name in ("gen0", "wire0"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        ip("link", "set", name, "mtu", "9000", "up")
    yield
    ip("link", "del", "gen0")


def packet_socket() -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    made.bind(("gen0", 3))
    made.settimeout(5)
    return made


def test_the_ring_keeps_order_and_count(veth: None) -> None:

    wire = PacketWire("wire0", slots=256)
    generator = packet_socket()
    seen = 0
    for turn in range(20):
        sent = [udp4(struct.pack("<II", turn, n) * (n + 1)) for n in range(100)]
        for frame in sent:
            generator.send(frame)
        got: list[bytes] = []
        while waiting := wire.waiting():
            batch = wire.take(waiting)
            lengths = batch.lengths.tolist()
            got += [batch.frames[row, :size].tobytes() for row, size in enumerate(lengths)]
            wire.release(batch.size)
        assert got == sent
        seen += len(sent)
    wire.send(udp4(b"back"))
    assert generator.recv(100) == udp4(b"back")
    assert wire.waiting() == 0, "what the model sends does not come back to it"
    for _ in range(300):
        generator.send(udp4())
    wire.refresh()
    assert wire.ring_drops == 300 - 256
    assert wire.frames == seen + 300
    wire.resize(9000)
    assert wire._ring.slot == LARGE_SLOT
    assert wire.ring_drops == 300
    generator.send(udp4(b"j" * 8900))
    assert wire.waiting() == 1
    wire.close()
    generator.close()


def test_tags_taken_by_the_kernel_are_put_back(veth: None) -> None:

    wire = PacketWire("wire0", slots=64)
    generator = packet_socket()
    plain = udp4(b"tagged")
    tagged = plain[:12] + b"\x81\x00\x20\x05" + plain[12:]
    generator.send(tagged)
    generator.send(plain)
    for frame in (tagged, plain):
        batch = wire.take(1)
        assert batch.frames[0, : int(batch.lengths[0])].tobytes() == frame
        wire.release(1)
    wire.close()
    generator.close()


def test_a_stack_that_offloads_checksums_and_an_interface_that_goes(veth: None) -> None:

    ip("addr", "add", "10.9.0.1/24", "dev", "gen0")
    ip("neigh", "add", "10.9.0.2", "lladdr", "02:00:00:00:00:42", "dev", "gen0")
    wire = PacketWire("wire0", slots=64)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.sendto(b"x", ("10.9.0.2", 9))
    batch = wire.take(wire.waiting())
    assert int(batch.lengths[0]) == 43
    assert int(batch.status[0]) & TP_STATUS_CSUMNOTREADY
    wire.release(1)
    ip("link", "set", "wire0", "down")
    assert wire.settle()
    ip("link", "set", "wire0", "up")
    time.sleep(0.1)
    sender.sendto(b"x", ("10.9.0.2", 9))
    assert wire.waiting() == 1
    wire.close()


def test_the_process_serves_one_client(veth: None, tmp_path: Path) -> None:

    command = [sys.executable, "-m", "harness.nic", "--interface", "wire0"]
    command += ["--socket", str(tmp_path / "nic"), "--control", str(tmp_path / "control")]
    command += ["--mac", MAC.hex(":"), "--log", str(tmp_path / "log"), "--verbose"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())["ready"]
        assert ready == {"socket": str(tmp_path / "nic"), "pid": process.pid}
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "nic"))
        driver = Driver(client)
        driver.attach()
        driver.set_irqs()
        driver.probe()
        driver.open()
        generator = packet_socket()
        frames = [udp4(bytes([n])) for n in range(20)]
        for frame in frames:
            generator.send(frame)
        got: list[bytes] = []
        deadline = time.monotonic() + 20
        while len(got) < 20 and time.monotonic() < deadline:
            got += [frame for frame, _ in driver.receive()]
        assert got == [frame.ljust(60, b"\0") for frame in frames]
        driver.send(udp4(b"answer"))
        assert generator.recv(200) == udp4(b"answer").ljust(60, b"\0")
        control = socket.socket(socket.AF_UNIX)
        control.connect(str(tmp_path / "control"))
        lines = control.makefile("rw")

        def ask(text: str) -> dict[str, object]:
            lines.write(text + "\n")
            lines.flush()
            answer: dict[str, object] = json.loads(lines.readline())
            return answer

        counters = ask('{"call": "counters"}')["counters"]
        assert isinstance(counters, dict)
        assert counters["rx_delivered"] == counters["rx_frames"] == counters["wire_frames"] == 20
        assert ask('{"call": "link", "up": false}') == {"link": {"up": False}}
        assert "error" in ask("[" * 3000)
        assert "error" in ask('{"call": "no"}')
        (event,) = [e for e in driver.events() if e >> 44 & 0xFF == 4]
        assert not event >> 24 & 1
        driver.close()
        assert process.wait(20) == 0
        counters = json.loads(process.stdout.readline())["counters"]
        assert counters["tx_frames"] == 1
        assert counters.get("internal_errors", 0) == 0
    assert not (tmp_path / "nic").exists()
    assert not (tmp_path / "control").exists()


def test_a_signal_ends_the_process(veth: None, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness.nic", "--interface", "wire0"]
    command += ["--socket", str(tmp_path / "nic"), "--mac", "02:00:00:00:00:42"]
    for connect in (False, True):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            client = socket.socket(socket.AF_UNIX)
            if connect:
                client.connect(str(tmp_path / "nic"))
            process.terminate()
            assert process.wait(20) == 0
            assert "counters" in process.stdout.readline()
        assert not (tmp_path / "nic").exists()


def test_a_missing_interface_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness.nic", "--interface", "nowhere0"]
    command += ["--socket", str(tmp_path / "nic"), "--mac", "02:00:00:00:00:42"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3
    assert "nowhere0" in done.stderr or "No such device" in done.stderr
