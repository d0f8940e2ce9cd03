# SPDX-License-Identifier: MIT
"""Lists that are split, and packets taken off them, by traffic of which both are known.

Frames are sent while the guest is frozen, so that it finds them as one list.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import config, kernels, tracing
from harness.base import process
from harness.beds.access.channel import agent_archive
from harness.beds.local import netns
from harness.beds.virtual import VirtualBed
from harness.campaign import prepare
from tests.bench.blaster import frame
from tests.guest.conftest import equipped

pytestmark = pytest.mark.guest

SENT = 61
SECOND_ADDRESS = "198.18.0.7"
SEND = """
import socket, sys
line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
line.bind((sys.argv[1], 0))
for frame in sys.stdin.read().split():
    line.send(bytes.fromhex(frame))
"""
BPFTRACE = """
fentry:ip_list_rcv {
    $node = args.head->next;
    $length = 0;
    while ($length < 128) {
        if ($node == args.head) { break; }
        $node = $node->next;
        $length++;
    }
    @lengths[$length] = count();
    @packets = sum($length);
}
interval:ms:100 { printf("up\\n"); }
"""
UNTIL_TOLD = """
import signal, subprocess, sys
running = subprocess.Popen(["bpftrace", "-f", "json", "-e", sys.argv[1]], stdin=subprocess.DEVNULL)
sys.stdin.read()
running.send_signal(signal.SIGINT)
running.wait()
"""
CORE, PTYPE = "__netif_receive_skb_list_core", "__netif_receive_skb_list_ptype"
HOOKS = Path(__file__).with_name("long_packets.py")


@pytest.fixture(scope="module")
def bed(
    built: dict[str, kernels.Image], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[VirtualBed]:
    named = config.bed(config.load(config.locate(None)), "virtual")
    with equipped(built, tmp_path_factory.mktemp("bed")).up() as running:
        prepare.apply_settings(named, running)
        yield running


@pytest.fixture
def to(bed: VirtualBed) -> Callable[..., bytes]:
    """A UDP frame from the generator to an address of the guest."""
    named = config.bed(config.load(config.locate(None)), "virtual")
    source = (bed.generator_mac, str(named.generator.address.ip))

    def made(address: str = str(named.dut.address.ip), *, octets: int = 1) -> bytes:
        return frame(source, (bed.dut_mac, address), 20000, bytes(octets))

    return made


def traced(
    bed: VirtualBed, *kinds: bytes, count: int = SENT, frozen: bool = True
) -> tuple[tracing.Reading, dict[str, tracing.Split]]:
    """What is counted as ``count`` frames, of each of ``kinds`` in turn, come in as one list."""
    wire = netns.Namespace(agent=bed.generator, mac=bed.generator_mac)
    frames = itertools.islice(itertools.cycle(kinds), count)
    tracing.begin(bed.dut, bed.dut_interface)
    before = bed.nic.counters()["rx_delivered"]
    if frozen:
        bed.guest.freeze()
    try:
        subprocess.run(
            wire.command([sys.executable, "-c", SEND, netns.INTERFACE]),
            input="\n".join(each.hex() for each in frames),
            text=True,
            check=True,
        )
        deadline = time.monotonic() + 10
        while frozen and bed.nic.counters()["rx_delivered"] < before + count:
            assert time.monotonic() < deadline, "the NIC has not got all frames"
            time.sleep(0.05)
    finally:
        if frozen:
            bed.guest.thaw()
    for reading in tracing.readings(bed.dut, interval_s=0.5, duration_s=10):
        if reading.packets >= count:
            break
    for last in tracing.readings(bed.dut, interval_s=0.5, duration_s=0.5):
        reading = last
    tracing.end(bed.dut)
    assert reading.packets == count
    assert reading.missed == 0
    core = next(stage for stage in reading.stages if stage.name == CORE)
    assert not frozen or core.lengths[count] == 1, "one list"
    assert core.by_queue == {"0": count}
    return reading, {split.at: split for split in reading.splits}


def packets(reading: tracing.Reading) -> dict[str, int]:
    return {stage.name: stage.packets for stage in reading.stages}


def dropped(reading: tracing.Reading) -> dict[tuple[str, str], int]:
    assert reading.drops is not None
    return {(drop.function, drop.reason): drop.packets for drop in reading.drops}


@contextmanager
def hooked(bed: VirtualBed, *arguments: str) -> Iterator[None]:
    archive = f".cache/receive-batching/{agent_archive()[0]}"
    program = subprocess.Popen(
        bed.guest.ssh.argv(["sudo", "python3", "-c", HOOKS.read_text(), archive, *arguments]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert program.stdout is not None
        assert program.stdout.readline() == "hooked\n"
        yield
        program.communicate(timeout=60)
    finally:
        process.end(program)


def test_one_list_is_split_nowhere(bed: VirtualBed, to: Callable[..., bytes]) -> None:
    reading, splits = traced(bed, to())
    assert set(packets(reading).values()) == {SENT}
    assert set(splits) == {
        "netif_receive_skb_list_internal", CORE, PTYPE, "ip_list_rcv", "ip_sublist_rcv"
    }  # fmt: skip
    for split in splits.values():
        assert (split.lists, split.sublists, split.why, split.taken) == (1, 1, {}, 0), split.at


def test_destinations(bed: VirtualBed, to: Callable[..., bytes]) -> None:
    command = ["sudo", "ip", "address", "add", f"{SECOND_ADDRESS}/32", "dev", bed.dut_interface]
    assert bed.guest.ssh.run(command).returncode == 0
    reading, splits = traced(bed, to(), to(SECOND_ADDRESS))
    found = splits.pop("ip_sublist_rcv")
    assert (found.lists, found.sublists, found.why) == (1, SENT, {"destination": SENT - 1})
    assert {(split.sublists, split.taken) for split in splits.values()} == {(1, 0)}
    finish = next(stage for stage in reading.stages if stage.name == "ip_sublist_rcv_finish")
    assert finish.lengths[1] == finish.packets == SENT


def test_packet_types(bed: VirtualBed, to: Callable[..., bytes]) -> None:
    mac = bytes.fromhex(bed.generator_mac.replace(":", ""))
    elsewhere = bytes([198, 18, 0, 77])
    arp = bytes.fromhex(bed.dut_mac.replace(":", "")) + mac + b"\x08\x06"
    arp += bytes.fromhex("0001080006040002") + mac + elsewhere + mac + elsewhere
    reading, splits = traced(bed, to(), arp.ljust(60, b"\0"))
    assert splits[CORE].sublists == SENT
    assert splits[CORE].why == {"packet type": SENT - 1}
    assert (splits[PTYPE].taken, splits[PTYPE].taken_by) == (SENT // 2, "other packet types")
    assert packets(reading)["ip_list_rcv"] == SENT - SENT // 2
    assert splits["ip_list_rcv"].taken == splits["ip_sublist_rcv"].taken == 0


def test_what_netfilter_drops(bed: VirtualBed, to: Callable[..., bytes]) -> None:
    with hooked(bed, bed.dut_interface):
        reading, splits = traced(bed, to(), to(octets=200), to())
    taken = SENT // 3
    assert splits["ip_sublist_rcv"].taken == taken
    assert splits["ip_sublist_rcv"].why == {}
    assert packets(reading)["ip_sublist_rcv_finish"] == SENT - taken
    found = dropped(reading)
    assert found["nf_hook_slow", "NETFILTER_DROP"] == taken
    assert sum(found.values()) == SENT, "the others have no socket"


def test_what_ip_drops(bed: VirtualBed, to: Callable[..., bytes]) -> None:
    bad = bytearray(to())
    bad[24] ^= 1  # of the IP header's checksum
    reading, splits = traced(bed, to(), to(), bytes(bad))
    taken = SENT // 3
    assert (splits["ip_list_rcv"].taken, splits["ip_list_rcv"].why) == (taken, {})
    assert packets(reading)["ip_sublist_rcv"] == SENT - taken
    assert dropped(reading)["ip_rcv_core", "IP_CSUM"] == taken


def test_devices(bed: VirtualBed, to: Callable[..., bytes]) -> None:
    for line in (
        "ip netns add other",
        "ip link add v0 type veth peer name v1 index 99 netns other",
        "ip link set v0 up",
        "ip -n other link set v1 up",
    ):
        assert bed.guest.ssh.run(["sudo", *line.split()]).returncode == 0, line
    with hooked(bed, bed.dut_interface, "v0"):
        reading, splits = traced(bed, to(), to(octets=200))
    assert packets(reading)["ip_list_rcv"] == SENT
    assert splits["ip_list_rcv"].sublists == SENT
    assert splits["ip_list_rcv"].why == {"device": SENT - 1}
    assert splits["ip_list_rcv"].taken == 0
    assert packets(reading)["ip_sublist_rcv"] == SENT - SENT // 2, "those of this interface"
    assert splits["ip_sublist_rcv"].why == {}


def test_bpftrace_counts_the_same(bed: VirtualBed, to: Callable[..., bytes]) -> None:
    argv = bed.guest.ssh.argv(["sudo", "python3", "-c", UNTIL_TOLD, BPFTRACE])
    running = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert running.stdout is not None
        assert any('"up' in line for line in running.stdout), "bpftrace ended"
        reading, _ = traced(bed, to(), count=997, frozen=False)
        said, _ = running.communicate(timeout=60)
    finally:
        process.end(running)
    maps: dict[str, Any] = {}
    for line in said.splitlines():
        maps |= json.loads(line)["data"] if '"map"' in line else {}
    stage = next(stage for stage in reading.stages if stage.name == "ip_list_rcv")
    assert maps["@packets"] == stage.packets == 997
    ours = {str(length): lists for length, lists in enumerate(stage.lengths) if lists}
    assert maps["@lengths"] == ours
