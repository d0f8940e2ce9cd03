# SPDX-License-Identifier: MIT
"""Consoles of machines by command, serial over LAN and netconsole, and the effect of garbage."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import psutil
import pytest

from harness import config
from harness.base import process
from harness.base.errors import InfrastructureError
from harness.beds.machine import console
from tests.bmc import IpmiBmc, missing_for_ipmi

pytestmark = pytest.mark.unit

IPMI = pytest.mark.skipif(missing_for_ipmi() is not None, reason=str(missing_for_ipmi()))


def command(*words: str) -> config.CommandConsole:
    return config.CommandConsole(command=words)


def script(text: str) -> config.CommandConsole:
    return command(sys.executable, "-c", "import sys, time, os; out = sys.stdout.buffer; " + text)


def until(what: Callable[[], object], *, within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "that did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("plain\r\n\tπ\n", "plain\n\tπ\n"),
        ("\x1b[1;31mKernel panic\x1b[0m - not\x1b[K syncing", "Kernel panic - not syncing"),
        ("a\x1b]0;title\x07b\x1b]2;other\x1b\\c", "abc"),
        ("a\x1b]52;c;never ended\nKernel panic", "a52;c;never ended\nKernel panic"),
        ("\x1bc\x1b(B\x9b2Jx\x90q\x9cy", "xy"),
        ("\x07\x08\x0c\x7f\x85", r"\x07\x08\x0c\x7f\x85"),
        ("over\rwritten", r"over\rwritten"),
        ("\u202eevil\u2066\u2028\ufeff", r"\u202eevil\u2066\u2028\ufeff"),
    ],
)
def test_what_steers_a_terminal_is_gone_or_spelt_out(said: str, shown: str) -> None:
    assert process.harmless(said) == shown


@pytest.mark.parametrize("said", ["\x1b[" * 300_000, "\x1b]" * 300_000, "\x1b" * 600_000])
def test_escapes_without_end_are_read_in_time(said: str) -> None:
    began = time.process_time()
    assert "\x1b" not in process.harmless(said)
    assert time.process_time() - began < 5


def test_the_log_is_raw_and_the_text_is_not(tmp_path: Path) -> None:
    said = b"\x1b[32m[    0.0] Linux\x1b[0m\r\n\xff\xfe\x00\n"
    with console.start(
        script(f"out.write({said!r}); out.flush(); time.sleep(60)"), "dut", tmp_path / "log"
    ) as kept:
        until(lambda: kept.position)
        kept.check()
        assert kept.text() == "[    0.0] Linux\n\ufffd\ufffd\\x00\n"
        assert kept.text(since=kept.position) == ""
        assert 0 < kept.silence_s < 30
    assert (tmp_path / "log").read_bytes() == said


def test_a_log_is_appended_to_and_text_is_by_position(tmp_path: Path) -> None:
    fifo = tmp_path / "serial"
    os.mkfifo(fifo)
    (tmp_path / "log").write_bytes(b"boot 0\n")
    with console.start(command("cat", str(fifo)), "dut", tmp_path / "log") as kept:
        with fifo.open("wb", buffering=0) as serial:
            serial.write(b"boot 1\n")
            until(lambda: kept.position == 7)
            since = kept.position
            serial.write(b"boot 2\n")
            until(lambda: kept.position == 14)
            assert kept.text(since) == "boot 2\n"
            assert kept.text(0, until=since) == "boot 1\n"
            assert kept.text() == "boot 1\nboot 2\n"
    assert (tmp_path / "log").read_bytes().startswith(b"boot 0\nboot 1\nboot 2\n")


def test_output_without_end_is_bounded(tmp_path: Path) -> None:
    limit = 1 << 20
    before = psutil.Process().memory_info().rss
    with console.start(command("yes", "Kernel panic"), "dut", tmp_path / "log",
                       log_bytes=limit) as kept:  # fmt: skip
        until(lambda: kept.position > 32 << 20, within_s=60)
        kept.check()
        assert len(kept.text()) <= console.TEXT_BYTES
    assert psutil.Process().memory_info().rss - before < 48 << 20
    size = (tmp_path / "log").stat().st_size
    assert limit <= size < limit + 200
    assert b"the rest is not kept" in (tmp_path / "log").read_bytes()[-100:]


def test_a_full_disk_costs_the_log_only() -> None:
    with console.start(
        script("out.write(b'hello'); out.flush(); time.sleep(60)"), "dut", Path("/dev/full")
    ) as kept:
        until(lambda: kept.text() == "hello")
        kept.check()


def test_a_console_that_ends_is_started_again_and_that_is_noted(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    again = f"print('again', flush=True); time.sleep(60) if os.path.exists({str(mark)!r}) else 0; "
    with console.start(
        script(again + f"open({str(mark)!r}, 'w').close(); time.sleep(1.5)"), "dut",
        tmp_path / "log",
    ) as kept:  # fmt: skip
        kept.check()
        until(lambda: kept.text().count("again\n") >= 2)
        assert "\n-- harness: the console ended (status 0); again in 1 s\nagain\n" in kept.text()
        kept.check()


def test_a_console_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="dut: no console: no-such-program is not"):
        console.start(command("no-such-program"), "dut", tmp_path / "log")
    failing = "print('no such\\x1b[2J port', file=sys.stderr); sys.exit(3)"
    with console.start(script(failing), "dut", tmp_path / "log") as kept:
        for _ in range(2):
            with pytest.raises(InfrastructureError, match=r"dut: no console.*no such port"):
                kept.check()
        until(lambda: "status 3" in kept.text())


def test_a_console_that_is_silent(tmp_path: Path) -> None:
    with console.start(command("sleep", "60"), "dut", tmp_path / "log") as kept:
        kept.check()
        assert kept.text() == ""
        began = time.monotonic()
        kept.check()
        assert time.monotonic() - began < 0.5


def test_a_command_that_ignores_its_end(tmp_path: Path) -> None:
    stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); "
    kept = console.start(script(stubborn + "time.sleep(88.8)"), "dut", tmp_path / "log")
    until(lambda: kept.position)
    began = time.monotonic()
    kept.close()
    assert time.monotonic() - began < 8
    assert not any("88.8" in word for word in _arguments())


def _arguments() -> list[str]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += child.cmdline()
    return found


def test_a_command_ends_with_its_input_when_the_harness_is_killed(tmp_path: Path) -> None:
    holder = (
        "import time; from pathlib import Path; from harness import config; "
        "from harness.beds.machine import console; "
        "kept = console.start(config.CommandConsole(command=('cat',)), 'dut', "
        f"Path({str(tmp_path / 'log')!r})); print(kept._running.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE) as harness:
        assert harness.stdout is not None
        child = psutil.Process(int(harness.stdout.readline()))
        harness.send_signal(signal.SIGKILL)
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


# Serial over LAN


def sol(bmc: IpmiBmc, monkeypatch: pytest.MonkeyPatch, password: str = "") -> config.SolConsole:
    monkeypatch.setenv("SOL_TEST", password or bmc.password)
    return config.SolConsole(
        sol=config.Ipmi(
            hostname="127.0.0.1",
            port=bmc.port,
            user=bmc.user,
            password=config.EnvironmentSecret(env="SOL_TEST"),
            cipher_suite=bmc.cipher_suite,
        )
    )


@IPMI
def test_serial_over_lan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serial = tmp_path / "serial"
    serial.touch()
    with IpmiBmc(lambda _: True, console=serial) as bmc:
        described = sol(bmc, monkeypatch)
        with console.start(described, "dut", tmp_path / "log") as kept:
            kept.check()
            with serial.open("ab", buffering=0) as port:
                port.write(b"\x1b[31mKernel panic\x1b[0m - not syncing\r\n")
            until(lambda: "Kernel panic - not syncing\n" in kept.text())
    assert b"\x1b[31mKernel panic" in (tmp_path / "log").read_bytes()
    assert bmc.password.encode() not in (tmp_path / "log").read_bytes()


@IPMI
def test_serial_over_lan_wrong_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with IpmiBmc(lambda _: True, console=tmp_path / "serial") as bmc:
        described = sol(bmc, monkeypatch, "wrong-one")
        with console.start(described, "dut", tmp_path / "log") as kept:
            with pytest.raises(InfrastructureError, match="dut: no console: ipmitool") as caught:
                kept.check()
    assert "password" in (caught.value.hint or "")
    assert "wrong-one" not in str(caught.value)


@IPMI
def test_serial_over_lan_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serial = tmp_path / "serial"
    serial.touch()
    with IpmiBmc(lambda _: True, console=serial) as bmc:
        described = sol(bmc, monkeypatch)
        with console.start(described, "dut", tmp_path / "log") as kept:
            kept.check()
            # The BMC does not learn of this end: the session is left behind, and in the way.
            (ipmitool,) = psutil.Process().children()[-1:]
            assert ipmitool.name() == "ipmitool"
            ipmitool.kill()
            until(lambda: kept.text().count("SOL Session operational") > 1, within_s=30)
            kept.check()
            with serial.open("ab", buffering=0) as port:
                port.write(b"second boot\r\n")
            until(lambda: "second boot" in kept.text())


# netconsole


def netconsole(port: int, address: str = "127.0.0.1") -> config.NetconsoleConsole:
    return config.NetconsoleConsole(
        netconsole=config.Netconsole(address=IPv4Address(address), port=port, interface="eno1")
    )


def send(port: int, *packets: bytes, sender: str = "127.0.0.1") -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.bind((sender, 0))
        for packet in packets:
            line.sendto(packet, ("127.0.0.1", port))


@pytest.fixture
def port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


def test_netconsole(tmp_path: Path, port: int) -> None:
    with console.start(netconsole(port), "dut", tmp_path / "log") as kept:
        kept.check()
        send(port, b"[ 1.0] first\n", b"", b"\x1b[2J[ 2.0] Kernel panic\n")
        until(lambda: "panic" in kept.text())
        assert kept.text() == "[ 1.0] first\n[ 2.0] Kernel panic\n"
        with pytest.raises(InfrastructureError, match=f"other: UDP port {port}") as caught:
            console.start(netconsole(port), "other", tmp_path / "other")
        assert "port of its own" in (caught.value.hint or "")
    with console.start(netconsole(port), "dut", tmp_path / "log"):
        pass


def test_netconsole_takes_only_the_sender_it_is_told(tmp_path: Path, port: int) -> None:
    with console.start(netconsole(port), "dut", tmp_path / "log", sender="127.0.0.2") as kept:
        for _ in range(3):
            send(port, b"not of the dut\n", sender="127.0.0.3")
        send(port, b"of the dut\n", sender="127.0.0.2")
        until(lambda: "of the dut\n" in kept.text())
        assert "not of the dut" not in kept.text()
        assert kept.text().count("packets from 127.0.0.3 are not kept") == 1


def test_netconsole_behind_address_translation(tmp_path: Path, port: int) -> None:
    # 192.0.2.0/24 is nobody's: this machine as a host sees it that is behind a router.
    with console.start(netconsole(port, "192.0.2.1"), "dut", tmp_path / "log") as kept:
        send(port, b"hello\n")
        until(lambda: kept.text() == "hello\n")
