# SPDX-License-Identifier: MIT
"""From the raw counters of one trial to named quantities, and whether it counts.

Pure functions between samples and statistics. Rates come from the timed window.
Drops and the laws of conservation come from the whole trial, before the load to
after everything settled: a NIC's own statistics reach the host once a second
(``statistics_s`` of its driver), too coarse for a window. Counter names are those of
``struct rtnl_link_stats64`` and of ``/proc/net/snmp``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from harness.plan import VOID_RULES
from harness.results import receive_path, saturation
from harness.results.counted import Delta
from harness.results.samples import (
    Boot,
    Campaign,
    Counters,
    Placement,
    ProcessPlacement,
    Snapshot,
    Trial,
    Void,
    Whole,
    Window,
)
from harness.results.saturation import Saturation

Tolerances = Mapping[str, Mapping[str, float]]

_IP_DROPS = ("InHdrErrors", "InAddrErrors", "InUnknownProtos", "InDiscards")
_IP_EXT_DROPS = ("InNoRoutes", "InTruncatedPkts")
# No UDP buffer is charged less than this for a frame (sk_buff and data).
_MIN_TRUESIZE_BYTES = 512


DROP_PLACES = (
    "nic_ring",
    "nic_other",
    "driver",
    "softnet",
    "core",
    "other_host",
    "ip",
    "udp_rcvbuf",
    "udp_memory",
    "udp_noport",
    "udp_checksum",
)


@dataclass(frozen=True, kw_only=True)
class TrialMetrics:
    """What one trial measured; ``None`` where its counters are not there."""

    nic_rx_pps: float | None = None
    """Frames a second the driver took from its receive queues."""
    stack_rx_pps: float | None = None
    """Packets a second that entered IP (SNMP ``Ip.InReceives``)."""
    delivered_pps: float | None = None
    """Datagrams a second that programs read (SNMP ``Udp.InDatagrams``)."""
    cpu_ns_per_packet: float | None = None
    """System, interrupt and softirq time of the interrupt's CPU per packet at IP."""
    interrupts_per_packet: float | None = None
    """Interrupts of the NIC per packet at IP (``/proc/interrupts``)."""
    paced_cpu_ns_per_packet: float | None = None
    """Time in which the interrupt's CPU was not idle, per packet at IP of a paced load."""
    offered_packets: int | None = None
    """Frames that reached the port over the whole trial."""
    drops: Mapping[str, int] = field(default_factory=dict)
    """Packets dropped over the whole trial, by place (:data:`DROP_PLACES`)."""
    pauses: Mapping[str, int] = field(default_factory=dict)
    """Pause frames over the whole trial, ``sent`` and ``received`` by the dut's port."""
    saturation: Saturation | None = None
    """Of a timed trial."""
    void: tuple[Void, ...] = ()
    rates_void: tuple[Void, ...] = ()
    """Why its rates do not count, though what a packet costs does."""


def recorded_tolerances(campaign: Campaign) -> Tolerances:
    """The tolerances declared when the campaign began, else those of today."""
    tolerances = {name: dict(rule.tolerances) for name, rule in VOID_RULES.items()}
    recorded = campaign.provenance.get("void_rules")
    if isinstance(recorded, dict):
        for name, rule in recorded.items():
            if name in tolerances and isinstance(rule, dict):
                tolerances[name].update(rule.get("tolerances") or {})
    return tolerances


def measure(
    trial: Trial, campaign: Campaign, tolerances: Tolerances, *, holdoff_us: float = 0.0
) -> TrialMetrics:
    """Rates, drops and reasons not to count ``trial``.

    ``holdoff_us`` is the interrupt moderation under which it was measured.
    """
    irq_cpu, netserver_cpu = _planned_cpus(campaign)
    cpus = () if irq_cpu is None else (irq_cpu,)
    judged: Saturation | None = None
    rates: dict[str, float | None] = {}
    void: list[Void] = list(trial.void)
    window = trial.window or _traced_window(trial)
    if window is not None:
        rates = _rates(window, irq_cpu)
        if trial.paced_pps:
            rates["paced_cpu_ns_per_packet"] = Delta(window.start, window.end).cost_ns(irq_cpu)
            void += _paced_rule(rates["stack_rx_pps"], trial.paced_pps, tolerances)
        if trial.kind == "timed":
            judged = saturation.judge(
                window.start,
                window.end,
                cpus=cpus,
                holdoff_us=holdoff_us,
                limits=tolerances[saturation.RULE],
            )
        void += receive_path.softirq_rules(window, cpus, tolerances)
        if trial.window is not None:
            rates["interrupts_per_packet"] = _interrupts_per_packet(trial.window)
            void += _moved(trial.window.placement, irq_cpu, netserver_cpu, tolerances)
            void += _spread(window, campaign, tolerances)
        void += _window_rules(window, irq_cpu, tolerances)
    drops: dict[str, int] = {}
    pauses: dict[str, int] = {}
    offered = None
    if trial.whole is not None:
        delta = Delta(trial.whole.before, trial.whole.after)
        drops, pauses = _drops(delta), delta.pauses()
        offered = delta.offered
        void += _backwards(trial.whole.before, trial.whole.after)
        void += _conservation(trial, trial.whole, delta, drops, tolerances)
    if trial.whole is None or window is None:
        void.append(Void(rule="counters-missing", detail="no snapshots of this trial were kept"))
    elif rates["stack_rx_pps"] is None:
        void.append(Void(rule="counters-missing", detail="no count of packets at IP"))
    void += _stream_rules(trial, window)
    void += _trace_rules(trial, tolerances)
    void += _ramp_rule(trial)
    return TrialMetrics(
        offered_packets=offered,
        drops=drops,
        pauses=pauses,
        saturation=judged,
        void=tuple(_once(void)),
        rates_void=(Void(rule=saturation.RULE, detail=judged.why),)
        if judged and judged.saturated is False
        else (),
        **rates,
    )


def void_alone(trial: Trial, campaign: Campaign, tolerances: Tolerances) -> tuple[Void, ...]:
    """Reasons not to count a trial of latency or of the highest rate."""
    void: list[Void] = list(trial.void)
    if trial.whole is not None:
        irq_cpu, netserver_cpu = _planned_cpus(campaign)
        before, after = trial.whole.before, trial.whole.after
        void += _moved(_placed(before, after), irq_cpu, netserver_cpu, tolerances)
        whole = Window(start=before, end=after)
        void += _window_rules(whole, irq_cpu, tolerances)
        # Who polls the queue itself does so on its own CPU.
        polls = trial.cell is not None and trial.cell.busy_poll
        planned = {cpu for cpu in (irq_cpu, netserver_cpu if polls else None) if cpu is not None}
        void += receive_path.softirq_rules(whole, planned, tolerances, polled=polls)
    return tuple(_once(void))


def _placed(before: Snapshot, after: Snapshot) -> Placement:
    """Where interrupts were between the two, and processes at the end."""
    irq: dict[str, dict[str, int]] = {}
    for line, row in after.interrupts.items():
        earlier = before.interrupts.get(line, {}).get("counts", {})
        irq[line] = {cpu: count - earlier.get(cpu, 0) for cpu, count in row["counts"].items()}
    processes = [
        ProcessPlacement(pid=one["pid"], name=one["name"], cpus={str(one["last_cpu"]): 1})
        for one in after.processes
    ]
    return Placement(irq=irq, processes=processes)


def traced_stack_pps(trial: Trial) -> float | None:
    """Packets a second at IP while the probes ran, to set beside the timed rate."""
    window = _traced_window(trial)
    return _rates(window, None)["stack_rx_pps"] if window else None


def _traced_window(trial: Trial) -> Window | None:
    if trial.trace is None or trial.trace.start is None or trial.trace.end is None:
        return None
    return Window(start=trial.trace.start, end=trial.trace.end)


def _planned_cpus(campaign: Campaign) -> tuple[int | None, int | None]:
    """CPUs of the dut for interrupt and netserver, as placed in ``hosts.yaml``."""
    irq_cpu = campaign.placement.get("irq_cpu")
    netserver_cpu = campaign.placement.get("netserver_cpu")
    if netserver_cpu == "same":
        netserver_cpu = irq_cpu
    return (
        irq_cpu if isinstance(irq_cpu, int) else None,
        netserver_cpu if isinstance(netserver_cpu, int) else None,
    )


def _rates(window: Window, irq_cpu: int | None) -> dict[str, float | None]:
    delta = Delta(window.start, window.end)
    if delta.duration_s <= 0:
        return dict.fromkeys(
            ("nic_rx_pps", "stack_rx_pps", "delivered_pps", "cpu_ns_per_packet"), None
        )

    def per_second(count: int | None) -> float | None:
        return None if count is None else count / delta.duration_s

    busy_ns = delta.busy_ns(irq_cpu)
    packets = delta.ip_in
    return {
        "nic_rx_pps": per_second(delta.nic_delivered),
        "stack_rx_pps": per_second(packets),
        "delivered_pps": per_second(delta.datagrams),
        "cpu_ns_per_packet": busy_ns / packets if packets and busy_ns is not None else None,
    }


def _interrupts_per_packet(window: Window) -> float | None:
    packets = Delta(window.start, window.end).ip_in
    interrupts = sum(sum(cpus.values()) for cpus in window.placement.irq.values())
    return interrupts / packets if packets and window.placement.irq else None


def _drops(delta: Delta) -> dict[str, int]:
    backlog = delta.softnet_dropped
    return {
        "nic_ring": delta.nic_ring_drops(),
        "nic_other": delta.nic_other_drops(),
        "driver": delta.driver_drops(),
        "softnet": backlog,
        # rx_dropped gathers the driver's own, the backlog's and the core's drops.
        "core": max(0, delta.link("rx_dropped") - delta.nic_in_link() - backlog)
        + delta.link("rx_nohandler"),
        "other_host": delta.link("rx_otherhost_dropped"),
        "ip": delta.snmp("Ip", *_IP_DROPS)
        + delta.netstat("IpExt", *_IP_EXT_DROPS)
        + delta.netstat("TcpExt", "IPReversePathFilter"),
        "udp_rcvbuf": delta.snmp("Udp", "RcvbufErrors"),
        "udp_memory": delta.snmp("Udp", "MemErrors"),
        "udp_noport": delta.snmp("Udp", "NoPorts"),
        "udp_checksum": delta.snmp("Udp", "InCsumErrors"),
    }


def _conservation(
    trial: Trial, whole: Whole, delta: Delta, drops: Mapping[str, int], tolerances: Tolerances
) -> Iterator[Void]:
    """The four laws; each compares what went in with what came out and was named."""

    def law(rule: str, into: int, out: int, *, fewer: int = 0, more: int = 0) -> Iterator[Void]:
        """``into`` may exceed ``out`` by ``more`` and fall short by ``fewer``."""
        allowed = tolerances[rule]
        slack = max(allowed["packets"], allowed["share"] * max(into, out))
        if not -fewer - slack <= into - out <= more + slack:
            yield Void(
                rule=rule,
                detail=f"{into} in, {out} out or named, {into - out:+d} unexplained "
                f"(allowed {slack:.0f}{f' + {max(fewer, more)}' if fewer or more else ''})",
            )

    # Traffic of other interfaces (ssh) and frames GRO joins, both ways.
    control = delta.snmp("Tcp", "InSegs") + delta.snmp("Icmp", "InMsgs")
    taken, ip_in = delta.nic_delivered, delta.ip_in
    if delta.at_port is not None and taken is not None:
        # Whether a firmware counts what the port keeps among the frames at the port differs.
        yield from law(
            "nic-conservation",
            delta.at_port - drops["nic_ring"],
            taken,
            more=drops["nic_other"] + delta.port_kept(),
        )
    if taken is not None and ip_in is not None:
        between = sum(drops[name] for name in ("driver", "softnet", "core", "other_host"))
        yield from law("stack-conservation", taken - between, ip_in, fewer=control, more=control)
    datagrams = delta.datagrams
    if ip_in is not None and datagrams is not None:
        udp = datagrams + delta.snmp("Udp", "InErrors") + drops["udp_noport"]
        waiting = [
            sum(socket.queued_bytes for socket in snapshot.udp_sockets) // _MIN_TRUESIZE_BYTES
            for snapshot in (whole.before, whole.after)
        ]
        forwarded = delta.snmp("Ip", "ForwDatagrams")
        yield from law(
            "ip-conservation",
            ip_in - drops["ip"] - forwarded,
            udp,
            fewer=waiting[0],
            more=waiting[1] + control,
        )
    received = [stream.messages_received for stream in trial.netperf]
    if received and datagrams is not None and None not in received:
        yield from law(
            "delivery-conservation", datagrams, sum(count for count in received if count)
        )


def _moved(
    placement: Placement,
    irq_cpu: int | None,
    netserver_cpu: int | None,
    tolerances: Tolerances,
) -> Iterator[Void]:
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


def _spread(window: Window, campaign: Campaign, tolerances: Tolerances) -> Iterator[Void]:
    planned = campaign.placement.get("rx_queues")
    declared = "queues-spread" in (campaign.provenance.get("void_rules") or {})
    if not declared or not isinstance(planned, int):
        return
    delta = Delta(window.start, window.end)
    taken = delta.queues
    busiest = sorted(taken.values(), reverse=True)
    allowed = tolerances["queues-spread"]
    slack = max(allowed["packets"], allowed["share"] * sum(busiest))
    if sum(busiest[planned:]) > slack:
        yield Void(
            rule="queues-spread",
            detail=f"planned {planned}, packets in "
            + ", ".join(f"{name.partition('.')[0]}: {n}" for name, n in taken.items() if n),
        )


def _window_rules(window: Window, irq_cpu: int | None, tolerances: Tolerances) -> Iterator[Void]:
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
            detail = f"CPU {cpu} was slowed down by its temperature, {times} times"
            yield Void(rule="cpu-throttled", detail=detail)


def _paced_rule(pps: float | None, asked: int, tolerances: Tolerances) -> Iterator[Void]:
    if pps is not None and abs(pps - asked) > tolerances["rate-missed"]["share"] * asked:
        yield Void(rule="rate-missed", detail=f"{pps:,.0f} packets/s at IP, asked {asked:,}")


def _ramp_rule(trial: Trial) -> Iterator[Void]:
    if trial.ramp is not None and trial.ramp.get("steady") is False:
        rates = ", ".join(f"{pps:,.0f}" for pps in trial.ramp.get("rates_pps", ())[-4:])
        yield Void(rule="ramp-unsteady", detail=f"packets/s before the first window: … {rates}")


def model_rule(boot: Boot) -> Iterator[Void]:
    """That the NIC's model, where there is one, did what it was asked to during ``boot``."""
    errors = (boot.nic_model or {}).get("internal_errors")
    if isinstance(errors, int) and errors > 0:
        yield Void(rule="nic-model-error", detail=f"{errors} errors of the model, see its log")


def _backwards(before: Snapshot, after: Snapshot) -> Iterator[Void]:
    """Counters of the receive path that fell: a reset or a reboot within the trial."""
    delta = Delta(before, after)
    grown = {delta.names.at_port or "": delta.at_port or 0, **delta.queues}
    fell = [name for name, frames in grown.items() if frames < 0]
    fell += [
        f"{table}.{name}"
        for table, name in (("Ip", "InReceives"), ("Udp", "InDatagrams"))
        if after.snmp.get(table, {}).get(name, 0) < before.snmp.get(table, {}).get(name, 0)
    ]
    if after.monotonic_ns <= before.monotonic_ns:
        fell.append("monotonic_ns")
    if fell:
        yield Void(rule="counter-reset", detail=f"ran backwards: {', '.join(sorted(fell))}")


def _stream_rules(trial: Trial, window: Window | None) -> Iterator[Void]:
    failed = [f"{s.stream} ({s.status})" for s in trial.netperf if s.status != 0]
    if failed:
        yield Void(rule="stream-failed", detail=f"stream (status): {', '.join(failed)}")
    if window is not None:
        window_s = (window.end.monotonic_ns - window.start.monotonic_ns) / 1e9
        short = [
            f"{stream.stream} ({stream.elapsed_s:.2f} s)"
            for stream in trial.netperf
            if stream.elapsed_s is not None and stream.elapsed_s < window_s
        ]
        if short:
            yield Void(
                rule="stream-short",
                detail=f"ended within a window of {window_s:.2f} s: {', '.join(short)}",
            )


def _trace_rules(trial: Trial, tolerances: Tolerances) -> Iterator[Void]:
    if trial.trace is None:
        return
    events = sum(stage.calls for stage in trial.trace.stages) + sum(trial.trace.per_skb.values())
    allowed = tolerances["trace-missed"]["share"]
    if trial.trace.missed > allowed * (events + trial.trace.missed):
        yield Void(
            rule="trace-missed",
            detail=f"{trial.trace.missed} events missed beside {events} counted",
        )


def _once(voids: list[Void]) -> Iterator[Void]:
    """Each rule once: what was recorded during the trial stands before what is derived."""
    seen: set[str] = set()
    for void in voids:
        if void.rule not in seen:
            seen.add(void.rule)
            yield void
