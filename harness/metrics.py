# SPDX-License-Identifier: MIT
"""From the raw counters of one trial to named quantities, and whether it counts.

Pure functions between samples and statistics. Rates come from the timed window.
Drops and the laws of conservation come from the whole trial, before the load to
after everything settled: a NIC's own statistics reach the host once a second
(sfc asks for that period), too coarse for a window. Counter names are those of
``ethtool -S`` in drivers/net/ethernet/sfc (ef10.c, ethtool_common.c), of
``struct rtnl_link_stats64`` and of ``/proc/net/snmp``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from harness.plan import VOID_RULES
from harness.samples import (
    Campaign,
    Counters,
    CpuTime,
    Placement,
    ProcessPlacement,
    Snapshot,
    Trial,
    Void,
    Whole,
    Window,
)

Tolerances = Mapping[str, Mapping[str, float]]

# Frames the port counted in port_rx_packets (MC_CMD_MAC_RX_PKTS, taken at the
# MAC, before descriptors are looked for) and dropped itself.
_PORT_RING_DROPS = ("port_rx_nodesc_drops",)
_PORT_OTHER_DROPS = (
    "port_rx_bad",
    "port_rx_overflow",
    "port_rx_pm_discard_bb_overflow",
    "port_rx_pm_discard_vfifo_full",
    "port_rx_pm_discard_qbb",
    "port_rx_pm_discard_mapping",
    "port_rx_dp_q_disabled_packets",
    "port_rx_dp_di_dropped_packets",
)
# Frames the driver took from a queue (rx-N.rx_packets) and did not pass on.
_DRIVER_DROPS = (
    "rx_nodesc_trunc",
    "rx_noskb_drops",
    "rx_frm_trunc",
    "rx_eth_crc_err",
    "rx_xdp_drops",
    "rx_xdp_bad_drops",
    "rx_mport_bad",
)
# The driver keeps these in 32 bits (efx_get_uint_stat, atomic_read).
_DRIVER_WRAP = 1 << 32
# What the driver puts into rx_dropped itself (efx_ef10_update_stats_common); the port's
# drops only on a firmware without virtual adapters, whose own counters it takes otherwise.
_SFC_IN_LINK_DROPPED = ("rx_nodesc_trunc", "rx_noskb_drops")
# Frames the port counted and keeps for itself: flow control.
_PORT_KEPT = ("port_rx_pause", "port_rx_control")
# Drops of a function that does not control its port and sees no port_ counters, such as a VF.
_ADAPTER_RING_DROPS = ("rx_overflow",)
_ADAPTER_OTHER_DROPS = ("rx_bad",)
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
    void: tuple[Void, ...] = ()


def recorded_tolerances(campaign: Campaign) -> Tolerances:
    """The tolerances declared when the campaign began, else those of today."""
    tolerances = {name: dict(rule.tolerances) for name, rule in VOID_RULES.items()}
    recorded = campaign.provenance.get("void_rules")
    if isinstance(recorded, dict):
        for name, rule in recorded.items():
            if name in tolerances and isinstance(rule, dict):
                tolerances[name].update(rule.get("tolerances") or {})
    return tolerances


def measure(trial: Trial, campaign: Campaign, tolerances: Tolerances) -> TrialMetrics:
    """Rates, drops and reasons not to count ``trial``."""
    irq_cpu, netserver_cpu = _planned_cpus(campaign)
    rates: dict[str, float | None] = {}
    void: list[Void] = list(trial.void)
    window = trial.window or _traced_window(trial)
    if window is not None:
        rates = _rates(window, irq_cpu)
        if trial.paced_pps:
            rates["paced_cpu_ns_per_packet"] = _Delta(window.start, window.end).cost_ns(irq_cpu)
            void += _paced_rule(rates["stack_rx_pps"], trial.paced_pps, tolerances)
        if trial.window is not None:
            rates["interrupts_per_packet"] = _interrupts_per_packet(trial.window)
            void += _moved(trial.window.placement, irq_cpu, netserver_cpu, tolerances)
            void += _spread(window, campaign, tolerances)
        void += _window_rules(window, irq_cpu, tolerances)
    drops: dict[str, int] = {}
    offered = None
    if trial.whole is not None:
        delta = _Delta(trial.whole.before, trial.whole.after)
        drops = _drops(delta)
        offered = delta.offered
        void += _backwards(trial.whole.before, trial.whole.after)
        void += _conservation(trial, trial.whole, delta, drops, tolerances)
    if trial.whole is None or window is None:
        void.append(Void(rule="counters-missing", detail="no snapshots of this trial were kept"))
    elif rates["stack_rx_pps"] is None:
        void.append(Void(rule="counters-missing", detail="no count of packets at IP"))
    void += _stream_rules(trial, window)
    void += _trace_rules(trial, tolerances)
    return TrialMetrics(offered_packets=offered, drops=drops, void=tuple(_once(void)), **rates)


def void_alone(trial: Trial, campaign: Campaign, tolerances: Tolerances) -> tuple[Void, ...]:
    """Reasons not to count a trial of latency or of the highest rate."""
    void: list[Void] = list(trial.void)
    if trial.whole is not None:
        irq_cpu, netserver_cpu = _planned_cpus(campaign)
        before, after = trial.whole.before, trial.whole.after
        void += _moved(_placed(before, after), irq_cpu, netserver_cpu, tolerances)
        void += _window_rules(Window(start=before, end=after), irq_cpu, tolerances)
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
    delta = _Delta(window.start, window.end)
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
    packets = _Delta(window.start, window.end).ip_in
    interrupts = sum(sum(cpus.values()) for cpus in window.placement.irq.values())
    return interrupts / packets if packets and window.placement.irq else None


@dataclass(frozen=True)
class _Delta:
    """What happened between two snapshots of one host."""

    before: Snapshot
    after: Snapshot

    @property
    def duration_s(self) -> float:
        return (self.after.monotonic_ns - self.before.monotonic_ns) / 1e9

    def nic(self, *names: str) -> int:
        """Sum of what ``ethtool -S`` counted under ``names``; 0 for those it has not."""
        return _grown(self.before.nic, self.after.nic, names)

    def link(self, *names: str) -> int:
        return _grown(self.before.link, self.after.link, names)

    def snmp(self, table: str, *names: str) -> int:
        return _grown(self.before.snmp.get(table, {}), self.after.snmp.get(table, {}), names)

    def netstat(self, table: str, *names: str) -> int:
        return _grown(self.before.netstat.get(table, {}), self.after.netstat.get(table, {}), names)

    @property
    def is_sfc(self) -> bool:
        return "port_rx_packets" in self.after.nic

    @property
    def has_adapter(self) -> bool:
        """Does the function's virtual adapter count, as it does on full-feature firmware?"""
        return "rx_unicast" in self.after.nic and "rx_overflow" in self.after.nic

    def nic_ring_drops(self) -> int:
        if self.is_sfc:
            return self.nic(*_PORT_RING_DROPS)
        return self.nic(*_ADAPTER_RING_DROPS) if self.has_adapter else self.link("rx_missed_errors")

    def nic_other_drops(self) -> int:
        if self.is_sfc:
            return self.nic(*_PORT_OTHER_DROPS)
        return self.nic(*_ADAPTER_OTHER_DROPS) if self.has_adapter else 0

    def driver_drops(self, names: Iterable[str] = _DRIVER_DROPS) -> int:
        return sum(self.nic(name) % _DRIVER_WRAP for name in names)

    @property
    def offered(self) -> int | None:
        """Frames at the port; without such a counter, those taken or missed."""
        if self.is_sfc:
            return self.nic("port_rx_packets")
        taken = self.nic_delivered
        return None if taken is None else taken + self.nic_ring_drops()

    @cached_property
    def nic_delivered(self) -> int | None:
        """Frames taken from receive queues; the driver counts these as they come."""
        queues = _queue_counters(tuple(self.after.nic))
        if queues:
            return self.nic(*queues)
        return self.link("rx_packets") if "rx_packets" in self.after.link else None

    @property
    def ip_in(self) -> int | None:
        known = "InReceives" in self.after.snmp.get("Ip", {})
        return self.snmp("Ip", "InReceives") if known else None

    @property
    def datagrams(self) -> int | None:
        known = "InDatagrams" in self.after.snmp.get("Udp", {})
        return self.snmp("Udp", "InDatagrams") if known else None

    @cached_property
    def softnet_dropped(self) -> int:
        before = {line.cpu: line.dropped for line in self.before.softnet}
        return sum(line.dropped - before.get(line.cpu, 0) for line in self.after.softnet)

    def busy_ns(self, cpu: int | None) -> int | None:
        """Kernel time of ``cpu``, or of all CPUs when none was named."""
        before = {line.cpu: line for line in self.before.cpu}
        lines = [line for line in self.after.cpu if cpu is None or line.cpu == cpu]
        if not lines or any(line.cpu not in before for line in lines):
            return None
        return sum(_kernel_ns(line) - _kernel_ns(before[line.cpu]) for line in lines)

    def cost_ns(self, cpu: int | None) -> float | None:
        """Time for each packet at IP in which ``cpu``, or every CPU, was not idle."""
        before = {line.cpu: line for line in self.before.cpu}
        lines = [line for line in self.after.cpu if cpu in (None, line.cpu) and line.cpu in before]
        if not lines or not self.ip_in:
            return None
        idle_ns = sum(line.idle_ns - before[line.cpu].idle_ns for line in lines)
        return (self.duration_s * 1e9 * len(lines) - idle_ns) / self.ip_in


@lru_cache(maxsize=16)
def _queue_counters(names: tuple[str, ...]) -> tuple[str, ...]:
    """Which of a driver's counters are those of its receive queues (``rx-0.rx_packets``)."""
    return tuple(name for name in names if name.endswith(".rx_packets"))


def _kernel_ns(line: CpuTime) -> int:
    return line.system_ns + line.irq_ns + line.softirq_ns


def _grown(before: Counters, after: Counters, names: Iterable[str]) -> int:
    return sum(after.get(name, 0) - before.get(name, 0) for name in names)


def _drops(delta: _Delta) -> dict[str, int]:
    sfc = delta.is_sfc
    nic_in_link = delta.driver_drops(_SFC_IN_LINK_DROPPED) if sfc else 0
    if sfc and not delta.has_adapter:
        nic_in_link += delta.nic(*_PORT_RING_DROPS)
    backlog = delta.softnet_dropped
    return {
        "nic_ring": delta.nic_ring_drops(),
        "nic_other": delta.nic_other_drops(),
        "driver": delta.driver_drops() if sfc or delta.has_adapter else 0,
        "softnet": backlog,
        # rx_dropped gathers the driver's own, the backlog's and the core's drops.
        "core": max(0, delta.link("rx_dropped") - nic_in_link - backlog)
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
    trial: Trial, whole: Whole, delta: _Delta, drops: Mapping[str, int], tolerances: Tolerances
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
    if delta.is_sfc and taken is not None:
        # Whether a firmware counts these among port_rx_packets differs.
        yield from law(
            "nic-conservation",
            delta.nic("port_rx_packets") - drops["nic_ring"],
            taken,
            more=drops["nic_other"] + delta.nic(*_PORT_KEPT),
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
    delta = _Delta(window.start, window.end)
    taken = {name: delta.nic(name) for name in _queue_counters(tuple(window.end.nic))}
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
    delta = _Delta(window.start, window.end)
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


def _backwards(before: Snapshot, after: Snapshot) -> Iterator[Void]:
    """Counters of the receive path that fell: a reset or a reboot within the trial."""
    fell = [
        name
        for name in ("port_rx_packets", *_queue_counters(tuple(after.nic)))
        if after.nic.get(name, 0) < before.nic.get(name, 0)
    ]
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
