# SPDX-License-Identifier: MIT
"""What whole campaigns ask of their hosts, call by call, on beds that are simulated.

The transcripts in ``fixtures/calls-*.txt`` are what was asked, in order: who was asked, the
call, and the arguments that are not the protocol's defaults; lines of the journal and boot.json
stand where they came to disk. A change of what is asked shows as a diff of these files.
``WRITE_CALLS=1 pytest tests/unit/test_campaign_calls.py`` writes them again.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest
from click.testing import Result

from harness.base.errors import HostLostError, KernelError
from harness.trials.ndr import LOSSES
from tests.unit import simulated_lab
from tests.unit.simulated_hosts import CYCLES_PER_S, INSTRUCTIONS, READ_SHARE, round_trip_us
from tests.unit.simulated_lab import STACK_PPS, Lab, fails_once

pytestmark = pytest.mark.unit

FIXTURES = Path(__file__).parent / "fixtures"
lab = simulated_lab.lab


def require_as_written(name: str, lines: list[str]) -> None:
    """The transcript is the one that is kept under ``name``."""
    path = FIXTURES / f"calls-{name}.txt"
    if os.environ.get("WRITE_CALLS"):
        path.write_text("".join(f"{line}\n" for line in lines))
    kept = path.read_text().splitlines()
    changed = list(difflib.unified_diff(kept, lines, path.name, "this run", lineterm="", n=2))
    assert not changed, "\n".join([*changed[:60], "WRITE_CALLS=1 writes it again"])


def _all(lab: Lab) -> Result:
    return lab.run("--also", "cpu", "--also", "latency", "--also", "ndr")


def test_machines_are_asked_this(lab: Lab) -> None:
    done = _all(lab)
    assert done.exit_code == 0, done.output
    require_as_written("machines", lab.transcript.lines)


def test_a_virtual_bed_is_asked_this(lab: Lab) -> None:
    extras = [word for extra in ("cpu", "icache", "latency", "ndr") for word in ("--also", extra)]
    done = lab.run("--bed", "virtual", "--profile", "smoke", *extras)
    assert done.exit_code == 0, done.output
    require_as_written("virtual", lab.transcript.lines)


def test_a_host_that_is_lost_and_a_kernel_that_dies_are_asked_this(lab: Lab) -> None:
    lab.kernels["r0"].answers = fails_once(HostLostError("rx: no answer"), "dut", "window")
    lab.kernels["r8"].answers = fails_once(KernelError("rx: the kernel died"), "dut", "trace")
    done = lab.run("--profile", "smoke")
    assert isinstance(done.exception, KernelError)
    for words in (["--resume"], ["--resume", "--retry-failed"]):
        done = lab.run(*words)
    assert done.exit_code == 0, done.output
    require_as_written("faults", lab.transcript.lines)


def test_the_figures_are_those_of_the_simulated_kernels(lab: Lab) -> None:
    assert _all(lab).exit_code == 0
    report = lab.report()
    assert report["void"] == []
    assert report["settings_varied"] == []
    assert report["problems"] == []
    for step, pps in STACK_PPS.items():
        row = lab.row(step)
        assert row["timed_trials"] == 3
        assert row["stack_rx_pps"] == pytest.approx(pps, rel=1e-3)
        assert row["delivered_pps"] == pytest.approx(READ_SHARE * pps, rel=1e-3)
        assert row["cpu_ns_per_packet"] == pytest.approx(1e9 / pps, rel=1e-3)
        assert row["traced_stack_rx_pps"] < 0.8 * pps
        found = {name: one["median"] for name, one in row["measures"].items()}
        assert found.pop("delivered_pps") == row["delivered_pps"]
        for share in (10, 50, 90):
            cost_ns = found.pop(f"paced{share}_cpu_ns_per_packet")
            assert cost_ns == pytest.approx(1e9 / pps, rel=1e-3)
        for name in LOSSES:
            assert found.pop(name) == pytest.approx(READ_SHARE * pps, rel=0.03)
        assert found.pop("cycles_per_packet") == pytest.approx(CYCLES_PER_S / pps, rel=1e-3)
        assert found.pop("instructions_per_packet") == pytest.approx(2 * INSTRUCTIONS, rel=1e-3)
        assert found.pop("l1i_misses_per_packet") == pytest.approx(8, rel=1e-3)
        for usecs, moderation in ((60, ""), (0, "no_")):
            for busy_us, polling in ((50, ""), (0, "no_")):
                cell = f"{moderation}moderation_{polling}busy_poll"
                for which in ("mean", "p50", "p90", "p99"):
                    round_us = found.pop(f"rr_{which}_us_{cell}")
                    assert round_us == pytest.approx(round_trip_us(usecs, busy_us))
        assert found == {}


def test_what_the_emulator_counted_is_per_packet_and_by_function(lab: Lab) -> None:
    assert lab.run("--bed", "virtual", "--profile", "smoke", "--also", "icache").exit_code == 0
    row = lab.row("8")
    counted = row["measures"]["emulated_instructions_per_packet"]["median"]
    assert counted == pytest.approx(INSTRUCTIONS, rel=1e-3)
    share = {name: one["instructions"] / counted for name, one in row["functions"].items()}
    assert share == {"function_1": pytest.approx(1 / 3), "function_2": pytest.approx(2 / 3)}
