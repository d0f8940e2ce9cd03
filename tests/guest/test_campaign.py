# SPDX-License-Identifier: MIT
"""What the series does, seen in a campaign on real kernels with real load and real probes."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.guest.conftest import BEDS, STEPS, Campaign, harness

pytestmark = pytest.mark.guest

NAPI_WEIGHT = 64
"""Packets a poll takes at most, so the longest list a driver can hand over."""


def boots(campaign: Campaign) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in campaign.directory.glob("boots/*/boot.json")]


def test_every_step_was_booted_in_every_block(campaign: Campaign) -> None:
    assert campaign.report["complete"]
    booted = Counter(boot["step"] for boot in boots(campaign))
    assert booted == dict.fromkeys(STEPS, BEDS[campaign.bed])
    # A busy machine may void the trials of a boot, but not of all.
    assert all(row["boots"] for row in campaign.report["rows"]), campaign.report["void"]


def test_the_table_says_that_it_is_no_hardware_figure(campaign: Campaign) -> None:
    assert "not a hardware figure" in campaign.printed
    assert {"native": "native, user-mode kernel", "virtual": "virtual bed"}[
        campaign.bed
    ] in campaign.printed
    assert (campaign.report["repetition"] is not None) == (campaign.bed == "native")


def test_baseline_has_no_lists(campaign: Campaign) -> None:
    row = campaign.row("0")
    assert row["list_len_p50"] is None
    assert row["ip_rcv_per_packet"] == pytest.approx(1, abs=0.02)


def test_driver_lists_reach_the_stack_but_not_ip_after_step_2(campaign: Campaign) -> None:
    row = campaign.row("2")
    assert 1 < row["list_len_p50"] <= row["list_len_max"] <= NAPI_WEIGHT
    assert row["ip_rcv_per_packet"] == pytest.approx(1, abs=0.02)


def test_lists_reach_ip_after_step_8(campaign: Campaign) -> None:
    row = campaign.row("8")
    assert 1 < row["list_len_p50"] <= row["list_len_max"] <= NAPI_WEIGHT
    assert row["ip_rcv_per_packet"] < 0.02
    traces = [
        trial["trace"]
        for boot in boots(campaign)
        if boot["step"] == "8"
        for trial in boot["trials"]
        if trial.get("trace")
    ]
    assert traces
    for trace in traces:
        at_ip = next(stage for stage in trace["stages"] if stage["name"] == "ip_list_rcv")
        assert at_ip["packets"] >= 0.98 * trace["per_skb"]["tracepoint_netif_receive_skb"] > 0


def test_counts_add_up(campaign: Campaign) -> None:
    broken = [
        reason["rule"]
        for trial in campaign.report["void"]
        for reason in trial["reasons"]
        if "conservation" in reason["rule"]
    ]
    assert broken == []


def test_packets_went_the_way_that_is_measured(campaign: Campaign) -> None:
    void = campaign.report["void"]
    rules = Counter(reason["rule"] for trial in void for reason in trial["reasons"])
    assert not rules.keys() & {"rps-used", "list-path", "nic-model-error"}
    # A busy machine delays the readings that this rule compares.
    trials = sum(len(boot["trials"]) for boot in boots(campaign))
    assert rules["softirq-moved"] <= trials / 4
    for boot in boots(campaign):
        assert boot["link_mbps"].keys() == {"dut", "generator"}
        for trial in boot["trials"]:
            if window := trial.get("window"):
                assert trial["whole"]["after"]["speed_mbps"] == 10_000
                for row in window["end"]["softnet"]:
                    assert row["received_rps"] == 0
                cpus = {"0"} if campaign.bed == "native" else {"0", "1"}
                assert cpus <= window["end"]["net_rx"].keys()


def test_saturation_was_judged_by_what_the_cpu_did(campaign: Campaign) -> None:
    assert not any("saturat" in note for note in campaign.report["notes"])
    for row in campaign.report["rows"]:
        assert row["unsaturated_trials"] < row["timed_trials"] or row["stack_rx_pps"] is None


def test_interrupt_and_netserver_stayed_where_they_were_put(campaign: Campaign) -> None:
    for boot in boots(campaign):
        for trial in boot["trials"]:
            if window := trial.get("window"):
                interrupts = window["placement"]["irq"].values()
                assert all(
                    set(cpus) <= {"0"}
                    for cpus in ({c for c, n in line.items() if n} for line in interrupts)
                )
                netserver = [
                    p for p in window["placement"]["processes"] if p["name"] == "netserver"
                ]
                assert netserver
                assert all(set(process["cpus"]) == {"0"} for process in netserver)


def test_settings_were_put_back(campaign: Campaign) -> None:
    for boot in boots(campaign):
        for role in ("dut", "generator"):
            assert boot["settings"]["restored"][role]["failed"] == []


def test_report_is_rebuilt_from_the_directory_alone(campaign: Campaign) -> None:
    again = harness("report", str(campaign.directory)).stdout
    assert again.strip() in campaign.printed


def test_a_finished_campaign_is_neither_overwritten_nor_run_again(campaign: Campaign) -> None:
    before = sorted(path.stat().st_mtime_ns for path in campaign.directory.rglob("boot.json"))
    assert harness("run", "--out", str(campaign.directory)).returncode == 2
    resumed = harness("run", "--resume", "--out", str(campaign.directory))
    assert resumed.returncode == 0
    assert (
        sorted(path.stat().st_mtime_ns for path in campaign.directory.rglob("boot.json")) == before
    )
