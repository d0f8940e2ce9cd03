# SPDX-License-Identifier: MIT
"""Packets have to go the way that is measured: the planned CPU, nobody else's, and lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.plan import ALL_STEPS, LIST_STAGES, step_number
from harness.report import document, render
from harness.results.analysis import analyse
from harness.results.expect import check, parse
from harness.results.rows import Analysis
from harness.results.samples import Campaign, ResultDirectory, read_campaign
from harness.trials import VOID_RULES
from harness.trials.readings import Trace
from harness.trials.receive_path import list_rules, unproven
from tests.unit.synthetic import Host, judged, make_campaign, trial

pytestmark = pytest.mark.unit

Json = dict[str, Any]
TOLERANCES = {name: rule.tolerances for name, rule in VOID_RULES.items()}
SEEN = 100_000


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    root = tmp_path_factory.mktemp("path")
    return read_campaign(make_campaign(root, effects={"0": 1.0}, blocks=1, trials=1))


def _rules(made: Json, campaign: Campaign) -> list[str]:
    found = judged(made, campaign)
    return [void.rule for void in found.void]


def _elsewhere(made: Json, share: float) -> None:
    """``share`` of the window's packets were processed on CPU 1."""
    start, end = made["window"]["start"], made["window"]["end"]
    moved = round(share * (end["softnet"][0]["processed"] - start["softnet"][0]["processed"]))
    end["softnet"][0]["processed"] -= moved
    for snapshot, processed in ((start, 500), (end, 500 + moved)):
        row = {"cpu": 1, "processed": processed, "dropped": 0, "time_squeeze": 0,
               "received_rps": 0}  # fmt: skip
        snapshot["softnet"].append(row)


def _steered(made: Json) -> None:
    made["window"]["end"]["softnet"][0]["received_rps"] += 1


def _threaded(made: Json) -> None:
    made["window"]["end"]["net_rx"]["0"] = made["window"]["start"]["net_rx"]["0"]
    made["window"]["end"]["net_rx"]["1"] = 900


def _offline(made: Json) -> None:
    """The row of the planned CPU is not there: what is counted is another's."""
    for snapshot in (made["window"]["start"], made["window"]["end"]):
        snapshot["softnet"][0]["cpu"] = 2


@pytest.mark.parametrize(
    ("edit", "rules"),
    [
        (lambda made: _elsewhere(made, 0.5), ["softirq-moved"]),
        (lambda made: _elsewhere(made, 0.02), ["softirq-moved"]),
        (lambda made: _elsewhere(made, 0.005), []),
        (_steered, ["rps-used"]),
        (_threaded, ["softirq-moved"]),
        (_offline, ["softirq-moved"]),
    ],
)
def test_the_softirq_has_to_be_where_it_was_planned(
    campaign: Campaign, edit: Callable[[Json], None], rules: list[str]
) -> None:
    made = trial(Host(), "timed", 0, 100_000, 4.0, 0)
    assert _rules(made, campaign) == []
    edit(made)
    assert _rules(made, campaign) == rules


def test_traffic_of_other_interfaces_on_other_cpus_is_none_of_it(campaign: Campaign) -> None:
    made = trial(Host(), "timed", 0, 100_000, 4.0, 0)
    row = {"cpu": 1, "processed": 0, "dropped": 0, "time_squeeze": 0, "received_rps": 0}
    made["window"]["start"]["softnet"].append(row)
    made["window"]["end"]["softnet"].append(row | {"processed": 10**7})
    assert _rules(made, campaign) == []


def test_counters_that_fold_at_32_bits(campaign: Campaign) -> None:
    made = trial(Host(), "timed", 0, 100_000, 4.0, 0)
    for snapshot in (made["window"]["start"], made["window"]["end"]):
        row = snapshot["softnet"][0]
        row["processed"] = (row["processed"] + 2**32 - 200_000) % 2**32
    assert made["window"]["end"]["softnet"][0]["processed"] < 2**31
    assert _rules(made, campaign) == []


def test_results_without_the_new_counters_are_judged_by_what_they_have(campaign: Campaign) -> None:
    made = trial(Host(), "timed", 0, 100_000, 4.0, 0)
    for snapshot in (made["window"]["start"], made["window"]["end"]):
        del snapshot["net_rx"], snapshot["softnet"][0]["received_rps"]
    assert _rules(made, campaign) == []
    _elsewhere(made, 0.5)
    assert _rules(made, campaign) == ["softirq-moved"]


@pytest.mark.parametrize(("busy_poll", "rules"), [(True, []), (False, ["softirq-moved"])])
def test_a_reader_that_polls_needs_no_softirq(
    campaign: Campaign, busy_poll: bool, rules: list[str]
) -> None:
    made = trial(Host(), "latency", 0, 100_000, 4.0, 0)
    made["cell"] = {"moderation": True, "busy_poll": busy_poll}
    made["whole"]["after"]["net_rx"] = made["whole"]["before"]["net_rx"]
    found = judged(made, campaign).void
    assert [void.rule for void in found] == rules


def _trace(step: str, *, lists: float = 1.0, singly: float | None = None) -> Trace:
    """``lists`` of the packets in lists at every stage of ``step``, ``singly`` by ip_rcv."""
    number = step_number(step) or 0
    if singly is None:
        singly = 0.0 if number >= 7 else 1.0
    return Trace.model_validate(
        {
            "duration_s": 2.0,
            "stages": [
                {"name": name, "attach": "fentry", "packets": round(lists * SEEN)}
                for name, first in LIST_STAGES.items()
                if number >= first
            ],
            "per_skb": {
                "tracepoint_netif_receive_skb": SEEN,
                "ip_rcv": round(singly * SEEN),
                "ip_list_rcv_packets": 0,
            },
        }
    )


@pytest.mark.parametrize("step", ALL_STEPS)
def test_every_step_has_a_way_that_is_its_own(step: str) -> None:
    assert list(list_rules(_trace(step), step, TOLERANCES)) == []
    assert unproven(_trace(step), step) == []


@pytest.mark.parametrize(
    ("step", "trace", "told"),
    [
        ("8", {"singly": 1.0}, "100000 of 100000 packets came to ip_rcv one by one"),
        ("7", {"lists": 0.0}, "0 of 100000 packets came to netif_receive_skb_list in lists"),
        ("2", {"lists": 0.0}, "netif_receive_skb_list in lists"),
        ("0", {"singly": 0.2}, "20000 of 100000 packets came to ip_rcv; all should"),
        ("8", {"singly": 0.1}, "10000 of 100000"),
        ("8again", {"singly": 1.0}, "one by one"),
    ],
)
def test_another_way_is_told(step: str, trace: Json, told: str) -> None:
    [void] = list_rules(_trace(step, **trace), step, TOLERANCES)
    assert void.rule == "list-path"
    assert told in void.detail


def test_what_is_no_step_has_no_way_that_is_known() -> None:
    for name in ("3f2a81c9d0e1", "7000000", "as-it-ships", ""):
        assert step_number(name) is None
        assert list(list_rules(_trace("8", singly=1.0), name, TOLERANCES)) == []


def test_a_stage_without_a_probe_proves_nothing_and_voids_nothing() -> None:
    trace = _trace("8")
    blind = trace.model_copy(update={"stages": trace.stages[1:], "per_skb": {}})
    assert list(list_rules(blind, "8", TOLERANCES)) == []
    assert unproven(blind, "8") == ["netif_receive_skb_list", "ip_rcv"]


@given(lists=st.floats(0, 1), singly=st.floats(0, 1), step=st.sampled_from(ALL_STEPS))
def test_a_few_packets_of_others_are_allowed(lists: float, singly: float, step: str) -> None:
    number = step_number(step)
    assert number is not None
    found = list(list_rules(_trace(step, lists=lists, singly=singly), step, TOLERANCES))
    bad = (number >= 2 and lists < 0.94) or (singly > 0.06 if number >= 7 else singly < 0.94)
    good = (number < 2 or lists > 0.96) and (singly < 0.04 if number >= 7 else singly > 0.96)
    assert not (bad and not found)
    assert not (good and found)


def _tapped(blocks: set[int], warnings: tuple[str, ...] = ()) -> Callable[..., Json]:
    """In the traced boots of ``blocks`` step 8 has a tap: IP gets each packet singly."""

    def edit(boot: Json, block: int, _position: int, step: str) -> Json:
        boot["inventory"] = {"dut": {"nic": {"warnings": list(warnings)}}}
        for found in boot["trials"]:
            if found["trace"] and step == "8" and block in blocks:
                seen = found["trace"]["per_skb"]["tracepoint_netif_receive_skb"]
                found["trace"]["per_skb"]["ip_rcv"] = seen
        return boot

    return edit


def _analysis(root: Path, edit: Callable[..., Json], **more: Any) -> Analysis:
    make_campaign(root, effects={"0": 1.0, "2": 1.0, "8": 1.2}, edit=edit, **more)
    return analyse(ResultDirectory.open(root))


def _report(root: Path, edit: Callable[..., Json], **more: Any) -> Json:
    return document(_analysis(root, edit, **more))


def test_what_a_traced_trial_found_bears_on_all_boots_of_the_step(tmp_path: Path) -> None:
    analysis = _analysis(tmp_path, _tapped({1, 2}), blocks=6, trace_blocks=2)
    report = document(analysis)
    rows = {row["step"]: row for row in report["rows"]}
    assert rows["8"]["stack_rx_pps"] is None
    assert rows["8"]["void_trials"] == 18
    assert rows["8"]["ip_rcv_per_packet"] == 1.0  # what was counted stands
    assert [verdict["step"] for verdict in report["verdicts"]] == ["2"]
    told = [void for void in report["void"] if void["block"] == 5]
    assert {void["reasons"][0]["rule"] for void in told} == {"list-path"}
    assert told[0]["reasons"][0]["detail"].startswith("block 1, step 8: ")
    assert "one by one" in render(report, "table")
    found = check(parse("step8 stack_rx_pps > step0", ["0", "2", "8"]), analysis)
    assert found.outcome == "open"


def test_what_step_6_cannot_show_is_taken_from_the_steps_behind_it(tmp_path: Path) -> None:
    make_campaign(
        tmp_path, effects={"0": 1.0, "5": 1.0, "6": 1.0, "8": 1.2}, blocks=1, edit=_tapped({1})
    )
    report = document(analyse(ResultDirectory.open(tmp_path)))
    assert {void["step"] for void in report["void"]} == {"6", "8"}


def test_a_boot_whose_own_trace_is_right_counts(tmp_path: Path) -> None:
    report = _report(tmp_path, _tapped({2}), blocks=8, trace_blocks=8)
    assert {(void["block"], void["step"]) for void in report["void"]} == {(2, "8")}
    assert {verdict["step"]: verdict["blocks"] for verdict in report["verdicts"]} == {
        "2": 8,
        "8": 7,
    }


def test_a_nic_whose_driver_makes_no_lists_is_warned_of_and_not_void(tmp_path: Path) -> None:
    report = _report(tmp_path, _tapped({1}, ("no EF10 function of sfc",)), blocks=6)
    assert report["void"] == []


def test_a_stage_that_was_not_probed_is_said(tmp_path: Path) -> None:
    report = _report(tmp_path, _tapped(set()), blocks=1)
    assert (
        "step 8: no probe at netif_receive_skb_list_internal, __netif_receive_skb_list_core, "
        "so it is not known whether lists came there" in render(report, "table")
    )


@pytest.mark.parametrize(("errors", "void"), [(0, False), (3, True), (None, False)])
def test_a_model_of_a_nic_that_erred_voids_its_boot(
    tmp_path: Path, errors: int | None, void: bool
) -> None:
    def edit(boot: Json, block: int, *_: Any) -> Json:
        if block == 1:
            boot["nic_model"] = {"interrupts": 5} | (
                {} if errors is None else {"internal_errors": errors}
            )
        return boot

    report = _report(tmp_path, edit, blocks=2)
    rules = {(v["block"], v["reasons"][0]["rule"]) for v in report["void"]}
    assert rules == ({(1, "nic-model-error")} if void else set())


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        ("port_tx_pause", "port_rx_pause"),
        ("tx_pause", "rx_pause"),
        ("tx_pause_ctrl_phy", "rx_pause_ctrl_phy"),
        ("tx_flow_control_xoff", "rx_flow_control_xoff"),
        ("port.link_xoff_tx", "port.link_xoff_rx"),
        ("link_xoff_tx.nic", "link_xoff_rx.nic"),
    ],
)
def test_pause_frames_are_told(tmp_path: Path, sent: str, received: str) -> None:
    def edit(boot: Json, block: int, *_: Any) -> Json:
        for found in boot["trials"]:
            before, after = found["whole"]["before"]["nic"], found["whole"]["after"]["nic"]
            before |= {sent: 7, received: 7}
            after |= {sent: 7 + 100 * (block == 1), received: 7}
        return boot

    table = render(_report(tmp_path, edit, blocks=2), "table")
    assert "pause frames during the timed trials: the dut's port sent 900;" in table


def test_no_pause_frames_are_not_told(tmp_path: Path) -> None:
    report = _report(tmp_path, _tapped(set()), blocks=1)
    assert not any("pause" in note for note in report["notes"])


@pytest.mark.parametrize("role", ["dut", "generator"])
@pytest.mark.parametrize("kept", ["link_mbps", "inventory"])
def test_a_link_of_another_speed_leaves_nothing_to_compare(
    tmp_path: Path, role: str, kept: str
) -> None:
    def edit(boot: Json, block: int, _position: int, step: str) -> Json:
        mbps: int | None = 10_000 if (block, step) == (2, "8") else 40_000
        if (block, step) == (3, "2"):
            mbps = None  # it did not say
        boot[kept] = {role: mbps if kept == "link_mbps" else {"speed_mbps": mbps}}
        return boot

    analysis = _analysis(tmp_path, edit, blocks=6)
    report = document(analysis)
    [problem] = report["problems"]
    assert f"the link speed of the {role} was not constant" in problem
    assert "10000 Mbit/s in 1 boots (for example b02-" in problem
    assert report["verdicts"] == []
    table = render(report, "table")
    assert "NOT COMPARABLE" in table
    assert "INCOMPLETE" not in table
    assert check(parse("step8 stack_rx_pps > step0", ["0", "8"]), analysis).outcome == "open"


def test_a_link_that_changed_its_speed_within_a_boot_is_told(tmp_path: Path) -> None:
    def edit(boot: Json, block: int, _position: int, step: str) -> Json:
        for found in boot["trials"]:
            found["whole"]["before"]["speed_mbps"] = 40_000
            slow = (block, step, found["kind"]) == (1, "8", "timed")
            found["whole"]["after"]["speed_mbps"] = 10_000 if slow else 40_000
        return boot

    [problem] = _report(tmp_path, edit, blocks=1)["problems"]
    assert "40000 Mbit/s in 3 boots" in problem
    assert "10000 Mbit/s in 1 boots" in problem
