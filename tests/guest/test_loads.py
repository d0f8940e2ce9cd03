# SPDX-License-Identifier: MIT
"""Every load with a real netperf, between two network namespaces of this machine: no boot."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness import config, images
from harness.base import namespaces
from harness.base.progress import Progress
from harness.beds.access.channel import RemoteAgent
from harness.campaign import prepare
from harness.plan import PlannedTrial
from harness.trials import load, loads, readings, rules
from harness.trials.counted import Delta
from harness.trials.kind import Conditions
from harness.trials.rules import COMMON

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare"),
    pytest.mark.skipif(
        namespaces.of_users_first(), reason="needs root: a veth to another namespace"
    ),
]

GENERATOR, DUT = "02:00:00:00:00:01", "02:00:00:00:00:02"
LOST = {
    "udp": ("Udp", "InErrors", "ip-conservation"),
    "udp6": ("Udp6", "InErrors", "ip-conservation"),
    "forward": ("Ip", "ForwDatagrams", "forward-conservation"),
    "tcp": ("IpExt", "InOctets", "payload-conservation"),
}
"""By load, the counter that misses packets, and the rule that this breaks."""


class Bed:
    """Two namespaces with an agent each, and a veth between them."""

    up = True
    repeats = False
    netperf_nice, netperf_cpus = 0, [0]
    dut_interface, generator_interface = "end0", "gen0"
    dut_mac, generator_mac = DUT, GENERATOR

    def __init__(self, log: Path, prefix: list[str]) -> None:
        self.netperf_prefix = prefix
        start = ["unshare", "--net", "--kill-child=KILL", "--fork", sys.executable]
        self.generator, self.dut = (
            RemoteAgent([*start, "-m", "harness.agent"], host=host, log=log)
            for host in ("generator", "dut")
        )
        netserver = self.dut.netserver_start
        self.dut.netserver_start = (  # type: ignore[method-assign]
            lambda **about: netserver(command_prefix=prefix, **about)
        )
        for agent in (self.generator, self.dut):
            self.inside(agent, "ip link set lo up")
        made = f"ip link add gen0 address {GENERATOR} type veth peer name end0 address {DUT}"
        self.inside(self.generator, made)
        self.inside(self.generator, f"ip link set end0 netns {self.dut.pid}")

    def inside(self, agent: RemoteAgent, command: str) -> None:
        enter = ["nsenter", f"--target={agent.pid}", "--net", "--"]
        subprocess.run([*enter, *command.split()], check=True, timeout=20)

    def settings(self) -> list[dict[str, Any]]:
        return [
            self.generator.settings_read(interface=self.generator_interface),
            self.dut.settings_read(interface=self.dut_interface),
        ]

    def close(self) -> None:
        self.generator.close()
        self.dut.close()


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    with Progress(bars=False) as progress:
        prefix = images.tools(progress).netperf_prefix()
    made = Bed(tmp_path / "agents.log", prefix)
    yield made
    made.close()


@pytest.mark.parametrize("name", LOST)
def test_a_load_adds_up_until_a_packet_is_lost_and_leaves_nothing(bed: Bed, name: str) -> None:
    hosts = config.with_load(config.load(config.locate(Path("hosts.yaml"))), f"{name},streams=2")
    chosen = config.bed(hosts, "native").model_copy(
        update={"irqbalance": None, "governor": None, "rx_ring": None}
    )
    before = bed.settings()
    prepare.apply_settings(chosen, cast("Any", bed), hosts.load)
    block: Any = SimpleNamespace(bed=chosen, load=hosts.load)
    loaded = load.LoadOnBoot(block, cast("Any", bed))
    loaded.begin()
    loaded.ramp_up()
    assert loaded.void == []
    planned = PlannedTrial("timed", 0, 1.0)
    window = load.window(None)(cast("Any", bed), planned, 60).result()
    load.end_all({cast("Any", bed): loaded})
    made = {"kind": "timed", "index": 0, "window": window, **loaded.shared()}
    conditions = Conditions(
        tolerances={rule: about.tolerances for rule, about in COMMON.items()}, load=name
    )

    def broken() -> dict[str, str]:
        sample = readings.Windowed.model_validate(made)
        found = rules.loaded(sample, sample.window, conditions)
        return {void.rule: void.detail for void in found if "conservation" in void.rule}

    assert broken() == {}
    sample = readings.Windowed.model_validate(made)
    assert sample.window is not None
    delta = Delta(sample.window.start, sample.window.end)
    assert (loads.named(name).delivered(delta) or 0) > 1000
    table, counter, rule = LOST[name]
    after = made["whole"]["after"]
    counted = after["snmp"] | after["netstat"]
    counted[table][counter] -= max(200, (delta.ip_in or 0) // 10) * (1500 if name == "tcp" else 1)
    assert rule in broken()
    assert [agent.settings_restore()["failed"] for agent in (bed.dut, bed.generator)] == [[], []]
    assert bed.settings() == before
