# SPDX-License-Identifier: MIT
from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest

from harness import profiling
from harness.beds.bed import RunningBed
from harness.beds.native import sampling
from harness.beds.native.elf import Elf
from harness.beds.native.uml import UserModeKernel, _stands_still

pytestmark = pytest.mark.unit

PROGRAM = """
static volatile unsigned long n;
__attribute__((noinline)) void longer(void) { for (int i = 0; i < 3000; i++) n++; }
__attribute__((noinline)) void shorter(void) { for (int i = 0; i < 1000; i++) n++; }
int main(void)
{
	for (;;) { longer(); shorter(); }
}
"""


class Program:
    """A process in place of a user-mode kernel."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen([path])
        self.pid_here = self._process.pid

    def freeze(self) -> None:
        os.kill(self.pid_here, signal.SIGSTOP)
        while not _stands_still(self.pid_here):
            pass

    def thaw(self) -> None:
        os.kill(self.pid_here, signal.SIGCONT)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    home = tmp_path_factory.mktemp("program")
    (home / "program.c").write_text(PROGRAM)
    made = home / "program"
    subprocess.run(["gcc", "-O1", "-no-pie", "-o", made, f"{made}.c"], check=True)
    return made


def test_a_process_is_found_where_it_is(path: Path) -> None:
    program = Program(path)
    try:
        kernel = cast("UserModeKernel", program)
        found = sampling.sampled(kernel, Elf(path), 1.5)
    finally:
        program.end()
    assert found.total() > 30
    assert found["longer"] + found["shorter"] > 0.9 * found.total()
    assert 0.6 < found["longer"] / found.total() < 0.9


class Bed:
    """A bed whose kernel is in known functions."""

    def __init__(self, name: str, ns: dict[str, float], said: list[str]) -> None:
        self._name, self._ns, self._said = name, ns, said
        self.dut_interface = "eth0"
        self.dut = self
        self._packets = self._clock_ns = 0

    def freeze(self) -> None:
        self._said.append(f"{self._name} frozen")

    def thaw(self) -> None:
        self._said.append(f"{self._name} thawed")

    def counters(self, *, interface: str) -> dict[str, Any]:
        return {"snmp": {"Ip": {"InReceives": self._packets}}, "kernel_cpu_ns": self._clock_ns}

    def sampled(self, duration_s: float, cpu: int) -> Counter[str]:
        assert cpu == 0
        self._said.append(f"{self._name} sampled")
        self._clock_ns += round(duration_s * 1e9)
        self._packets += round(duration_s * 1e9 / sum(self._ns.values()))
        return Counter({name: round(10 * ns) for name, ns in self._ns.items()})


def test_kernels_take_turns_and_are_compared() -> None:
    said: list[str] = []
    beds = {
        "0": Bed("0", {"ip_rcv": 100, "skb_alloc": 100}, said),
        "8": Bed("8", {"ip_list_rcv": 50, "skb_alloc": 110}, said),
    }
    passed: list[None] = []
    found = profiling.measure(
        cast("dict[str, RunningBed]", beds), 2 * profiling.TURN_S, 0, lambda: passed.append(None)
    )
    assert len(passed) == 2
    once = ["8 frozen", "0 thawed", "0 sampled", "0 frozen", "8 thawed", "8 sampled"]
    assert said == [*once, *once]
    assert found["0"].ns_per_packet == pytest.approx(200, rel=1e-3)
    rows = {row["function"]: row for row in profiling.rows(found)}
    assert next(iter(rows)) == "skb_alloc"
    assert rows["ip_list_rcv"]["ns"] == {"0": 0.0, "8": pytest.approx(50, rel=1e-3)}
    assert rows["skb_alloc"]["more"] == pytest.approx(10, rel=1e-2)
    share = 100 / 200
    samples = 2 * (1000 + 1000)
    one = 200 * (share * (1 - share) / samples) ** 0.5
    assert rows["skb_alloc"]["error"] > one


def test_one_kernel_is_compared_with_none() -> None:
    bed = Bed("8", {"ip_rcv": 40.0}, [])
    found = profiling.measure(cast("dict[str, RunningBed]", {"8": bed}), 0.5, 0, lambda: None)
    assert profiling.rows(found) == [{"function": "ip_rcv", "ns": {"8": pytest.approx(40)}}]
