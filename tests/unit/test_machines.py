# SPDX-License-Identifier: MIT
"""Access to a machine: host keys, sudoers, the doctor, restoring."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness import config
from harness.agent import doctor as on_host_doctor
from harness.agent import settings
from harness.agent.boot import BootControl
from harness.agent.boot.kernels import Kernels
from harness.agent.doctor import Doctor, health
from harness.agent.faults import AgentError
from harness.agent.setting import Setting
from harness.agent.settings import journal
from harness.base.errors import HostLostError, HostRefusedError, InfrastructureError
from harness.beds.access import hostkeys
from harness.beds.access.ssh import SshTarget
from harness.beds.machine import doctor
from harness.beds.machine.machines import host_config
from harness.cli import cli
from harness.kernels import HostConfig

pytestmark = pytest.mark.unit

HOSTS = """
version: 1
default_bed: rack
beds:
  rack: {dut: rx, generator: tx}
hosts:
  rx:
    kind: ssh
    hostname: rx.lab.example
    user: bench
    port: 2222
    interface: eth1
    address: 198.18.1.2/24
  tx: {kind: ssh, hostname: tx.lab.example, interface: eth1, address: 198.18.1.1/24}
"""
# Answers as ssh does for a host whose key is in the file KEY beside it.
SSH = """#!/usr/bin/env python3
import pathlib, sys
here = pathlib.Path(sys.argv[0]).parent
words = sys.argv[1:]
if "-G" in words:
    print("hostname rx.lab.example\\nport 2222")
    sys.exit()
told = here / "says"
if told.exists():
    print(told.read_text(), file=sys.stderr)
    sys.exit(255)
at = next(word for word in words if word.startswith("UserKnownHostsFile=")).partition("=")[2]
key = (here / "KEY").read_text()
pathlib.Path(at).write_text(f"[rx.lab.example]:2222 {key}\\n")
print("bench@rx.lab.example: Permission denied (publickey).", file=sys.stderr)
sys.exit(255)
"""


@pytest.fixture
def rx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.SshHost:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen (openssh-client)")
    at = tmp_path / "bin"
    at.mkdir()
    (at / "ssh").write_text(SSH)
    (at / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(at), prepend=":")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hosts.yaml").write_text(HOSTS)
    _new_key(tmp_path)
    host = config.host(config.load(Path("hosts.yaml")), "rx")
    assert isinstance(host, config.SshHost)
    return host


def _new_key(tmp_path: Path) -> str:
    """Give the host another key; returns its fingerprint."""
    key = tmp_path / "key"
    for path in (key, key.with_suffix(".pub")):
        path.unlink(missing_ok=True)
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(command, check=True)
    words = key.with_suffix(".pub").read_text().split()
    (tmp_path / "bin/KEY").write_text(" ".join(words[:2]))
    said = subprocess.run(["ssh-keygen", "-lf", key], capture_output=True, text=True, check=True)
    return said.stdout.split()[1]


def test_whoever_resumes_does_with_the_configuration_that_was_kept(
    rx: config.SshHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bin/says").write_text("ssh: connect to host rx.lab.example: No route to host")
    with pytest.raises(HostLostError):
        host_config("rx", rx, resumed=True)
    kept = HostConfig("CONFIG_X=y\n", ("ext4",)).settled("rx")
    assert host_config("rx", rx, resumed=True) == kept
    with pytest.raises(HostLostError):
        host_config("rx", rx)


def _run(*words: str, answer: str = "") -> tuple[str, Any]:
    done = CliRunner().invoke(cli, [*words], input=answer)
    return done.output, done.exception


def test_a_key_is_pinned_only_when_somebody_agrees(rx: config.SshHost, tmp_path: Path) -> None:
    assert hostkeys.pinned(rx) is None
    assert not any("UserKnownHostsFile" in word for word in SshTarget.of(rx).argv(["true"]))
    output, _ = _run("hosts", "enroll", "rx", answer="n\n")
    assert "SHA256:" in output
    assert not hostkeys.file_of(rx).exists()
    _, error = _run("hosts", "enroll", "rx", "--fingerprint", "SHA256:another")
    assert isinstance(error, HostRefusedError)
    assert not hostkeys.file_of(rx).exists()
    fingerprint = _new_key(tmp_path)
    output, _ = _run("hosts", "enroll", "rx", "--fingerprint", fingerprint)
    assert f"{fingerprint} (ED25519)" in output
    path = tmp_path / "config/receive-batching/known_hosts/rx.lab.example_2222"
    assert hostkeys.pinned(rx) == path
    words = SshTarget.of(rx).argv(["true"])
    assert f'UserKnownHostsFile="{path}"' in words
    assert "GlobalKnownHostsFile=none" in words
    assert "StrictHostKeyChecking=yes" in words


def test_a_key_that_changed_is_refused_until_it_is_replaced(
    rx: config.SshHost, tmp_path: Path
) -> None:
    path = tmp_path / "known_hosts"
    path.write_text("other.lab.example ssh-ed25519 AAAA")
    with_file = rx.model_copy(update={"known_hosts": path})
    (tmp_path / "hosts.yaml").write_text(
        HOSTS.replace("    user: bench", "    user: bench\n    known_hosts: known_hosts")
    )
    assert _run("hosts", "enroll", "rx", "--yes")[1] is None
    before = path.read_text()
    assert before.startswith("other.lab.example ssh-ed25519 AAAA\n[rx.lab.example]:2222 ssh-")
    assert "already pinned" in _run("hosts", "enroll", "rx")[0]
    _new_key(tmp_path)
    _, error = _run("hosts", "enroll", "rx", "--yes")
    assert isinstance(error, HostRefusedError)
    assert "harness hosts enroll rx --replace" in (error.hint or "")
    assert path.read_text() == before
    assert _run("hosts", "enroll", "rx", "--yes", "--replace")[1] is None
    assert path.read_text().count("\n") == 2
    assert len(hostkeys.known(with_file)) == 1
    assert path.read_text() != before


def test_a_host_that_is_not_there_has_no_key(rx: config.SshHost, tmp_path: Path) -> None:
    (tmp_path / "bin/says").write_text("ssh: connect to host \x1b[2Jrx: No route to host")
    output, error = _run("hosts", "enroll", "rx", "--yes")
    assert isinstance(error, InfrastructureError)
    assert "rx.lab.example sent no host key: ssh: connect to host rx: No route" in str(error)
    assert "\x1b" not in output + str(error)


def test_what_sudo_has_to_allow(rx: config.SshHost, tmp_path: Path) -> None:
    output, error = _run("hosts", "sudoers", "rx")
    assert error is None
    [rule] = [line for line in output.splitlines() if not line.startswith("#")]
    assert rule.startswith("bench ALL=(root) NOPASSWD: /usr/local/lib/receive-batching/")
    assert rule.endswith('.pyz ""')
    if (visudo := shutil.which("visudo", path="/usr/sbin:/usr/bin")) is not None:
        (tmp_path / "sudoers").write_text(output)
        subprocess.run([visudo, "-cf", tmp_path / "sudoers"], check=True, capture_output=True)


def test_the_doctor_tells_what_stops_it(rx: config.SshHost, tmp_path: Path) -> None:
    (tmp_path / "bin/says").write_text("bench@rx: Permission denied (publickey).")
    found = {row.check: row for row in doctor.examine("rx", rx, role="dut")}
    assert found["host key"].remedy == "harness hosts enroll rx"
    assert not found["ssh"].ok
    assert found["ssh"].needed
    assert "agent" not in found
    assert found["power"].remedy == "set hosts.rx.power in hosts.yaml"
    assert not found["power"].needed
    output, error = _run("doctor", "--format", "json")
    assert isinstance(error, InfrastructureError)
    assert str(error).startswith("rx lacks: ssh; tx lacks: ssh")
    assert set(json.loads(output)) == {"rx", "tx"}
    assert "FAIL  ssh" in _run("doctor", "rx")[0]


def test_the_doctor_on_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    examine = Doctor(BootControl(), Kernels()).examine
    rows = examine(interface="lo", role="dut", irq_cpu=0, now_s=time.time())
    found = {row["check"]: row for row in rows}
    assert found["python"]["ok"]
    assert found["time of day"]["ok"]
    assert not found["driver"]["ok"]
    assert not found["NIC"]["ok"]
    for row in rows:
        assert set(row) == {"check", "ok", "detail", "remedy", "needed"}
        assert row["ok"] is (row["remedy"] is None), row
    absent = examine(interface="nosuch0", role="generator")
    assert "nosuch0" in next(row for row in absent if row["check"] == "interface")["detail"]
    assert {"kexec", "bcc", "driver"}.isdisjoint(row["check"] for row in absent)
    with pytest.raises(AgentError, match="no role"):
        examine(interface="lo", role="judge")
    monkeypatch.setattr(health, "rhel", lambda: True)
    assert health.install("x") == "dnf install x"


@pytest.mark.parametrize("kept", [True, False])
def test_the_doctor_reads_the_configuration_that_kernels_are_made_after(
    monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    def kernel_config() -> dict[str, Any]:
        if not kept:
            raise AgentError("it cannot be read", hint="put it at /boot")
        return {"release": "6.12", "config": "", "modules": ["sfc", "xfs"]}

    monkeypatch.setattr(on_host_doctor, "kernel_config", kernel_config)
    rows = Doctor(BootControl(), Kernels()).examine(interface="lo", role="dut")
    [row] = [row for row in rows if row["check"] == "kernel config"]
    told = (
        ("readable; 2 modules are loaded", None)
        if kept
        else ("it cannot be read", "put it at /boot")
    )
    assert (row["ok"], row["detail"], row["remedy"]) == (kept, *told)


def test_default_routes() -> None:
    text = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n"
        "eth1\t000112C6\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    assert health.default_routes(text) == {"eth0"}


@pytest.fixture
def journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(journal, "_JOURNALS", tmp_path / "run")
    monkeypatch.setattr(journal, "in_first_namespace", lambda: True)
    return tmp_path / "run"


class Value:
    """A setting of an interface that is no more than a number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_now, self.stuck = 7, False
        one = Setting("mtu", lambda: self.is_now, self._write)
        monkeypatch.setattr(settings, "_known", lambda _: {"mtu": one})

    def _write(self, value: int) -> None:
        self.is_now = self.is_now if self.stuck else value


def _left_changed() -> None:
    left = journal.Journal("lo")
    left.start()
    left.add("mtu", 3)
    left.close(keep=True)


def test_settings_come_back_without_any_being_applied(
    journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = Value(monkeypatch)
    _left_changed()
    (journals / "settings-gone0.jsonl").write_text('{"index": 9, "mac": "x"}\n["up", true]\n')
    value.stuck = True
    done = settings.Settings().recover()
    assert {row["setting"] for row in done["failed"]} == {"lo mtu", "gone0"}
    value.stuck = False
    assert settings.Settings().recover()["restored"] == ["lo mtu"]
    assert value.is_now == 3
    assert not (journals / "settings-lo.jsonl").exists()


def test_an_agent_at_work_is_ended_only_when_asked(
    journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = Value(monkeypatch)
    monkeypatch.setattr(journal, "_END_S", 0.5)
    _left_changed()
    path = journals / "settings-lo.jsonl"
    script = (
        "import fcntl, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"file = open({str(path)!r}); fcntl.flock(file, {fcntl.LOCK_EX}); "
        "print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout
            other.stdout.readline()
            with pytest.raises(AgentError, match="another agent is at work on lo"):
                settings.Settings().recover()
            assert value.is_now == 7
            # It does not answer: killed, and what it left is put back.
            assert settings.Settings().recover(end_others=True)["restored"] == ["lo mtu"]
            assert value.is_now == 3
            assert other.wait(timeout=10) == -9
        finally:
            other.kill()
