# SPDX-License-Identifier: MIT
"""Power by Redfish, IPMI and a command, against third-party emulators."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import config
from harness.base.errors import ConfigurationError, InfrastructureError
from harness.beds.machine import power
from tests.bmc import IpmiBmc, RedfishBmc, missing_for_ipmi

pytestmark = pytest.mark.unit

IPMI = pytest.mark.skipif(missing_for_ipmi() is not None, reason=str(missing_for_ipmi()))
OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


class Machine:
    """A machine that records what was done to it, and looks for leaked passwords."""

    def __init__(self, password: str = "") -> None:
        self.on = False
        self.acts: list[str] = []
        self.seen: set[str] = set()
        self._password = password

    def __call__(self, word: str) -> bool | None:
        if self._password:
            self._look()
        if word == "status":
            return self.on
        self.acts.append(word)
        self.on = word != "off"
        return None

    def _look(self) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(self._password in word for word in process.cmdline()):
                    self.seen.add("arguments")
                names = [key for key, text in process.environ().items() if text == self._password]
                self.seen.update(names)


@pytest.fixture
def machine() -> Machine:
    return Machine()


def redfish(bmc: RedfishBmc, *, within_s: float = 30.0, **more: Any) -> power.Power:
    os.environ["REDFISH_TEST"] = more.pop("password", bmc.password)
    described = config.Redfish(
        url=bmc.url,
        user=bmc.user,
        password=config.EnvironmentSecret(env="REDFISH_TEST"),
        **more,
    )
    return power.connect(config.RedfishPower(redfish=described), "dut", within_s=within_s)


def ipmi(bmc: IpmiBmc, *, within_s: float = 30.0, password: str | None = None) -> power.Power:
    os.environ["IPMI_TEST"] = bmc.password if password is None else password
    described = config.Ipmi(
        hostname="127.0.0.1",
        port=bmc.port,
        user=bmc.user,
        password=config.EnvironmentSecret(env="IPMI_TEST"),
        cipher_suite=bmc.cipher_suite,
    )
    return power.connect(config.IpmiPower(ipmi=described), "dut", within_s=within_s)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDFISH_TEST", "IPMI_TEST"):
        monkeypatch.setenv(name, "")


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Ends in time, and leaves no process behind."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds
    left = [
        process
        for process in psutil.Process().children(recursive=True)
        if process.pid not in before and process.status() != psutil.STATUS_ZOMBIE
    ]
    assert left == []


def refusal(switch: power.Power, method: str = "status") -> InfrastructureError:
    with pytest.raises(InfrastructureError) as caught:
        getattr(switch, method)()
    assert "dut" in caught.value.message
    assert switch.bmc in caught.value.message
    return caught.value


# Redfish


@pytest.mark.parametrize("sessions", [False, True])
def test_redfish_drives_the_machine(machine: Machine, sessions: bool) -> None:
    with RedfishBmc(machine, sessions=sessions) as bmc:
        switch = redfish(bmc)
        assert switch.status() is False
        switch.on()
        assert switch.status() is True
        switch.on()
        switch.cycle()
        switch.off()
        assert switch.status() is False
        switch.cycle()
    assert machine.acts == ["on", "cycle", "off", "on"]
    logins = [asked for asked in bmc.asked if asked.startswith("DELETE")]
    assert bool(logins) is sessions
    assert bmc.tokens == set()


def test_redfish_keeps_the_password_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    machine = Machine(RedfishBmc.password)
    with RedfishBmc(machine, sessions=True) as bmc:
        switch = redfish(bmc)
        del os.environ["REDFISH_TEST"]
        switch.on()
        assert machine.seen == set()
        said = refusal(redfish(bmc, password="open up"))  # noqa: S106
        assert "open up" not in f"{said}{said.__cause__!r}"
    assert bmc.password not in caplog.text


@pytest.mark.parametrize(
    ("allowed", "acts"),
    [
        (["On", "ForceOff", "PowerCycle", "ForceRestart"], "PowerCycle"),
        (["On", "ForceOff", "ForceRestart", "Nmi"], "ForceRestart"),
    ],
)
def test_redfish_resets_as_the_system_allows(
    machine: Machine, allowed: list[str], acts: str
) -> None:
    machine.on = True
    with RedfishBmc(machine) as bmc:
        bmc.allows = allowed
        redfish(bmc).cycle()
        assert machine.acts == ["cycle"]
        assert bmc.resets == [acts]


def test_redfish_says_what_the_system_allows(machine: Machine) -> None:
    machine.on = True
    with RedfishBmc(machine) as bmc:
        bmc.allows = ["On", "GracefulShutdown"]
        assert "allows no off, only GracefulShutdown, On" in refusal(redfish(bmc), "off").message
    assert machine.acts == []


def test_redfish_finds_the_system_by_name(machine: Machine) -> None:
    with RedfishBmc(machine) as bmc:
        assert redfish(bmc, system=bmc.system).status() is False
        with pytest.raises(ConfigurationError) as caught:
            redfish(bmc, system="System.Embedded.1").status()
    said = caught.value
    assert f"no system System.Embedded.1; it has: {bmc.system}" in said.message
    assert said.hint == "set hosts.dut.power.redfish.system in hosts.yaml"


def test_redfish_wrong_password(machine: Machine) -> None:
    with RedfishBmc(machine) as bmc:
        said = refusal(redfish(bmc, password="wrong"), "on")  # noqa: S106
    assert "answered 401" in said.message
    assert "password" in (said.hint or "")
    assert machine.acts == []


@pytest.mark.parametrize("status", [400, 403, 404, 405, 500, 503])
def test_redfish_refused(machine: Machine, status: int) -> None:
    with RedfishBmc(machine) as bmc:
        bmc.refuses = status
        said = refusal(redfish(bmc, within_s=5), "on")
    assert f"answered {status}" in said.message
    assert "\x1b" not in said.message
    assert machine.acts == []


@pytest.mark.parametrize(
    "said",
    [b"", b"[1,2", b"[]", b'"text"', b"\xff\x00\x1b[2J", b'{"Systems": 1}', b"{}",
     b'{"Systems": {"@odata.id": "//[bad"}}', b"[" * 100_000],
)  # fmt: skip
def test_redfish_garbage(machine: Machine, said: bytes) -> None:
    with RedfishBmc(machine) as bmc:
        bmc.says = [said]
        with bounded(8):
            message = refusal(redfish(bmc, within_s=4)).message
    assert "\x1b" not in message
    assert len(message) < 1500


def test_redfish_hangs(machine: Machine) -> None:
    with RedfishBmc(machine) as bmc:
        bmc.hangs = True
        with bounded(6):
            assert "did not answer in 2 s" in refusal(redfish(bmc, within_s=2), "cycle").message


def test_redfish_hangs_in_the_middle(machine: Machine) -> None:
    with RedfishBmc(machine) as bmc:
        bmc.hangs_at = "Systems"
        with bounded(6):
            assert "did not answer in 2 s" in refusal(redfish(bmc, within_s=2), "on").message
    assert machine.acts == []


def test_redfish_without_end(machine: Machine) -> None:
    with RedfishBmc(machine) as bmc:
        bmc.says = itertools.repeat(b"x" * 65536)
        with bounded(12):
            message = refusal(redfish(bmc, within_s=8)).message
        assert "without end" in message or "did not answer" in message
        bmc.says = (time.sleep(0.1) or b"x" for _ in itertools.count())  # type: ignore[func-returns-value]
        with bounded(6):
            assert "did not answer in 2 s" in refusal(redfish(bmc, within_s=2)).message


def test_redfish_does_as_told_but_nothing_happens(machine: Machine) -> None:
    with RedfishBmc(lambda word: machine.acts.append(word) if word != "status" else False) as bmc:
        said = refusal(redfish(bmc, within_s=15), "on")
    assert "accepted “on”, but the host is still off" in said.message
    assert machine.acts == ["on"]


def test_redfish_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        bmc = RedfishBmc(lambda _: None)
        bmc.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        assert "cannot be reached" in refusal(redfish(bmc, within_s=4)).message


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    made, key = directory / f"{name}.pem", directory / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-noenc", "-days", "2", "-subj", "/CN=bmc", "-addext", f"subjectAltName={name}",
         "-keyout", str(key), "-out", str(made)],
        check=True, capture_output=True,
    )  # fmt: skip
    return made, key


@OPENSSL
def test_redfish_verifies_the_certificate(machine: Machine, tmp_path: Path) -> None:
    made, key = certificate(tmp_path, "IP:127.0.0.1")
    with RedfishBmc(machine, certificate=made, key=key) as bmc:
        assert bmc.url.startswith("https://")
        switch = redfish(bmc, ca=made)
        switch.on()
        assert switch.status() is True
        said = refusal(redfish(bmc))
        assert "certificate" in said.message.lower()
        assert "set ca to" in (said.hint or "")
        other, _ = certificate(tmp_path, "DNS:bmc.lab.example")
        refusal(redfish(bmc, ca=other))
    named, key = certificate(tmp_path, "DNS:other.lab.example")
    with RedfishBmc(machine, certificate=named, key=key) as bmc:
        refusal(redfish(bmc, ca=named))
        assert bmc.asked == []


def test_redfish_a_certificate_that_is_not_there(machine: Machine, tmp_path: Path) -> None:
    with RedfishBmc(machine) as bmc:
        with pytest.raises(ConfigurationError, match=r"missing\.pem"):
            redfish(bmc, ca=tmp_path / "missing.pem")


def test_redfish_the_emulator_as_it_is_shipped(tmp_path: Path) -> None:
    # Its fake system takes up to 11 s to change state, like some real ones.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    emulator = subprocess.Popen(
        [Path(sys.executable).parent / "sushy-emulator", "--fake", "-i", "127.0.0.1",
         "-p", str(port)],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until = time.monotonic() + 20
        while socket.socket().connect_ex(("127.0.0.1", port)) != 0:
            assert time.monotonic() < until
            time.sleep(0.1)
        bmc = RedfishBmc(lambda _: None)
        bmc.url = f"http://127.0.0.1:{port}"
        switch = redfish(bmc)
        before = switch.status()
        (switch.off if before else switch.on)()
        assert switch.status() is not before
    finally:
        emulator.kill()
        emulator.wait()


# IPMI


@IPMI
def test_ipmi_drives_the_machine() -> None:
    machine = Machine(IpmiBmc.password)
    with IpmiBmc(machine) as bmc:
        switch = ipmi(bmc)
        assert switch.status() is False
        switch.on()
        assert switch.status() is True
        switch.cycle()
        switch.off()
        assert switch.status() is False
    assert [act for act, _ in itertools.groupby(machine.acts)] == ["on", "off", "on", "off"]
    # The variable of the tests themselves is inherited, too.
    assert machine.seen <= {"IPMI_PASSWORD", "IPMI_TEST"}


@IPMI
def test_ipmi_wrong_password_and_refusal(machine: Machine) -> None:
    with IpmiBmc(machine) as bmc:
        said = refusal(ipmi(bmc, password="wrong-one"), "on")  # noqa: S106
        assert "password" in (said.hint or "")
        assert "wrong-one" not in f"{said}{said.__cause__!r}"
        bmc.refuses = True
        assert "refused" in refusal(ipmi(bmc, within_s=4), "on").message
    assert machine.acts == []


@IPMI
def test_ipmi_hangs(machine: Machine) -> None:
    with IpmiBmc(machine) as bmc:
        bmc.hang()
        with bounded(6):
            assert "did not answer in 2 s" in refusal(ipmi(bmc, within_s=2), "cycle").message
        bmc.heal()
    assert machine.acts == []


def test_ipmi_without_ipmitool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfrastructureError, match="dut: ipmitool is not installed") as caught:
        ipmi(IpmiBmc(lambda _: None), password="x").status()  # noqa: S106
    assert caught.value.hint == "apt-get install ipmitool"


# A command


def command(tmp_path: Path, script: str, *, within_s: float = 10.0) -> power.Power:
    path = tmp_path / "power"
    path.write_text(f"#!/bin/sh\nstate={tmp_path}/state\n{script}\n")
    path.chmod(0o700)
    return power.connect(config.CommandPower(command=(str(path), "a b; $(id)")), "dut",
                         within_s=within_s)  # fmt: skip


def test_command_drives_the_machine(tmp_path: Path) -> None:
    switch = command(
        tmp_path,
        'test "$1" = "a b; $(id)" && exit 9\necho "$2" >> $state.acts\n'
        'case $2 in status) cat $state;; cycle) ;; *) echo "$2" > $state;; esac',
    )
    (tmp_path / "state").write_text("off\n")
    assert switch.status() is False
    switch.on()
    assert switch.status() is True
    switch.cycle()
    switch.off()
    acts = (tmp_path / "state.acts").read_text().split()
    assert [act for act in acts if act != "status"] == ["on", "cycle", "off"]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo maybe", "neither on nor off"),
        ("echo on off", "neither on nor off"),
        ("true", "neither on nor off"),
        ("printf '\\033[2J\\377'", "neither on nor off"),
        ("echo no such outlet >&2; exit 3", "status 3 on “status”: no such outlet"),
    ],
)
def test_command_fails(tmp_path: Path, script: str, expected: str) -> None:
    said = refusal(command(tmp_path, script))
    assert expected in said.message
    assert "\x1b" not in said.message


def test_command_without_end(tmp_path: Path) -> None:
    switch = command(tmp_path, "yes on & setsid sleep 77.7 & yes >&2", within_s=2)
    before = psutil.Process().memory_info().rss
    with bounded(8):
        assert "did not answer in 2 s" in refusal(switch).message
    assert psutil.Process().memory_info().rss - before < 64 << 20
    assert [p for p in psutil.process_iter() if _sleeps(p)] == []


def _sleeps(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "77.7" in process.cmdline()
    return False


def test_command_does_as_told_but_nothing_happens(tmp_path: Path) -> None:
    said = refusal(command(tmp_path, "echo off", within_s=3), "on")
    assert "accepted “on”, but the host is still off after 3 s" in said.message


def test_command_may_leave_the_machine_in_the_background(tmp_path: Path) -> None:
    switch = command(tmp_path, "case $2 in status) test -e $state && echo on || echo off;; "
                     "on) touch $state; sleep 5 & ;; esac")  # fmt: skip
    began = time.monotonic()
    switch.on()
    assert time.monotonic() - began < 4
