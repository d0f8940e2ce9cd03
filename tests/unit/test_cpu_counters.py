# SPDX-License-Identifier: MIT
"""What the agent reads of each CPU: by its number, whichever are online, whatever the text."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.agent import counters
from harness.agent.faults import AgentError
from harness.trials.readings import Snapshot

pytestmark = pytest.mark.unit

# Two of four CPUs with SMT off, as 6.12 prints it: CPUs 0 and 2, packets steered to CPU 2.
SOFTNET = """\
0007a740 00000011 00000002 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
00001f40 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000a31 00000000 00000000 00000002 00000000 00000000
"""  # noqa: E501
# The same on 4.18, which does not number its rows.
SOFTNET_4_18 = """\
0007a740 00000011 00000002 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000
00001f40 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000a31 00000000
"""
SOFTIRQS = """\
                    CPU0       CPU1       CPU2       CPU3       
          HI:          0          0          1          0
      NET_TX:          3          0          0          0
      NET_RX:    2561100          0         17          0
       BLOCK:          0          0          0          0
"""  # noqa: W291
ROWS = [
    {"cpu": 0, "processed": 0x7A740, "dropped": 0x11, "time_squeeze": 2, "received_rps": 0},
    {"cpu": 2, "processed": 0x1F40, "dropped": 0, "time_squeeze": 0, "received_rps": 0xA31},
]


def test_rows_are_those_of_the_cpus_that_are_online() -> None:
    assert counters.parse_softnet(SOFTNET) == ROWS
    assert counters.parse_softnet(SOFTNET, [0, 2]) == ROWS
    assert counters.parse_softnet(SOFTNET_4_18, [0, 2]) == ROWS


def test_rows_without_numbers_that_are_not_one_for_each_cpu_are_refused() -> None:
    with pytest.raises(AgentError, match="2 rows for 3 CPUs"):
        counters.parse_softnet(SOFTNET_4_18, [0, 1, 2])


def test_softirqs_by_cpu() -> None:
    assert counters.parse_softirqs(SOFTIRQS, "NET_RX") == {"0": 2561100, "1": 0, "2": 17, "3": 0}
    assert counters.parse_softirqs(SOFTIRQS, "RCU") == {}


PARSERS: list[Callable[[str], Any]] = [
    counters.parse_softnet,
    lambda text: counters.parse_softnet(text, [0, 1]),
    lambda text: counters.parse_softirqs(text, "NET_RX"),
    counters.parse_cpu,
]
_WORDS = st.sampled_from(
    ["cpu", "cpu0", "cpuX", "cpu1", "NET_RX:", "CPU0", "CPU", ":", "-1", "0", "12", "ff", "٣", "x"]
)
_LINES = st.lists(_WORDS | st.text(max_size=6), max_size=15).map(" ".join)
_TEXTS = st.lists(_LINES, max_size=4).map("\n".join) | st.sampled_from(
    [SOFTNET, SOFTNET_4_18, SOFTIRQS]
).flatmap(lambda text: st.integers(0, len(text)).map(lambda end: text[:end]))


@pytest.mark.parametrize("parser", PARSERS)
@given(text=_TEXTS)
@settings(max_examples=300)
def test_no_text_makes_a_parser_fail_but_by_its_own_error(
    parser: Callable[[str], Any], text: str
) -> None:
    said = "cannot parse /proc/"
    try:
        parser(text)
    except AgentError as error:
        said = str(error)
    assert said.startswith("cannot parse /proc/")


def test_this_machine_is_read_by_the_numbers_of_its_cpus() -> None:
    snapshot = counters.Counters("lo", list).snapshot()
    read = Snapshot.model_validate(snapshot)
    online = {row.cpu for row in read.cpu}
    assert os.sched_getaffinity(0) <= online
    assert {row.cpu for row in read.softnet} == online
    assert {str(cpu) for cpu in online} <= read.net_rx.keys()
    assert sum(read.net_rx.values()) > 0
    assert all(row.received_rps is not None for row in read.softnet)
    assert read.speed_mbps is None  # lo has none
