# SPDX-License-Identifier: MIT
"""Lists of a user-mode kernel, counted by the probes in its process, at its own speed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import yaml

from harness import config, kernels, tracing
from harness.base.progress import Progress
from harness.base.resources import shipped
from harness.beds import native
from harness.beds.local import netns
from harness.campaign import prepare
from tests.guest.conftest import harness
from tests.guest.test_tracing import SEND

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(
        not all(map(shutil.which, ("gcc", "make", "objdump", "pahole", "unshare"))),
        reason="needs gcc, make, objdump, pahole and unshare",
    ),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs"),
]

Up = Callable[[str], AbstractContextManager[native.NativeBed]]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> config.HostsFile:
    """The shipped ones, with a wire that delivers each frame once."""
    data = yaml.safe_load(shipped("hosts.yaml").read_text())
    data["hosts"]["process"]["wire"] = {"repeat": 1}
    path = tmp_path_factory.mktemp("hosts") / "hosts.yaml"
    path.write_text(yaml.safe_dump(data))
    return config.load(path)


@pytest.fixture(scope="module")
def up(hosts: config.HostsFile, tmp_path_factory: pytest.TempPathFactory) -> Up:
    with Progress() as progress:
        made = kernels.Kernels(kernel=hosts.kernel, names=["0", "8"], arch="um").build(progress)
        images = {step: layouts[0] for step, layouts in made.items()}
        equipment = native.equipment(progress)

    @contextmanager
    def boot(step: str) -> Iterator[native.NativeBed]:
        chosen = config.bed(hosts, "native")
        directory = tmp_path_factory.mktemp("boot")
        with native.native_bed(chosen, images[step], equipment, directory) as running:
            prepare.apply_settings(chosen, running)
            yield running

    return boot


def send(bed: native.NativeBed, to: str, packets: int) -> None:
    wire = netns.Namespace(agent=bed.generator, mac=bed.generator_mac)
    subprocess.run(wire.command([sys.executable, "-c", SEND, to, str(packets)]), check=True)


@pytest.mark.parametrize("step", ["0", "8"])
def test_every_packet_is_counted_at_every_stage(up: Up, hosts: config.HostsFile, step: str) -> None:
    to = str(config.bed(hosts, "native").dut.address.ip)
    with up(step) as bed:
        for packets in (23, 997):
            pending = bed.trace(2.0, 60)
            send(bed, to, packets)
            told = pending.result()
            received = [told[edge]["snmp"]["Ip"]["InReceives"] for edge in ("start", "end")]
            assert received[1] - received[0] == packets
            assert told["per_skb"]["tracepoint_netif_receive_skb"] == packets
            assert told["per_skb"]["ip_rcv"] == (packets if step == "0" else 0)
            for stage in told["stages"]:
                assert stage["packets"] == packets, stage["name"]
                assert sum(n * lists for n, lists in enumerate(stage["lengths"])) == packets
            assert bool(told["stages"]) == (step == "8")


def test_a_session_sees_splits_and_drops(up: Up, hosts: config.HostsFile) -> None:
    to, sent = str(config.bed(hosts, "native").dut.address.ip), 0
    with up("8") as bed:
        tracing.begin(bed.probes, bed.dut_interface)
        for packets in (23, 997):
            send(bed, to, packets)
            sent += packets
            for reading in tracing.readings(bed.probes, interval_s=0.2, duration_s=5):
                if reading.packets >= sent:
                    break
            assert (reading.packets, reading.per_skb) == (sent, {"ip_rcv": 0})
            assert {stage.packets for stage in reading.stages} == {sent}
            assert len(reading.stages) == 7
            # To port 9 of the dut, where nobody listens.
            [drop] = [one for one in reading.drops or () if one.reason == "NO_SOCKET"]
            assert drop.packets == sent
            assert {split.taken for split in reading.splits} == {0}
        tracing.end(bed.probes)


def test_harness_trace_watches_a_native_bed() -> None:
    done = harness("trace", "process", "--duration", "2", "--json", timeout_s=600)
    assert done.returncode == 0
    header, *readings = map(json.loads, done.stdout.splitlines())
    assert {probe["attach"] for probe in header["probes"]} == {"detour"}
    stages = {stage["name"]: stage for stage in readings[-1]["stages"]}
    assert stages["ip_list_rcv"]["lengths"][64] > 1000
    assert readings[-1]["per_skb"] == {"ip_rcv": 0}
