# SPDX-License-Identifier: MIT
"""The contract of the agent: both sides have the calls of the protocol, as it says them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from harness.agent import protocol
from harness.agent.__main__ import Agent
from harness.agent.load import Load
from harness.agent.settings import Settings
from harness.beds.access.channel import Asked

pytestmark = pytest.mark.unit

BEHIND: dict[str, Callable[..., Any]] = {
    # Calls that the agent passes on with more of its own.
    "settings_apply": Settings.apply,
    "netperf_rr": Load.netperf_rr,
}
OWN = {"self", "sleep", "root"}


@pytest.fixture(scope="module")
def calls() -> dict[str, Callable[..., Any]]:
    return Agent(lambda _: None).calls


def shape(call: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(call).parameters.values()
    return {one.name: one.default for one in parameters if one.name not in OWN}


def test_the_agent_has_every_call_and_no_other(calls: dict[str, Callable[..., Any]]) -> None:
    assert {*calls} == {*protocol.NAMES}


@pytest.mark.parametrize("name", protocol.NAMES)
def test_a_call_takes_what_the_protocol_says(
    name: str, calls: dict[str, Callable[..., Any]]
) -> None:
    assert shape(BEHIND.get(name, calls[name])) == shape(getattr(protocol.Calls, name))


class Recorded(Asked):
    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any], float]] = []

    def call(self, name: str, arguments: Any, within_s: float) -> Any:
        self.asked.append((name, dict(arguments), within_s))


def test_the_controller_asks_by_the_name_of_the_method() -> None:
    agent = Recorded()
    agent.window(interface="eth0", duration_s=5.0)
    agent.netperf_start(target="198.18.0.2", port=1, duration_s=3600.0, cpus=[])
    agent.netperf_wait(timeout_s=30)
    assert agent.asked == [
        ("window", {"interface": "eth0", "duration_s": 5.0}, 65.0),
        (
            "netperf_start",
            {"target": "198.18.0.2", "port": 1, "duration_s": 3600.0, "cpus": []},
            90.0,
        ),
        ("netperf_wait", {"timeout_s": 30}, 60.0),
    ]


@pytest.mark.parametrize("name", protocol.NAMES)
def test_every_method_asks_the_agent(name: str) -> None:
    agent = Recorded()
    getattr(agent, name)()
    assert agent.asked[0][0] == name


@pytest.mark.parametrize(
    ("name", "arguments"), [("counters", {}), ("counters", {"interface": "a", "extra": 1})]
)
def test_wrong_arguments_are_refused_by_name(name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"interface|extra"):
        protocol.bound(name, arguments)
