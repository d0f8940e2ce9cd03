# SPDX-License-Identifier: MIT
"""A tracing session: what the probes count on a live host, read again and again.

Counting never pauses between two readings, so the last one is the exact sum of all
packets since the session began.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from harness.hosts.channel import Agent

TRUTH = "tracepoint_netif_receive_skb"
_ATTACH_S = 240.0


@dataclass(frozen=True, kw_only=True)
class StageCounts:
    """Lists seen at one function since the session began."""

    name: str
    attach: str
    lists: int
    packets: int
    lengths: tuple[int, ...]
    """``lengths[i]``: how many lists of exactly ``i`` packets."""
    overflow: int
    """Lists longer than the last of ``lengths``."""
    by_cpu: dict[str, int]
    """Packets, by CPU."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """All counts at one moment."""

    elapsed_s: float
    packets: int
    """Packets that came in, whatever their way up."""
    pps: float
    """The same a second, since the reading before."""
    per_skb: dict[str, int]
    """Packets handled one by one, by function."""
    stages: tuple[StageCounts, ...]
    missed: int

    def record(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return asdict(self)


@dataclass(frozen=True)
class Probe:
    """A function of the receive path: how it is probed, or why it is not."""

    name: str
    attach: str | None
    why: str | None


def begin(agent: Agent, interface: str) -> list[Probe]:
    """Attach the probes on ``agent``'s host and count what arrives on ``interface``.

    Raises:
        HarnessError: there is no such interface, or the probes cannot be attached.
    """
    found = agent.call("trace_watch", interface=interface, within_s=_ATTACH_S)
    return [Probe(stage["name"], stage["attach"], stage["why"]) for stage in found["stages"]]


def readings(agent: Agent, *, interval_s: float, duration_s: float | None) -> Iterator[Reading]:
    """A reading every ``interval_s`` seconds, for ever or until ``duration_s`` are over."""
    first = last = agent.call("trace_read")
    while duration_s is None or _elapsed_s(first, last) < duration_s:
        left_s = interval_s if duration_s is None else duration_s - _elapsed_s(first, last)
        time.sleep(min(interval_s, max(0.01, left_s)))
        now = agent.call("trace_read")
        yield _reading(first, last, now)
        last = now


def end(agent: Agent) -> None:
    """Detach every probe."""
    agent.call("trace_detach", within_s=60)


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
            )
            for stage in now["stages"]
        ),
        missed=now["missed"],
    )
