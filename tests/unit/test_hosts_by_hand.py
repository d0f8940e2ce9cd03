# SPDX-License-Identifier: MIT
"""``harness hosts power`` and ``console``, as a user runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

HOSTS = """
version: 1
default_bed: lab
beds: {{lab: {{dut: dut, generator: gen}}}}
hosts:
  dut:
    kind: ssh
    hostname: dut.lab.example
    interface: eno1
    address: 198.18.0.2/24
    power: {{command: [{power}]}}
    console: {{command: [sh, -c, "printf '\\\\033[31mhello\\\\033[0m\\\\n'; sleep 60"]}}
  gen:
    kind: ssh
    hostname: gen.lab.example
    interface: eno1
    address: 198.18.0.1/24
"""


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    power = tmp_path / "power"
    power.write_text(
        f"#!/bin/sh\ncase $1 in status) cat {tmp_path}/state;; cycle) echo cycled >> "
        f"{tmp_path}/acts;; *) echo $1 > {tmp_path}/state; echo $1 >> {tmp_path}/acts;; esac\n"
    )
    power.chmod(0o700)
    (tmp_path / "state").write_text("on\n")
    (tmp_path / "acts").touch()
    path = tmp_path / "hosts.yaml"
    path.write_text(HOSTS.format(power=power))
    return path


def harness(*words: str, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness", "hosts", *words],
        input=said, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_power(hosts: Path) -> None:
    done = harness("power", "dut", "status", "--hosts", str(hosts))
    assert (done.returncode, done.stdout) == (0, "on\n")
    done = harness("power", "dut", "off", "--hosts", str(hosts), said="n\n")
    assert done.returncode == 130
    assert (hosts.parent / "acts").read_text() == ""
    assert harness("power", "dut", "cycle", "--hosts", str(hosts), said="y\n").returncode == 0
    done = harness("power", "dut", "off", "--yes", "--hosts", str(hosts))
    assert (done.returncode, done.stdout) == (0, "off\n")
    assert harness("power", "dut", "on", "--hosts", str(hosts)).stdout == "on\n"
    assert (hosts.parent / "acts").read_text() == "cycled\noff\non\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("power", "gen", "status"), "no power control for gen"),
        (("console", "gen"), "no console for gen"),
        (("power", "no\x1b[2J", "status"), "expected dut, gen"),
    ],
)
def test_what_hosts_yaml_does_not_say(hosts: Path, words: tuple[str, ...], expected: str) -> None:
    done = harness(*words, "--hosts", str(hosts))
    assert done.returncode == 2
    assert expected in done.stderr
    assert "\x1b" not in done.stderr


def test_console_until_interrupted(hosts: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with subprocess.Popen(
        [sys.executable, "-m", "harness", "hosts", "console", "dut", "--log", str(log),
         "--hosts", str(hosts)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as shown:  # fmt: skip
        assert shown.stdout is not None
        assert shown.stdout.readline() == "hello\n"
        shown.send_signal(signal.SIGINT)
        assert shown.wait(20) == 130
    assert log.read_bytes() == b"\x1b[31mhello\x1b[0m\n"
