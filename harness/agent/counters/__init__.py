# SPDX-License-Identifier: MIT
"""The kernel's counters: one reading of all of them, and a window between two readings.

A reading is stored raw and parsed later: the agent shares the machine with the load, and each
microsecond between the first and the last file is an error of the rates. Names are the kernel's.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.agent.faults import parsing
from harness.agent.foreign import read_text, shown
from harness.agent.interface.ethtool import Ethtool
from harness.agent.interface.links import Links
from harness.agent.inventory import NET, existing, interface_irqs, parse_interrupts
from harness.agent.setting import PROC_SYS

_PROC = Path("/proc")
_THROTTLED = "devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"
_NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
# Columns of /proc/net/softnet_stat; the CPU is there since Linux 5.10.
_SOFTNET_RPS = 9
_SOFTNET_CPU = 12
_CPU_TIMES = 8
_BUDGET = _PROC / "sys" / "net" / "core" / "netdev_budget"
_RTM_GETSTATS = 94
_RTM_NEWSTATS = 92
_STATS_LINK_64 = 1
_WINDOW_NICE = -10
_CPUCLOCK_SCHED = 2
_FILE_BYTES = 1 << 16
_OF_V6 = re.compile(r"(Ip6|Icmp6|Udp6)([A-Z]\w*)\s+(\d+)")
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
    texts: dict[str, bytes]
    nic: bytes
    link: bytes
    tasks: list[tuple[bytes, int]]
    throttled: dict[str, int]
    kernel: bytes


class Counters:
    """The counters of one interface and of the tasks that serve it.

    ``tasks`` returns the process ids to follow; it is called before each snapshot and window,
    since netserver has a process for each connection.
    """

    def __init__(self, interface: str, tasks: Callable[[], Iterable[int]]) -> None:
        self._ethtool = Ethtool(existing(interface))
        self._index = socket.if_nametoindex(interface)
        self._carrier = NET / interface / "carrier_changes"
        self._speed = NET / interface / "speed"
        self._tasks = tasks
        # Without IPv6 on the interface its counters are not read: each file costs time.
        self._v6 = read_text(PROC_SYS / "net/ipv6/conf" / interface / "disable_ipv6") == "0"
        forwards = read_text(PROC_SYS / "net/ipv4/conf" / interface / "forwarding")
        self._sends = Links(interface) if forwards == "1" else None
        self._irqs = set(interface_irqs(interface))
        self._throttled = {
            path.parents[1].name.removeprefix("cpu"): path
            for path in sorted(Path("/sys").glob(_THROTTLED))
        }
        self._softirqd = [
            int(path.parent.name)
            for path in _PROC.glob("[0-9]*/comm")
            # A process may end between being listed and being read.
            if (read_text(path) or "").startswith("ksoftirqd/")
        ]

    def snapshot(self) -> dict[str, Any]:
        """All counters, now."""
        with _Files(self._followed(), v6=self._v6) as files:
            found = self._parsed(self._read(files)) | {"speed_mbps": _positive(self._speed)}
        if self._sends is not None:
            found["qdisc_dropped"] = self._sends.qdisc_dropped()
        return found

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

        ``sleep`` raises when the controller is gone. Rates are computed from the readings' own
        times, not from ``duration_s``. ``opened`` and ``closed`` are called at the moment the
        first and the last reading take the packet counters.
        """
        taken: list[tuple[int, bytes, list[bytes]]] = []
        with _Files(self._followed(), v6=self._v6) as files, _preferred():
            first = self._read(files, opened)
            due = first.monotonic_ns
            end = due + int(duration_s * 1e9)
            while (due := due + int(sample_s * 1e9)) < end:
                sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
                taken.append((time.monotonic_ns(), files.snmp(), files.places()))
            sleep(max(0.0, (end - time.monotonic_ns()) / 1e9))
            last = self._read(files, closed)
        start, finish = self._parsed(first), self._parsed(last)
        processes: dict[int, dict[str, Any]] = {}
        for place in (parse_task(text) for _, _, places in taken for text in places):
            pid, name, cpu = place["pid"], place["name"], str(place["last_cpu"])
            row = {"pid": pid, "name": name, "cpus": Counter[str](), "affinity": []}
            processes.setdefault(pid, row)["cpus"][cpu] += 1
        for pid, row in processes.items():
            row["affinity"] = _affinity(pid)
        return {
            "start": start,
            "end": finish,
            "placement": {
                "irq": interrupt_deltas(start["interrupts"], finish["interrupts"]),
                "processes": [*processes.values()],
            },
            "samples": [_sample(at_ns, snmp) for at_ns, snmp, _ in taken],
        }

    def _followed(self) -> list[int]:
        return [*self._tasks(), *self._softirqd, os.getpid()]

    def _read(self, files: _Files, at_packets: Callable[[], None] = lambda: None) -> _Raw:
        before_ns = time.monotonic_ns()
        snmp, snmp6 = files.snmp(), files.snmp6()
        at_ns = (before_ns + time.monotonic_ns()) // 2
        kernel = files.kernel()
        at_packets()
        nic = self._ethtool.statistics_values()
        link = _link_statistics(self._index)
        texts = files.texts() | {"snmp": snmp, "carrier": self._carrier.read_bytes()}
        if snmp6:
            texts["snmp6"] = snmp6
        tasks = files.tasks()
        took_ns = time.monotonic_ns() - before_ns
        throttled = {
            cpu: int(text) for cpu, path in self._throttled.items() if (text := read_text(path))
        }
        return _Raw(at_ns, took_ns, texts, nic, link, tasks, throttled, kernel)

    def _parsed(self, raw: _Raw) -> dict[str, Any]:
        texts = {name: shown(text) for name, text in raw.texts.items()}
        cpu = parse_cpu(texts["stat"])
        return {
            "monotonic_ns": raw.monotonic_ns,
            "read_ns": raw.read_ns,
            "snmp": parse_snmp(texts["snmp"]) | parse_snmp6(texts.get("snmp6", "")),
            "netstat": parse_snmp(texts["netstat"]),
            "softnet": parse_softnet(texts["softnet"], [row["cpu"] for row in cpu]),
            "net_rx": parse_softirqs(texts["softirqs"], "NET_RX"),
            "net_rx_budget": _positive(_BUDGET),
            "nic": self._ethtool.statistics(raw.nic),
            "link": dict(zip(_LINK64, _words64(raw.link)))
            | {"carrier_changes": int(texts["carrier"])},
            "interrupts": parse_interrupts(texts["interrupts"], self._irqs),
            "cpu": cpu,
            "throttled": raw.throttled,
            "kernel_cpu_ns": int(raw.kernel) if raw.kernel else None,
            "processes": [parse_task(stat) | {"cpu_ns": cpu_ns} for stat, cpu_ns in raw.tasks],
            "udp_sockets": parse_udp(texts["udp"]) + parse_udp(texts.get("udp6", "")),
        }


@parsing("/proc/net/snmp")
def parse_snmp(text: str) -> dict[str, dict[str, int]]:
    """/proc/net/snmp or netstat: pairs of lines, names above numbers."""
    groups: dict[str, dict[str, int]] = {}
    lines = text.splitlines()
    for names, numbers in zip(lines[::2], lines[1::2]):
        group, _, words = names.partition(":")
        values = map(int, numbers.partition(":")[2].split())
        groups[group] = dict(zip(words.split(), values))
    return groups


@parsing("/proc/net/snmp6")
def parse_snmp6(text: str) -> dict[str, dict[str, int]]:
    """/proc/net/snmp6, a name and a number in each line, as groups such as those of snmp."""
    groups: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        if found := _OF_V6.fullmatch(line.strip()):
            groups.setdefault(found[1], {})[found[2]] = int(found[3])
    return groups


@parsing("/proc/net/softnet_stat")
def parse_softnet(text: str, online: Sequence[int] | None = None) -> list[dict[str, int]]:
    """/proc/net/softnet_stat, a row for each online CPU.

    Before Linux 5.10 it does not name the CPUs: the rows are those of ``online``, in order.

    Raises:
        AgentError: the text has another form, or not one row for each CPU.
    """
    lines = [line.split() for line in text.splitlines() if line.strip()]
    told = all(len(words) > _SOFTNET_CPU for words in lines)
    if not told and online is not None and len(lines) != len(online):
        raise ValueError(f"{len(lines)} rows for {len(online)} CPUs")
    rows = []
    for index, words in enumerate(lines):
        numbers = _numbers(words, least=3, base=16)
        row = {
            "cpu": numbers[_SOFTNET_CPU] if told else index if online is None else online[index],
            "processed": numbers[0],
            "dropped": numbers[1],
            "time_squeeze": numbers[2],
        }
        if len(numbers) > _SOFTNET_RPS:
            row["received_rps"] = numbers[_SOFTNET_RPS]
        rows.append(row)
    return rows


@parsing("/proc/softirqs")
def parse_softirqs(text: str, name: str) -> dict[str, int]:
    """How often each CPU ran the softirq ``name``, from /proc/softirqs; {} without that row.

    Raises:
        AgentError: the text has another form.
    """
    header, *lines = text.splitlines() or [""]
    cpus = [word[3:] for word in header.split()]
    if not all(word.startswith("CPU") for word in header.split()):
        raise ValueError(header[:80])
    for line in lines:
        found, _, counts = line.partition(":")
        if found.strip() == name:
            return dict(zip(cpus, _numbers(counts.split(), least=len(cpus))))
    return {}


@parsing("/proc/stat")
def parse_cpu(text: str) -> list[dict[str, int]]:
    """The CPU rows of /proc/stat, converted from ticks to nanoseconds.

    Raises:
        AgentError: the text has another form.
    """
    rows = []
    for line in text.splitlines():
        name, *words = line.split() or [""]
        if not name.startswith("cpu") or name == "cpu":
            continue
        [number] = _numbers([name[3:]])
        times = _numbers(words, least=_CPU_TIMES)
        user, nice, system, idle, iowait, irq, softirq, steal, *_ = times
        rows.append(
            {
                "cpu": number,
                "user_ns": (user + nice) * _NS_PER_TICK,
                "system_ns": system * _NS_PER_TICK,
                "irq_ns": irq * _NS_PER_TICK,
                "softirq_ns": softirq * _NS_PER_TICK,
                "idle_ns": (idle + iowait) * _NS_PER_TICK,
                "steal_ns": steal * _NS_PER_TICK,
            }
        )
    return rows


def _numbers(words: Sequence[str], *, least: int = 1, base: int = 10) -> list[int]:
    """Numbers in the kernel's form; int() accepts more."""
    digits = "0123456789abcdef"[:base]
    if len(words) < least or not all(0 < len(w) <= 20 and set(w) <= set(digits) for w in words):
        raise ValueError(" ".join(words)[:80])
    return [int(word, base) for word in words]


def _positive(path: Path) -> int | None:
    """The positive number in a file of /proc or /sys, or None."""
    text = read_text(path)
    return int(text) if text and text.isdecimal() and text.isascii() and int(text) else None


@parsing("/proc/PID/stat")
def parse_task(stat: bytes) -> dict[str, Any]:
    """Process id, name and last CPU of a task."""
    begin, end = stat.index(b"("), stat.rindex(b")")
    return {
        "pid": int(stat[:begin]),
        "name": stat[begin + 1 : end].decode(errors="replace"),
        "last_cpu": int(stat[end + 2 :].split()[36]),
    }


@parsing("/proc/net/udp")
def parse_udp(text: str) -> list[dict[str, Any]]:
    """Every socket of /proc/net/udp or udp6, with its queued bytes and its drops."""
    rows = []
    for line in text.splitlines()[1:]:
        words = line.split()
        address, _, port = words[1].partition(":")
        # The address is printed as numbers in the machine's byte order.
        octets = b"".join(
            struct.pack("=I", int(address[at : at + 8], 16)) for at in range(0, len(address), 8)
        )
        of_v6 = len(octets) == 16
        local = socket.inet_ntop(socket.AF_INET6 if of_v6 else socket.AF_INET, octets)
        rows.append(
            {
                "local": f"[{local}]:{int(port, 16)}" if of_v6 else f"{local}:{int(port, 16)}",
                "drops": int(words[-1]),
                "queued_bytes": int(words[4].partition(":")[2], 16),
            }
        )
    return rows


def interrupt_deltas(
    before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]
) -> dict[str, dict[str, int]]:
    """Interrupts between two readings, by number and CPU; CPUs without any are omitted."""
    deltas: dict[str, dict[str, int]] = {}
    for irq, row in after.items():
        earlier = before.get(irq, {}).get("counts", {})
        moved = {cpu: count - earlier.get(cpu, 0) for cpu, count in row["counts"].items()}
        deltas[irq] = {cpu: count for cpu, count in moved.items() if count}
    return deltas


class _Files:
    """The files of a reading, opened once: opening them is most of a reading's cost."""

    _names = {  # noqa: RUF012 - never changed
        "netstat": "net/netstat",
        "softnet": "net/softnet_stat",
        "interrupts": "interrupts",
        "softirqs": "softirqs",
        "stat": "stat",
        "udp": "net/udp",
    }

    def __init__(self, pids: Iterable[int], *, v6: bool = False) -> None:
        self._pids = [*pids]
        self._v6 = v6
        self._stack = contextlib.ExitStack()
        self._open: dict[str, int] = {}
        self._stat: dict[int, int] = {}

    def __enter__(self) -> _Files:
        with self._stack:
            self._snmp = self._opened("net/snmp")
            self._kernel = self._opened("cputime") if (_PROC / "cputime").exists() else None
            self._open = {name: self._opened(path) for name, path in self._names.items()}
            if self._v6:
                self._snmp6 = self._opened("net/snmp6")
                self._open["udp6"] = self._opened("net/udp6")
            for pid in self._pids:
                with contextlib.suppress(OSError):
                    self._stat[pid] = self._opened(f"{pid}/stat")
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def snmp(self) -> bytes:
        return os.pread(self._snmp, _FILE_BYTES, 0)

    def snmp6(self) -> bytes:
        """Empty without IPv6 on the interface."""
        return os.pread(self._snmp6, _FILE_BYTES, 0) if self._v6 else b""

    def kernel(self) -> bytes:
        """CPU time of a user-mode kernel; empty on others."""
        return b"" if self._kernel is None else os.pread(self._kernel, _FILE_BYTES, 0)

    def texts(self) -> dict[str, bytes]:
        return {name: _whole(file) for name, file in self._open.items()}

    def places(self) -> list[bytes]:
        """/proc/PID/stat of each task that still exists."""
        return [text for text, _ in self.tasks(timed=False)]

    def tasks(self, *, timed: bool = True) -> list[tuple[bytes, int]]:
        """As :meth:`places`, with the CPU time of each task in ns."""
        read = []
        for pid, file in self._stat.items():
            with contextlib.suppress(OSError):
                text = os.pread(file, _FILE_BYTES, 0)
                # The clock of clock_getcpuclockid(3) has nanoseconds, stat only ticks.
                clock = (~pid << 3) | _CPUCLOCK_SCHED
                read.append((text, time.clock_gettime_ns(clock) if timed else 0))
        return read

    def _opened(self, name: str) -> int:
        file = os.open(_PROC / name, os.O_RDONLY | os.O_CLOEXEC)
        self._stack.callback(os.close, file)
        return file


def _whole(file: int) -> bytes:
    """The whole content: a seq_file is read one page at a time."""
    os.lseek(file, 0, os.SEEK_SET)
    chunks = []
    while chunk := os.read(file, _FILE_BYTES):
        chunks.append(chunk)
    return b"".join(chunks)


@parsing("/proc/net/snmp")
def _sample(at_ns: int, snmp: bytes) -> dict[str, int]:
    groups = parse_snmp(shown(snmp))
    return {
        "monotonic_ns": at_ns,
        "ip_in_receives": groups["Ip"]["InReceives"],
        "udp_in_datagrams": groups["Udp"]["InDatagrams"],
    }


def _affinity(pid: int) -> list[int]:
    try:
        return sorted(os.sched_getaffinity(pid))
    except ProcessLookupError:
        return []


def _words64(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"{len(data) // 8}Q", data[: len(data) & ~7])


def _link_statistics(index: int) -> bytes:
    """struct rtnl_link_stats64 of the interface, from RTM_GETSTATS; empty if refused."""
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
    """Raise the agent's priority, so that it wakes in time under a load on every CPU."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    # Root in a user namespace may not do this: there the load may delay the window's ends.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _WINDOW_NICE)
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, usual)
