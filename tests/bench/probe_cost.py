# SPDX-License-Identifier: MIT
"""What a probe costs in packets/s: none, ours, and bpftrace's one-liner on the same function.

All in one boot of a guest, in turn; what is compared was measured right after each
other. Load and sink are those of :mod:`tests.bench.nic_throughput`: frames from a packet
ring, more than the guest can take, to a socket that nobody reads. A second is one of CPU
time of the vCPU that receives, so that what else runs on this machine counts for less.

The one-liner does what the probe does: it takes the packets of one interface, walks the
list and adds its length to a histogram. The last rows are all probes together, as in a
trace trial and as in a session of ``harness trace``.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from harness.base import process
from harness.base.errors import InfrastructureError
from harness.base.progress import Progress
from harness.beds.access.channel import agent_archive
from harness.beds.local import netns
from harness.beds.virtual import VirtualBed, virtual_bed
from harness.campaign import prepare
from tests.bench import command, ranged, show, spread
from tests.bench.guest import Setup, options, ready
from tests.bench.nic_throughput import Machine, Nic, blaster, sink

TRACEPOINT = "netif_receive_skb"
LISTS = (
    "netif_receive_skb_list",
    "netif_receive_skb_list_internal",
    "__netif_receive_skb_list_core",
    "ip_list_rcv",
    "ip_sublist_rcv",
)
WALK = (
    "fentry:{function} /((struct sk_buff *)args.head->next)->dev->ifindex == {ifindex}/ "
    "{{ $node = args.head->next; $length = 0; "
    "while ($length < 128) {{ if ($node == args.head) {{ break; }} "
    "$node = $node->next; $length++; }} "
    "@lengths = lhist($length, 0, 65, 1); @packets = sum($length); }}"
)
SINGLE = (
    "rawtracepoint:{function} /((struct sk_buff *)arg0)->dev->ifindex == {ifindex}/ "
    "{{ @packets = count(); }}"
)
_RAMP_S = 1.0
_GUEST = Path(__file__).with_name("probe_guest.py")


@dataclass(kw_only=True)
class Probe:
    """What is attached in its turns, and what was measured then: packets/s of CPU time."""

    name: str
    requests: dict[str, list[str]]
    rates: dict[str, list[float]] = field(default_factory=dict)

    def ratios(self, of: str, to: str) -> list[float]:
        return [a / b for a, b in zip(self.rates[of], self.rates[to], strict=True)]

    def cost_ns(self, of: str) -> list[float]:
        """What a packet takes longer than with no probe."""
        return [1e9 / a - 1e9 / b for a, b in zip(self.rates[of], self.rates["none"], strict=True)]


def probes(ifindex: int) -> list[Probe]:
    """Every probe that sees packets under this load, and all of them together."""
    single = [
        Probe(
            name=name,
            requests={
                "none": [],
                "ours": ["ours", name],
                "bpftrace": ["bpftrace", program.format(function=name, ifindex=ifindex)],
            },
        )
        for program, names in ((SINGLE, (TRACEPOINT,)), (WALK, LISTS))
        for name in names
    ]
    together = [
        Probe(name="all, in a trial", requests={"none": [], "ours": ["ours"]}),
        Probe(name="all, in a session", requests={"none": [], "ours": ["session"]}),
    ]
    return single + together


@contextmanager
def guest_side(bed: VirtualBed) -> Iterator[Callable[[list[str]], str]]:
    """What attaches a probe in the guest, instead of the one before."""
    archive = f".cache/receive-batching/{agent_archive()[0]}"
    argv = bed.guest.ssh.argv(
        ["sudo", "python3", "-c", _GUEST.read_text(), archive, bed.dut_interface]
    )
    running = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert running.stdin is not None
    assert running.stdout is not None
    stdin, stdout = running.stdin, running.stdout

    def attach(request: list[str]) -> str:
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        said = stdout.readline().strip()
        if not said or "failed" in said:
            raise InfrastructureError(f"{' '.join(request)}: {said or 'no answer'}")
        return said

    try:
        yield attach
    finally:
        process.end(running)


def cpu_s(thread_id: int) -> float:
    """CPU time that a thread has had."""
    return int(Path(f"/proc/{thread_id}/schedstat").read_text().split()[0]) / 1e9


def rate(at: Machine, nic: Nic, setup: Setup, thread_id: int) -> float:
    """Packets that enter IP in a second of the thread's CPU time."""
    with blaster(at, nic, setup):
        time.sleep(_RAMP_S)
        start, start_s = (
            at.dut.counters(interface=at.interfaces[nic.model]),
            cpu_s(thread_id),
        )
        time.sleep(setup.window_s)
        end, end_s = at.dut.counters(interface=at.interfaces[nic.model]), cpu_s(thread_id)
    received: int = end["snmp"]["Ip"]["InReceives"] - start["snmp"]["Ip"]["InReceives"]
    return received / (end_s - start_s)


def main() -> None:
    chosen = options("probe_cost", __doc__, rounds=6, window_s=3)
    with Progress() as progress, tempfile.TemporaryDirectory(prefix="rb-bench-") as kept:
        made = ready(chosen, progress)
        setup = made.setup
        with virtual_bed(made.bed, made.image, made.equipment, Path(kept)) as running:
            prepare.apply_settings(made.bed, running)
            shown = running.guest.ssh.run(
                ["cat", f"/sys/class/net/{running.dut_interface}/ifindex"]
            )
            every = probes(int(shown.stdout))
            nic = Nic(model="ef10", number=0, sender=running.generator_interface)
            at = Machine(
                dut=running.dut,
                namespace=netns.Namespace(agent=running.generator, mac=running.generator_mac),
                interfaces={nic.model: running.dut_interface},
                drivers={},
            )
            with guest_side(running) as attach, sink(running.guest):
                attach([])
                vcpu = running.guest.vcpu_threads[setup.irq_cpu]
                rate(at, nic, setup, vcpu)
                for number in range(chosen.rounds):
                    with progress.task(f"round {number + 1}/{chosen.rounds}"):
                        for probe in every:
                            turns = list(probe.requests.items())
                            turn = number % len(turns)
                            for name, request in turns[turn:] + turns[:turn]:
                                attach(request)
                                taken = rate(at, nic, setup, vcpu)
                                probe.rates.setdefault(name, []).append(taken)
    rows = []
    for probe in every:
        row = {"probe": probe.name, "none, packets/s": ranged(probe.rates["none"], ",.0f")}
        for name in list(probe.requests)[1:]:
            row[f"{name} ÷ none"] = ranged(probe.ratios(name, "none"), ".3f")
            row[f"{name}, ns a packet"] = ranged(probe.cost_ns(name), ".0f")
        rows.append(row)
    measured = {
        probe.name: {
            name: {
                "pps": spread(rates),
                "ratio": spread(probe.ratios(name, "none")),
                "cost_ns": spread(probe.cost_ns(name)),
            }
            for name, rates in probe.rates.items()
        }
        for probe in every
    }
    show({**made.about(), "probes": measured}, rows, as_json=chosen.json)
    if not chosen.json:
        print(made.footnote())


if __name__ == "__main__":
    command(main)
