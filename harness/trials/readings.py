# SPDX-License-Identifier: MIT
"""What trials read from a host, as files keep it: counters, windows, probes, streams.

Raw counters are kept as they were read. Every field is declared here: what an agent sends
beside them is not kept, and a test holds the agent to that.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Counters = dict[str, int]


class Declared(BaseModel):
    """Its fields and no others; those that only a newer harness knows are left out."""

    model_config = ConfigDict(extra="ignore", frozen=True)


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
    """One bound UDP socket: its drops since it was opened and what waits in it."""

    local: str = ""
    drops: int = 0
    queued_bytes: int = 0


class Snapshot(Declared):
    """All counters of a host at one moment; every one counts up from boot."""

    monotonic_ns: int
    snmp: dict[str, Counters] = Field(default_factory=dict)
    netstat: dict[str, Counters] = Field(default_factory=dict)
    softnet: list[Softnet] = Field(default_factory=list)
    nic: Counters = Field(default_factory=dict)
    """As ``ethtool -S`` names them."""
    link: Counters = Field(default_factory=dict)
    """As ``struct rtnl_link_stats64`` names them."""
    net_rx: Counters = Field(default_factory=dict)
    """Receive softirqs by CPU (``/proc/softirqs``); empty: not read."""
    net_rx_budget: int | None = None
    """Packets after which a receive softirq ends (``net.core.netdev_budget``)."""
    speed_mbps: int | None = None
    """Of the link; not read within a window."""
    cpu: list[CpuTime] = Field(default_factory=list)
    kernel_cpu_ns: int | None = None
    """CPU time of the kernel itself, where that is a process."""
    throttled: Counters = Field(default_factory=dict)
    """How often its temperature slowed each CPU down, where the CPU counts that."""
    interrupts: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Of the interface: by line ``counts``, by CPU."""
    processes: list[dict[str, Any]] = Field(default_factory=list)
    """Of the load and of the agent: ``pid``, ``name``, ``last_cpu``."""
    udp_sockets: list[UdpSocket] = Field(default_factory=list)


class ProcessPlacement(Declared):
    """On which CPUs a process was seen during a window, and how often."""

    pid: int
    name: str
    cpus: dict[str, int] = Field(default_factory=dict)


class Placement(Declared):
    """Where interrupts (by line, then CPU) and processes really were."""

    irq: dict[str, dict[str, int]] = Field(default_factory=dict)
    processes: list[ProcessPlacement] = Field(default_factory=list)


class PmuCount(Declared):
    """One event of a CPU's own counters, over the seconds in which it was on."""

    count: float
    on_s: float
    running: float = 1.0
    """Share of that time in which it had a counter; ``count`` is scaled for the rest."""


class Pmu(Declared):
    """What one CPU's own counters counted over a window, and why not where they did not."""

    cpu: int
    counts: dict[str, PmuCount] = Field(default_factory=dict)
    absent: dict[str, str] = Field(default_factory=dict)


class Window(Declared):
    """A timed window: counters at both ends and what was sampled between."""

    start: Snapshot
    end: Snapshot
    placement: Placement = Field(default_factory=Placement)
    pmu: Pmu | None = None
    """``None``: not asked for."""


class Stage(Declared):
    """Lists seen at one function: ``lengths[i]`` lists of exactly ``i`` packets."""

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
    """One netperf stream as both of its ends reported it."""

    stream: int
    status: int | None = 0
    messages_sent: int | None = None
    messages_received: int | None = None
    elapsed_s: float | None = None


class Void(Declared):
    """Why a trial does not count: a rule of the plan and what was seen."""

    rule: str
    detail: str


class Trial(Declared):
    """One trial on one boot; each kind has a model of its own."""

    kind: str
    index: int
    void: list[Void] = Field(default_factory=list)


class Loaded(Trial):
    """A trial under streams that last through it."""

    ramp: dict[str, Any] | None = None
    """Rates seen until the load had settled, and whether it had: ``steady``."""
    whole: Whole | None = None
    netperf: list[Stream] = Field(default_factory=list)


class Windowed(Loaded):
    """One with a window between two readings."""

    window: Window | None = None
