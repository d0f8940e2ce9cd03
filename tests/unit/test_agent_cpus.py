# SPDX-License-Identifier: MIT
"""CPUs are those the kernel lists: with holes, above 64, and only some of them allowed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from harness.agent import counters, cpus, inventory, settings
from harness.agent import load as netperf
from harness.agent.counters import pmu
from harness.agent.doctor.health import governors_at_hand
from harness.agent.faults import AgentError

pytestmark = pytest.mark.unit


class Kernel:
    """CPUs 0, 2, 4, 6 of a machine whose SMT is off; a cpuset may allow fewer."""

    def __init__(self) -> None:
        self.online, self.possible = [0, 2, 4, 6], [*range(8)]
        self.cpuset = {0, 2, 4, 6}
        self.own: dict[int, set[int]] = {0: {0, 2, 4, 6}}

    def place(self, pid: int, wanted: Iterable[int]) -> None:
        there = set(wanted) & set(self.online) & self.cpuset
        if not there:
            raise OSError(errno.EINVAL, "Invalid argument")
        self.own[pid] = there

    def get(self, pid: int) -> set[int]:
        return set(self.own.get(pid, self.cpuset))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    one = Kernel()
    for name in ("online", "possible"):
        (tmp_path / name).write_text(cpus.as_list(getattr(one, name)) + "\n")
    monkeypatch.setattr(cpus, "_CPU", tmp_path)
    monkeypatch.setattr(os, "sched_setaffinity", one.place)
    monkeypatch.setattr(os, "sched_getaffinity", one.get)
    monkeypatch.setattr(os, "cpu_count", lambda: len(one.online))
    return one


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0-3,8,10-11\n", [0, 1, 2, 3, 8, 10, 11]),
        ("0,2,4,6", [0, 2, 4, 6]),
        ("0-7:1/2", [0, 2, 4, 6]),
        ("64-66,127", [64, 65, 66, 127]),
        ("", []),
        ("\n", []),
    ],
)
def test_lists(text: str, found: list[int]) -> None:
    assert cpus.parse_list(text) == found
    assert cpus.parse_list(cpus.as_list(found)) == found


@pytest.mark.parametrize("text", ["3-1", "a", "1-", "-1", "0-99999999999", "1 2", "٣", "0-7:0/2"])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(AgentError, match="not a list of CPUs"):
        cpus.parse_list(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("5", [0, 2]),
        ("00000000,00000001", [0]),
        ("1,00000000,80000000", [31, 64]),
        ("1,0", [32]),
        ("0", []),
    ],
)
def test_masks_of_any_width(text: str, found: list[int]) -> None:
    assert cpus.parse_mask(text) == found


@pytest.mark.parametrize("text", ["", "0x5", "1,000000000", ",", "g"])
def test_what_is_no_mask(text: str) -> None:
    with pytest.raises(AgentError, match="not a mask of CPUs"):
        cpus.parse_mask(text)


def test_the_running_kernel() -> None:
    assert set(cpus.allowed()) <= set(cpus.online()) <= set(cpus.possible())
    assert inventory.inventory()["cpus_online"] == cpus.as_list(cpus.online())


def test_the_agent_stays_off_by_number_and_not_by_count(kernel: Kernel) -> None:
    agent = settings.Settings()
    agent._stay_off(0)
    assert kernel.own[0] == {6}, "of four CPUs the last is 6, not 3"
    agent.restore()
    assert kernel.own[0] == {0, 2, 4, 6}
    kernel.cpuset = {0, 2}
    agent._stay_off(0)
    assert kernel.own[0] == {2}
    kernel.online, kernel.cpuset = [0], {0}
    agent._stay_off(0)
    assert kernel.own[0] == {0}, "there is no other, and that is no failure"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"irq_cpu": 3}, "CPU 3 is offline"),
        ({"irq_cpu": 99}, "CPU 99 does not exist on this host"),
        ({"irq_cpu": 0, "process_cpus": [1]}, "CPU 1 is offline"),
        ({"process_cpus": [4]}, "CPU 4 is not allowed"),
    ],
)
def test_a_cpu_that_is_not_to_be_had_is_told_before_anything_is_set(
    kernel: Kernel, asked: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.cpuset = {0, 2}

    def touched(_: str) -> Any:
        raise AssertionError("a setting was looked at")

    monkeypatch.setattr(settings, "_known", touched)
    with pytest.raises(AgentError, match=told) as caught:
        settings.Settings().apply(interface="lo", **asked)
    assert caught.value.kind == "configuration"
    assert "0,2" in (caught.value.hint or "")


def test_processes_start_on_cpus_that_are_there(kernel: Kernel) -> None:
    kernel.own[0] = {6}
    process = netperf._started(["true"], cpus=None)
    process.wait()
    assert kernel.own[0] == {6}, "the agent's own place is as before"
    with pytest.raises(AgentError, match=r"cannot start true on CPU \[3\]") as caught:
        netperf._started(["true"], cpus=[3])
    assert "0,2,4,6" in (caught.value.hint or "")


def test_perf_is_kept_on_cpus_that_are_there(kernel: Kernel) -> None:
    kernel.own[0] = {6}
    pmu._kept_apart(os.getpid(), 0)
    assert kernel.own[os.getpid()] == {2, 4}


def test_counters_of_an_old_kernel_belong_to_the_cpus_online() -> None:
    rows = "00000001 00000000 00000000\n00000002 00000000 00000000\n"
    assert [row["cpu"] for row in counters.parse_softnet(rows, [0, 4])] == [0, 4]
    with pytest.raises(AgentError, match="softnet_stat"):
        counters.parse_softnet(rows, [0])


@pytest.fixture
def frequencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(inventory, "_CPUFREQ", str(tmp_path))
    for cpu in (0, 2):
        at = tmp_path / f"cpu{cpu}/cpufreq"
        at.mkdir(parents=True)
        (at / "scaling_governor").write_text("powersave\n")
        (at / "scaling_available_governors").write_text("performance powersave\n")
    return tmp_path


def test_a_cpu_offline_has_no_governor(
    frequencies: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It refuses to be read; a directory does, too.
    (frequencies / "cpu1/cpufreq/scaling_governor").mkdir(parents=True)
    assert inventory.governors() == {"0": "powersave", "2": "powersave"}
    monkeypatch.setattr("harness.agent.doctor.health._CPU", frequencies)
    assert governors_at_hand()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../lo", "a b", "\0", "x" * 16, "\udce9"])
def test_names_that_no_interface_has(name: str) -> None:
    with pytest.raises(AgentError, match="no interface") as caught:
        inventory.existing(name)
    str(caught.value).encode()
