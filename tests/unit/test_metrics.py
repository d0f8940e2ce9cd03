# SPDX-License-Identifier: MIT
from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.results.samples import Campaign, read_campaign
from harness.trials.kind import Told
from tests.unit.synthetic import Flow, Host, judged, make_campaign, trial

pytestmark = pytest.mark.unit

Json = dict[str, Any]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    root = tmp_path_factory.mktemp("metrics")
    return read_campaign(make_campaign(root, effects={"0": 1.0}, blocks=1, trials=1))


@pytest.fixture
def timed() -> Json:
    host = Host()
    host.run(3.0, Flow(packets=12345))  # counters do not start at 0
    return trial(host, "timed", 0, 100_000, 4.0, 0)


def _measure(made: Json, campaign: Campaign) -> Told:
    return judged(made, campaign)


def test_rates_are_those_of_the_window(timed: Json, campaign: Campaign) -> None:
    metrics = _measure(timed, campaign)
    assert metrics.void == ()
    assert metrics.values["nic_rx_pps"] == pytest.approx(100_000, rel=1e-3)
    assert metrics.values["stack_rx_pps"] == pytest.approx(100_010, rel=1e-3)
    assert metrics.values["delivered_pps"] == pytest.approx(2_000, rel=1e-3)
    assert metrics.values["cpu_ns_per_packet"] == pytest.approx(0.9 * 1e9 / 100_010, rel=1e-3)


def test_drops_are_named_and_add_up(timed: Json, campaign: Campaign) -> None:
    metrics = _measure(timed, campaign)
    # Ramp, window and end: six seconds of load.
    assert metrics.offered_packets == pytest.approx(6 * 100_000 / 0.9, rel=1e-3)
    assert 10 * metrics.drops["nic_ring"] == pytest.approx(metrics.offered_packets, rel=1e-3)
    assert metrics.drops["udp_rcvbuf"] == pytest.approx(600_000 * 0.98, rel=1e-3)
    assert sum(metrics.drops.values()) + 600_000 * 0.02 == pytest.approx(
        metrics.offered_packets, rel=1e-3
    )


def _end(made: Json) -> list[Json]:
    """Both snapshots taken after the window began to matter."""
    return [made["window"]["end"], made["whole"]["after"]]


def _lose(table: str, name: str, packets: int) -> Callable[[Json], None]:
    def edit(made: Json) -> None:
        for snapshot in _end(made):
            group = snapshot[table] if table in ("nic", "link") else snapshot["snmp"][table]
            group[name] -= packets

    return edit


def _irq(made: Json) -> None:
    made["window"]["placement"]["irq"]["31"] = {"1": 500}


def _netserver(made: Json) -> None:
    made["window"]["placement"]["processes"][0]["cpus"]["1"] = 1


def _steal(made: Json) -> None:
    made["window"]["end"]["cpu"][0]["steal_ns"] = 10**9


def _heat(made: Json) -> None:
    for which, times in (("start", 3), ("end", 4)):
        made["window"][which]["throttled"] = {"0": times, "1": 0}


def _backwards(made: Json) -> None:
    for snapshot in _end(made):
        snapshot["nic"] = dict.fromkeys(snapshot["nic"], 0)


def _silent(made: Json) -> None:
    made["window"]["end"] = copy.deepcopy(made["window"]["start"])
    made["window"]["end"]["monotonic_ns"] += 4 * 10**9


def _stream(**fields: Any) -> Callable[[Json], None]:
    return lambda made: made["netperf"][1].update(fields)


@pytest.mark.parametrize(
    ("rule", "edit"),
    [
        ("nic-conservation", _lose("nic", "port_rx_nodesc_drops", 5000)),
        ("stack-conservation", _lose("Ip", "InReceives", 5000)),
        ("ip-conservation", _lose("Udp", "InErrors", 5000)),
        ("delivery-conservation", _stream(messages_received=0)),
        ("irq-moved", _irq),
        ("process-moved", _netserver),
        ("stream-failed", _stream(status=1)),
        ("stream-failed", _stream(status=None)),
        ("stream-short", _stream(elapsed_s=3.2)),
        ("no-load", _silent),
        ("counter-reset", _backwards),
        ("counters-missing", lambda made: made.update(window=None)),
        ("counters-missing", lambda made: made.update(whole=None)),
        ("cpu-throttled", _steal),
        ("cpu-throttled", _heat),
        ("link-flapped", lambda made: made["window"]["end"]["link"].update(carrier_changes=2)),
    ],
)
def test_each_rule_voids_and_says_why(
    timed: Json, campaign: Campaign, rule: str, edit: Callable[[Json], None]
) -> None:
    assert _measure(timed, campaign).void == ()
    edit(timed)
    assert rule in {void.rule for void in _measure(timed, campaign).void}


def _alone(timed: Json, campaign: Campaign, *, irq: str = "0", cpu: int = 0) -> set[str]:
    """The rules that void a trial measured alone, with interrupts and netserver there."""
    before, after = timed["whole"]["before"], timed["whole"]["after"]
    before["interrupts"] = {"30": {"name": "eth1-0", "counts": {"0": 900, "1": 900}}}
    after["interrupts"] = copy.deepcopy(before["interrupts"])
    after["interrupts"]["30"]["counts"][irq] += 500
    after["processes"] = [{"pid": 99, "name": "netserver", "last_cpu": cpu},
                          {"pid": 7, "name": "python3", "last_cpu": 1}]  # fmt: skip
    search = {"kind": "ndr", "index": 0, "whole": timed["whole"]}
    return {void.rule for void in judged(search, campaign).void}


def test_what_is_measured_alone_has_to_be_placed_as_planned(
    timed: Json, campaign: Campaign
) -> None:
    assert _alone(timed, campaign) == set()
    assert _alone(timed, campaign, irq="1") == {"irq-moved"}
    assert _alone(timed, campaign, cpu=1) == {"process-moved"}


@pytest.mark.parametrize(
    ("table", "name", "place"),
    [
        ("nic", "rx_noskb_drops", "driver"),
        ("link", "rx_otherhost_dropped", "other_host"),
        ("link", "rx_dropped", "core"),
    ],
)
def test_drops_below_ip_explain_what_is_missing_there(
    timed: Json, campaign: Campaign, table: str, name: str, place: str
) -> None:
    for snapshot in _end(timed):
        snapshot[table][name] += 7000
        if table == "nic":
            snapshot["link"]["rx_dropped"] += 7000
        snapshot["snmp"]["Ip"]["InReceives"] -= 7000
        snapshot["snmp"]["Udp"]["InErrors"] -= 7000
        snapshot["snmp"]["Udp"]["RcvbufErrors"] -= 7000
    metrics = _measure(timed, campaign)
    assert metrics.void == ()
    assert metrics.drops[place] == 7000


def test_datagrams_still_queued_are_no_loss(timed: Json, campaign: Campaign) -> None:
    after = timed["whole"]["after"]
    after["snmp"]["Udp"]["InErrors"] -= 2000
    after["snmp"]["Udp"]["RcvbufErrors"] -= 2000
    assert {void.rule for void in _measure(timed, campaign).void} == {"ip-conservation"}
    after["udp_sockets"][0]["queued_bytes"] = 2000 * 768
    assert _measure(timed, campaign).void == ()


def test_few_interrupts_elsewhere_are_allowed(timed: Json, campaign: Campaign) -> None:
    timed["window"]["placement"]["irq"]["31"] = {"1": 2}
    assert _measure(timed, campaign).void == ()


def test_tolerances_of_the_campaign_rule(timed: Json, campaign: Campaign) -> None:
    timed["window"]["placement"]["irq"]["31"] = {"1": 2}
    strict = campaign.model_copy(
        update={"provenance": {"void_rules": {"irq-moved": {"tolerances": {
            "interrupts": 0, "share": 0}}}}}
    )  # fmt: skip
    assert {void.rule for void in _measure(timed, strict).void} == {"irq-moved"}


def test_a_recorded_void_is_kept_and_not_doubled(timed: Json, campaign: Campaign) -> None:
    timed["void"].append({"rule": "irq-moved", "detail": "seen during the trial"})
    _irq(timed)
    [void] = _measure(timed, campaign).void
    assert void.detail == "seen during the trial"


def test_other_nics_are_measured_by_their_link_counters(timed: Json, campaign: Campaign) -> None:
    for snapshots in (timed["window"], timed["whole"]):
        for name in ("start", "end", "before", "after"):
            if name in snapshots:
                nic, link = snapshots[name]["nic"], snapshots[name]["link"]
                link["rx_packets"] = nic["rx-0.rx_packets"]
                link["rx_missed_errors"] = nic["port_rx_nodesc_drops"]
                link["rx_dropped"] = 0
                nic.clear()
    metrics = _measure(timed, campaign)
    assert metrics.void == ()
    assert metrics.values["nic_rx_pps"] == pytest.approx(100_000, rel=1e-3)
    assert 10 * metrics.drops["nic_ring"] == pytest.approx(metrics.offered_packets, rel=1e-3)


@given(
    packets=st.integers(100_000, 10**7),
    ring=st.floats(0, 0.9),
    delivered=st.floats(0, 1),
    control=st.integers(0, 1000),
    offset=st.integers(0, 10**12),
)
def test_any_split_of_packets_adds_up(
    campaign: Campaign, packets: int, ring: float, delivered: float, control: int, offset: int
) -> None:
    host = Host()
    host.run(1.0, Flow(packets=offset))
    flow = Flow(packets=packets, ring=ring, delivered=delivered, control=control)
    made = trial(host, "timed", 0, 1000, 1.0, 0)
    made["whole"]["before"] = host.snapshot()
    made["window"]["start"] = host.snapshot()
    host.run(4.0, flow)
    made["window"]["end"] = made["whole"]["after"] = host.snapshot()
    made["netperf"] = []
    metrics = _measure(made, campaign)
    assert metrics.void == ()
    assert metrics.values["nic_rx_pps"] == flow.taken / 4
    assert metrics.values["delivered_pps"] == flow.read / 4


@given(missing=st.sets(st.sampled_from(["nic", "link", "snmp", "softnet", "cpu", "udp_sockets"])))
def test_absent_counters_are_no_bug(campaign: Campaign, missing: set[str]) -> None:
    made = trial(Host(), "timed", 0, 100_000, 4.0, 0)
    window, whole = made["window"], made["whole"]
    for snapshot in (window["start"], window["end"], whole["before"], whole["after"]):
        for name in missing & snapshot.keys():
            del snapshot[name]
    metrics = _measure(made, campaign)
    assert ("stack_rx_pps" not in metrics.values) == ("snmp" in missing)
    assert ("counters-missing" in {void.rule for void in metrics.void}) == ("snmp" in missing)


def test_a_traced_trial_is_void_when_the_probes_missed_much(campaign: Campaign) -> None:
    made = trial(Host(), "trace", 0, 100_000, 2.0, 8)
    assert _measure(made, campaign).void == ()
    made["trace"]["missed"] = 10_000
    assert {void.rule for void in _measure(made, campaign).void} == {"trace-missed"}


def _nic(made: Json, **grown: int) -> None:
    """Counters that grew over the trial, 0 before it."""
    for snapshot in (made["whole"]["before"], made["window"]["start"]):
        snapshot["nic"] |= dict.fromkeys(grown, 0)
    for snapshot in _end(made):
        snapshot["nic"] |= grown


def test_firmware_with_virtual_adapters_keeps_the_ports_drops_out_of_rx_dropped(
    timed: Json, campaign: Campaign
) -> None:
    # efx_ef10_update_stats_common: without EVB rx_dropped holds the port's drops, with EVB not.
    _nic(timed, rx_unicast=600_000, rx_multicast=0, rx_broadcast=0, rx_overflow=60_000, rx_bad=0)
    before = timed["whole"]["before"]
    for snapshot in _end(timed):
        snapshot["link"]["rx_dropped"] = before["link"]["rx_dropped"] + 9000
        snapshot["snmp"]["Ip"]["InReceives"] -= 9000
        snapshot["snmp"]["Udp"]["InErrors"] -= 9000
        snapshot["snmp"]["Udp"]["RcvbufErrors"] -= 9000
    metrics = _measure(timed, campaign)
    assert metrics.drops["core"] == 9000
    assert metrics.void == ()


def test_a_function_without_its_port_has_its_adapters_drops(
    timed: Json, campaign: Campaign
) -> None:
    for snapshot in [timed["whole"]["before"], timed["window"]["start"], *_end(timed)]:
        lost = snapshot["nic"]["port_rx_nodesc_drops"]
        kept = {name: n for name, n in snapshot["nic"].items() if name.startswith("rx-")}
        snapshot["nic"] = kept | {"rx_unicast": sum(kept.values()), "rx_overflow": lost}
        snapshot["link"]["rx_dropped"] = 0
    metrics = _measure(timed, campaign)
    assert metrics.void == ()
    assert metrics.offered_packets == pytest.approx(6 * 100_000 / 0.9, rel=1e-3)
    assert 10 * metrics.drops["nic_ring"] == pytest.approx(metrics.offered_packets, rel=1e-3)


def test_a_drivers_counter_of_32_bits_may_wrap(timed: Json, campaign: Campaign) -> None:
    for snapshot, count in (
        (timed["whole"]["before"], 2**32 - 1000),
        (timed["whole"]["after"], 4000),
    ):
        snapshot["nic"]["rx_noskb_drops"] = count
    assert _measure(timed, campaign).drops["driver"] == 5000


def test_frames_of_flow_control_are_the_ports_own(timed: Json, campaign: Campaign) -> None:
    for snapshot in _end(timed):
        snapshot["nic"]["port_rx_packets"] += 5000
    assert "nic-conservation" in {void.rule for void in _measure(timed, campaign).void}
    _nic(timed, port_rx_pause=5000)
    assert _measure(timed, campaign).void == ()


@pytest.mark.parametrize(
    ("planned", "declared", "void"),
    [(1, True, ["queues-spread"]), (2, True, []), (None, True, []), (1, False, [])],
)
def test_packets_in_more_queues_than_planned_void_a_trial(
    timed: Json, campaign: Campaign, planned: int | None, declared: bool, void: list[str]
) -> None:
    for snapshot in _end(timed):
        taken = snapshot["nic"]["rx-0.rx_packets"]
        snapshot["nic"] |= {"rx-0.rx_packets": taken - 50_000, "rx-1.rx_packets": 50_000}
    rules = dict(campaign.provenance["void_rules"])
    if not declared:
        del rules["queues-spread"]
    asked = campaign.model_copy(
        update={
            "placement": campaign.placement | {"rx_queues": planned},
            "provenance": {"void_rules": rules},
        }
    )
    assert [one.rule for one in _measure(timed, asked).void] == void
