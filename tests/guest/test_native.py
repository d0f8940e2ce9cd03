# SPDX-License-Identifier: MIT
"""The native bed: the sfc driver in a user-mode kernel, on the NIC model."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from harness import config, kernels
from harness.agent.counters import pmu
from harness.agent.protocol import Calls
from harness.base.errors import ConfigurationError, InfrastructureError, KernelError
from harness.base.progress import Progress
from harness.beds import native
from harness.campaign import prepare
from harness.plan import PlannedTrial
from harness.trials import load, readings, rules
from harness.trials.kind import Conditions
from harness.trials.load import start_load
from harness.trials.rules import COMMON

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(
        not all(map(shutil.which, ("gcc", "make", "pahole", "unshare"))),
        reason="needs gcc, make, pahole and unshare",
    ),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs"),
]


@pytest.fixture(scope="module")
def hosts() -> config.HostsFile:
    return config.load(config.locate(None))


@pytest.fixture(scope="module")
def image(hosts: config.HostsFile) -> kernels.Image:
    with Progress() as progress:
        return kernels.Kernels(kernel=hosts.kernel, names=["8"], arch="um").build(progress)["8"][0]


@pytest.fixture(scope="module")
def equipment() -> native.Equipment:
    with Progress() as progress:
        return native.equipment(progress)


@pytest.fixture
def bed(
    hosts: config.HostsFile, image: kernels.Image, equipment: native.Equipment, tmp_path: Path
) -> Iterator[native.NativeBed]:
    with native.native_bed(config.bed(hosts, "native"), image, equipment, tmp_path) as up:
        yield up


def test_a_kernel_receives_what_netperf_sends(
    hosts: config.HostsFile, bed: native.NativeBed, image: kernels.Image
) -> None:
    assert bed.dut.ready["release"] == image.release
    chosen = config.bed(hosts, "native")
    set_up = prepare.apply_settings(chosen, bed)
    assert str(chosen.dut.address) in set_up["dut"]["after"]["addresses"]
    before = bed.dut.counters(interface=bed.dut_interface)
    start_load(chosen, hosts.load, bed)
    deadline = time.monotonic() + 60
    received = 0
    while received < 100_000 and time.monotonic() < deadline:
        time.sleep(0.5)
        after = bed.dut.counters(interface=bed.dut_interface)
        received = after["snmp"]["Ip"]["InReceives"] - before["snmp"]["Ip"]["InReceives"]
    assert received > 100_000
    assert 0 < after["kernel_cpu_ns"] - before["kernel_cpu_ns"] < 60e9
    readings.Snapshot.model_validate(after)
    counted = bed.nic_counters()
    assert counted["rx_delivered"] > 100_000
    bed.generator.netperf_end()
    assert "id 0 is not a head" not in bed.console()


@pytest.mark.skipif(shutil.which("perf") is None, reason="needs perf")
def test_perf_counts_what_the_process_executes(
    hosts: config.HostsFile,
    bed: native.NativeBed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pmu, "EVENTS", ("task-clock",))  # of software, for machines without a PMU
    (tmp_path / "pmus/cpu").mkdir(parents=True)
    monkeypatch.setattr(pmu, "_PMUS", tmp_path / "pmus")
    chosen = config.bed(hosts, "native")
    prepare.apply_settings(chosen, bed)
    start_load(chosen, hosts.load, bed)
    time.sleep(1.0)
    planned = PlannedTrial("timed", 0, 1.0)
    window = readings.Window.model_validate(load.window(0)(bed, planned, 60).result())
    assert window.pmu is not None
    assert window.start.kernel_cpu_ns is not None
    assert window.end.kernel_cpu_ns is not None
    spent_s = (window.end.kernel_cpu_ns - window.start.kernel_cpu_ns) / 1e9
    # It counts from before the call until after its answer.
    assert 0.95 * spent_s < window.pmu.counts["task-clock"].on_s < spent_s + 2
    again = bed.dut.begin(Calls.window, 60, interface=bed.dut_interface, duration_s=0.1)
    assert again.result()["start"]


def test_a_frozen_kernel_sees_no_time_pass(bed: native.NativeBed) -> None:
    def now_s() -> float:
        counters = bed.dut.counters(interface=bed.dut_interface)
        return float(counters["monotonic_ns"]) / 1e9

    before_s = now_s()
    began_s = time.monotonic()
    for _ in range(20):
        bed.freeze()
        time.sleep(0.1)
        bed.thaw()
    stood_s = 2.0
    passed_s = now_s() - before_s
    assert 0 <= passed_s <= time.monotonic() - began_s - stood_s + 0.05


def test_a_call_may_be_longer_than_the_buffer_of_the_line(bed: native.NativeBed) -> None:
    with pytest.raises(ConfigurationError, match="no interface"):
        bed.dut.inventory(interface="x" * 20_000)
    assert bed.dut.inventory(interface=bed.dut_interface)["interface"] == bed.dut_interface


def descendants() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.mark.parametrize("victim", ["kernel", "model"])
def test_nothing_is_left_of_what_is_killed(
    hosts: config.HostsFile,
    image: kernels.Image,
    equipment: native.Equipment,
    tmp_path: Path,
    victim: str,
) -> None:
    before = descendants()
    chosen = config.bed(hosts, "native")
    with (
        pytest.raises(InfrastructureError),
        native.native_bed(chosen, image, equipment, tmp_path) as up,
    ):
        killed = up.kernel.pid_here if victim == "kernel" else up.nic.process.pid
        os.kill(killed, signal.SIGKILL)
        up.dut.inventory(interface=up.dut_interface)
    time.sleep(0.5)
    assert descendants() <= before


def test_a_panic_is_the_kernels_own(bed: native.NativeBed) -> None:
    os.kill(bed.kernel.pid_here, signal.SIGSEGV)
    with pytest.raises(KernelError):
        bed.dut.inventory(interface=bed.dut_interface)


class _Up:
    up = True


@pytest.mark.parametrize("name", ["udp6", "forward"])
def test_another_load_adds_up_until_a_packet_is_lost(
    hosts: config.HostsFile, bed: native.NativeBed, name: str
) -> None:
    chosen, sent = config.bed(hosts, "native"), config.with_load(hosts, name).load
    prepare.apply_settings(chosen, bed, sent)
    block: Any = SimpleNamespace(bed=chosen, load=sent)
    loaded = load.LoadOnBoot(block, bed)
    loaded.begin()
    loaded.ramp_up()
    assert loaded.void == []
    load.end_all({cast("Any", _Up()): loaded})
    made = loaded.shared()
    conditions = Conditions(tolerances={n: r.tolerances for n, r in COMMON.items()}, load=name)

    def broken() -> set[str]:
        sample = readings.Loaded.model_validate({"kind": "timed", "index": 0, **made})
        return {void.rule for void in rules.loaded(sample, None, conditions)}

    assert broken() == {"counters-missing"}, "there is no window"
    after = made["whole"]["after"]["snmp"]
    table, counter, rule = {
        "udp6": ("Udp6", "InErrors", "ip-conservation"),
        "forward": ("Ip", "ForwDatagrams", "forward-conservation"),
    }[name]
    lost = after[table][counter] // 100
    assert lost > 100
    after[table][counter] -= lost
    assert rule in broken()
    put_back = [agent.settings_restore() for agent in (bed.dut, bed.generator)]
    assert [one["failed"] for one in put_back] == [[], []]
