# SPDX-License-Identifier: MIT
from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from harness import tracing
from harness.commands import trace
from harness.errors import ConfigurationError

pytestmark = pytest.mark.unit


class ScriptedAgent:
    """Answers ``trace_read`` as the agent of a host that receives 100 packets a reading would."""

    def __init__(self) -> None:
        self.read = -1

    def call(self, name: str, **_: object) -> Any:
        assert name == "trace_read"
        self.read += 1
        packets = 100 * self.read
        return {
            "monotonic_ns": self.read * 500_000_000,
            "per_skb": {"ip_rcv": 3, "ip_list_rcv_packets": packets, tracing.TRUTH: packets},
            "stages": [
                {"name": "ip_list_rcv", "attach": "fentry", "calls": self.read + 1,
                 "packets": packets, "lengths": [1, *[0] * 63, self.read], "overflow": 0,
                 "by_cpu": {"0": packets}},
            ],
            "missed": 0,
        }  # fmt: skip


def test_readings_are_sums_and_rates_are_of_the_last_interval() -> None:
    found = list(tracing.readings(ScriptedAgent(), interval_s=0.001, duration_s=2))  # type: ignore[arg-type]
    assert [reading.elapsed_s for reading in found] == [0.5, 1.0, 1.5, 2.0]
    assert [reading.packets for reading in found] == [100, 200, 300, 400]
    assert {reading.pps for reading in found} == {200}
    assert found[-1].per_skb == {"ip_rcv": 3}


def test_the_screen_leaves_empty_lists_out() -> None:
    *_, last = tracing.readings(ScriptedAgent(), interval_s=0.001, duration_s=2)  # type: ignore[arg-type]
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(trace._table("rx", last))
    [line] = [line for line in console.export_text().splitlines() if "ip_list_rcv" in line]
    assert line.split()[:4] == ["ip_list_rcv", "4", "400", "100.0"]


@pytest.mark.parametrize(("host", "why"), [("nosuch", "no host"), ("wire", "is a generator")])
def test_what_cannot_be_traced_is_refused(host: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        CliRunner().invoke(trace.trace, [host], catch_exceptions=False)
