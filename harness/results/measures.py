# SPDX-License-Identifier: MIT
"""What is measured: titles, units, where it is read, and figures that need no counters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from harness.plan import CELLS, PACED_SHARES, Cell, Extra
from harness.results.samples import Trial, Window


@dataclass(frozen=True)
class Measure:
    """A named quantity, one of :data:`RATES` or :data:`MEASURES`."""

    title: str
    unit: str
    published: float | None = None
    """The difference the series' author expected, in ``unit``."""
    better: Literal["lower", "higher"] = "lower"
    source: str = ""
    """Where it was read."""
    also: Extra | None = None
    """What a campaign has to measure beside the rate for it."""


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
            "kernel time a packet",
            "ns",
            source="/proc/stat: system, irq and softirq time of the interrupt's CPU",
        ),
        "interrupts_per_packet": Measure(
            "interrupts a packet", "interrupts", source="/proc/interrupts of the NIC"
        ),
    }
)
"""What every timed trial tells."""

_PMU_SOURCE = "perf stat on the interrupt's CPU over the timed window, all that ran there"
_PMU: Mapping[str, tuple[str, str, str]] = {
    "cycles_per_packet": ("cycles a packet", "cycles", "cycles"),
    "instructions_per_packet": ("instructions a packet", "instructions", "instructions"),
    "l1i_misses_per_packet": ("L1-icache misses a packet", "misses", "L1-icache-load-misses"),
}
"""Title, unit and event of what the interrupt's CPU counted itself, per packet at IP."""
_ROUND_TRIP = ("mean", "p50", "p90", "p99")
_EXPECTED_US = {Cell(moderation=False, busy_poll=True): 0.16, Cell(True, False): 0.06}
_PACED_SOURCE = "/proc/stat: time in which the interrupt's CPU was not idle"


def paced_measure(share: float | None) -> str:
    """The name of CPU time a packet at ``share`` of what the receiver takes, or at a fixed rate."""
    return f"paced{'' if share is None else round(100 * share)}_cpu_ns_per_packet"


PACED = tuple(paced_measure(share) for share in (None, *PACED_SHARES))
"""All its names."""
MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        paced_measure(None): Measure(
            "CPU time a packet at a paced load", "ns", source=_PACED_SOURCE, also="cpu"
        ),
        **{
            paced_measure(share): Measure(
                f"CPU time a packet at {share:.0%} of the load that saturates",
                "ns",
                source=_PACED_SOURCE,
                also="cpu",
            )
            for share in PACED_SHARES
        },
        **{
            name: Measure(title, unit, source=f"{_PMU_SOURCE}: {event}")
            for name, (title, unit, event) in _PMU.items()
        },
        **{
            f"emulated_{name}": Measure(
                f"{title}, {how}",
                unit,
                source=f"the emulator, on the interrupt's vCPU: {what}",
                also="icache",
            )
            for name, (title, unit, _), how, what in zip(
                ("instructions_per_packet", "l1i_misses_per_packet"),
                [*_PMU.values()][1:],
                ("counted by the emulator", "simulated"),
                ("all that it executed", "32 KiB of 8 ways, least recently used, no prefetch"),
                strict=True,
            )
        },
        "ndr_pps": Measure(
            "highest rate without loss",
            "packets/s",
            better="higher",
            source="packets sent and packets read, from rest to rest",
            also="ndr",
        ),
    }
    | {
        f"rr_{which}_us_{cell.name}": Measure(
            f"round trip, {cell}: {which}",
            "µs",
            _EXPECTED_US.get(cell) if which == "mean" else None,
            source="netperf UDP_RR on the generator",
            also="latency",
        )
        for cell in CELLS
        for which in _ROUND_TRIP
    }
)

ROUND_TRIP_PERCENTILES = tuple(name for name in MEASURES if name.startswith("rr_p"))


def pmu_per_packet(window: Window, packets_per_s: float | None) -> dict[str, float]:
    """What the CPU counted for each packet at IP, by names of :data:`MEASURES`; what is absent
    is left out.
    """
    if window.pmu is None or not packets_per_s:
        return {}
    found = {name: window.pmu.counts.get(event) for name, (_, _, event) in _PMU.items()}
    return {
        name: one.count / one.on_s / packets_per_s
        for name, one in found.items()
        if one is not None and one.on_s > 0
    }


def pmu_absent(window: Window) -> dict[str, str]:
    """Why measures of :func:`pmu_per_packet` are not there, where they were asked for."""
    absent = window.pmu.absent if window.pmu else {}
    return {name: absent[event] for name, (_, _, event) in _PMU.items() if event in absent}


def beside(trial: Trial) -> dict[str, float]:
    """What a trial of latency or of the highest rate found, by names of :data:`MEASURES`."""
    found: dict[str, float] = {}
    if trial.ndr_pps is not None:
        found["ndr_pps"] = trial.ndr_pps
    if trial.cell is not None and trial.round_trips is not None:
        for which in _ROUND_TRIP:
            value = getattr(trial.round_trips, f"{which}_us")
            found[f"rr_{which}_us_{trial.cell.name}"] = value
    return found
