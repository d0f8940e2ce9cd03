# SPDX-License-Identifier: MIT
"""The void rules common to all kinds of trial, and where packets were dropped.

Drops and conservation rules use the whole trial, from before the load until everything
has settled: a NIC's own statistics reach the host only once a second (``statistics_s`` of
its driver), which is too coarse for a window. Counter names are those of ``struct
rtnl_link_stats64`` and of ``/proc/net/snmp``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from harness.trials import loads, receive_path
from harness.trials.counted import Delta
from harness.trials.kind import Conditions, VoidRule
from harness.trials.loads.kind import Law
from harness.trials.readings import (
    Counters,
    Loaded,
    Placement,
    ProcessPlacement,
    Snapshot,
    Void,
    Whole,
    Window,
)

_IP_DROPS = ("InHdrErrors", "InAddrErrors", "InUnknownProtos", "InDiscards")
_IP_EXT_DROPS = ("InNoRoutes", "InTruncatedPkts")
_IP_OUT_DROPS = ("OutDiscards", "OutNoRoutes", "FragFails")
_IP6_DROPS = (*_IP_DROPS, *_IP_EXT_DROPS, "InTooBigErrors")
_COUNTS_UP = (
    *((table, "InReceives") for table in ("Ip", "Ip6")),
    *((table, "InDatagrams") for table in ("Udp", "Udp6")),
)

_PACKETS = {"share": 0.001, "packets": 64}

COMMON: Mapping[str, VoidRule] = MappingProxyType(
    {
        "nic-conservation": VoidRule(
            "frames at the port = frames in receive queues + drops counted by the NIC", _PACKETS
        ),
        "stack-conservation": VoidRule(
            "frames in receive queues = packets at IP + drops counted between them, "
            "plus or minus TCP and ICMP of other interfaces",
            _PACKETS,
        ),
        "ip-conservation": VoidRule(
            "packets at IP = UDP datagrams + TCP segments + ICMP messages + drops counted "
            "between them",
            _PACKETS,
        ),
        "delivery-conservation": VoidRule(
            "datagrams delivered by UDP = messages counted by netserver", _PACKETS
        ),
        "forward-conservation": VoidRule(
            "packets at IP = packets forwarded + packets for this host + drops counted between "
            "them, if the load is forward",
            _PACKETS,
        ),
        "sent-conservation": VoidRule(
            "packets forwarded = frames that the NIC sent + drops counted between them, if the "
            "load is forward",
            _PACKETS,
        ),
        "payload-conservation": VoidRule(
            "payload of packets at IP = octets read by netserver + octets received again, if the "
            "load is tcp",
            {"share": 0.002, "octets": 100_000},
        ),
        "irq-moved": VoidRule(
            "the NIC's interrupts arrive on the planned CPU", {"share": 0.01, "interrupts": 2}
        ),
        "queues-spread": VoidRule(
            "packets arrive in no more receive queues than planned", {"share": 0.01, "packets": 64}
        ),
        "softirq-moved": VoidRule(
            "the interface's packets are processed by the receive softirq of the planned CPU",
            {"share": 0.01, "packets": 64},
        ),
        "rps-used": VoidRule("RPS wakes no CPU for packets of another CPU", {"times": 0}),
        "process-moved": VoidRule("netserver runs only on the planned CPU", {"samples": 0}),
        "stream-failed": VoidRule("every netperf stream ends with status 0"),
        "stream-short": VoidRule("every netperf stream lasts until the end of the window"),
        "ramp-unsteady": VoidRule("the load is steady before the window begins"),
        "no-load": VoidRule("packets arrive during the window", {"packets": 100}),
        "counter-reset": VoidRule("no counter runs backwards"),
        "counters-missing": VoidRule("the counters of the trial were read"),
        "nic-model-error": VoidRule("the NIC model, if there is one, reports no internal error"),
        "link-flapped": VoidRule("the link stays up"),
        "cpu-throttled": VoidRule(
            "the CPU under load is not stolen by a hypervisor, nor throttled because of its "
            "temperature",
            {"share": 0.05, "times": 0},
        ),
    }
)
"""The rules of every kind of trial; a kind adds its own."""


def loaded(
    sample: Loaded,
    window: Window | None,
    conditions: Conditions,
    *,
    placement: Placement | None = None,
    own: Iterable[Void] = (),
) -> tuple[Void, ...]:
    """Why a trial under load is void: each broken rule once.

    ``placement`` is where interrupts and processes ran in ``window``; ``own`` are the rules
    of its kind. Reasons recorded during the trial come before derived ones.
    """
    tolerances = conditions.tolerances
    void = [*sample.void, *own]
    if window is not None:
        void += receive_path.softirq_rules(window, conditions.irq_cpus, tolerances)
        if placement is not None:
            void += _moved(placement, conditions)
            void += _spread(window, conditions)
        void += _window_rules(window, conditions)
    if sample.whole is not None:
        void += _backwards(sample.whole.before, sample.whole.after)
        void += _conservation(sample, sample.whole, conditions)
    if sample.whole is None or window is None:
        void.append(Void(rule="counters-missing", detail="this trial has no snapshots"))
    elif Delta(window.start, window.end).ip_pps is None:
        void.append(Void(rule="counters-missing", detail="no count of packets at IP"))
    void += _stream_rules(sample, window)
    void += _ramp_rule(sample)
    return _once(void)


def alone(
    void: Iterable[Void], whole: Whole | None, conditions: Conditions, *, polled: bool = False
) -> tuple[Void, ...]:
    """Why a trial without a window is void; ``polled``: netserver polled the queue itself."""
    found = list(void)
    if whole is not None:
        before, after = whole.before, whole.after
        found += _moved(_placed(before, after), conditions)
        window = Window(start=before, end=after)
        found += _window_rules(window, conditions)
        # A process that polls the queue does so on its own CPU.
        planned = {conditions.irq_cpu, conditions.netserver_cpu if polled else None} - {None}
        found += receive_path.softirq_rules(
            window,
            [cpu for cpu in planned if cpu is not None],
            conditions.tolerances,
            polled=polled,
        )
    return _once(found)


def _placed(before: Snapshot, after: Snapshot) -> Placement:
    """Where interrupts ran between the two, and processes at the end."""
    irq: dict[str, dict[str, int]] = {}
    for line, row in after.interrupts.items():
        earlier = before.interrupts.get(line, {}).get("counts", {})
        irq[line] = {cpu: count - earlier.get(cpu, 0) for cpu, count in row["counts"].items()}
    processes = [
        ProcessPlacement(pid=one["pid"], name=one["name"], cpus={str(one["last_cpu"]): 1})
        for one in after.processes
    ]
    return Placement(irq=irq, processes=processes)


def drops(delta: Delta) -> dict[str, int]:
    """Packets dropped between two readings, by place."""
    backlog = delta.softnet_dropped
    of_sending = {
        "ip_out": delta.snmp("Ip", *_IP_OUT_DROPS),
        "qdisc": delta.qdisc_dropped or 0,
        "driver_out": delta.link("tx_dropped"),
    }
    return {
        "nic_ring": delta.nic_ring_drops(),
        "nic_other": delta.nic_other_drops(),
        "driver": delta.driver_drops(),
        "softnet": backlog,
        # rx_dropped is the sum of the drops of driver, backlog and core.
        "core": max(0, delta.link("rx_dropped") - delta.nic_in_link() - backlog)
        + delta.link("rx_nohandler"),
        "other_host": delta.link("rx_otherhost_dropped"),
        "ip": delta.snmp("Ip", *_IP_DROPS)
        + delta.netstat("IpExt", *_IP_EXT_DROPS)
        + delta.netstat("TcpExt", "IPReversePathFilter")
        + delta.snmp("Ip6", *_IP6_DROPS),
        "udp_rcvbuf": delta.udp("RcvbufErrors"),
        "udp_memory": delta.udp("MemErrors"),
        "udp_noport": delta.udp("NoPorts"),
        "udp_checksum": delta.udp("InCsumErrors"),
        # Only a host that forwards drops what it sends in numbers that matter.
        **(of_sending if delta.forwarded else {}),
    }


def _conservation(sample: Loaded, whole: Whole, conditions: Conditions) -> Iterator[Void]:
    """The conservation rules: packets in = packets out + counted drops."""
    delta = Delta(whole.before, whole.after)
    dropped = drops(delta)
    load = loads.named(conditions.load)
    of_load = load.laws(sample, whole, delta, dropped)
    for law in (*_below_ip(delta, dropped, merged=load.merged), *of_load):
        allowed = conditions.tolerances[law.rule]
        slack = max(
            allowed.get("packets", 0),
            allowed.get("octets", 0),
            allowed["share"] * max(law.into, law.out),
        )
        if not -law.fewer - slack <= law.into - law.out <= law.more + slack:
            either = max(law.fewer, law.more)
            yield Void(
                rule=law.rule,
                detail=f"{law.into} in, {law.out} out or counted as drops, "
                f"{law.into - law.out:+d} unexplained "
                f"(allowed {slack:.0f}{f' + {either}' if either else ''})",
            )


def _below_ip(delta: Delta, dropped: Mapping[str, int], *, merged: bool) -> Iterator[Law]:
    """What must add up from the wire to IP, whatever the load.

    ``merged``: GRO may merge any number of its frames.
    """
    taken, ip_in = delta.nic_delivered, delta.ip_in
    if delta.at_port is not None and taken is not None:
        # Some firmware includes the frames that the port keeps in the frames at the port.
        yield Law(
            "nic-conservation",
            delta.at_port - dropped["nic_ring"],
            taken,
            more=dropped["nic_other"] + delta.port_kept(),
        )
    if taken is not None and ip_in is not None:
        between = sum(dropped[name] for name in ("driver", "softnet", "core", "other_host"))
        # Traffic of other interfaces (ssh), and frames that GRO merges, in both directions.
        control = delta.control
        more = taken if merged else control
        yield Law("stack-conservation", taken - between, ip_in, fewer=control, more=more)


def _moved(placement: Placement, conditions: Conditions) -> Iterator[Void]:
    irq_cpu, netserver_cpu = conditions.irq_cpu, conditions.netserver_cpu
    tolerances = conditions.tolerances
    if irq_cpu is not None:
        counts: Counters = {}
        for line in placement.irq.values():
            for cpu, count in line.items():
                counts[cpu] = counts.get(cpu, 0) + count
        elsewhere = {cpu: n for cpu, n in counts.items() if n > 0 and cpu != str(irq_cpu)}
        allowed = tolerances["irq-moved"]
        slack = max(allowed["interrupts"], allowed["share"] * sum(counts.values()))
        if sum(elsewhere.values()) > slack:
            yield Void(
                rule="irq-moved",
                detail=f"planned CPU {irq_cpu}, also on "
                + ", ".join(f"CPU {cpu}: {n}" for cpu, n in sorted(elsewhere.items())),
            )
    if netserver_cpu is not None:
        seen: Counters = {}
        for process in placement.processes:
            if process.name == "netserver":
                for cpu, count in process.cpus.items():
                    if count > 0 and cpu != str(netserver_cpu):
                        seen[cpu] = seen.get(cpu, 0) + count
        if sum(seen.values()) > tolerances["process-moved"]["samples"]:
            yield Void(
                rule="process-moved",
                detail=f"netserver planned on CPU {netserver_cpu}, also seen on "
                + ", ".join(f"CPU {cpu}: {n}" for cpu, n in sorted(seen.items())),
            )


def _spread(window: Window, conditions: Conditions) -> Iterator[Void]:
    if conditions.rx_queues is None:
        return
    taken = Delta(window.start, window.end).queues
    busiest = sorted(taken.values(), reverse=True)
    allowed = conditions.tolerances["queues-spread"]
    slack = max(allowed["packets"], allowed["share"] * sum(busiest))
    if sum(busiest[conditions.rx_queues :]) > slack:
        yield Void(
            rule="queues-spread",
            detail=f"planned {conditions.rx_queues}, packets in "
            + ", ".join(f"{name.partition('.')[0]}: {n}" for name, n in taken.items() if n),
        )


def _window_rules(window: Window, conditions: Conditions) -> Iterator[Void]:
    irq_cpu, tolerances = conditions.irq_cpu, conditions.tolerances
    yield from _backwards(window.start, window.end)
    delta = Delta(window.start, window.end)
    packets = delta.ip_in
    if packets is not None and packets < tolerances["no-load"]["packets"]:
        yield Void(rule="no-load", detail=f"{packets} packets reached IP during the window")
    flaps = delta.link("carrier_changes")
    if flaps > 0:
        yield Void(rule="link-flapped", detail=f"the link changed {flaps} times")
    before = {line.cpu: line.steal_ns for line in window.start.cpu}
    for line in window.end.cpu:
        stolen_s = (line.steal_ns - before.get(line.cpu, line.steal_ns)) / 1e9
        share = stolen_s / delta.duration_s if delta.duration_s > 0 else 0.0
        if irq_cpu in (None, line.cpu) and share > tolerances["cpu-throttled"]["share"]:
            yield Void(rule="cpu-throttled", detail=f"{share:.1%} of CPU {line.cpu} was stolen")
    for cpu, count in window.end.throttled.items():
        times = count - window.start.throttled.get(cpu, count)
        if irq_cpu in (None, int(cpu)) and times > tolerances["cpu-throttled"].get("times", 0):
            detail = f"CPU {cpu} was throttled {times} times because of its temperature"
            yield Void(rule="cpu-throttled", detail=detail)


def _ramp_rule(sample: Loaded) -> Iterator[Void]:
    if sample.ramp is not None and sample.ramp.get("steady") is False:
        rates = ", ".join(f"{pps:,.0f}" for pps in sample.ramp.get("rates_pps", ())[-4:])
        yield Void(rule="ramp-unsteady", detail=f"packets/s before the first window: … {rates}")


def _backwards(before: Snapshot, after: Snapshot) -> Iterator[Void]:
    """Counters of the receive path that decreased: a reset or a reboot during the trial."""
    delta = Delta(before, after)
    grown = {delta.names.at_port or "": delta.at_port or 0, **delta.queues}
    fell = [name for name, frames in grown.items() if frames < 0]
    fell += [
        f"{table}.{name}"
        for table, name in _COUNTS_UP
        if after.snmp.get(table, {}).get(name, 0) < before.snmp.get(table, {}).get(name, 0)
    ]
    if after.monotonic_ns <= before.monotonic_ns:
        fell.append("monotonic_ns")
    if fell:
        yield Void(rule="counter-reset", detail=f"ran backwards: {', '.join(sorted(fell))}")


def _stream_rules(sample: Loaded, window: Window | None) -> Iterator[Void]:
    failed = [f"{s.stream} ({s.status})" for s in sample.netperf if s.status != 0]
    if failed:
        yield Void(rule="stream-failed", detail=f"stream (status): {', '.join(failed)}")
    if window is not None:
        window_s = (window.end.monotonic_ns - window.start.monotonic_ns) / 1e9
        short = [
            f"{stream.stream} ({stream.elapsed_s:.2f} s)"
            for stream in sample.netperf
            if stream.elapsed_s is not None and stream.elapsed_s < window_s
        ]
        if short:
            yield Void(
                rule="stream-short",
                detail=f"ended before the window of {window_s:.2f} s: {', '.join(short)}",
            )


def _once(voids: list[Void]) -> tuple[Void, ...]:
    first: dict[str, Void] = {}
    for void in voids:
        first.setdefault(void.rule, void)
    return tuple(first.values())
