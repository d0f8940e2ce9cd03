# SPDX-License-Identifier: MIT
"""Two hosts with a NIC and a load between them, simulated, and a clock that nobody waits for.

Counters advance with the clock and with what is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.base.errors import TrialVoidError
from tests.unit import synthetic

Json = dict[str, Any]

OFFERED_PPS = 400_000.0
"""What a generator sends when it is not paced; no kernel takes that much."""
READ_SHARE = 0.6
"""Of what the stack takes: as much can netserver read."""
COLD_SHARE, COLD_S = 0.7, 2.2
"""An unlimited load begins with cold caches."""
PROBED_SHARE = 0.7
"""What is left of a rate under the probes."""
INSTRUCTIONS = 4000
"""A packet, counted by the emulator; the CPU's own counters say the double."""
CYCLES_PER_S = 2e9
_TICK_S = 0.1
_FRAME_BYTES = 42
_CPUS = 8
_READ_NS = 3000
"""What netserver needs for a packet, on a CPU of its own."""
_AS_MET: Json = {
    "coalesce": {"adaptive_rx": True, "rx_usecs": 25},
    "busy_read_us": 0,
    "irq_cpu": 5,
    "rx_queues": 4,
    "pacing_bytes_per_s": 0,
}
"""Settings by the names of ``settings_apply``, where the simulation looks at them."""
_NO_SETTINGS = ("interface", "process_cpus")
DUT_INTERFACE, GENERATOR_INTERFACE = "eth1", "eth7"


class Clock:
    """Time that passes only where somebody sleeps or waits for an answer."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.benches: list[Bench] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        seconds = max(0.0, seconds)
        self.now_s += seconds
        for bench in self.benches:
            bench.passed(seconds)


class Host:
    """One host's settings, as its agent changes them and puts them back."""

    def __init__(self) -> None:
        self.settings: Json = dict(_AS_MET)
        self.changed: Json = {}

    def apply(self, wanted: Mapping[str, Any]) -> Json:
        before = self.settings | self.changed
        for name, value in wanted.items():
            if name not in _NO_SETTINGS and value is not None:
                self.changed.setdefault(name, self.settings.get(name))
                self.settings[name] = value
        return {
            "before": before,
            "after": dict(self.settings),
            "skipped": [],
            "recovered": [],
            "packet_taps": None,
            "in_the_way": None,
        }

    def restore(self) -> Json:
        restored = list(reversed(self.changed))
        self.settings |= self.changed
        self.changed = {}
        return {"restored": restored, "failed": []}


class Generator(Host):
    """The host that sends: streams, paused or not, through an interface that may be paced."""

    streams = 0
    message_bytes = 0
    paused = False
    sends_from_s = 0.0
    """In the time of the bed."""
    most_pps = OFFERED_PPS
    sent = 0.0

    @property
    def paced_pps(self) -> float | None:
        bytes_per_s = self.settings["pacing_bytes_per_s"]
        return bytes_per_s / (_FRAME_BYTES + self.message_bytes) if bytes_per_s else None


@dataclass
class Kernel:
    """One kernel under test: what it takes, and what goes wrong in its boots."""

    release: str
    stack_pps: float
    steps: int
    """Patches of the series in it."""
    runs: str | None = None
    """The release that comes up in its place."""
    answers: Callable[[str, str, Callable[[], Any]], Any] = lambda _role, _name, usual: usual()
    """Gives each answer in place of the usual one, or raises what goes wrong."""
    console: str = ""
    irqs_on: int | None = None
    """A CPU to which interrupts go, whatever was set."""
    netserver_on: int | None = None
    offered_pps: float = OFFERED_PPS


@dataclass
class Bench:
    """One boot of the dut beside its generator: everything that moves with time."""

    clock: Clock
    kernel: Kernel
    generator: Generator
    dut: Host = field(default_factory=Host)
    frozen: bool = False
    probes: bool = False
    netserver: Json | None = None
    round_trips_pps: float = 0.0
    up_s: float = 0.0
    counts: Json = field(
        default_factory=lambda: dict.fromkeys(
            ("port", "taken", "read", "busy_ns", "interrupts", "squeezes"), 0.0
        )
    )
    opened: list[str] = field(default_factory=list)
    """Windows that were opened, each with what else was going on then."""

    def passed(self, seconds: float) -> None:
        """Let ``seconds`` pass for both hosts, if they are not stopped."""
        while seconds > 0 and not self.frozen:
            self._moved(min(seconds, _TICK_S))
            seconds -= _TICK_S

    def _moved(self, seconds: float) -> None:
        self.up_s += seconds
        sending_s = max(0.0, min(seconds, self.up_s - self.generator.sends_from_s))
        offered = self.offered_pps * sending_s
        capacity = self.capacity_pps * seconds
        taken = min(offered, capacity)
        self.generator.sent += offered
        taken += self.round_trips_pps * seconds
        load = taken / capacity
        self.counts["port"] += offered + self.round_trips_pps * seconds
        self.counts["taken"] += taken
        self.counts["read"] += min(taken, READ_SHARE * capacity)
        self.counts["busy_ns"] += load * seconds * 1e9
        self.counts["interrupts"] += (20 if load >= 1 else 8000) * seconds
        self.counts["squeezes"] += taken / 300 if load >= 1 else 0

    @property
    def offered_pps(self) -> float:
        generator = self.generator
        if not generator.streams or generator.paused:
            return 0.0
        paced_pps = generator.paced_pps
        return min(paced_pps or generator.most_pps, generator.most_pps)

    @property
    def capacity_pps(self) -> float:
        generator, capacity = self.generator, self.kernel.stack_pps
        if self.probes:
            capacity *= PROBED_SHARE
        cold = 0 <= self.up_s - generator.sends_from_s <= COLD_S
        return capacity * (COLD_SHARE if cold and generator.paced_pps is None else 1.0)

    @property
    def irq_cpu(self) -> int:
        on = self.kernel.irqs_on
        return int(self.dut.settings["irq_cpu"]) if on is None else on

    @property
    def netserver_cpu(self) -> int:
        on = self.kernel.netserver_on
        pinned = (self.netserver or {}).get("cpu")
        return on if on is not None else _CPUS - 1 if pinned is None else int(pinned)

    def snapshot(self) -> Json:
        """Every counter of the dut."""
        counts = {name: int(value) for name, value in self.counts.items()}
        host = synthetic.Host(at_ns=10**9 + round(self.up_s * 1e9))
        host.totals = counts | {"ring": counts["port"] - counts["taken"], "control": 0}
        made = host.snapshot()
        irq = self.irq_cpu
        made["cpu"] = [self._cpu_time(cpu, counts, host.at_ns - 10**9) for cpu in range(_CPUS)]
        made["softnet"] = [made["softnet"][0] | {"cpu": irq, "time_squeeze": counts["squeezes"]}]
        made["net_rx"] = {str(irq): counts["interrupts"]}
        made["interrupts"] = {"30": {"name": "eth1-0", "counts": {str(irq): counts["interrupts"]}}}
        queues = self.dut.settings["rx_queues"]
        for queue in range(queues):
            share = counts["taken"] // queues
            rest = counts["taken"] - share * (queues - 1)
            made["nic"][f"rx-{queue}.rx_packets"] = share if queue else rest
        made["udp_sockets"] = []
        made["processes"] = self._netserver("last_cpu", self.netserver_cpu)
        return made

    def _cpu_time(self, cpu: int, counts: Json, elapsed_ns: int) -> Json:
        kernel_ns = counts["busy_ns"] if cpu == self.irq_cpu else 0
        apart = cpu == self.netserver_cpu != self.irq_cpu
        user_ns = round(counts["read"] * _READ_NS) if apart else 0
        return {"cpu": cpu, "user_ns": user_ns, "system_ns": 0, "irq_ns": 0, "steal_ns": 0,
                "softirq_ns": kernel_ns, "idle_ns": elapsed_ns - kernel_ns - user_ns}  # fmt: skip

    def _netserver(self, name: str, value: Any) -> list[Json]:
        return [{"pid": 99, "name": "netserver", name: value}] if self.netserver else []

    def window(self, duration_s: float, *, interface: str, **asked: Any) -> Callable[[], Json]:
        """The two ends of a window that begins now; call what is returned at its end."""
        assert interface == DUT_INTERFACE
        start, cpu, emulated = self.snapshot(), asked.get("pmu_cpu"), asked.get("emulated")
        if asked.get("netserver") and not self.offered_pps:
            raise TrialVoidError("no stream is being received")

        def ended() -> Json:
            end = self.snapshot()
            packets = end["snmp"]["Ip"]["InReceives"] - start["snmp"]["Ip"]["InReceives"]
            there = cpu == self.irq_cpu
            count = packets * INSTRUCTIONS * (1 if emulated else 2)
            busy_ns = _of_cpu(end, cpu) - _of_cpu(start, cpu) if cpu is not None else 0
            counts = {
                "instructions": count if there else 0,
                "L1-icache-load-misses": packets * 8 if there else 0,
            }
            if not emulated:
                counts["cycles"] = busy_ns * CYCLES_PER_S / 1e9
            irq = str(self.irq_cpu)
            both = [one["interrupts"]["30"]["counts"][irq] for one in (start, end)]
            sampled = {str(self.netserver_cpu): int(duration_s / 0.2)}
            return {
                "start": start,
                "end": end,
                "placement": {
                    "irq": {"30": {irq: both[1] - both[0]}},
                    "processes": self._netserver("cpus", sampled) if asked.get("netserver") else [],
                },
                "samples": [],
                "pmu": None
                if cpu is None
                else {
                    "cpu": cpu,
                    "counts": {
                        name: {"count": value, "on_s": duration_s} for name, value in counts.items()
                    },
                },
            }

        return ended

    def trace(self, duration_s: float, *, interface: str) -> Callable[[], Json]:
        """As :meth:`window`, of what the probes count."""
        assert interface == DUT_INTERFACE
        assert self.probes, "no probes are attached"
        start = self.snapshot()

        def ended() -> Json:
            end = self.snapshot()
            packets = end["snmp"]["Ip"]["InReceives"] - start["snmp"]["Ip"]["InReceives"]
            made = synthetic.trace_counts(packets, self.kernel.steps)
            return {"duration_s": duration_s, "start": start, "end": end, "missed": 0, **made}

        return ended


def _of_cpu(snapshot: Json, cpu: int) -> int:
    return int(snapshot["cpu"][cpu]["softirq_ns"])


def round_trip_us(rx_usecs: float, busy_read_us: float) -> float:
    """What a round trip takes under these settings of the dut."""
    return 20.0 + rx_usecs / 2 + (0.0 if busy_read_us else 10.0)
