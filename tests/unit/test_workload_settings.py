# SPDX-License-Identifier: MIT
"""What a run asks of both hosts: the receive path plain, and whatever hosts.yaml says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import config
from harness.agent.faults import AgentError
from harness.agent.settings import Settings
from harness.agent.settings.registry import ARGUMENTS, KEYED, PLAIN
from harness.base.errors import ConfigurationError, TrialVoidError
from harness.beds.access.channel import Asked
from harness.beds.registry import profile
from harness.campaign import prepare
from harness.commands import plan
from harness.trials.latency import Cell, round_trips

pytestmark = pytest.mark.unit

HOSTS = """\
version: 1
default_bed: rack
beds:
  rack:
    dut: rx
    generator: tx
    placement: {{irq_cpu: 2, netserver_cpu: 4, netperf_cpus: [0, 6]}}
    {more}
hosts:
  rx: {{kind: ssh, hostname: rx.example, interface: eth1, address: 198.18.1.2/24}}
  tx: {{kind: ssh, hostname: tx.example, interface: eth1, address: 198.18.1.1/24}}
"""


def _bed(tmp_path: Path, more: str = "") -> config.Bed:
    path = tmp_path / "hosts.yaml"
    path.write_text(HOSTS.format(more=more))
    return config.bed(config.load(config.locate(path)), None)


class Agent(Asked):
    def __init__(self, *, has_busy_polling: bool = True) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.has_busy_polling = has_busy_polling

    def call(self, name: str, arguments: Mapping[str, Any], within_s: float) -> Any:
        self.calls.append((name, dict(arguments)))
        if name == "settings_apply":
            assert arguments.keys() - {"interface", "process_cpus"} <= ARGUMENTS
        skipped = []
        if arguments.get("busy_read_us") and not self.has_busy_polling:
            skipped = [{"setting": "busy_read_us", "why": "the kernel has no busy polling"}]
        return {"skipped": skipped}


def _running(**dut: Any) -> Any:
    return SimpleNamespace(
        dut=Agent(**dut),
        generator=Agent(),
        dut_interface="eth1",
        generator_interface="eth1",
        dut_mac="02:00:00:00:00:02",
        generator_mac="02:00:00:00:00:01",
        netperf_cpus=[0, 6],
        netperf_prefix=[],
    )


def _asked(bed: config.Bed) -> dict[str, dict[str, Any]]:
    running = _running()
    prepare.apply_settings(bed, running)
    return {role: getattr(running, role).calls[0][1] for role in ("dut", "generator")}


def test_the_receive_path_is_plain(tmp_path: Path) -> None:
    asked = _asked(_bed(tmp_path))
    plain = {
        "rps": False,
        "rfs": False,
        "threaded": False,
        "napi_defer_hard_irqs": 0,
        "gro_flush_timeout_ns": 0,
        "busy_read_us": 0,
        "busy_poll_us": 0,
    }
    assert asked["dut"].items() >= plain.items()
    assert asked["dut"]["process_cpus"] == [4]
    assert asked["generator"]["process_cpus"] == [0, 6]


def test_a_declared_key_is_asked_of_the_dut_and_shown(tmp_path: Path) -> None:
    """hosts.yaml, the call to the agent and ``harness plan`` have it from the declaration."""
    asked = _asked(_bed(tmp_path))["dut"]
    assert {name: asked[name] for name in KEYED} == {
        name: one.key.default for name, one in KEYED.items() if one.key
    }
    told = "\n".join(plan._changes(_bed(tmp_path), config.Load(), profile("quick")))
    assert all(f"  {one.title}: " in told for one in (*KEYED.values(), *PLAIN.values()))
    assert "  cpufreq governor: performance\n" in told
    assert "  receive packet steering: off\n" in told
    assert "  descriptors in a receive ring: not changed\n" in told
    more = "coalesce: {adaptive_rx: false, rx_usecs: 60}\n    offloads: {gro: false}"
    bed = _bed(tmp_path, more)
    assert _asked(bed)["dut"]["coalesce"] == {"adaptive_rx": False, "rx_usecs": 60}
    assert _asked(bed)["dut"]["offloads"] == {"gro": False}
    told = "\n".join(plan._changes(bed, config.Load(), profile("quick")))
    assert "  moderation: 60 µs, adaptive off\n" in told
    assert "  offloads: gro off" in told


def test_a_setting_that_nobody_declares_is_refused() -> None:
    with pytest.raises(AgentError, match="no setting rx_rings"):
        Settings().apply(interface="lo", rx_rings=512)


def test_what_hosts_yaml_says_otherwise(tmp_path: Path) -> None:
    asked = _asked(_bed(tmp_path, "napi_defer_hard_irqs: 2\n    gro_flush_timeout_ns: 20000"))[
        "dut"
    ]
    assert (asked["napi_defer_hard_irqs"], asked["gro_flush_timeout_ns"]) == (2, 20000)
    asked = _asked(_bed(tmp_path, "gro_flush_timeout_ns: null"))["dut"]
    assert asked["gro_flush_timeout_ns"] is None
    with pytest.raises(ConfigurationError, match="napi_defer_hard_irqs"):
        _bed(tmp_path, "napi_defer_hard_irqs: -1")


@pytest.mark.parametrize("busy_poll", [True, False])
def test_a_latency_trial_polls_and_gives_it_back(tmp_path: Path, busy_poll: bool) -> None:
    running = _running()
    usual = {"coalesce": {"adaptive_rx": False, "rx_usecs": 60}, "busy_read_us": 0}
    cell = Cell(moderation=True, busy_poll=busy_poll)
    round_trips(_bed(tmp_path), running, cell, load=config.Load(), usual=usual, duration_s=1)
    set_ = [made for name, made in running.dut.calls if name == "settings_apply"]
    assert [one["busy_read_us"] for one in set_] == [50 if busy_poll else 0, 0]


def test_a_kernel_without_busy_polling_voids_only_that_cell(tmp_path: Path) -> None:
    usual = {"coalesce": None, "busy_read_us": None}
    running = _running(has_busy_polling=False)
    cell = Cell(moderation=True, busy_poll=False)
    round_trips(_bed(tmp_path), running, cell, load=config.Load(), usual=usual, duration_s=1)
    with pytest.raises(TrialVoidError, match="no busy polling"):
        round_trips(
            _bed(tmp_path),
            running,
            Cell(moderation=True, busy_poll=True),
            load=config.Load(),
            usual=usual,
            duration_s=1,
        )
