# SPDX-License-Identifier: MIT
"""Saturation is judged by what the CPU did, and rates of an unsaturated receiver are void."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.plan import AA_STEPS
from harness.report import FORMATS, document, render
from harness.results.analysis import analyse
from harness.results.expect import ExpectationOpenError, check, no_difference_in_aa, parse, require
from harness.results.rows import Analysis, Row
from harness.results.samples import ResultDirectory
from harness.trials.readings import Snapshot
from harness.trials.saturation import Saturation, judge
from tests.unit.synthetic import Flow, Host, make_campaign
from tests.unit.test_bisect import Bed, bisected, question

pytestmark = pytest.mark.unit

Json = dict[str, Any]
WINDOW_S = 4.0
PPS = 5_000_000


def _window(
    *,
    idle: float = 0.0,
    stolen: float = 0.0,
    interrupts: int = 40,
    ring: float = 0.0,
    squeezed: float = 1.0,
    pps: float = PPS,
    budget: int = 300,
) -> tuple[Json, Json]:
    """Both ends of a window of CPU 0; ``idle`` and ``squeezed`` are shares."""
    host = Host()
    start = host.snapshot()
    flow = Flow(packets=round(pps * WINDOW_S / (1 - ring)), ring=ring)
    host.run(WINDOW_S, flow)
    end = host.snapshot()
    end["cpu"][0]["steal_ns"] += round(stolen * WINDOW_S * 1e9)
    end["cpu"][0]["idle_ns"] += round(idle * (1 - stolen) * WINDOW_S * 1e9)
    end["softnet"][0]["time_squeeze"] += round(squeezed * flow.taken / budget)
    for snapshot, count in ((start, 0), (end, interrupts)):
        snapshot["interrupts"] = {"30": {"name": "eth1-0", "counts": {"0": 900 + count}}}
        snapshot["net_rx_budget"] = budget
    return start, end


def _judge(ends: tuple[Json, Json], **more: Any) -> Saturation:
    before, after = (Snapshot.model_validate(end) for end in ends)
    return judge(before, after, cpus=[0], **more)


@pytest.mark.parametrize(
    ("window", "holdoff_us", "saturated"),
    [
        # What the ring lost, or what softirqs left over, shows that more came than was taken.
        ({"ring": 0.1, "squeezed": 0.0}, 0, True),
        ({"squeezed": 0.94}, 0, True),
        # Moderation of 1000 µs: never more than 1000 interrupts/s, one in 5000 packets.
        ({"idle": 0.4, "interrupts": 4000, "squeezed": 0.94}, 1000, False),
        ({"idle": 0.0, "interrupts": 400, "squeezed": 0.94}, 1000, False),
        ({"idle": 0.0, "interrupts": 40, "squeezed": 0.94}, 1000, True),
        # An interrupt in 1000 packets is little where none is held off for long.
        ({"pps": 120_000, "interrupts": 480}, 60, True),
        ({"idle": 0.051}, 0, False),
        ({"idle": 0.049}, 0, True),
        # A reader on the same CPU takes what the receive path leaves: not idle, nothing over.
        ({"squeezed": 0.0}, 0, False),
        # A third of the time was another guest's: of its own it was idle for a tenth.
        ({"idle": 0.1, "stolen": 0.33}, 0, False),
        ({"idle": 0.0, "stolen": 0.33}, 0, True),
        # Every second packet waits for an interrupt of its own.
        ({"interrupts": 10_000_000}, 0, False),
        # Another budget ends fewer softirqs.
        ({"squeezed": 0.94, "budget": 2400}, 0, True),
    ],
)
def test_what_the_cpu_did_decides(window: Json, holdoff_us: float, saturated: bool) -> None:
    found = _judge(_window(**window), holdoff_us=holdoff_us)
    assert (found.saturated, found.by) == (saturated, "cpu"), found.why


def test_a_port_that_pauses_its_sender_has_more_than_it_takes() -> None:
    start, end = _window(squeezed=0.0)
    assert _judge((start, end)).saturated is False
    start["nic"]["port_tx_pause"], end["nic"]["port_tx_pause"] = 5, 500
    found = _judge((start, end))
    assert (found.saturated, found.pauses_sent) == (True, 495)


def test_a_backlog_that_overflows_is_work_left_over() -> None:
    """Of a driver without NAPI, such as veth's, it is what a ring is of others."""
    start, end = _window(squeezed=0.0)
    end["softnet"][0]["dropped"] = 10**6
    assert _judge((start, end)).saturated is True


def test_without_a_plan_the_cpu_that_took_the_packets_is_judged() -> None:
    ends = _window()
    for end in ends:
        end["cpu"].append(dict(end["cpu"][0], cpu=1))
        end["softnet"].append({"cpu": 1, "processed": 7, "dropped": 0, "time_squeeze": 0})
    ends[1]["cpu"][1]["idle_ns"] += 4 * 10**9
    found = judge(*(Snapshot.model_validate(end) for end in ends))
    assert (found.saturated, found.cpu) == (True, 0)


@pytest.mark.parametrize(("interrupts", "saturated"), [(9_000, True), (11_000, False)])
def test_readings_without_cpu_times_are_judged_by_interrupts(
    interrupts: int, saturated: bool
) -> None:
    ends = _window(interrupts=interrupts, idle=0.9)
    for end in ends:
        del end["cpu"]
    found = _judge(ends)
    assert (found.saturated, found.by) == (saturated, "interrupts")
    assert "CPU times were not read" in found.why
    for end in ends:
        del end["interrupts"]
    assert _judge(ends).saturated is None


@given(
    idle=st.floats(0, 1),
    stolen=st.floats(0, 0.9),
    interrupts=st.integers(0, 10**7),
    ring=st.floats(0, 0.9),
    squeezed=st.floats(0, 1),
    pps=st.floats(1000, 10**7),
    holdoff_us=st.floats(0, 1000),
)
def test_a_cpu_that_was_idle_was_never_saturated(holdoff_us: float, **window: Any) -> None:
    found = _judge(_window(**window), holdoff_us=holdoff_us)
    assert found.idle_share == pytest.approx(window["idle"], abs=1e-6)
    if found.saturated:
        assert window["idle"] <= 0.0501
    for share in (found.waiting_share, found.squeezed_share, found.drop_share):
        assert share is not None
        assert share >= 0


def test_a_guest_that_was_stopped_has_no_idle_time_of_it() -> None:
    """Turns of 0.3 s: its clock stands still with it, and so do its times."""
    host = Host()
    start = host.snapshot()
    for _ in range(10):  # one of two boots: as long again it was stopped
        host.run(0.3, Flow(packets=40_000))
    found = _judge((start, host.snapshot()))
    assert found.idle_share == 0.0
    assert found.saturated is True


def _idle(share: Callable[[int, str], float]) -> Callable[..., Json]:
    """The CPU of each timed trial was idle for ``share(block, step)``."""

    def edit(boot: Json, block: int, _position: int, step: str) -> Json:
        for found in boot["trials"]:
            if found["kind"] == "timed":
                found["window"]["end"] = copy.deepcopy(found["window"]["end"])
                found["window"]["end"]["cpu"][0]["idle_ns"] = round(share(block, step) * 4e9)
        return boot

    return edit


def _analysis(root: Path, share: Callable[[int, str], float], **more: Any) -> Analysis:
    usual: dict[str, Any] = {"effects": {"0": 1.0, "8": 1.0}, "blocks": 6, "noise": lambda _: 0.0}
    make_campaign(root, edit=_idle(share), **usual | more)
    return analyse(ResultDirectory.open(root))


def _report(root: Path, share: Callable[[int, str], float], **more: Any) -> Json:
    return document(_analysis(root, share, **more))


def test_an_unsaturated_campaign_has_no_verdict_on_rates(tmp_path: Path) -> None:
    report = _report(tmp_path, lambda *_: 0.3)
    assert report["complete"]
    assert report["verdicts"] == []
    assert report["no_verdict"] == (
        "the receiver was not saturated in 36 of 36 timed trials, whose rates are void: "
        "0 of 6 blocks are left"
    )
    [base, row] = report["rows"]
    assert row["stack_rx_pps"] is row["delivered_pps"] is row["ratio_to_step0"] is None
    assert (row["timed_trials"], row["unsaturated_trials"], row["boots"]) == (18, 18, 6)
    assert row["void_trials"] == 0
    assert row["cpu_ns_per_packet"] == pytest.approx(0.9e9 / 200_000, rel=0.01)
    assert base["drops"]["nic_ring"] == pytest.approx(0.1, abs=1e-3)
    assert {(void["rates_only"], void["reasons"][0]["rule"]) for void in report["void"]} == {
        (True, "unsaturated")
    }


def test_expectations_on_rates_that_are_void_are_open(tmp_path: Path) -> None:
    analysis = _analysis(tmp_path, lambda *_: 0.3)
    for text in ("step8 stack_rx_pps > 0.9x step0", "step8 delivered_pps > 10"):
        found = check(parse(text, ["0", "8"]), analysis)
        assert found.outcome == "open"
        assert "did not saturate the receiver: step 8: 18 of 18" in found.why
        with pytest.raises(ExpectationOpenError) as raised:
            require([found])
        assert raised.value.exit_code == 7
    costs = check(parse("step8 cpu_ns_per_packet < 1.1x step0", ["0", "8"]), analysis)
    assert costs.outcome == "met"


def test_the_baseline_against_itself_is_open_where_nothing_was_saturated(tmp_path: Path) -> None:
    effects = dict.fromkeys(AA_STEPS, 1.0)
    [found] = no_difference_in_aa(_analysis(tmp_path, lambda *_: 0.3, effects=effects))
    assert found.outcome == "open"
    assert "not saturated in 36 of 36" in found.why


@pytest.mark.parametrize("form", FORMATS)
def test_no_format_passes_the_loads_rate_for_the_kernels(tmp_path: Path, form: str) -> None:
    shown = render(_report(tmp_path, lambda *_: 0.3), form)
    assert "no difference larger" not in shown
    assert "faster" not in shown
    if form in ("table", "markdown", "html"):
        assert "timed trials of step 0: 18 of 18, 8: 18 of 18" in shown
        assert "CPU 0 was idle for 30.0%" in shown


def test_other_tools_are_told_that_a_step_has_no_rate(tmp_path: Path) -> None:
    report = _report(tmp_path, lambda _, step: 0.3 * (step == "8"))
    lines = render(report, "ktap").splitlines()
    assert "ok 1 step0" in lines
    assert "ok 2 step8 # SKIP the campaign cannot tell" in lines
    why = "no rate: 18 timed trials void, the first by unsaturated: CPU 0 was idle for 30.0%"
    assert f"# {why}" in lines
    assert f'<skipped message="{why}"' in render(report, "junit")
    assert '"status": "SKIP"' in render(report, "kcidb")


def test_blocks_that_were_saturated_are_judged(tmp_path: Path) -> None:
    report = _report(tmp_path, lambda block, step: 0.3 * (block > 6 and step == "8"), blocks=8)
    [verdict] = report["verdicts"]
    assert verdict["blocks"] == 6
    assert report["rows"][1]["unsaturated_trials"] == 6


@pytest.mark.parametrize(
    ("lacking", "told", "verdicts"),
    [
        (["cpu"], "by interrupts per packet", 0),  # an interrupt in 200 packets
        (["cpu", "interrupts"], "for some trials it is not known", 1),
        ([], None, 1),
    ],
)
def test_old_results_say_by_which_rule_they_were_judged(
    tmp_path: Path, lacking: list[str], told: str | None, verdicts: int
) -> None:
    def older(boot: Json, *_: Any) -> Json:
        for found in boot["trials"]:
            if found["window"]:
                for end in ("start", "end"):
                    found["window"][end] = copy.deepcopy(found["window"][end])
                    for name in lacking:
                        del found["window"][end][name]
        return boot

    make_campaign(tmp_path, effects={"0": 1.0, "8": 1.1}, blocks=6, edit=older)
    report = document(analyse(ResultDirectory.open(tmp_path)))
    assert len(report["verdicts"]) == verdicts
    table = render(report, "table")
    assert told in table if told else "saturat" not in table


@pytest.mark.parametrize("steady", [True, False])
def test_a_load_that_never_settled_voids_its_trials(tmp_path: Path, steady: bool) -> None:
    def ramp(boot: Json, *_: Any) -> Json:
        for found in boot["trials"]:
            found["ramp"] = {"rates_pps": [9e4, 2e5, 8e4], "steady": steady or found["index"] > 0}
        return boot

    make_campaign(tmp_path, effects={"0": 1.0, "8": 1.0}, blocks=1, trials=2, edit=ramp)
    report = document(analyse(ResultDirectory.open(tmp_path)))
    rules = [(void["kind"], void["reasons"][0]["rule"]) for void in report["void"]]
    expected = [("timed", "ramp-unsteady"), ("trace", "ramp-unsteady")] * 2
    assert rules == ([] if steady else expected)


class _Unsaturated(Bed):
    def _row(self, name: str, point: str, blocks: int) -> Row:
        row = super()._row(name, point, blocks)
        costs = {"cpu_ns_per_packet": 5000.0}
        return replace(
            row,
            measured=tuple(
                replace(boot, rates=costs, trials={0: costs}, unsaturated=1)
                for boot in row.measured
            ),
        )


def test_a_search_over_rates_of_the_load_stays_open_and_says_why(tmp_path: Path) -> None:
    found = bisected(tmp_path, _Unsaturated(dict.fromkeys("012345678", 1.0)), question())
    assert found["outcome"] == "open"
    [decision] = found["decisions"]
    assert decision["outcome"] == "open"
    assert decision["why"] == "36 trials did not saturate the receiver"
