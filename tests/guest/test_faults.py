# SPDX-License-Identifier: MIT
"""What goes wrong on a live bed ends as the class it is, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness import images
from harness.base.errors import HostLostError, InfrastructureError, KernelError
from harness.results import samples
from tests.guest.conftest import Beds

pytestmark = pytest.mark.guest

CRASH = "(sleep 1; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &"


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def veths() -> set[str]:
    return {name for name in psutil.net_if_addrs() if name.startswith(("gen", "wire"))}


def runtime_directories() -> set[Path]:
    return set(Path(os.environ.get("TMPDIR", "/tmp")).glob("rb-*"))  # noqa: S108


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = children(), veths(), runtime_directories()
    yield
    time.sleep(0.5)
    assert (children(), veths(), runtime_directories()) == before


def test_a_kernel_that_dies_is_told_from_a_host_that_is_lost(beds: Beds) -> None:
    with pytest.raises(KernelError, match="sysrq triggered crash"), beds.up("0") as bed:
        bed.guest.ssh.run(["sudo", "sh", "-c", CRASH])
        while True:
            bed.dut.counters(interface=bed.dut_interface)
    assert "Kernel panic" in (beds.directory / "console.log").read_text()


def test_an_agent_that_is_killed_is_a_lost_host(beds: Beds) -> None:
    with pytest.raises(HostLostError, match=r"the agent (ended|was gone)"), beds.up() as bed:
        bed.guest.ssh.run(["sudo", "kill", "-9", str(bed.dut.pid)])
        bed.dut.counters(interface=bed.dut_interface)


def test_a_qemu_that_ends_and_a_model_that_ends_are_infrastructure(beds: Beds) -> None:
    with pytest.raises(InfrastructureError, match="qemu-system"), beds.up() as bed:
        bed.nic.check()
        os.killpg(bed.guest.process.pid, signal.SIGKILL)
        bed.guest.process.wait()
        bed.dut.counters(interface=bed.dut_interface)


def test_a_missing_netserver_names_the_package(beds: Beds) -> None:
    with beds.up() as bed:
        bed.guest.ssh.run(["sudo", "mv", "/usr/bin/netserver", "/usr/bin/netserver.away"])
        with pytest.raises(InfrastructureError, match="netserver") as caught:
            bed.dut.netserver_start(address="0.0.0.0", port=12865)  # noqa: S104
        assert "install the package netperf" in (caught.value.hint or "")


def test_interrupted_while_images_are_made_nothing_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path))
    with pytest.raises(KeyboardInterrupt), images.made_meanwhile():
        deadline = time.monotonic() + 30
        names: set[str] = set()
        while "mmdebstrap" not in names and time.monotonic() < deadline:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended while it was looked at
                names = {child.name() for child in psutil.Process().children(recursive=True)}
        assert "mmdebstrap" in names
        raise KeyboardInterrupt
    assert [path for path in (tmp_path / "guests").iterdir() if path.suffix != ".lock"] == []


def test_interrupted_in_the_middle_a_campaign_keeps_what_it_has(
    tmp_path: Path, built: object
) -> None:
    directory = tmp_path / "result"
    asked = ["--bed", "virtual", "--steps", "0,8", "--profile", "smoke", "--out", str(directory)]
    command = [sys.executable, "-m", "harness", "run", *asked]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list(directory.glob("boots/*/dut-agent.log")) and time.monotonic() < deadline:
        time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert "interrupted" in said
    assert samples.read_campaign(directory).steps == ["0", "8"]
    assert not list(directory.glob("boots/*/boot.json"))
