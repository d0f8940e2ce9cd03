# SPDX-License-Identifier: MIT
"""What the kernel counted: one reading of every counter, and a window between two.

A reading is taken raw and parsed afterwards, because under receive load the
agent shares the machine with what it measures and each microsecond between the
first and the last file is an error of the rates. Names are the kernel's own.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .ethtool import Ethtool
from .inventory import existing, interface_irqs, parse_interrupts

_PROC = Path("/proc")
_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
# Words of /proc/net/softnet_stat; the last one is there since Linux 5.10.
_SOFTNET_CPU = 12
_RTM_GETSTATS = 94
_RTM_NEWSTATS = 92
_STATS_LINK_64 = 1
_WINDOW_NICE = -10
_CPUCLOCK_SCHED = 2
# struct rtnl_link_stats64, in its order.
_LINK64 = (  # noqa: SIM905 - a list of 25 lines reads no better
    "rx_packets tx_packets rx_bytes tx_bytes rx_errors tx_errors rx_dropped tx_dropped multicast "
    "collisions rx_length_errors rx_over_errors rx_crc_errors rx_frame_errors rx_fifo_errors "
    "rx_missed_errors tx_aborted_errors tx_carrier_errors tx_fifo_errors tx_heartbeat_errors "
    "tx_window_errors rx_compressed tx_compressed rx_nohandler rx_otherhost_dropped"
).split()

Sleep = Callable[[float], None]


class _Raw(NamedTuple):
    """One reading, not yet parsed."""

    monotonic_ns: int
    read_ns: int
    texts: dict[str, str]
    nic: bytes
    link: bytes
    tasks: list[tuple[int, str, int]]


class Counters:
    """The counters of one interface and of the tasks that serve it.

    ``tasks`` gives the process ids to follow; it is asked anew at each reading, since
    netserver has a process for each connection.
    """

    _files = {  # noqa: RUF012 - never changed
        "snmp": "net/snmp",
        "netstat": "net/netstat",
        "softnet": "net/softnet_stat",
        "interrupts": "interrupts",
        "stat": "stat",
        "udp": "net/udp",
    }

    def __init__(self, interface: str, tasks: Callable[[], Iterable[int]]) -> None:
        self._ethtool = Ethtool(existing(interface))
        self._index = socket.if_nametoindex(interface)
        self._tasks = tasks
        self._irqs = set(interface_irqs(interface))
        self._softirqd = [
            int(path.parent.name)
            for path in _PROC.glob("[0-9]*/comm")
            if path.read_text().startswith("ksoftirqd/")
        ]

    def snapshot(self) -> dict[str, Any]:
        """Everything, now."""
        return self._parsed(self._read())

    def window(
        self,
        *,
        duration_s: float,
        sample_s: float,
        sleep: Sleep,
        opened: Callable[[], None] = lambda: None,
        closed: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Two readings ``duration_s`` apart, and samples between them.

        ``sleep`` waits, or raises where nobody is left to wait for. The rates of the
        window follow from the readings' own times, not from ``duration_s``. ``opened`` is
        called right after the first reading and ``closed`` right before the last.
        """
        pids = [*self._followed()]
        samples: list[dict[str, int]] = []
        seen: dict[int, Counter[str]] = {pid: Counter() for pid in pids}
        names: dict[int, str] = {}
        with _preferred():
            first = self._read()
            opened()
            due = time.monotonic_ns()
            end = due + int(duration_s * 1e9)
            while (due := due + int(sample_s * 1e9)) < end:
                sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
                samples.append(_sample())
                for pid, stat, _ in _read_tasks(pids):
                    task = parse_task(stat)
                    seen[pid][str(task["last_cpu"])] += 1
                    names[pid] = task["name"]
            sleep(max(0.0, (end - time.monotonic_ns()) / 1e9))
            closed()
            last = self._read()
        start, finish = self._parsed(first), self._parsed(last)
        return {
            "start": start,
            "end": finish,
            "placement": {
                "irq": interrupt_deltas(start["interrupts"], finish["interrupts"]),
                "processes": [
                    {"pid": pid, "name": name, "cpus": dict(seen[pid]), "affinity": _affinity(pid)}
                    for pid, name in names.items()
                ],
            },
            "samples": samples,
        }

    def _followed(self) -> Iterable[int]:
        yield from self._tasks()
        yield from self._softirqd
        yield os.getpid()

    def _read(self) -> _Raw:
        pids = [*self._followed()]
        texts: dict[str, str] = {}
        before_ns = time.monotonic_ns()
        for name, path in self._files.items():
            texts[name] = (_PROC / path).read_text(encoding="utf-8")
            if name == "snmp":
                at_ns = (before_ns + time.monotonic_ns()) // 2
                nic = self._ethtool.statistics_values()
                link = _link_statistics(self._index)
        tasks = _read_tasks(pids)
        return _Raw(at_ns, time.monotonic_ns() - before_ns, texts, nic, link, tasks)

    def _parsed(self, raw: _Raw) -> dict[str, Any]:
        texts = raw.texts
        return {
            "monotonic_ns": raw.monotonic_ns,
            "read_ns": raw.read_ns,
            "snmp": parse_snmp(texts["snmp"]),
            "netstat": parse_snmp(texts["netstat"]),
            "softnet": parse_softnet(texts["softnet"]),
            "nic": self._ethtool.statistics(raw.nic),
            "link": dict(zip(_LINK64, _words64(raw.link), strict=False)),
            "interrupts": parse_interrupts(texts["interrupts"], self._irqs),
            "cpu": parse_cpu(texts["stat"]),
            "processes": [
                {"pid": pid, **parse_task(stat), "cpu_ns": cpu_ns}
                for pid, stat, cpu_ns in raw.tasks
            ],
            "udp_sockets": parse_udp(texts["udp"]),
        }


def parse_snmp(text: str) -> dict[str, dict[str, int]]:
    """/proc/net/snmp or netstat: pairs of lines, names above numbers."""
    groups: dict[str, dict[str, int]] = {}
    lines = text.splitlines()
    for names, numbers in zip(lines[::2], lines[1::2], strict=False):
        group, _, words = names.partition(":")
        values = map(int, numbers.partition(":")[2].split())
        groups[group] = dict(zip(words.split(), values, strict=False))
    return groups


def parse_softnet(text: str) -> list[dict[str, int]]:
    """/proc/net/softnet_stat, a row for each CPU online."""
    rows = []
    for index, line in enumerate(text.splitlines()):
        words = [int(word, 16) for word in line.split()]
        rows.append(
            {
                "cpu": words[_SOFTNET_CPU] if len(words) > _SOFTNET_CPU else index,
                "processed": words[0],
                "dropped": words[1],
                "time_squeeze": words[2],
            }
        )
    return rows


def parse_cpu(text: str) -> list[dict[str, int]]:
    """The CPU rows of /proc/stat in nanoseconds; its own unit is the tick."""
    rows = []
    for line in text.splitlines():
        name, *words = line.split()
        if not name.startswith("cpu") or name == "cpu":
            continue
        user, nice, system, idle, iowait, irq, softirq, steal, *_ = map(int, words)
        rows.append(
            {
                "cpu": int(name.removeprefix("cpu")),
                "user_ns": (user + nice) * _NS_PER_TICK,
                "system_ns": system * _NS_PER_TICK,
                "irq_ns": irq * _NS_PER_TICK,
                "softirq_ns": softirq * _NS_PER_TICK,
                "idle_ns": (idle + iowait) * _NS_PER_TICK,
                "steal_ns": steal * _NS_PER_TICK,
            }
        )
    return rows


def parse_task(stat: str) -> dict[str, Any]:
    """Name and last CPU of a task, from /proc/PID/stat."""
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    return {"name": name, "last_cpu": int(stat[stat.rindex(")") + 2 :].split()[36])}


def parse_udp(text: str) -> list[dict[str, Any]]:
    """/proc/net/udp: every IPv4 socket with what waits in it and what it dropped."""
    rows = []
    for line in text.splitlines()[1:]:
        words = line.split()
        address, _, port = words[1].partition(":")
        # The address is printed as a number of the machine's own byte order.
        local = socket.inet_ntoa(struct.pack("=I", int(address, 16)))
        rows.append(
            {
                "local": f"{local}:{int(port, 16)}",
                "drops": int(words[-1]),
                "queued_bytes": int(words[4].partition(":")[2], 16),
            }
        )
    return rows


def interrupt_deltas(
    before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]
) -> dict[str, dict[str, int]]:
    """Interrupts between two readings, by number and CPU; CPUs that took none are left out."""
    deltas: dict[str, dict[str, int]] = {}
    for irq, row in after.items():
        earlier = before.get(irq, {}).get("counts", {})
        moved = {cpu: count - earlier.get(cpu, 0) for cpu, count in row["counts"].items()}
        deltas[irq] = {cpu: count for cpu, count in moved.items() if count}
    return deltas


def _sample() -> dict[str, int]:
    before_ns = time.monotonic_ns()
    text = (_PROC / "net/snmp").read_text(encoding="utf-8")
    at_ns = (before_ns + time.monotonic_ns()) // 2
    groups = parse_snmp("\n".join(x for x in text.splitlines() if x.startswith(("Ip:", "Udp:"))))
    return {
        "monotonic_ns": at_ns,
        "ip_in_receives": groups["Ip"]["InReceives"],
        "udp_in_datagrams": groups["Udp"]["InDatagrams"],
    }


def _read_tasks(pids: Iterable[int]) -> list[tuple[int, str, int]]:
    read = []
    for pid in pids:
        with contextlib.suppress(OSError):
            stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
            # The clock clock_getcpuclockid(3) gives: nanoseconds, where stat has ticks.
            read.append((pid, stat, time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)))
    return read


def _affinity(pid: int) -> list[int]:
    try:
        return sorted(os.sched_getaffinity(pid))
    except ProcessLookupError:
        return []


def _words64(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"{len(data) // 8}Q", data[: len(data) & ~7])


def _link_statistics(index: int) -> bytes:
    """struct rtnl_link_stats64 of the interface, by the one netlink message that asks for it."""
    request = struct.pack("=IHHIIBBHII", 28, _RTM_GETSTATS, 1, 0, 0, 0, 0, 0, index, _STATS_LINK_64)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(request)
        answer = netlink.recv(8192)
    # Headers: message 16, if_stats_msg 12, attribute 4.
    if struct.unpack_from("H", answer, 4)[0] != _RTM_NEWSTATS:
        return b""
    (length,) = struct.unpack_from("H", answer, 28)
    return answer[32 : 28 + length]


@contextlib.contextmanager
def _preferred() -> Iterator[None]:
    """The agent is woken in time while the load it watches wants every CPU."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    # A user namespace's root may not: there the window is as exact as the load leaves it.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _WINDOW_NICE)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, usual)
