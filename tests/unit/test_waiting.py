# SPDX-License-Identifier: MIT
"""``--wait``: a busy machine is waited for, with the name of who has it, and can be given up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from harness.agent.lease import Lease
from harness.base.errors import BusyError, InfrastructureError
from harness.base.progress import Progress
from harness.beds import registry, waiting
from harness.beds.local.boots import measuring
from harness.beds.machine.lease import Leases, State
from harness.beds.waiting import Waiting
from tests.unit.test_bisect import Booting
from tests.unit.test_variants import commanded

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(waiting, "_ASK_EVERY_S", 0.01)
    monkeypatch.setattr(waiting, "_SAY_EVERY_S", 0.05)


def busy(times: int) -> Callable[[], str]:
    left = [times]

    def act() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise BusyError(f"held by alice, {left[0]} more", hint="ask alice")
        return "done"

    return act


def test_what_is_busy_is_asked_until_it_is_free(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(bars=False) as progress:
        assert Waiting(progress, 60).until_free(busy(20)) == "done"
    told = capsys.readouterr().err
    assert "waiting: held by alice, 19 more …" in told
    assert "still waiting: held by alice, " in told


def test_it_is_not_waited_for_longer_than_asked() -> None:
    with Progress(bars=False) as progress:
        for wait_s in (None, 0.0):
            with pytest.raises(BusyError, match="held by alice"):
                Waiting(progress, wait_s).until_free(busy(1))
        with pytest.raises(BusyError, match=r"alice, .* more; waited 0 s") as caught:
            Waiting(progress, 0.2).until_free(busy(10**6))
    assert (caught.value.hint, caught.value.exit_code) == ("ask alice", 3)


def test_other_errors_are_not_waited_for() -> None:
    def broken() -> None:
        raise InfrastructureError("no answer")

    with Progress(bars=False) as progress, pytest.raises(InfrastructureError, match="no answer"):
        Waiting(progress, 60).until_free(broken)


def test_who_measures_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with Progress(bars=False) as progress:
        with measuring(progress):
            with pytest.raises(BusyError) as caught, measuring(progress, alone=True):
                pass
            found = re.fullmatch(
                r"another harness measures on this machine: process (\d+), since "
                r"\d\d:\d\d:\d\d: harness .*",
                caught.value.message,
            )
            assert found
            assert int(found[1]) == os.getpid()
            assert "--wait" in str(caught.value.hint)
            with measuring(progress):  # who does not ask to be alone shares the machine
                assert f"--wait waits for it (process {os.getpid()}, " in capsys.readouterr().err
        with measuring(progress, alone=True):
            pass
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["measuring.lock"]


def test_it_is_free_when_the_last_has_ended(tmp_path: Path) -> None:
    """Of two that share the machine, the first may end first."""
    script = (
        "from harness.base.progress import Progress\n"
        "from harness.beds.local.boots import measuring\n"
        "with Progress(bars=False) as progress, measuring(progress):\n"
        "    print('up', flush=True)\n"
        "    input()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with Progress(bars=False) as progress:
        with measuring(progress):
            second = subprocess.Popen([sys.executable, "-c", script], **pipes)  # type: ignore[call-overload]
            assert second.stdout.readline() == "up\n"
        told = f"measures on this machine: process {second.pid}, since"
        with pytest.raises(BusyError, match=told), measuring(progress, alone=True):
            pass
        second.kill()
        second.wait(10)
        with measuring(progress, alone=True):
            pass
    second.stdin.close()
    second.stdout.close()
    # What the killed one has left names nobody.
    with Progress(bars=False) as progress, Other(), pytest.raises(BusyError) as caught:
        with measuring(progress, alone=True):
            pass
    assert str(second.pid) not in caught.value.message


class Other:
    """Another harness that measures on this machine."""

    def __enter__(self) -> Self:
        self._end = threading.Event()
        began = threading.Event()

        def measure() -> None:
            with Progress(bars=False) as progress, measuring(progress):
                began.set()
                self._end.wait(30)

        self._thread = threading.Thread(target=measure)
        self._thread.start()
        assert began.wait(10)
        return self

    def end(self) -> None:
        self._end.set()
        self._thread.join()

    def __exit__(self, *_: object) -> None:
        self.end()


def test_a_run_waits_before_it_builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    booting = Booting(monkeypatch, {"0": 1.0, "8": 1.2})
    asked = ["run", "--bed", "virtual", "--steps", "0,8", "--blocks", "1"]
    with Other() as other:
        status, said = commanded(*asked, "--wait=0.1", "--out", str(tmp_path / "no"))
        assert (status, "another harness measures" in said) == (3, True), said
        assert not booting.booted
        assert not (tmp_path / "no").exists()
        timer = threading.Timer(0.3, other.end)
        timer.start()
        status, said = commanded(*asked, "--wait", "--out", str(tmp_path / "out"))
        timer.join()
    assert status == 0, said
    assert len(booting.booted) == 2


def test_ctrl_c_ends_the_waiting(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "harness", "run", "--bed", "native", "--wait"]
    with Other():
        started = subprocess.Popen(
            [*command, "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, text=True
        )
        assert started.stderr
        line = started.stderr.readline()
        time.sleep(0.2)
        started.send_signal(signal.SIGINT)
        rest = started.stderr.read()
        assert started.wait(30) == 130, line + rest
    assert f"waiting: another harness measures on this machine: process {os.getpid()}" in line
    assert "interrupted" in rest
    assert not (tmp_path / "out").exists()


def test_a_leased_machine_is_busy(tmp_path: Path) -> None:
    lease = Lease(tmp_path / "lease.json")

    class Agent:
        def lease_take(self, **about: object) -> object:
            from harness.agent.faults import AgentError
            from harness.beds.access.channel import outcome

            try:
                return lease.take(**about)  # type: ignore[arg-type]
            except AgentError as error:
                return outcome("r1", {"error": vars(error) | {"message": str(error)}})

        def lease_free(self, **about: object) -> object:
            return lease.free(**about)  # type: ignore[arg-type]

    lease.take(owner="alice@lab", holder="x", ttl_s=60, campaign="c1")
    agents = {"r1": Agent()}
    with pytest.raises(
        BusyError, match=r"r1: held by alice@lab \(campaign c1\) for .* since 20\d\d-"
    ):
        Leases(agents, campaign="mine").__enter__()  # type: ignore[arg-type]
    state = State.of("r1", lease.state())
    with pytest.raises(BusyError, match=r"alice@lab \(campaign c1\), for 60 s .*, since 20.* UTC"):
        state.require_not_anothers()
    since = state.since_s
    lease.take(owner="alice@lab", holder="x", ttl_s=60, campaign="c1")
    assert State.of("r1", lease.state()).since_s == since
    threading.Timer(0.2, lease.free, kwargs={"holder": "x"}).start()

    with Progress(bars=False) as progress:
        held = Waiting(progress, 30).until_free(
            lambda: Leases(agents, campaign="mine").__enter__()  # type: ignore[arg-type]
        )
    held.__exit__()
    assert lease.state()["owner"] is None


def test_machines_are_free_for_a_bed_that_is_not_here() -> None:
    assert registry.KINDS["hardware"].require_free(None) is None  # type: ignore[arg-type,func-returns-value]
