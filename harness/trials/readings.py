# SPDX-License-Identifier: MIT
"""What trials read from a host, as kept in files: counters, windows, probes, streams.

Raw counters are kept as they were read. Every field is declared here. Undeclared fields
that an agent sends are dropped; a test checks that the agent sends none.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Counters = dict[str, int]


class Declared(BaseModel):
    """Only declared fields; unknown ones, for example from a newer harness, are dropped."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)


class Softnet(Declared):
    """One CPU's line of ``/proc/net/softnet_stat``."""

    cpu: int
    processed: int = 0
    dropped: int = 0
    time_squeeze: int = 0
    received_rps: int | None = None
    """``None``: not read, as in results of earlier versions."""


class CpuTime(Declared):
    """One CPU's time since boot, in nanoseconds."""

    cpu: int
    user_ns: int = 0
    system_ns: int = 0
    irq_ns: int = 0
    softirq_ns: int = 0
    idle_ns: int = 0
    steal_ns: int = 0


class UdpSocket(Declared):
    """One bound UDP socket: its drops since it was opened, and the bytes queued in it."""

    local: str = ""
    drops: int = 0
    queued_bytes: int = 0


class Snapshot(Declared):
    """All counters of a host at one moment; each counts up from boot."""

    monotonic_ns: int
    snmp: dict[str, Counters] = Field(default_factory=dict)
    netstat: dict[str, Counters] = Field(default_factory=dict)
    softnet: list[Softnet] = Field(default_factory=list)
    nic: Counters = Field(default_factory=dict)
    """By the names of ``ethtool -S``."""
    link: Counters = Field(default_factory=dict)
    """By the names of ``struct rtnl_link_stats64``."""
    net_rx: Counters = Field(default_factory=dict)
    """Receive softirqs by CPU (``/proc/softirqs``); empty: not read."""
    net_rx_budget: int | None = None
    """Packets after which a receive softirq ends (``net.core.netdev_budget``)."""
    qdisc_dropped: int | None = None
    """Packets that the interface's queueing discipline dropped; ``None``: not read."""
    speed_mbps: int | None = None
    """Of the link; not read within a window."""
    cpu: list[CpuTime] = Field(default_factory=list)
    kernel_cpu_ns: int | None = None
    """CPU time of the kernel itself, if it is a process."""
    throttled: Counters = Field(default_factory=dict)
    """How often each CPU was throttled because of its temperature, if the CPU counts that."""
    interrupts: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Of the interface: for each line ``counts`` by CPU."""
    processes: list[dict[str, Any]] = Field(default_factory=list)
    """Processes of the load and of the agent: ``pid``, ``name``, ``last_cpu``."""
    udp_sockets: list[UdpSocket] = Field(default_factory=list)


class ProcessPlacement(Declared):
    """On which CPUs a process was seen during a window, and how often."""

    pid: int
    name: str
    cpus: dict[str, int] = Field(default_factory=dict)


class Placement(Declared):
    """Where interrupts (by line, then CPU) and processes actually ran."""

    irq: dict[str, dict[str, int]] = Field(default_factory=dict)
    processes: list[ProcessPlacement] = Field(default_factory=list)


class PmuCount(Declared):
    """One event of a CPU's PMU, over the ``on_s`` seconds in which it was enabled."""

    count: float
    on_s: float
    running: float = 1.0
    """Share of that time in which it had a counter; ``count`` is scaled up for the rest."""


class Pmu(Declared):
    """The PMU events of one CPU over a window, and why others are absent."""

    cpu: int
    counts: dict[str, PmuCount] = Field(default_factory=dict)
    absent: dict[str, str] = Field(default_factory=dict)


class Window(Declared):
    """A timed window: counters at both ends, and samples between them."""

    start: Snapshot
    end: Snapshot
    placement: Placement = Field(default_factory=Placement)
    pmu: Pmu | None = None
    """``None``: not requested."""


class Stage(Declared):
    """Lists seen at one function; ``lengths[i]`` is the number of lists of ``i`` packets."""

    name: str
    function: str | None = None
    attach: str | None = None
    calls: int = 0
    packets: int = 0
    lengths: list[int] = Field(default_factory=list)
    overflow: int = 0
    min: int | None = None
    max: int | None = None


class Trace(Declared):
    """What the probes counted in one traced trial."""

    duration_s: float
    stages: list[Stage] = Field(default_factory=list)
    per_skb: Counters = Field(default_factory=dict)
    missed: int = 0
    start: Snapshot | None = None
    end: Snapshot | None = None


class Whole(Declared):
    """Counters before the load began and after it ended and everything settled."""

    before: Snapshot
    after: Snapshot


class Stream(Declared):
    """One netperf stream as reported by both of its ends."""

    stream: int
    status: int | None = 0
    messages_sent: int | None = None
    messages_received: int | None = None
    octets_received: int | None = None
    """Of TCP; ``None``: not counted."""
    elapsed_s: float | None = None


class Void(Declared):
    """Why a trial is void: the rule, and what was seen."""

    rule: str
    detail: str


class Trial(Declared):
    """One trial in one boot; each kind has its own model."""

    kind: str
    index: int
    void: list[Void] = Field(default_factory=list)


class Loaded(Trial):
    """A trial under streams that last until its end."""

    ramp: dict[str, Any] | None = None
    """The rates seen until the load was steady, and whether it became ``steady``."""
    whole: Whole | None = None
    netperf: list[Stream] = Field(default_factory=list)


class Windowed(Loaded):
    """A trial with a window between two readings."""

    window: Window | None = None
