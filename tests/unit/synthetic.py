# SPDX-License-Identifier: MIT
"""Campaigns with known effects, written as real result directories."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import trials as kinds
from harness.cells import variant_of
from harness.plan import DESIGN, PlannedBoot, PlannedTrial, Profile, balanced_blocks, boots_of
from harness.results.figures import BootFigures, conditions, recorded_tolerances
from harness.results.rows import Analysis, Row
from harness.results.samples import Boot, Campaign, write_boot, write_campaign
from harness.trials import RATES, kind_of, void_rules_record
from harness.trials.kind import Told

Json = dict[str, Any]


@dataclass
class Flow:
    """Packets of one span of time, split over the places they went to."""

    packets: int
    """That reached the NIC's port."""
    ring: float = 0.1
    delivered: float = 0.02
    """Shares: lost in the ring; read by netserver, of what reached the stack."""
    control: int = 40

    @property
    def taken(self) -> int:
        return self.packets - round(self.packets * self.ring)

    @property
    def read(self) -> int:
        return round(self.taken * self.delivered)


@dataclass
class Host:
    """The counters of one boot; time and traffic move them on."""

    at_ns: int = 10**9
    totals: Json = field(
        default_factory=lambda: {
            "port": 0,
            "ring": 0,
            "taken": 0,
            "read": 0,
            "control": 0,
            "busy_ns": 0,
        }
    )

    def run(self, seconds: float, flow: Flow) -> None:
        self.at_ns += round(seconds * 1e9)
        self.totals["port"] += flow.packets
        self.totals["ring"] += flow.packets - flow.taken
        self.totals["taken"] += flow.taken
        self.totals["read"] += flow.read
        self.totals["control"] += flow.control
        self.totals["busy_ns"] += round(seconds * 9e8)

    def snapshot(self) -> Json:
        t = self.totals
        return {
            "monotonic_ns": self.at_ns,
            "read_ns": 500_000,
            "snmp": {
                "Ip": {"InReceives": t["taken"] + t["control"], "InHdrErrors": 0,
                       "InAddrErrors": 0, "InUnknownProtos": 0, "InDiscards": 0,
                       "InDelivers": t["taken"] + t["control"], "ForwDatagrams": 0},
                "Icmp": {"InMsgs": 0},
                "Tcp": {"InSegs": t["control"]},
                "Udp": {"InDatagrams": t["read"], "NoPorts": 0,
                        "InErrors": t["taken"] - t["read"],
                        "RcvbufErrors": t["taken"] - t["read"], "InCsumErrors": 0,
                        "MemErrors": 0},
            },
            "netstat": {"IpExt": {"InNoRoutes": 0, "InTruncatedPkts": 0},
                        "TcpExt": {"IPReversePathFilter": 0}},
            "softnet": [{"cpu": 0, "processed": t["taken"], "dropped": 0, "time_squeeze": 3,
                         "received_rps": 0}],
            "net_rx": {"0": self.at_ns // 10**7},
            "net_rx_budget": 300,
            "nic": {"port_rx_packets": t["port"], "port_rx_nodesc_drops": t["ring"],
                    "port_rx_bad": 0, "rx_noskb_drops": 0, "rx_nodesc_trunc": 0,
                    "rx-0.rx_packets": t["taken"]},
            "link": {"rx_packets": t["port"], "rx_dropped": t["ring"], "rx_missed_errors": 0,
                     "rx_nohandler": 0, "rx_otherhost_dropped": 0},
            "interrupts": {"30": {"name": "eth1-0", "counts": {"0": self.at_ns // 10**6}}},
            "cpu": [{"cpu": 0, "user_ns": 0, "system_ns": 0, "irq_ns": 0,
                     "softirq_ns": t["busy_ns"], "idle_ns": 0, "steal_ns": 0}],
            "processes": [],
            "udp_sockets": [{"local": "198.18.0.2:40000", "drops": 0, "queued_bytes": 0}],
        }  # fmt: skip


def trial(host: Host, kind: str, index: int, pps: float, window_s: float, step: int) -> Json:
    """One trial at ``pps`` packets a second at IP, between quiet ends."""
    flow = Flow(packets=round(pps * window_s / 0.9))
    ramp = Flow(packets=round(pps / 0.9))
    before = host.snapshot()
    read = host.totals["read"]
    host.run(1.0, ramp)
    start = host.snapshot()
    host.run(window_s, flow)
    end = host.snapshot()
    host.run(1.0, ramp)
    after = host.snapshot()
    received = host.totals["read"] - read
    made: Json = {
        "kind": kind, "index": index, "window": None, "trace": None,
        "whole": {"before": before, "after": after},
        "netperf": [
            {"stream": stream, "status": 0, "stdout": "", "stderr": "",
             "messages_sent": 10**6, "elapsed_s": window_s + 2,
             "messages_received": received // 2 if stream else received - received // 2}
            for stream in range(2)
        ],
        "void": [],
    }  # fmt: skip
    if kind == "trace":
        made["trace"] = {"duration_s": window_s, "start": start, "end": end, "missed": 0,
                         **trace_counts(flow.taken, step)}  # fmt: skip
    else:
        made["window"] = {
            "start": start,
            "end": end,
            "placement": {
                "irq": {"30": {"0": 40}},
                "processes": [{"pid": 99, "name": "netserver", "cpus": {"0": 20},
                               "affinity": [0]}],
            },
            "samples": [],
        }  # fmt: skip
    return made


def trace_counts(packets: int, step: int) -> Json:
    """List lengths and calls as the eight steps make them: most lists 64 long."""
    full, rest = divmod(packets, 64)
    lengths = [0] * 65
    lengths[64] = full
    lengths[rest] += bool(rest)
    stage = {"function": None, "attach": "fentry", "calls": full + bool(rest),
             "packets": packets, "lengths": lengths, "overflow": 0, "min": rest or 64,
             "max": 64 if full else rest}  # fmt: skip
    names = [name for name, first in (("netif_receive_skb_list", 2), ("ip_list_rcv", 7))
             if step >= first]  # fmt: skip
    return {
        "stages": [{"name": name, **stage} for name in names],
        "per_skb": {"tracepoint_netif_receive_skb": packets,
                    "ip_rcv": 3 if step >= 7 else packets,
                    "ip_list_rcv_packets": packets if step >= 7 else 0},
    }  # fmt: skip


def make_campaign(
    root: Path,
    *,
    effects: Mapping[str, float],
    blocks: int,
    noise: Callable[[random.Random], float] = lambda rng: rng.gauss(0, 0.02),
    base_pps: float = 200_000,
    trials: int = 3,
    window_s: float = 4.0,
    trace_blocks: int = 1,
    seed: int = 7,
    edit: Callable[[Json, int, int, str], Json | None] = lambda boot, *_: boot,
    steps: Sequence[str] | None = None,
    slice_s: float = 0.0,
    beds: Mapping[str, Mapping[str, float]] | None = None,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a campaign in which step S runs at ``effects[S]`` times step 0's rate.

    ``noise`` is drawn once a boot, on the logarithm of its rate. ``edit`` may
    change a boot's data or return ``None``, as if it had never been finished.
    ``beds`` get blocks in turn; each says how fast its steps are beside ``effects``.
    ``about`` replaces keys of ``campaign.json``.
    """
    rng = random.Random(seed)
    steps = list(steps or effects)
    order = balanced_blocks(steps, blocks, seed=seed)
    block_beds = list(itertools.islice(itertools.cycle(beds), blocks)) if beds else []
    write_campaign(
        root,
        Campaign.model_validate({
            "id": "synthetic", "created": "2026-01-02T03:04:05Z", "profile": "standard",
            "design": DESIGN, "seed": seed, **_bed_facts(block_beds),
            "steps": steps, "blocks": blocks, "order": [list(row) for row in order],
            "trial": {"warmups": 1, "trials": trials, "warmup_s": 1.0, "window_s": window_s,
                      "trace_s": 2.0, "trace_blocks": trace_blocks, "slice_s": slice_s},
            "load": {"streams": 2, "message_bytes": 1},
            "placement": {"irq_cpu": 0, "netserver_cpu": "same"},
            "variants": {step: {"release": f"6.12.0-rb-s{step}", "source": "linux-6.12",
                                "patches": [f"patch {n}" for n in range(1, _number(step) + 1)]}
                         for step in steps},
            "provenance": {"void_rules": void_rules_record()},
            **(about or {}),
        }),
    )  # fmt: skip
    for planned in boots_of(order):
        host = Host()
        bed = block_beds[planned.block - 1] if block_beds else None
        own = (beds or {}).get(bed or "", {}).get(planned.step, 1.0)
        pps = base_pps * effects[planned.step] * own * 2.718281828 ** noise(rng)
        step = _number(planned.step)
        made = [trial(host, "warmup", 0, pps / 2, 1.0, step)]
        made += [
            trial(host, "timed", n, pps * (1 + rng.gauss(0, 0.005)), window_s, step)
            for n in range(trials)
        ]
        if planned.block <= trace_blocks:
            made.append(trial(host, "trace", 0, pps * 0.7, 2.0, step))
        boot = edit(
            {
                "block": planned.block, "position": planned.position, "step": planned.step,
                "release": f"6.12.0-rb-s{planned.step}", "outcome": "ok", "error": None,
                "bed": bed, "turns": f"block {planned.block}" if slice_s else None,
                "trials": made,
            },
            planned.block, planned.position, planned.step,
        )  # fmt: skip
        if boot is not None:
            write_boot(root, Boot.model_validate(boot))
    return root


def _bed_facts(block_beds: list[str]) -> Json:
    if not block_beds:
        return {"bed": "virtual", "bed_kind": "virtual", "accelerator": "tcg"}
    named = "+".join(dict.fromkeys(block_beds))
    return {"bed": named, "bed_kind": "hardware", "block_beds": block_beds}


def _number(cell: str) -> int:
    step = variant_of(cell)
    return int(step) if step.isdigit() else int("".join(c for c in step if c.isdigit()) or 0)


def trials_of(profile: Profile, ordinal: int) -> list[PlannedTrial]:
    """The trials of a boot in that block of its bed, as they are measured."""
    return [trial for _, trials in kinds.planned(profile, ordinal) for trial in trials]


def judged(made: dict[str, Any], campaign: Campaign, *, holdoff_us: float = 0.0) -> Told:
    """What one trial of ``campaign`` tells, as its file has it."""
    boot = Boot.model_validate(
        {
            "block": 1,
            "position": 1,
            "step": "0",
            "outcome": "ok",
            "trials": [made],
            "settings": {"dut": {"after": {"coalesce": {"rx_usecs": holdoff_us}}}},
        }
    )
    [sample] = boot.trials
    planned = conditions(campaign, boot, recorded_tolerances(campaign))
    return kind_of(sample).judge(sample, planned)


def analysed(*rows: Row) -> Analysis:
    """What is known of a complete campaign of ``rows`` that nobody measured."""
    steps = [row.step for row in rows]
    return Analysis(
        campaign=Campaign(
            id="synthetic", created="2026-01-02T03:04:05Z", profile="standard", seed=7,
            bed="virtual", bed_kind="virtual", steps=steps, blocks=0, order=[],
        ),
        rows=rows, absent={}, void=(), problems=(), notes=(), boots_done=0, boots_planned=0,
        settings={}, settings_varied=(), inventory={},
    )  # fmt: skip


def row_of(step: str, boots: Sequence[Mapping[str, float]], **figures: Any) -> Row:
    """A step, each of whose ``boots`` has one timed trial of these rates; they took turns."""
    usual: Json = {
        "title": None, "release": None, "rates": dict.fromkeys(RATES), "beds": (), "change": None,
        "verdict": None, "stages": (), "ip_rcv_per_packet": None, "traced_pps": None,
        "trace_missed": 0, "drop_shares": {}, "drop_packets": {}, "void_trials": 0,
        "measures": {}, "functions": {},
    }  # fmt: skip
    measured = tuple(
        BootFigures(
            boot=PlannedBoot(block, 1, step), bed=None, release=None, turns="t",
            rates=dict(rates), trials={0: dict(rates)}, drops={}, offered=0,
        )
        for block, rates in enumerate(boots, start=1)
    )  # fmt: skip
    return Row(step=step, measured=measured, **usual | figures)
