# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from harness import tracing
from harness.base.errors import ConfigurationError
from harness.beds.access.channel import Asked
from harness.commands import trace

pytestmark = pytest.mark.unit


class ScriptedAgent(Asked):
    """Answers ``trace_read`` as the agent of a host that receives 100 packets a reading would."""

    def __init__(self) -> None:
        self.read = -1

    def call(self, name: str, arguments: Any, within_s: float) -> Any:
        assert name == "trace_read"
        self.read += 1
        packets = 100 * self.read
        stages = [
            ("__netif_receive_skb_list_core", self.read + 1, packets, [7, 0]),
            ("__netif_receive_skb_list_ptype", self.read + 1, packets - 30, [0, 0]),
            ("ip_list_rcv", self.read + 1, packets, [1, 2]),
            ("ip_sublist_rcv", self.read + 1, packets, [0, 0]),
        ]
        return {
            "monotonic_ns": self.read * 500_000_000,
            "per_skb": {"ip_rcv": 3, "ip_list_rcv_packets": packets, tracing.TRUTH: packets},
            "stages": [
                {"name": name, "attach": "fentry", "calls": calls, "packets": packets,
                 "lengths": [1, *[0] * 63, self.read], "overflow": 0, "by_cpu": {"0": packets},
                 "by_queue": {"0": packets - 1, "other": 1}, "passed": passed,
                 "sublists": calls + sum(splits), "splits": splits}
                for name, calls, passed, splits in stages
            ],
            "drops": [
                {"function": "ip_rcv_core", "reason": "IP_CSUM", "packets": 2},
                {"function": "nf_hook_slow", "reason": "NETFILTER_DROP", "packets": 30},
            ],
            "missed": 0,
        }  # fmt: skip


def test_readings_are_sums_and_rates_are_of_the_last_interval() -> None:
    found = list(tracing.readings(ScriptedAgent(), interval_s=0.001, duration_s=2))
    assert [reading.elapsed_s for reading in found] == [0.5, 1.0, 1.5, 2.0]
    assert [reading.packets for reading in found] == [100, 200, 300, 400]
    assert {reading.pps for reading in found} == {200}
    assert found[-1].per_skb == {"ip_rcv": 3}


def test_a_split_is_of_two_stages_and_says_why() -> None:
    *_, last = tracing.readings(ScriptedAgent(), interval_s=0.001, duration_s=2)
    core, ptype, ip = last.splits
    assert (core.at, core.to) == ("__netif_receive_skb_list_core", "__netif_receive_skb_list_ptype")
    assert (core.lists, core.sublists, core.why, core.taken) == (4, 12, {"packet type": 7}, 0)
    assert (ptype.why, ptype.taken, ptype.taken_by) == ({}, 30, "other packet types")
    assert ip.why == {"device": 3}
    assert last.drops is not None
    assert [drop.reason for drop in last.drops] == ["NETFILTER_DROP", "IP_CSUM"]
    assert json.loads(json.dumps(last.record()))["splits"][0]["why"] == {"packet type": 7}


def test_the_screen_leaves_empty_lists_out() -> None:
    *_, last = tracing.readings(ScriptedAgent(), interval_s=0.001, duration_s=2)
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(trace._tables("rx", last))
    rows = [line.split() for line in console.export_text().splitlines()]
    assert [row[:4] for row in rows if "ip_sublist_rcv" in row] == [
        ["ip_sublist_rcv", "4", "400", "100.0"]
    ]
    assert ["ip_list_rcv", "4", "8", "device", "(3)", "0"] in rows
    assert ["nf_hook_slow", "30", "NETFILTER_DROP"] in rows


@pytest.mark.parametrize(("host", "why"), [("nosuch", "no host"), ("wire", "is a generator")])
def test_what_cannot_be_traced_is_refused(host: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        CliRunner().invoke(trace.trace, [host], catch_exceptions=False)
