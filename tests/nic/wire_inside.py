# SPDX-License-Identifier: MIT
"""What ``test_wire`` runs inside ``unshare -Urn``: it needs a network of its own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.nic import datapath
from harness.nic.wire import LARGE_SLOT, TP_STATUS_CSUMNOTREADY, PacketWire
from tests.nic.frames import MAC, tagged, udp4
from tests.nic.minidriver import Driver
from tests.nic.vhost_driver import VhostDriver

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
        flap = '{"call": "fault", "name": "link-flap", "number": 1, "ms": 1}'
        assert ask(flap) == {"fault": {"name": "link-flap", "number": 1, "ms": 1}}
        time.sleep(0.05)
        assert ask('{"call": "link", "up": true}') == {"link": {"up": True}}
        for wrong in (
            '"name": "no"', '"name": {}', '"number": 1', '"name": "link-flap", "ms": "1"',
            '"name": "link-flap", "ms": -1', '"name": "link-flap", "often": 1',
            '"name": "link-flap", "ms": true', '"name": "link-flap", "command": null',
        ):  # fmt: skip
            assert "error" in ask('{"call": "fault", ' + wrong + "}"), wrong
        driver.close()
        assert process.wait(20) == 0
        counters = json.loads(process.stdout.readline())["counters"]
        assert counters["tx_frames"] == 1
        assert counters.get("internal_errors", 0) == 0
    assert not (tmp_path / "nic").exists()
    assert not (tmp_path / "control").exists()


def test_the_process_serves_a_user_mode_kernel(veth: None, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness.nic", "--interface", "wire0"]
    command += ["--vhost-user", str(tmp_path / "nic"), "--control", str(tmp_path / "control")]
    command += ["--mac", MAC.hex(":"), "--log", str(tmp_path / "log")]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        contextlib.ExitStack() as undo,
    ):
        undo.callback(process.kill)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["ready"]["socket"] == str(tmp_path / "nic")
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(tmp_path / "nic"))
        driver = VhostDriver(client)
        driver.attach()
        driver.set_irqs()
        driver.probe()
        driver.open(entries=1024, evq_entries=4096)
        generator = packet_socket()
        frames = [udp4(bytes([n])) for n in range(200)]

        def received(number: int) -> list[bytes]:
            got: list[bytes] = []
            deadline = time.monotonic() + 20
            while len(got) < number and time.monotonic() < deadline:
                for frame in streaming:
                    generator.send(frame)
                got += [frame for frame, _ in driver.receive()]
                driver.refill()
            return got

        streaming: list[bytes] = []
        for frame in frames:
            generator.send(frame)
        assert received(200) == [frame.ljust(60, b"\0") for frame in frames]
        assert driver.interrupts() > 0
        driver.send(udp4(b"answer"))
        assert generator.recv(200) == udp4(b"answer").ljust(60, b"\0")
        control = socket.socket(socket.AF_UNIX)
        control.connect(str(tmp_path / "control"))
        lines = control.makefile("rw")

        def ask(**request: object) -> dict[str, object]:
            lines.write(json.dumps(request) + "\n")
            lines.flush()
            answer: dict[str, object] = json.loads(lines.readline())
            return answer

        assert "error" in ask(call="wire", repeat=-1, burst=0)
        assert "error" in ask(call="wire", repeat=1)
        assert ask(call="wire", repeat=0, burst=0) == {"wire": {"repeat": 0, "burst": 0}}
        streaming = frames[:40]
        assert len(received(5000)) >= 5000
        streaming = []
        # Asleep: no doorbell for a while, then the next one has to be heard.
        time.sleep(0.3)
        ask(call="wire", repeat=3, burst=5)
        driver.receive()
        received(0)
        before = ask(call="counters")["counters"]
        generator.send(frames[0])
        assert received(3)[-3:] == [frames[0].ljust(60, b"\0")] * 3
        after = ask(call="counters")["counters"]
        assert isinstance(before, dict)
        assert isinstance(after, dict)
        assert after["repeat_delivered"] == before["repeat_delivered"] + 3
        assert after["repeat_taken"] == before["repeat_taken"] + 1
        driver.close()
        assert process.wait(20) == 0
        counters = json.loads(process.stdout.readline())["counters"]
        assert counters.get("internal_errors", 0) == 0


@pytest.mark.parametrize("option", ["--repeat", "--burst"])
@pytest.mark.parametrize("value", ["-1", "x", "1.5", "10000000"])
def test_options_that_make_no_sense(tmp_path: Path, option: str, value: str) -> None:
    command = [sys.executable, "-m", "harness.nic", "--interface", "lo", "--mac", MAC.hex(":")]
    command += ["--socket", str(tmp_path / "nic"), f"{option}={value}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert option in done.stderr


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


@contextlib.contextmanager
def model(
    tmp_path: Path, *, mistake: str = "pass"
) -> Iterator[tuple[subprocess.Popen[str], Path, Path]]:
    """The process, its socket and its control socket; ``mistake`` runs in it at first."""
    code = f"import sys\n{mistake}\nfrom harness.nic.__main__ import main\nsys.exit(main())"
    command = [sys.executable, "-c", code, "--interface", "wire0", "--mac", MAC.hex(":")]
    command += ["--socket", str(tmp_path / "nic"), "--control", str(tmp_path / "control")]
    command += ["--log", str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        try:
            yield process, tmp_path / "nic", tmp_path / "control"
        finally:
            process.kill()


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))  # without a timeout: with one a full backlog is an error
    client.settimeout(10)
    return client


def started(path: Path) -> Driver:
    driver = Driver(connected(path))
    driver.attach()
    driver.set_irqs()
    driver.probe()
    driver.open()
    return driver


def counters(control: Path) -> dict[str, int]:
    with connected(control) as client:
        client.sendall(b'{"call": "counters"}\n')
        found: dict[str, int] = json.loads(client.makefile().readline())["counters"]
        return found


def received(driver: Driver, count: int) -> list[bytes]:
    got: list[bytes] = []
    deadline = time.monotonic() + 10
    while len(got) < count and time.monotonic() < deadline:
        got += [frame for frame, _ in driver.receive()]
    return got


def processor_s(process: subprocess.Popen[str]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_second_client_is_refused_at_once(veth: None, tmp_path: Path) -> None:
    with model(tmp_path) as (process, path, control):
        driver = started(path)
        for said in (b"", struct.pack("<HHIII", 1, 1, 20, 0, 0) + bytes(4)):
            for _ in range(5):
                with connected(path) as second:
                    with contextlib.suppress(BrokenPipeError):
                        second.sendall(said)
                    begun = time.monotonic()
                    with contextlib.suppress(ConnectionResetError):
                        assert second.recv(100) == b""
                    assert time.monotonic() - begun < 2
        generator = packet_socket()
        generator.send(udp4(b"undisturbed"))
        assert received(driver, 1) == [udp4(b"undisturbed").ljust(60, b"\0")]
        assert counters(control)["clients_refused"] == 10
        driver.close()
        assert process.wait(20) == 0


def test_a_client_that_shrinks_its_memory_ends_nothing(veth: None, tmp_path: Path) -> None:
    with model(tmp_path) as (process, path, control):
        driver = started(path)
        os.ftruncate(driver.memfd, 0)
        generator = packet_socket()
        for n in range(30):
            generator.send(udp4(bytes(n)))
        driver.writel(0x400, 7)
        deadline = time.monotonic() + 10
        while not counters(control)["guest_pages_lost"] and time.monotonic() < deadline:
            time.sleep(0.05)
        found = counters(control)
        assert found["guest_pages_lost"] > 0
        assert found["internal_errors"] == 0
        assert driver.read_region(7, 0, 2) == b"\x24\x19"
        driver.socket.close()
        assert process.wait(20) == 0


@pytest.mark.parametrize("count", [2, 8, 9])
def test_frames_that_are_alike(veth: None, tmp_path: Path, count: int) -> None:
    with model(tmp_path) as (process, path, control):
        driver = started(path)
        generator = packet_socket()
        sent = [tagged(udp4(b"a tagged one" * 5), 5)] * count
        sent += [udp4(b"longer than a slot" * 200)] * count + [udp4(b"the last" * 9)]
        process.send_signal(19)  # so that they wait together
        for frame in sent:
            generator.send(frame)
        process.send_signal(18)
        assert received(driver, count + 1) == sent[:count] + sent[-1:]
        found = counters(control)
        assert (found["rx_oversize"], found["internal_errors"]) == (count, 0)


@pytest.mark.parametrize(
    ("mistake", "path_of"),
    [
        ("offload as part; part.uniform = part.classify = None", "python"),
        ("device as part; part.Nic.receive = None", ""),
        ("wire as part; part.SlotRing.take = part.SlotRing.release = None", "python"),
        ("transmit as part; part.TxQueue.transmit = part.TxQueue.abandon = None", "python"),
        ("compiled as part; part.Compiled.receive = part.Compiled.transmit = None", "compiled"),
    ],
    ids=["parser", "pass", "wire", "transmit", "compiled"],
)
def test_no_mistake_stops_or_spins_the_loop(
    veth: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str, path_of: str
) -> None:
    if path_of == "compiled" and datapath.load().code is None:
        pytest.skip(datapath.load().why)
    monkeypatch.setenv(datapath.CHOICE, path_of)
    with model(tmp_path, mistake=f"from harness.nic import {mistake}") as (process, path, control):
        driver = started(path)
        generator = packet_socket()
        for n in range(20):
            generator.send(udp4(bytes(n)))
        driver.send(udp4(b"out"))
        time.sleep(0.3)
        before = processor_s(process)
        time.sleep(1)
        assert processor_s(process) - before < 0.5
        assert counters(control)["internal_errors"] > 0
        assert driver.mcdi(0x55)[:6] == MAC
        assert (tmp_path / "log").read_text().count("Traceback") <= 4
        driver.close()
        assert process.wait(20) == 0


def test_a_function_without_bus_mastering_lets_the_loop_rest(veth: None, tmp_path: Path) -> None:
    with model(tmp_path) as (process, path, control):
        driver = started(path)
        driver.write_command(0)
        generator = packet_socket()
        before = processor_s(process)
        for _ in range(100):
            generator.send(udp4())
            time.sleep(0.01)
        assert processor_s(process) - before < 0.5
        assert counters(control)["rx_delivered"] == 0
        driver.write_command(4)
        generator.send(udp4(b"on" * 20))
        assert udp4(b"on" * 20) in received(driver, 30)


def test_more_control_clients_than_are_served(veth: None, tmp_path: Path) -> None:
    with model(tmp_path) as (_, path, control):
        driver = started(path)
        clients = []
        for _ in range(300):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(control))
            clients.append(client)
        assert driver.mcdi(0x55)[:6] == MAC
        for client in clients:
            client.close()
        time.sleep(0.1)
        assert counters(control)["internal_errors"] == 0
        for _ in range(50):
            with connected(control) as client:
                client.sendall(b'{"call": "coun')
        assert driver.mcdi(0x55)[:6] == MAC


def test_a_client_leaves_amid_a_message(veth: None, tmp_path: Path) -> None:
    with model(tmp_path) as (process, path, _):
        driver = started(path)
        driver.socket.sendall(struct.pack("<HHIII", 1, 9, 100, 0, 0))
        driver.socket.close()
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["counters"]["internal_errors"] == 0
