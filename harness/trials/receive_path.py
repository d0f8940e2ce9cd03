# SPDX-License-Identifier: MIT
"""Whether packets went the way that is measured: rules about CPUs, steering and lists.

That an interrupt arrives on the planned CPU says nothing of what happens to its
packets. A window tells on which CPU the stack took them; a traced trial tells whether
they came in the lists a step makes. RFS to the interrupt's own CPU, a packet socket
that is bound to the interface, a bridge or tc leave no trace but in the latter, so what
it finds bears on all trials of the boot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from harness.plan import LIST_STAGES, SINGLY_BEFORE, step_number
from harness.trials.counted import Delta
from harness.trials.kind import Tolerances, VoidRule
from harness.trials.readings import Trace, Void, Window

LIST_RULE = "list-path"
RULES: Mapping[str, VoidRule] = MappingProxyType(
    {
        LIST_RULE: VoidRule(
            "packets go through the lists that a step has and past ip_rcv from step 7 on, as a "
            "traced trial of the boot shows, or of the step where the boot has none",
            {"share": 0.05, "packets": 64},
        )
    }
)
_TRUTH = "tracepoint_netif_receive_skb"


def softirq_rules(
    window: Window, cpus: Collection[int], tolerances: Tolerances, *, polled: bool = False
) -> Iterator[Void]:
    """That the receive softirq ran on ``cpus``, the planned ones, and handed no packet on.

    ``polled``: the reader took packets from the queue itself, without a softirq.
    """
    delta = Delta(window.start, window.end)
    woken = {cpu: times for cpu, times in delta.received_rps().items() if times}
    if sum(woken.values()) > tolerances["rps-used"]["times"]:
        told = ", ".join(f"CPU {cpu}: {times}" for cpu, times in sorted(woken.items()))
        yield Void(rule="rps-used", detail=f"CPUs were woken for packets of others: {told}")
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
            detail=f"CPU {planned} ran no receive softirq: its packets were polled by a thread",
        )


def _packets(delta: Delta) -> int | None:
    """Of the interface; fewer at IP where GRO joined some."""
    counted = [count for count in (delta.nic_delivered, delta.ip_in) if count is not None]
    return min(counted, default=None)


def list_rules(trace: Trace, step: str, tolerances: Tolerances) -> Iterator[Void]:
    """That packets went through the lists that ``step`` has, and singly where it has none."""
    number, seen = step_number(step), trace.per_skb.get(_TRUTH, 0)
    allowed = tolerances[LIST_RULE]
    slack = max(allowed["packets"], allowed["share"] * seen)
    if number is None or seen <= allowed["packets"]:
        return
    told = []
    counted = {stage.name: stage.packets for stage in trace.stages}
    for name, first in LIST_STAGES.items():
        if number >= first and name in counted and seen - counted[name] > slack:
            told.append(f"{counted[name]} of {seen} packets came to {name} in lists")
    singly = trace.per_skb.get("ip_rcv")
    if singly is not None and number >= SINGLY_BEFORE and singly > slack:
        told.append(f"{singly} of {seen} packets came to ip_rcv one by one")
    if singly is not None and number < SINGLY_BEFORE and seen - singly > slack:
        told.append(f"{singly} of {seen} packets came to ip_rcv, through which all go")
    if told:
        yield Void(rule=LIST_RULE, detail="; ".join(told))


def unproven(trace: Trace, step: str) -> list[str]:
    """Functions of ``step``'s lists that were not probed: of them a trace says nothing."""
    number = step_number(step)
    if number is None:
        return []
    counted = {stage.name for stage in trace.stages}
    lacking = [
        name for name, first in LIST_STAGES.items() if number >= first and name not in counted
    ]
    return lacking + ["ip_rcv"] * (number >= SINGLY_BEFORE and "ip_rcv" not in trace.per_skb)
