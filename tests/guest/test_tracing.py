# SPDX-License-Identifier: MIT
"""Tracing sessions on a live guest: as part of a bed, and as a machine reached by ssh alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import config, tracing
from harness.beds.local import netns
from harness.beds.virtual import VirtualBed
from harness.campaign import prepare
from tests.guest.conftest import Beds

pytestmark = pytest.mark.guest

SEND = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[2])):
    sender.sendto(b"x", (sys.argv[1], 9))
"""
ATTACHED = "cat /proc/[0-9]*/fdinfo/* 2>/dev/null | grep -c ^link_type || true"


@pytest.fixture(scope="module")
def bed_config() -> config.Bed:
    return config.bed(config.load(config.locate(None)), "virtual")


@pytest.fixture
def bed(beds: Beds, bed_config: config.Bed) -> Iterator[VirtualBed]:
    with beds.up() as running:
        prepare.apply_settings(bed_config, running)
        yield running


def send(bed: VirtualBed, to: str, packets: int) -> None:
    wire = netns.Namespace(agent=bed.generator, mac=bed.generator_mac)
    subprocess.run(wire.command([sys.executable, "-c", SEND, to, str(packets)]), check=True)


def attached(bed: VirtualBed) -> str:
    """How many attachments of BPF programs processes of the guest hold."""
    said: bytes = bed.guest.ssh.run(["sudo", "sh", "-c", ATTACHED]).stdout
    return said.decode().strip()


def test_every_packet_is_counted_at_every_stage(bed: VirtualBed, bed_config: config.Bed) -> None:
    to, sent = str(bed_config.dut.address.ip), 0
    before = attached(bed)
    probes = tracing.begin(bed.dut, bed.dut_interface)
    assert {probe.name: probe.attach for probe in probes}["ip_list_rcv"] == "fentry"
    assert attached(bed) != before
    reading = None
    for packets in (23, 997):
        send(bed, to, packets)
        sent += packets
        for reading in tracing.readings(bed.dut, interval_s=0.5, duration_s=5):
            if reading.packets >= sent:
                break
        assert reading is not None
        stages = {stage.name: stage for stage in reading.stages}
        assert reading.packets == sent
        assert reading.missed == 0
        assert reading.per_skb == {"ip_rcv": 0}
        for stage in stages.values():
            assert stage.packets == sent, stage.name
            assert sum(stage.by_cpu.values()) == sent
            counted = sum(length * lists for length, lists in enumerate(stage.lengths))
            assert counted == sent
    tracing.end(bed.dut)
    assert attached(bed) == before


def test_a_machine_is_traced_as_it_is(
    bed: VirtualBed, bed_config: config.Bed, tmp_path: Path
) -> None:
    ssh = bed.guest.ssh
    hosts = tmp_path / "hosts.yaml"
    hosts.write_text(f"""\
version: 1
default_bed: rack
beds: {{rack: {{dut: rx, generator: tx}}}}
hosts:
  rx: {{kind: ssh, hostname: {ssh.hostname}, port: {ssh.port}, user: {ssh.user},
       known_hosts: {ssh.known_hosts}, interface: {bed.dut_interface}, address: 198.18.1.2/24}}
  tx: {{kind: ssh, hostname: elsewhere, interface: eth0, address: 198.18.1.1/24}}
""")
    before = attached(bed)
    with ssh_agent(ssh.key) as environment:
        session = subprocess.Popen(
            [sys.executable, "-m", "harness", "trace", "rx", "--json", "--interval", "0.5",
             "--hosts", str(hosts)],
            env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert session.stdout is not None
        header = json.loads(session.stdout.readline())
        assert (header["schema"], header["version"]) == ("receive-batching/trace", 1)
        assert {probe["attach"] for probe in header["probes"]} <= {
            "fentry",
            "kprobe",
            "tracepoint",
            None,
        }
        send(bed, str(bed_config.dut.address.ip), 997)
        deadline = time.monotonic() + 30
        reading = {"packets": 0}
        while reading["packets"] < 997 and time.monotonic() < deadline:
            reading = json.loads(session.stdout.readline())
        assert attached(bed) != before
        session.send_signal(signal.SIGINT)
        session.communicate(timeout=60)
    assert reading["packets"] == 997
    assert session.returncode == 0
    assert attached(bed) == before


class ssh_agent:  # noqa: N801 - used as a function
    """An ssh-agent that holds one key, as an operator's would; gives the environment."""

    def __init__(self, key: Path | None) -> None:
        self._key = key

    def __enter__(self) -> dict[str, str]:
        said = subprocess.run(["ssh-agent", "-s"], check=True, capture_output=True, text=True)
        found = dict(re.findall(r"(SSH_\w+)=([^;]+);", said.stdout))
        self._pid = int(found["SSH_AGENT_PID"])
        environment = os.environ | found
        subprocess.run(["ssh-add", "-q", str(self._key)], check=True, env=environment)
        return environment

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGTERM)
