# SPDX-License-Identifier: MIT
"""What happened between two readings of one host's counters.

Hides under which names NICs and kernels count. Names are those of ``ethtool -S`` in
drivers/net/ethernet/sfc (ef10.c, ethtool_common.c), of ``struct rtnl_link_stats64``
and of ``/proc/net/snmp``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from harness.trials.readings import Counters, CpuTime, Snapshot

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
# Pause frames as sfc, bnxt, mlx5, igb and ixgbe, and ice and i40e name them.
_PAUSE = re.compile(
    r"(port[._])?([rt]x_pause(_frames|_pkts?|_ctrl(_phy)?)?|[rt]x_flow_control_xoff|link_xoff_[rt]x)"
    r"([._]nic)?"
)
_SENT = re.compile(r"tx")
_SOFTNET_WRAP = 1 << 32  # printed in 32 bits


@dataclass(frozen=True)
class Delta:
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

    def nic_in_link(self) -> int:
        """Of the link's ``rx_dropped``: what the NIC counts under names of its own too."""
        if not self.is_sfc:
            return 0
        port = 0 if self.has_adapter else self.nic(*_PORT_RING_DROPS)
        return port + self.driver_drops(_SFC_IN_LINK_DROPPED)

    def port_kept(self) -> int:
        return self.nic(*_PORT_KEPT)

    def pauses(self) -> dict[str, int]:
        """Pause frames by the way they went: ``sent`` by this host's port, and ``received``."""
        found = {"sent": 0, "received": 0}
        for name in _pause_counters(tuple(self.after.nic)):
            found["sent" if _SENT.search(name) else "received"] += max(0, self.nic(name))
        return found

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
        queues = queue_counters(tuple(self.after.nic))
        if queues:
            return self.nic(*queues)
        return self.link("rx_packets") if "rx_packets" in self.after.link else None

    @property
    def ip_in(self) -> int | None:
        known = "InReceives" in self.after.snmp.get("Ip", {})
        return self.snmp("Ip", "InReceives") if known else None

    def per_second(self, count: int | None) -> float | None:
        return count / self.duration_s if count is not None and self.duration_s > 0 else None

    @property
    def ip_pps(self) -> float | None:
        """Packets a second that entered IP."""
        return self.per_second(self.ip_in)

    @property
    def datagrams(self) -> int | None:
        known = "InDatagrams" in self.after.snmp.get("Udp", {})
        return self.snmp("Udp", "InDatagrams") if known else None

    @cached_property
    def softnet_dropped(self) -> int:
        before = {line.cpu: line.dropped for line in self.before.softnet}
        return sum(line.dropped - before.get(line.cpu, 0) for line in self.after.softnet)

    @property
    def kernel_cpu_ns(self) -> int | None:
        """CPU time of a kernel that is a process, which its host has counted exactly."""
        before, after = self.before.kernel_cpu_ns, self.after.kernel_cpu_ns
        return None if before is None or after is None else after - before

    def busy_ns(self, cpu: int | None) -> int | None:
        """Kernel time of ``cpu``, or of all CPUs when none was named."""
        if (own := self.kernel_cpu_ns) is not None:
            return own
        before = {line.cpu: line for line in self.before.cpu}
        lines = [line for line in self.after.cpu if cpu is None or line.cpu == cpu]
        if not lines or any(line.cpu not in before for line in lines):
            return None
        return sum(_kernel_ns(line) - _kernel_ns(before[line.cpu]) for line in lines)

    def cost_ns(self, cpu: int | None) -> float | None:
        """Time for each packet at IP in which ``cpu``, or every CPU, was not idle."""
        if (own := self.kernel_cpu_ns) is not None:
            return own / self.ip_in if self.ip_in else None
        before = {line.cpu: line for line in self.before.cpu}
        lines = [line for line in self.after.cpu if cpu in (None, line.cpu) and line.cpu in before]
        if not lines or not self.ip_in:
            return None
        idle_ns = sum(line.idle_ns - before[line.cpu].idle_ns for line in lines)
        return (self.duration_s * 1e9 * len(lines) - idle_ns) / self.ip_in

    def processed(self) -> dict[int, int] | None:
        """Packets each CPU took through the core of the stack; of no CPU: not counted."""
        before = {line.cpu: line.processed for line in self.before.softnet}
        return {
            line.cpu: (line.processed - before.get(line.cpu, 0)) % _SOFTNET_WRAP
            for line in self.after.softnet
        } or None

    def received_rps(self) -> dict[int, int]:
        """How often each CPU was woken for packets another one had taken."""
        before = {line.cpu: line.received_rps for line in self.before.softnet}
        return {
            line.cpu: (line.received_rps - (before.get(line.cpu) or 0)) % _SOFTNET_WRAP
            for line in self.after.softnet
            if line.received_rps is not None
        }

    def squeezes(self, cpu: int) -> int | None:
        """How often the receive softirq of ``cpu`` ended with work left over."""
        ends = [
            line.time_squeeze
            for snapshot in (self.before, self.after)
            for line in snapshot.softnet
            if line.cpu == cpu
        ]
        return (ends[1] - ends[0]) % _SOFTNET_WRAP if len(ends) == 2 else None

    def net_rx(self) -> dict[str, int]:
        """Receive softirqs by CPU; empty where they were not read."""
        before = self.before.net_rx
        return {cpu: count - before.get(cpu, 0) for cpu, count in self.after.net_rx.items()}

    def interrupts(self) -> int | None:
        """Of the interface, on all CPUs."""
        if not self.after.interrupts:
            return None
        counted = [
            sum(sum(row.get("counts", {}).values()) for row in snapshot.interrupts.values())
            for snapshot in (self.before, self.after)
        ]
        return counted[1] - counted[0]

    def idle_share(self, cpu: int) -> float | None:
        """Share of the time it had in which ``cpu`` was idle; what was stolen it had not."""
        lines = [
            line
            for snapshot in (self.before, self.after)
            for line in snapshot.cpu
            if line.cpu == cpu
        ]
        if len(lines) != 2:
            return None
        stolen_ns = max(0, lines[1].steal_ns - lines[0].steal_ns)
        had_ns = self.duration_s * 1e9 - stolen_ns
        idle_ns = max(0, lines[1].idle_ns - lines[0].idle_ns)
        return min(1.0, idle_ns / had_ns) if had_ns > 0 else None


@lru_cache(maxsize=16)
def _pause_counters(names: tuple[str, ...]) -> tuple[str, ...]:
    """Which of a driver's counters are of pause frames, of one port and not by priority."""
    return tuple(name for name in names if _PAUSE.fullmatch(name))


@lru_cache(maxsize=16)
def queue_counters(names: tuple[str, ...]) -> tuple[str, ...]:
    """Which of a driver's counters are those of its receive queues (``rx-0.rx_packets``)."""
    return tuple(name for name in names if name.endswith(".rx_packets"))


def _kernel_ns(line: CpuTime) -> int:
    return line.system_ns + line.irq_ns + line.softirq_ns


def _grown(before: Counters, after: Counters, names: Iterable[str]) -> int:
    return sum(after.get(name, 0) - before.get(name, 0) for name in names)
