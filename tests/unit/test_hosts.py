# SPDX-License-Identifier: MIT
"""Hosts of a bed without a guest: the agent's connection, consoles, CPUs of this machine."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from harness import config
from harness.base.errors import ConfigurationError, HostLostError, InfrastructureError
from harness.beds import virtual as beds
from harness.beds.access.channel import RemoteAgent, agent_archive, outcome, parsed
from harness.beds.bed import kernel_death

pytestmark = pytest.mark.unit

GREETING = json.dumps({"ready": {"pid": 1, "release": "6.12", "boot_id": "x"}})
READY = f"print({GREETING!r}, flush=True); "


def agent(tmp_path: Path, script: str) -> RemoteAgent:
    command = [sys.executable, "-c", "import sys, time, json; " + script]
    return RemoteAgent(command, host="here", log=tmp_path / "log", start_timeout_s=20)


def test_the_real_agent_runs_from_its_archive(tmp_path: Path) -> None:
    name, content = agent_archive()
    assert agent_archive() == (name, content)
    (tmp_path / name).write_bytes(content)
    members = zipfile.ZipFile(BytesIO(content)).namelist()
    assert {"probes/receive_lists.bpf.c", "probes/kernel_types.h"} <= set(members)
    line = RemoteAgent([sys.executable, str(tmp_path / name)], host="here", log=tmp_path / "log")
    try:
        assert line.inventory(interface="lo")["interface"] == "lo"
        with pytest.raises(ConfigurationError, match="no call 'nonsense'"):
            line.call("nonsense", {}, 30)
        with pytest.raises(ConfigurationError, match="no interface nosuch0"):
            line.inventory(interface="nosuch0")
    finally:
        line.close()


def test_silence_is_a_lost_host(tmp_path: Path) -> None:
    silent = agent(tmp_path, READY + "time.sleep(60)")
    with pytest.raises(HostLostError, match="no answer to counters for 1 s"):
        silent.call("counters", {}, 1)
    silent.kill()


def test_an_end_is_a_lost_host_and_shows_what_was_said(tmp_path: Path) -> None:
    ending = agent(
        tmp_path, READY + "sys.stdin.readline(); print('out of coffee', file=sys.stderr)"
    )
    with pytest.raises(HostLostError, match="out of coffee"):
        ending.counters(interface="lo")


def test_the_answer_to_a_call_that_was_interrupted_is_dropped(tmp_path: Path) -> None:
    answers = "".join(f'print(\'{{"id": {n}, "result": {n}}}\', flush=True); ' for n in (1, 2))
    slow = agent(tmp_path, READY + "sys.stdin.readline(); sys.stdin.readline(); " + answers)
    slow.begin(RemoteAgent.counters, 30, interface="lo")
    answer: object = slow.counters(interface="lo")
    assert answer == 2
    slow.kill()


@pytest.mark.parametrize(
    "line",
    ["garbage", "\\x1b[2J", "[1, 2]x", "[" * 100_000, '{"id": 7, "result": 1}'],
    ids=["words", "escape", "list", "nested", "of another call"],
)
def test_garbage_is_a_lost_host(tmp_path: Path, line: str) -> None:
    babbling = agent(
        tmp_path, READY + f"sys.stdin.readline(); print({line!r}, flush=True); time.sleep(9)"
    )
    with pytest.raises(HostLostError):
        babbling.call("counters", {}, 5)
    babbling.kill()


@pytest.mark.parametrize("line", ["1", '{"id": 0}'])
def test_lines_without_end_are_no_answer(tmp_path: Path, line: str) -> None:
    endless = agent(tmp_path, READY + f"[print({line!r}) for _ in iter(int, 1)]")
    with pytest.raises(HostLostError, match="no answer to counters for 1 s"):
        endless.call("counters", {}, 1)
    endless.kill()


@pytest.mark.parametrize("line", ['{"x": 1}', '{"ready": 1}', '{"ready": {"pid": 1}}'])
def test_who_does_not_greet_is_no_agent(tmp_path: Path, line: str) -> None:
    with pytest.raises(HostLostError, match="not the greeting of an agent"):
        agent(tmp_path, f"print({line!r}, flush=True); time.sleep(9)")


@pytest.mark.parametrize(
    "answer",
    [
        {"result": {"\x1b[2Jname": ["\x1b]0;title\x07release\x9b1m", 7]}},
        {"error": {"kind": "infrastructure", "message": "\x1b[2Jname release", "hint": "\x1b[1m"}},
    ],
)
def test_escape_sequences_stay_on_the_host(answer: dict[str, Any]) -> None:
    try:
        said = str(outcome("dut", parsed(json.dumps(answer))))
    except InfrastructureError as error:
        said = f"{error.message} {error.hint}"
    assert "name" in said
    assert "release" in said
    assert not set(said) & {"\x1b", "\x9b", "\x07"}
    assert "[2J" not in said


@pytest.mark.parametrize(
    ("console", "death"),
    [
        ("Linux version 6.12\n[  1.0] all is well\n", None),
        ("[ 9.1] Kernel panic - not syncing: sysrq\n", "Kernel panic - not syncing: sysrq"),
        ("[ 9.1] BUG: kernel NULL pointer dereference\n", "BUG: kernel NULL pointer dereference"),
        ("[ 9.1] Oops: general protection fault\nKernel panic", "Oops: general protection fault"),
        ("[ 0.0] ..MP-BIOS bug: 8254 timer not connected\n", None),
    ],
)
def test_what_a_console_says_of_a_kernels_death(console: str, death: str | None) -> None:
    assert kernel_death(console) == death


def test_the_receiving_vcpu_has_a_cpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = config.bed(config.load(config.locate(None)), "virtual")
    for cpus in ({0}, {0, 1}, {2, 3, 5}, set(range(8))):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cpus=cpus: cpus)
        placed = beds.machine_cpus(bed)
        used = {*placed.vcpus, placed.model, *placed.netperf}
        assert used <= cpus
        if len(cpus) > 1:
            assert placed.vcpus[0] not in {placed.vcpus[1], placed.model}
            assert placed.netperf.count(placed.vcpus[0]) <= len(placed.netperf) // 10


def test_a_cpu_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = config.bed(config.load(config.locate(None)), "virtual")
    chosen = config.MachineCpus(vcpus=(0, 1), model=1, netperf=(9,))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(ConfigurationError, match=r"\[9\]"):
        beds.machine_cpus(bed.model_copy(update={"cpus": chosen}))
