# SPDX-License-Identifier: MIT
"""Rates and costs per packet under an unlimited load; every campaign measures them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from harness.plan import PlannedTrial, Profile
from harness.trials import loads, rules, saturation
from harness.trials.counted import Delta
from harness.trials.kind import Conditions, Kind, Measure, Told
from harness.trials.load import under_load, window
from harness.trials.readings import Void, Window, Windowed

if TYPE_CHECKING:
    from harness.trials.block import Block, MeasuredBoot

RATES: Mapping[str, Measure] = MappingProxyType(
    {
        "nic_rx_pps": Measure(
            "packets taken from the NIC",
            "packets/s",
            better="higher",
            source="ethtool -S: rx_packets of the driver's receive queues; else the link's",
        ),
        "stack_rx_pps": Measure(
            "packets that entered IP",
            "packets/s",
            better="higher",
            source="/proc/net/snmp: Ip InReceives",
        ),
        "delivered_pps": Measure(
            "datagrams read by netserver",
            "packets/s",
            better="higher",
            source="/proc/net/snmp: Udp InDatagrams",
        ),
        "cpu_ns_per_packet": Measure(
            "kernel time per packet",
            "ns",
            source="/proc/stat: system, irq and softirq time of the interrupt's CPU",
        ),
        "interrupts_per_packet": Measure(
            "interrupts per packet", "interrupts", source="/proc/interrupts of the NIC"
        ),
    }
)
"""The measures of every timed trial."""

LOADS_RATES = ("nic_rx_pps", "stack_rx_pps", "delivered_pps")
"""Rates that count only while the kernel is saturated."""

PMU: Mapping[str, tuple[str, str, str]] = {
    "cycles_per_packet": ("cycles per packet", "cycles", "cycles"),
    "instructions_per_packet": ("instructions per packet", "instructions", "instructions"),
    "l1i_misses_per_packet": ("L1-icache misses per packet", "misses", "L1-icache-load-misses"),
}
"""Title, unit and event of what the PMU of the interrupt's CPU counts, per packet at IP."""
_PMU_SOURCE = "perf stat on the interrupt's CPU over the timed window, everything that ran there"


_IDLE = "the generator sent less than it could take"


class TimedTrial(Windowed):
    """A window under the unlimited load, or the warm-up before it."""

    kind: Literal["timed", "warmup"] = "timed"


class Timed(Kind[TimedTrial]):
    """Several trials under one load, side by side in all boots of a block."""

    name = "timed"
    sample = TimedTrial
    measures = {
        **{
            name: Measure(title, unit, source=f"{_PMU_SOURCE}: {event}")
            for name, (title, unit, event) in PMU.items()
        },
        "goodput_mbps": Measure(
            "payload of TCP",
            "Mbit/s",
            better="higher",
            source="/proc/net/netstat: IpExt InOctets, without the headers of IP and TCP",
        ),
    }
    rules = saturation.RULES

    def planned(self, profile: Profile, ordinal: int) -> Iterator[PlannedTrial]:  # noqa: ARG002
        for index in range(profile.warmups):
            yield PlannedTrial("warmup", index, profile.warmup_s)
        for index in range(profile.trials):
            yield PlannedTrial("timed", index, profile.window_s)

    def measure(self, block: Block, planned: Sequence[PlannedTrial]) -> None:
        def sample(
            _: MeasuredBoot, shared: dict[str, Any], told: dict[str, Any] | None
        ) -> TimedTrial:
            return TimedTrial.model_validate(shared | {"window": told})

        with block.side_by_side("trials", planned):
            under_load(block, planned, window(block.bed.placement.irq_cpu), sample)

    def judge(self, sample: TimedTrial, conditions: Conditions) -> Told:
        told = Told(void=windowed(sample, conditions))
        if sample.whole is not None:
            whole = Delta(sample.whole.before, sample.whole.after)
            told.offered_packets, told.drops = whole.offered, rules.drops(whole)
            told.pauses = whole.pauses()
        if sample.window is None:
            return told
        judged = saturation.judge(
            sample.window.start,
            sample.window.end,
            cpus=conditions.irq_cpus,
            holdoff_us=conditions.holdoff_us,
            limits=conditions.tolerances[saturation.RULE],
        )
        told.saturation = judged
        if judged.saturated is False:
            told.rates_void = (Void(rule=saturation.RULE, detail=judged.why),)
        told.values = _rates(sample.window, conditions) | pmu_per_packet(sample.window)
        told.absent = pmu_absent(sample.window)
        own = loads.named(conditions.load).measures(Delta(sample.window.start, sample.window.end))
        idle = judged.idle_share or 0.0
        if idle <= conditions.tolerances[saturation.RULE]["idle_share"]:
            told.values |= own
        else:
            told.absent = {**told.absent, **dict.fromkeys(own, f"the dut's CPU was idle: {_IDLE}")}
        return told


def windowed(
    sample: Windowed, conditions: Conditions, own: Sequence[Void] = ()
) -> tuple[Void, ...]:
    """Why a trial with a window is void."""
    window = sample.window
    return rules.loaded(
        sample, window, conditions, placement=window.placement if window else None, own=own
    )


def _rates(window: Window, conditions: Conditions) -> dict[str, float]:
    delta = Delta(window.start, window.end)
    packets, busy_ns = delta.ip_in, delta.busy_ns(conditions.irq_cpu)
    delivered = loads.named(conditions.load).delivered(delta)
    interrupts = sum(sum(cpus.values()) for cpus in window.placement.irq.values())
    timed = delta.duration_s > 0
    found = {
        "nic_rx_pps": delta.per_second(delta.nic_delivered),
        "stack_rx_pps": delta.ip_pps,
        "delivered_pps": delta.per_second(delivered),
        "cpu_ns_per_packet": busy_ns / packets
        if timed and packets and busy_ns is not None
        else None,
        "interrupts_per_packet": interrupts / packets if packets and window.placement.irq else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def pmu_per_packet(window: Window) -> dict[str, float]:
    """By names of :data:`PMU`, what the CPU counted per packet at IP, without absent events."""
    packets_per_s = Delta(window.start, window.end).ip_pps
    if window.pmu is None or not packets_per_s:
        return {}
    found = {name: window.pmu.counts.get(event) for name, (_, _, event) in PMU.items()}
    return {
        name: one.count / one.on_s / packets_per_s
        for name, one in found.items()
        if one is not None and one.on_s > 0
    }


def pmu_absent(window: Window) -> dict[str, str]:
    """By names of :data:`PMU`, why a requested event is absent."""
    absent = window.pmu.absent if window.pmu else {}
    return {name: absent[event] for name, (_, _, event) in PMU.items() if event in absent}
