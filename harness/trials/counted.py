# SPDX-License-Identifier: MIT
"""What happened between two readings of one host's counters.

Hides the kernel's counter names (``struct rtnl_link_stats64``, ``/proc/net/snmp``).
:mod:`harness.agent.drivers` has the names of each NIC driver.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from harness.agent import drivers
from harness.trials.readings import Counters, CpuTime, Snapshot

_SENT = re.compile(r"tx")
_WRAP = 1 << 32  # softnet_stat is printed in 32 bits, and some drivers count in 32 bits


@dataclass(frozen=True)
class Delta:
    """What happened between two snapshots of one host."""

    before: Snapshot
    after: Snapshot

    @property
    def duration_s(self) -> float:
        return (self.after.monotonic_ns - self.before.monotonic_ns) / 1e9

    def nic(self, *names: str) -> int:
        """Sum of the ``ethtool -S`` counters ``names``; a missing counter is 0."""
        return _grown(self.before.nic, self.after.nic, names)

    def link(self, *names: str) -> int:
        return _grown(self.before.link, self.after.link, names)

    def snmp(self, table: str, *names: str) -> int:
        return _grown(self.before.snmp.get(table, {}), self.after.snmp.get(table, {}), names)

    def both(self, table: str, *names: str) -> int:
        """Sum of a table's counters for IPv4 and IPv6; the latter are read if it is in use."""
        return self.snmp(table, *names) + self.snmp(f"{table}6", *names)

    def udp(self, *names: str) -> int:
        return self.both("Udp", *names)

    def netstat(self, table: str, *names: str) -> int:
        return _grown(self.before.netstat.get(table, {}), self.after.netstat.get(table, {}), names)

    @cached_property
    def names(self) -> drivers.CounterNames:
        """What the counters of the NIC's driver mean."""
        return drivers.counter_names(tuple(self.after.nic))

    def nic_ring_drops(self) -> int:
        ring = self.names.ring_drops
        return self.link("rx_missed_errors") if ring is None else self._of_driver(ring)

    def nic_other_drops(self) -> int:
        return self._of_driver(self.names.other_drops)

    def driver_drops(self) -> int:
        return self._of_driver(self.names.driver_drops)

    def nic_in_link(self) -> int:
        """The part of the link's ``rx_dropped`` that the NIC also counts under its own names."""
        return self._of_driver(self.names.in_link_dropped)

    def port_kept(self) -> int:
        return self._of_driver(self.names.kept)

    def _of_driver(self, names: Iterable[str]) -> int:
        short = self.names.of_32_bits
        return sum(self.nic(name) % _WRAP if name in short else self.nic(name) for name in names)

    def pauses(self) -> dict[str, int]:
        """Pause frames ``sent`` and ``received`` by this host's port."""
        found = {"sent": 0, "received": 0}
        for name in drivers.pause_counters(tuple(self.after.nic)):
            found["sent" if _SENT.search(name) else "received"] += max(0, self.nic(name))
        return found

    @property
    def at_port(self) -> int | None:
        """Frames at the port, if the NIC counts them before it takes a descriptor."""
        return self.nic(self.names.at_port) if self.names.at_port else None

    @property
    def offered(self) -> int | None:
        """Frames at the port; without such a counter, frames delivered or dropped at the ring."""
        if self.at_port is not None:
            return self.at_port
        return None if self.nic_delivered is None else self.nic_delivered + self.nic_ring_drops()

    @property
    def queues(self) -> dict[str, int]:
        """Frames taken from each receive queue, by the name of its counter."""
        return {name: self.nic(name) for name in drivers.queue_counters(tuple(self.after.nic))}

    @cached_property
    def nic_delivered(self) -> int | None:
        """Frames taken from receive queues; the driver counts them without delay."""
        if queues := self.queues:
            return sum(queues.values())
        return self.link("rx_packets") if "rx_packets" in self.after.link else None

    @property
    def ip_in(self) -> int | None:
        """Packets that entered IP, of both versions."""
        known = "InReceives" in self.after.snmp.get("Ip", {})
        return self.both("Ip", "InReceives") if known else None

    @property
    def forwarded(self) -> int:
        return self.snmp("Ip", "ForwDatagrams") + self.snmp("Ip6", "OutForwDatagrams")

    @property
    def delivered_here(self) -> int:
        """Packets that IP gave to the protocols of this host."""
        return self.both("Ip", "InDelivers")

    @property
    def sent_here(self) -> int:
        """Packets that this host made, on all interfaces."""
        return self.both("Ip", "OutRequests")

    @property
    def qdisc_dropped(self) -> int | None:
        """Packets that the queue before the interface dropped; ``None``: not read."""
        before, after = self.before.qdisc_dropped, self.after.qdisc_dropped
        return None if before is None or after is None else (after - before) % _WRAP

    @property
    def control(self) -> int:
        """TCP segments and ICMP messages: other traffic than the load, of all interfaces."""
        return self.snmp("Tcp", "InSegs") + self.both("Icmp", "InMsgs")

    def per_second(self, count: int | None) -> float | None:
        return count / self.duration_s if count is not None and self.duration_s > 0 else None

    @property
    def ip_pps(self) -> float | None:
        """Packets a second that entered IP."""
        return self.per_second(self.ip_in)

    @property
    def datagrams(self) -> int | None:
        known = "InDatagrams" in self.after.snmp.get("Udp", {})
        return self.udp("InDatagrams") if known else None

    @cached_property
    def softnet_dropped(self) -> int:
        before = {line.cpu: line.dropped for line in self.before.softnet}
        return sum(line.dropped - before.get(line.cpu, 0) for line in self.after.softnet)

    @property
    def kernel_cpu_ns(self) -> int | None:
        """CPU time of a kernel that is a process, as its host counts it exactly."""
        before, after = self.before.kernel_cpu_ns, self.after.kernel_cpu_ns
        return None if before is None or after is None else after - before

    def busy_ns(self, cpu: int | None) -> int | None:
        """Kernel time of ``cpu``, or of all CPUs if it is ``None``."""
        if (own := self.kernel_cpu_ns) is not None:
            return own
        before = {line.cpu: line for line in self.before.cpu}
        lines = [line for line in self.after.cpu if cpu is None or line.cpu == cpu]
        if not lines or any(line.cpu not in before for line in lines):
            return None
        return sum(_kernel_ns(line) - _kernel_ns(before[line.cpu]) for line in lines)

    def cost_ns(self, cpu: int | None) -> float | None:
        """Time per packet at IP in which ``cpu``, or every CPU, was not idle."""
        if (own := self.kernel_cpu_ns) is not None:
            return own / self.ip_in if self.ip_in else None
        before = {line.cpu: line for line in self.before.cpu}
        lines = [line for line in self.after.cpu if cpu in (None, line.cpu) and line.cpu in before]
        if not lines or not self.ip_in:
            return None
        idle_ns = sum(line.idle_ns - before[line.cpu].idle_ns for line in lines)
        return (self.duration_s * 1e9 * len(lines) - idle_ns) / self.ip_in

    def processed(self) -> dict[int, int] | None:
        """Packets that each CPU processed in the core of the stack; ``None``: not counted."""
        before = {line.cpu: line.processed for line in self.before.softnet}
        return {
            line.cpu: (line.processed - before.get(line.cpu, 0)) % _WRAP
            for line in self.after.softnet
        } or None

    def received_rps(self) -> dict[int, int]:
        """How often RPS woke each CPU for packets of another CPU."""
        before = {line.cpu: line.received_rps for line in self.before.softnet}
        return {
            line.cpu: (line.received_rps - (before.get(line.cpu) or 0)) % _WRAP
            for line in self.after.softnet
            if line.received_rps is not None
        }

    def squeezes(self, cpu: int) -> int | None:
        """How often the receive softirq of ``cpu`` ended with work left over."""
        softnet = (*self.before.softnet, *self.after.softnet)
        ends = [line.time_squeeze for line in softnet if line.cpu == cpu]
        return (ends[1] - ends[0]) % _WRAP if len(ends) == 2 else None

    def net_rx(self) -> dict[str, int]:
        """Receive softirqs by CPU; empty if they were not read."""
        before = self.before.net_rx
        return {cpu: count - before.get(cpu, 0) for cpu, count in self.after.net_rx.items()}

    def interrupts(self) -> int | None:
        """Interrupts of the interface on all CPUs; ``None``: not read."""
        if not self.after.interrupts:
            return None
        counted = [
            sum(sum(row.get("counts", {}).values()) for row in snapshot.interrupts.values())
            for snapshot in (self.before, self.after)
        ]
        return counted[1] - counted[0]

    def idle_share(self, cpu: int) -> float | None:
        """Share of time in which ``cpu`` was idle; time stolen by a hypervisor is excluded."""
        lines = [line for line in (*self.before.cpu, *self.after.cpu) if line.cpu == cpu]
        if len(lines) != 2:
            return None
        stolen_ns = max(0, lines[1].steal_ns - lines[0].steal_ns)
        had_ns = self.duration_s * 1e9 - stolen_ns
        idle_ns = max(0, lines[1].idle_ns - lines[0].idle_ns)
        return min(1.0, idle_ns / had_ns) if had_ns > 0 else None


def _kernel_ns(line: CpuTime) -> int:
    return line.system_ns + line.irq_ns + line.softirq_ns


def _grown(before: Counters, after: Counters, names: Iterable[str]) -> int:
    # A loop: this is called thousands of times for each campaign of a trend.
    grown = 0
    for name in names:
        grown += after.get(name, 0) - before.get(name, 0)
    return grown
