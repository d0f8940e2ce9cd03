# SPDX-License-Identifier: MIT
"""Whether a receiver was saturated between two readings of its counters.

The kernel limits a rate only while more packets arrive than it can take; otherwise the
load limits it. The number of interrupts does not show this: with moderation there is at
most one per hold-off time, whatever the load. So three conditions must hold, all read on
the receiver:

1. The interrupt's CPU was not idle (``/proc/stat``). Time stolen by a hypervisor does not
   count, and for a guest that is stopped with its clock no time passes.
2. The receive queue was hardly ever empty. After each interrupt, polling continues until
   it is empty; then nothing is received until the hold-off ends or a packet arrives.
3. Work was left over: softirqs ended with their budget used up (``time_squeeze``), the
   NIC's ring or a CPU's backlog overflowed, or the port asked the sender to pause.

Conditions 2 and 3 are needed if a reader on the same CPU uses all the time that the
receive path leaves, because that CPU is never idle. Old results without CPU times are
judged only by interrupts per packet, which :attr:`Saturation.by` records.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from harness.trials.counted import Delta
from harness.trials.kind import VoidRule
from harness.trials.readings import Snapshot

RULE = "unsaturated"
RULES: Mapping[str, VoidRule] = MappingProxyType(
    {
        RULE: VoidRule(
            "the receiver is saturated (else only rates are void, as the load limits them): the "
            "CPU of the interrupt is not idle, its queue hardly ever empty, and work is left over",
            {
                "idle_share": 0.05,
                "waiting_share": 0.05,
                "squeezed_share": 0.5,
                "drop_share": 0.001,
                # Per packet; for results without CPU times.
                "interrupts": 1 / 2000,
            },
        )
    }
)
LIMITS = RULES[RULE].tolerances
_USUAL_BUDGET = 300


@dataclass(frozen=True, kw_only=True)
class Saturation:
    """The judgement and the figures it is based on; ``None``: a counter is missing."""

    saturated: bool | None
    by: Literal["cpu", "interrupts"] | None
    """What it was judged by: CPU time, or interrupts per packet if that was not read."""
    why: str
    """One line for a report."""
    cpu: int | None = None
    idle_share: float | None = None
    """Share of the CPU's time in which it was idle."""
    waiting_share: float | None = None
    """Upper bound of the share of time in which the receive queue was empty."""
    squeezed_share: float | None = None
    """Share of packets processed in softirqs that ended with work left over."""
    drop_share: float = 0.0
    """Share of packets at the NIC that were dropped because its ring was full, or a CPU's
    backlog, which drivers without NAPI use."""
    pauses_sent: int = 0


def judge(
    before: Snapshot,
    after: Snapshot,
    *,
    cpus: Collection[int] = (),
    holdoff_us: float = 0.0,
    limits: Mapping[str, float] = LIMITS,
) -> Saturation:
    """Was the host saturated from ``before`` to ``after``, two answers of the agent's ``counters``?

    ``cpus`` are those planned for the interrupts; if empty, the CPU with most packets is used.
    ``holdoff_us`` is the interrupt moderation in force (``rx_usecs``). ``limits`` are the
    tolerances of the rule ``unsaturated``, by default today's.
    """
    delta = Delta(before, after)
    packets = delta.ip_in or 0
    if packets <= 0 or delta.duration_s <= 0:
        return Saturation(saturated=None, by=None, why="no packets were counted")
    shares = {cpu: delta.idle_share(cpu) for cpu in cpus or _busiest(delta)}
    known = {cpu: share for cpu, share in shares.items() if share is not None}
    if not known:
        return _by_interrupts(delta, packets, limits)
    cpu = max(known, key=lambda one: known[one])
    found = Saturation(
        saturated=True,
        by="cpu",
        why="",
        cpu=cpu,
        idle_share=known[cpu],
        waiting_share=_waiting(delta, packets, holdoff_us),
        squeezed_share=_squeezed(delta, known),
        drop_share=_dropped(delta, packets),
        pauses_sent=delta.pauses()["sent"],
    )
    return _judged(found, limits)


def _judged(found: Saturation, limits: Mapping[str, float]) -> Saturation:
    lacking = []
    if (found.idle_share or 0.0) > limits["idle_share"]:
        lacking.append(f"CPU {found.cpu} was idle for {found.idle_share:.1%}")
    if (found.waiting_share or 0.0) > limits["waiting_share"]:
        lacking.append(f"its queue was empty for up to {found.waiting_share:.1%}")
    left_over = (
        found.drop_share > limits["drop_share"]
        or found.pauses_sent > 0
        or (found.squeezed_share is None or found.squeezed_share >= limits["squeezed_share"])
    )
    if not left_over:
        lacking.append(
            f"softirqs left no work over (only {found.squeezed_share:.0%} of packets were in "
            "softirqs that did) and no full ring or backlog dropped packets"
        )
    why = "; ".join(lacking) or f"CPU {found.cpu} was idle for {found.idle_share:.1%}"
    return replace(found, saturated=not lacking, why=why)


def _by_interrupts(delta: Delta, packets: int, limits: Mapping[str, float]) -> Saturation:
    interrupts = delta.interrupts()
    if interrupts is None:
        return Saturation(saturated=None, by=None, why="neither CPU times nor interrupts were read")
    told = (
        f"one interrupt in {packets / interrupts:,.0f} packets" if interrupts else "no interrupts"
    )
    return Saturation(
        saturated=interrupts / packets <= limits["interrupts"],
        by="interrupts",
        why=f"{told} (CPU times were not read)",
    )


def _busiest(delta: Delta) -> list[int]:
    processed = delta.processed() or {}
    return [max(processed, key=lambda cpu: processed[cpu])] if any(processed.values()) else []


def _waiting(delta: Delta, packets: int, holdoff_us: float) -> float | None:
    """Before each interrupt the queue was empty for a hold-off, or for the time of a packet."""
    interrupts = delta.interrupts()
    if interrupts is None:
        return None
    queues = max(1, sum(frames > 0 for frames in delta.queues.values()))
    packet_s = queues * delta.duration_s / packets
    return max(0, interrupts) * max(holdoff_us / 1e6, packet_s) / queues / delta.duration_s


def _squeezed(delta: Delta, cpus: Collection[int]) -> float | None:
    processed = delta.processed() or {}
    taken = sum(processed.get(cpu, 0) for cpu in cpus)
    squeezes = [delta.squeezes(cpu) for cpu in cpus]
    known = [count for count in squeezes if count is not None]
    if not taken or not known:
        return None
    budget = delta.after.net_rx_budget or _USUAL_BUDGET
    return min(1.0, sum(known) * budget / taken)


def _dropped(delta: Delta, packets: int) -> float:
    lost = max(0, delta.nic_ring_drops()) + max(0, delta.softnet_dropped)
    return lost / (packets + lost)
