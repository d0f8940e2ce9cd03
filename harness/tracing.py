# SPDX-License-Identifier: MIT
"""A tracing session: the counts of the probes on a live host, read repeatedly.

Counting does not pause between readings, so the last reading is the exact sum over all
packets since the session began.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from harness.beds.bed import Probes

SCHEMA, VERSION = "receive-batching/trace", 1
TRUTH = "tracepoint_netif_receive_skb"
_ATTACH_S = 240.0
# By the stage that receives the parts of a list: why the list is split (unless by device),
# and what may remove packets before this stage.
_WHY = {
    "__netif_receive_skb_list_core": ("memory reserve", "other CPUs by RPS, timestamping"),
    "__netif_receive_skb_list_ptype": ("packet type", "taps, tc, a bridge or drop"),
    "ip_list_rcv": ("packet type", "other packet types"),
    "ip_sublist_rcv": ("device", "drop"),
    "ip_sublist_rcv_finish": ("destination", "netfilter or drop"),
}


@dataclass(frozen=True, kw_only=True)
class StageCounts:
    """Lists seen at one function since the session began."""

    name: str
    attach: str
    lists: int
    packets: int
    lengths: tuple[int, ...]
    """``lengths[i]`` is the number of lists of exactly ``i`` packets."""
    overflow: int
    """Number of lists longer than the last of ``lengths``."""
    by_cpu: dict[str, int]
    """Packets by CPU."""
    by_queue: dict[str, int]
    """Packets by receive queue; a list counts for the queue of its first packet."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """What happens to the lists of one stage on their way to the next."""

    at: str
    to: str
    lists: int
    sublists: int
    why: dict[str, int]
    """How often a list was split, by the reason."""
    taken: int
    """Packets that did not go on to ``to``."""
    taken_by: str
    """What may have removed them."""


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Packets dropped by one function of the kernel for one reason."""

    function: str
    reason: str
    packets: int


@dataclass(frozen=True, kw_only=True)
class Reading:
    """All counts at one moment."""

    elapsed_s: float
    packets: int
    """Packets that arrived, on any path."""
    pps: float
    """Packets/s since the previous reading."""
    per_skb: dict[str, int]
    """Packets handled one by one, by function."""
    stages: tuple[StageCounts, ...]
    splits: tuple[Split, ...]
    drops: tuple[Drop, ...] | None
    """Drops in lists or after them, most packets first; None: the kernel gives no reasons."""
    missed: int

    def record(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """A function of the receive path, and how it is probed, or why not."""

    name: str
    attach: str | None
    why: str | None


def begin(probes: Probes, interface: str) -> list[Probe]:
    """Attach the probes on their host and count what arrives on ``interface``.

    Raises:
        HarnessError: there is no such interface, or the probes cannot be attached.
    """
    found = probes.trace_watch(interface=interface)
    return [Probe(stage["name"], stage["attach"], stage["why"]) for stage in found["stages"]]


def header(host: str, probes: list[Probe]) -> dict[str, Any]:
    """The record before those of the readings."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "host": host,
        "probes": [asdict(probe) for probe in probes],
    }


def readings(probes: Probes, *, interval_s: float, duration_s: float | None) -> Iterator[Reading]:
    """A reading every ``interval_s`` seconds, for ``duration_s`` seconds or without end."""
    first = last = probes.trace_read()
    while duration_s is None or _elapsed_s(first, last) < duration_s:
        left_s = interval_s if duration_s is None else duration_s - _elapsed_s(first, last)
        time.sleep(min(interval_s, max(0.01, left_s)))
        now = probes.trace_read()
        yield _reading(first, last, now)
        last = now


def end(probes: Probes) -> None:
    """Detach every probe."""
    probes.trace_detach()


def _elapsed_s(first: dict[str, Any], last: dict[str, Any]) -> float:
    return float(last["monotonic_ns"] - first["monotonic_ns"]) / 1e9


def _reading(first: dict[str, Any], last: dict[str, Any], now: dict[str, Any]) -> Reading:
    packets = now["per_skb"][TRUTH]
    return Reading(
        elapsed_s=_elapsed_s(first, now),
        packets=packets,
        pps=(packets - last["per_skb"][TRUTH]) / _elapsed_s(last, now),
        per_skb={
            name: count
            for name, count in now["per_skb"].items()
            if name not in (TRUTH, "ip_list_rcv_packets")
        },
        stages=tuple(
            StageCounts(
                name=stage["name"],
                attach=stage["attach"],
                lists=stage["calls"],
                packets=stage["packets"],
                lengths=tuple(stage["lengths"]),
                overflow=stage["overflow"],
                by_cpu=stage["by_cpu"],
                by_queue=stage["by_queue"],
            )
            for stage in now["stages"]
        ),
        splits=tuple(
            _split(stage, to["name"]) for stage, to in pairwise(now["stages"]) if to["name"] in _WHY
        ),
        drops=None
        if now["drops"] is None
        else tuple(sorted((Drop(**drop) for drop in now["drops"]), key=lambda drop: -drop.packets)),
        missed=now["missed"],
    )


def _split(stage: dict[str, Any], to: str) -> Split:
    reason, taken_by = _WHY[to]
    why = Counter({reason: stage["splits"][0]})
    why["device"] += stage["splits"][1]
    return Split(
        at=stage["name"],
        to=to,
        lists=stage["calls"] - stage["lengths"][0],
        sublists=stage["sublists"],
        why={reason: count for reason, count in why.items() if count},
        taken=stage["packets"] - stage["passed"],
        taken_by=taken_by,
    )
