# SPDX-License-Identifier: MIT
"""A CPU's own counters over a window: what perf prints, and perf that does not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.agent import programs
from harness.agent.counters import pmu

pytestmark = pytest.mark.unit

# perf 6.1, `perf stat -x, -C 0 -D -1 --control …` over a second.
COUNTED = """\
2841077784,,cycles,1041706682,100.00,,
3477111112,,instructions,1000554945,100.00,1.22,insn per cycle
4657068,,L1-icache-load-misses,1000515564,100.00,,
"""
MULTIPLEXED = """\
306749493,,cycles,500000000,50.00,,
278965702,,instructions,1000000000,100.00,0.91,insn per cycle
513425,,L1-icache-load-misses,250000000,25.00,,
"""
NOT_SUPPORTED = """\
<not supported>,,cycles,0,100.00,,
<not supported>,,instructions,0,100.00,,
513425,,L1-icache-load-misses,1000000000,100.00,,
"""
NOT_COUNTED = """\
<not counted>,,cycles,0,0.00,,
278965702,,instructions,1000000000,100.00,0.91,insn per cycle
<not counted>,,L1-icache-load-misses,0,0.00,,
"""
# Unlike cores have a PMU each; the CPU is of one of them.
HYBRID = """\
2841077784,,cpu_core/cycles/,1000000000,100.00,,
<not counted>,,cpu_atom/cycles/,0,0.00,,
<not counted>,,cpu_core/instructions/,0,0.00,,
<not counted>,,cpu_atom/instructions/,0,0.00,,
<not supported>,,cpu_atom/L1-icache-load-misses/,0,100.00,,
4657068,,cpu_core/L1-icache-load-misses/,1000000000,100.00,,
"""


def test_what_was_counted() -> None:
    counts, absent = pmu.parse(COUNTED, window_s=1.0)
    assert absent == {}
    assert counts["cycles"]["count"] == 2841077784
    assert counts["cycles"]["on_s"] == pytest.approx(1.0417, rel=1e-3)
    assert {one["running"] for one in counts.values()} == {1.0}


def test_events_that_shared_a_counter_were_on_all_the_time() -> None:
    counts, absent = pmu.parse(MULTIPLEXED, window_s=1.0)
    assert absent == {}
    assert [one["on_s"] for one in counts.values()] == [1.0, 1.0, 1.0]
    assert [one["running"] for one in counts.values()] == [0.5, 1.0, 0.25]


def test_what_was_not_counted_is_absent_and_not_0() -> None:
    counts, absent = pmu.parse(NOT_SUPPORTED)
    assert set(counts) == {"L1-icache-load-misses"}
    assert absent["cycles"] == "not supported by the CPU's PMU"
    counts, absent = pmu.parse(NOT_COUNTED)
    assert set(counts) == {"instructions"}
    assert absent["cycles"] == "not counted by the CPU's PMU"


def test_unlike_cores() -> None:
    counts, absent = pmu.parse(HYBRID, window_s=1.0)
    assert counts["cycles"]["count"] == 2841077784
    assert counts["L1-icache-load-misses"]["count"] == 4657068
    assert absent == {"instructions": "not counted by the CPU's PMU"}


def test_other_than_the_window_is_absent() -> None:
    counts, absent = pmu.parse(COUNTED, window_s=3.0)
    assert counts == {}
    assert absent["instructions"] == "counted over 1.00 s of 3.00 s"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "# started on Sun Nov 22\n\n",
        "nonsense,,cycles,x,y\n",
        "1,,cycles\n",
        "1,,cycles:u,1000000000,100.00,,\n",
        "\x1b[2J,,cycles,1,1,,\n",
    ],
)
def test_what_is_no_count_is_none(text: str) -> None:
    assert pmu.parse(text)[0] == {}


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program under perf's name, and no other perf."""
    program = tmp_path / "perf"
    monkeypatch.setattr(programs, "found", lambda *_: str(program))
    monkeypatch.setattr(pmu, "_KEPT", ())
    (tmp_path / "devices/cpu_core").mkdir(parents=True)
    monkeypatch.setattr(pmu, "_PMUS", tmp_path / "devices")
    monkeypatch.setattr(pmu, "_START_S", 2.0)
    return program


def _written(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n[ $1 = version ] && exit 0\n{script}\n")
    program.chmod(0o755)


def _absent(counters: pmu.Pmu) -> str:
    with counters.over(0) as watch:
        watch.open()
        watch.close()
        found = watch.read()
    assert found["counts"] == {}
    assert set(found["absent"]) == set(pmu.EVENTS)
    [why] = set(found["absent"].values())
    return str(why)


def test_no_perf(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "found", lambda *_: None)
    assert not stand_in.exists()
    assert "perf is not on the dut" in _absent(pmu.Pmu())


def test_no_counters(stand_in: Path, tmp_path: Path) -> None:
    _written(stand_in, "exit 1")
    (tmp_path / "devices/cpu_core").rename(tmp_path / "devices/breakpoint")
    assert _absent(pmu.Pmu()) == "the dut's CPU has no counters (no PMU)"


def test_a_wrapper_without_a_perf_for_this_kernel(stand_in: Path) -> None:
    stand_in.write_text("#!/bin/sh\necho 'WARNING: perf not found for kernel 6.12.0'; exit 2\n")
    stand_in.chmod(0o755)
    assert "perf is not on the dut" in _absent(pmu.Pmu())


def test_a_perf_that_may_not(stand_in: Path) -> None:
    told = "Access to performance monitoring and observability operations is limited."
    _written(stand_in, f"printf 'Error:\\n{told}\\nConsider adjusting\\n' >&2; exit 255")
    counters = pmu.Pmu()
    assert _absent(counters) == f"perf stat: {told}"
    stand_in.unlink()
    assert _absent(counters) == f"perf stat: {told}", "it is asked once"


def test_a_perf_that_hangs_is_ended(stand_in: Path, tmp_path: Path) -> None:
    _written(stand_in, f"echo $$ > {tmp_path}/pid; exec sleep 600")
    began_s = time.monotonic()
    assert _absent(pmu.Pmu()) == "perf stat does not answer"
    assert time.monotonic() - began_s < 10
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_a_window_that_is_left_leaves_no_perf_behind(stand_in: Path, tmp_path: Path) -> None:
    _written(stand_in, f"echo $$ > {tmp_path}/pid; exec sleep 600")
    files = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(KeyboardInterrupt), pmu.Pmu().over(0):
        raise KeyboardInterrupt
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()
    assert len([*Path("/proc/self/fd").iterdir()]) == files


@pytest.mark.skipif(
    shutil.which("perf") is None or os.geteuid() != 0, reason="needs perf, and root to watch a CPU"
)
def test_a_real_perf() -> None:
    with pmu.Pmu().over(0) as watch:
        watch.open()
        time.sleep(1.0)
        watch.close()
        found = watch.read()
    assert set(found["counts"]) | set(found["absent"]) == set(pmu.EVENTS)
    for one in found["counts"].values():
        assert one["count"] > 0
        assert 0.5 < one["on_s"] < 2.0  # other processes may hold it up


@pytest.mark.skipif(shutil.which("perf") is None, reason="needs perf")
def test_a_real_perf_on_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pmu, "EVENTS", ("task-clock",))  # which no PMU is needed for
    (tmp_path / "cpu").mkdir()
    monkeypatch.setattr(pmu, "_PMUS", tmp_path)
    forks = "import os; os.fork() or exec('while True: pass'); import time; time.sleep(99)"
    busy = "import time; end = time.monotonic() + 99\nwhile time.monotonic() < end: pass"
    for program, least_s, most_s in ((busy, 0.2, 2.0), (forks, 0.0, 0.1)):
        with subprocess.Popen([sys.executable, "-c", program], process_group=0) as process:
            try:
                time.sleep(0.3)
                with pmu.Pmu().over(0, process.pid) as watch:
                    watch.open()
                    time.sleep(1.0)
                    watch.close()
                    found = watch.read()
            finally:
                os.killpg(process.pid, signal.SIGKILL)
        on_s = found["counts"]["task-clock"]["on_s"] if found["counts"] else 0.0
        assert least_s <= on_s <= most_s, found
