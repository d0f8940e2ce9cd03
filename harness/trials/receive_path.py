# SPDX-License-Identifier: MIT
"""Whether packets took the path that is measured: rules about CPUs, steering and lists.

An interrupt on the planned CPU does not prove that its packets are processed there. The
counters of a window show on which CPU the stack processed them; a traced trial shows
whether they came in the lists of the step. RFS to the interrupt's own CPU, a packet
socket bound to the interface, a bridge or tc are visible only in a traced trial, so its
findings apply to all trials of the boot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from harness.plan import LIST_STAGES, SINGLY_BEFORE, step_number
from harness.trials import loads
from harness.trials.counted import Delta
from harness.trials.kind import Tolerances, VoidRule
from harness.trials.readings import Trace, Void, Window

LIST_RULE = "list-path"
RULES: Mapping[str, VoidRule] = MappingProxyType(
    {
        LIST_RULE: VoidRule(
            "packets go through the lists of the step, and from step 7 on not through ip_rcv; "
            "shown by a traced trial of the boot, or if it has none, of the step",
            {"share": 0.05, "packets": 64},
        )
    }
)
_TRUTH = "tracepoint_netif_receive_skb"


def softirq_rules(
    window: Window, cpus: Collection[int], tolerances: Tolerances, *, polled: bool = False
) -> Iterator[Void]:
    """The receive softirq must run on the planned ``cpus`` and pass no packet to other CPUs.

    ``polled``: the reading process polls the queue itself, without a softirq.
    """
    delta = Delta(window.start, window.end)
    woken = {cpu: times for cpu, times in delta.received_rps().items() if times}
    if sum(woken.values()) > tolerances["rps-used"]["times"]:
        told = ", ".join(f"CPU {cpu}: {times}" for cpu, times in sorted(woken.items()))
        yield Void(rule="rps-used", detail=f"CPUs were woken for packets of other CPUs: {told}")
    processed, packets = delta.processed(), _packets(delta)
    if not cpus or processed is None or not packets:
        return
    allowed = tolerances["softirq-moved"]
    slack = max(allowed["packets"], allowed["share"] * packets)
    here = sum(processed.get(cpu, 0) for cpu in cpus)
    planned = ", ".join(map(str, sorted(cpus)))
    if packets - here > slack:
        elsewhere = ", ".join(
            f"CPU {cpu}: {count}"
            for cpu, count in sorted(processed.items())
            if count and cpu not in cpus
        )
        yield Void(
            rule="softirq-moved",
            detail=f"{here} of the interface's {packets} packets were processed on CPU {planned}"
            + f"; {elsewhere}" * bool(elsewhere),
        )
        return
    softirqs = delta.net_rx()
    if softirqs and not polled and not any(softirqs.get(str(cpu), 0) > 0 for cpu in cpus):
        yield Void(
            rule="softirq-moved",
            detail=f"CPU {planned} ran no receive softirq: a thread polled its packets",
        )


def _packets(delta: Delta) -> int | None:
    """Packets of the interface; the smaller count, as GRO merges packets before IP."""
    counted = [count for count in (delta.nic_delivered, delta.ip_in) if count is not None]
    return min(counted, default=None)


def list_rules(
    trace: Trace, step: str, tolerances: Tolerances, load: str = "udp"
) -> Iterator[Void]:
    """Packets of ``load`` must go through the lists of ``step``, and one by one before them."""
    if loads.named(load).merged:
        return  # what GRO holds comes up one by one until step 9
    number, seen = step_number(step), trace.per_skb.get(_TRUTH, 0)
    allowed = tolerances[LIST_RULE]
    slack = max(allowed["packets"], allowed["share"] * seen)
    if number is None or seen <= allowed["packets"]:
        return
    told = []
    counted = {stage.name: stage.packets for stage in trace.stages}
    for name, first in LIST_STAGES.items():
        if (
            number >= first
            and name in counted
            and _passes(load, name)
            and seen - counted[name] > slack
        ):
            told.append(f"{counted[name]} of {seen} packets came to {name} in lists")
    singly = None if loads.named(load).unprobed else trace.per_skb.get("ip_rcv")
    if singly is not None and number >= SINGLY_BEFORE and singly > slack:
        told.append(f"{singly} of {seen} packets came to ip_rcv one by one")
    if singly is not None and number < SINGLY_BEFORE and seen - singly > slack:
        told.append(f"{singly} of {seen} packets came to ip_rcv; all should")
    if told:
        yield Void(rule=LIST_RULE, detail="; ".join(told))


def _passes(load: str, stage: str) -> bool:
    """Do packets of ``load`` come to ``stage``?"""
    return not (loads.named(load).unprobed and stage.startswith("ip_"))


def unproven(trace: Trace, step: str, load: str = "udp") -> list[str]:
    """Functions of the list path of ``step`` that were not probed."""
    number = step_number(step)
    if unprobed := loads.named(load).unprobed:
        return list(unprobed)
    if number is None or loads.named(load).merged:
        return []
    counted = {stage.name for stage in trace.stages}
    lacking = [
        name for name, first in LIST_STAGES.items() if number >= first and name not in counted
    ]
    return lacking + ["ip_rcv"] * (number >= SINGLY_BEFORE and "ip_rcv" not in trace.per_skb)
