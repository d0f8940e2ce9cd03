# SPDX-License-Identifier: MIT
"""The doctor's checks of what surrounds a test interface: programs that configure it or hold
netserver's port, what slows or stops packets, and how much the host can send.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.agent import programs
from harness.agent.faults import AgentError
from harness.agent.foreign import read_text
from harness.agent.interface.ethtool import Ethtool
from harness.agent.inventory import NET

from .firewall import firewall
from .health import Check, check

PORT = 12865
"""netserver's control port."""
_WITHIN_S = 10.0
_LISTEN = "0A"
_GOOD_CLOCKS = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter")
_STREAM_PPS = 850_000
"""One-byte datagrams that netperf sends from one core: six cores make the published 5 Mpps."""
_RECEIVER_PPS = 5_000_000
# A service of the system, which starts again at each boot; a process of an ssh session does not.
_UNIT = re.compile(r"/system\.slice/(?:\S*/)?(?!sshd?[@.])([\w@.\\-]+\.service)$", re.MULTILINE)
_NM_UNMANAGED = "10"
_NM_FIELDS = "GENERAL.STATE,GENERAL.CONNECTION,DHCP4.OPTION"


def checks(interface: str, role: str) -> Iterator[Check]:
    """The checks of ``interface`` on a host in its ``role``."""
    if not (NET / interface).exists():
        return
    yield _port() if role == "dut" else _strength()
    yield _pause(interface)
    yield _speed(interface)
    yield _managed(interface)
    yield _firewall(interface)
    yield _conntrack(interface)
    if role == "dut":
        yield _clocksource()


def listener(port: int, root: str = "/") -> dict[str, Any] | None:
    """Who listens on TCP ``port``: ``pid``, ``name``, systemd's ``unit``; None if unknown."""
    base = Path(root)
    inodes = set()
    for name in ("tcp", "tcp6"):
        for line in (read_text(base / "proc/net" / name) or "").splitlines()[1:]:
            words = line.split()
            local = words[1].rpartition(":")[2] if len(words) > 9 else ""
            listens = re.fullmatch(r"[0-9A-Fa-f]{1,8}", local) and words[3] == _LISTEN
            if listens and int(local, 16) == port:
                inodes.add(words[9])
    if not inodes:
        return None
    for handle in (base / "proc").glob("[0-9]*/fd/*"):
        try:
            found = re.fullmatch(r"socket:\[(\d+)\]", str(handle.readlink()))
        except OSError:
            continue
        if found and found[1] in inodes:
            of = handle.parent.parent
            unit = _UNIT.search(read_text(of / "cgroup") or "")
            return {
                "pid": int(of.name),
                "name": read_text(of / "comm") or "?",
                "unit": unit[1] if unit else None,
            }
    return {"pid": None, "name": "a process that this agent cannot see", "unit": None}


def _port() -> Check:
    taken = listener(PORT)
    detail, remedy = f"TCP {PORT} is free", f"see who holds it: ss -ltnp sport = :{PORT}"
    if taken is not None:
        detail = f"TCP {PORT} is taken by {taken['name']}"
        detail += f" (process {taken['pid']})" if taken["pid"] else ""
        if taken["unit"]:
            detail += f" of {taken['unit']}"
            remedy = f"systemctl disable --now {taken['unit']}"
        elif taken["pid"]:
            remedy = f"kill {taken['pid']}"
    remedy += "; a run starts its own netserver on this port"
    return check("netserver's port", taken is None, detail, remedy, needed=True)


def _strength() -> Check:
    cpus = len(os.sched_getaffinity(1)) if Path("/proc/1").exists() else os.cpu_count() or 1
    offers = cpus * _STREAM_PPS
    return check(
        "what it can send",
        offers >= _RECEIVER_PPS,
        f"about {offers / 1e6:.1f} million one-byte packets/s from {cpus} CPUs (estimate)",
        f"saturating a receiver of {_RECEIVER_PPS / 1e6:.0f} million packets/s takes about "
        f"{-(-_RECEIVER_PPS // _STREAM_PPS)} cores: use more, or measure it: harness doctor "
        "--flood",
    )


def _pause(interface: str) -> Check:
    ethtool = Ethtool(interface)
    try:
        pause = ethtool.pause()
        counted = paused(ethtool.statistics(ethtool.statistics_values()))
    except OSError as error:
        return check("pause frames", True, f"unknown: {error.strerror}")
    on = [way for way in ("rx", "tx") if pause and pause[way]]
    seen = ", ".join(f"{name} {count}" for name, count in counted.items() if count)
    state = f"{' and '.join(on)} on" if on else "off" if pause else "not reported by the driver"
    return check(
        "pause frames",
        not on,
        state + (f"; since the driver was loaded: {seen}" if seen else ""),
        f"ethtool -A {interface} autoneg off rx off tx off, here and at the other end: a "
        "paused sender looks like a receiver that drops nothing",
    )


def paused(statistics: dict[str, int]) -> dict[str, int]:
    """The NIC's counters of pause frames, by the driver's names."""
    return {
        name: count
        for name, count in statistics.items()
        if re.search(r"pause|flow_control|_xo(n|ff)_", name) and "global" not in name
    }


def _speed(interface: str) -> Check:
    speed, duplex = read_text(NET / interface / "speed"), read_text(NET / interface / "duplex")
    known = speed is not None and speed.isdigit() and int(speed) > 0
    detail = f"{speed} Mbit/s, {duplex or 'unknown'} duplex" if known else "unknown: is it up?"
    remedy = f"ethtool {interface} shows what both ends offer"
    return check("link speed", known and duplex != "half", detail, remedy)


def _managed(interface: str) -> Check:
    by, remedy, _ = manager(interface)
    remedy += "; it may change addresses and offloads while a kernel is measured"
    return check("set up by", by is None, by or "nobody else", remedy)


def others(*, interface: str) -> dict[str, Any]:
    """What would interfere with a run on ``interface``: its ``manager`` with the ``remedy`` and
    whether it uses ``dhcp``, and the ``service`` that holds netserver's port.
    """
    by, remedy, dhcp = manager(interface)
    held = listener(PORT)
    service = held["unit"] if held else None
    return {"manager": by, "remedy": remedy, "dhcp": dhcp, "service": service, "port": PORT}


def manager(interface: str, root: str = "/") -> tuple[str | None, str, bool]:
    """The program that configures ``interface``, the command that stops this across reboots, and
    whether it uses DHCP: then it removes the harness's address while it has no lease.
    """
    base = Path(root)
    index = read_text(base / "sys/class/net" / interface / "ifindex") or "0"
    state = re.search(
        r"^ADMIN_STATE=(\w+)", read_text(base / f"run/systemd/netif/links/{index}") or "",
        re.MULTILINE,
    )  # fmt: skip
    if state and state[1] not in ("unmanaged", "pending", "linger"):
        file = "/etc/systemd/network/05-receive-batching.network"
        text = rf"[Match]\nName={interface}\n[Link]\nUnmanaged=yes\n"
        leased = (base / f"run/systemd/netif/leases/{index}").exists()
        return (
            f"systemd-networkd ({state[1]})",
            f"printf '{text}' > {file} && networkctl reload",
            leased or state[1] == "configuring",
        )
    device = _network_manager(interface)
    if device is not None:
        file = "/etc/NetworkManager/conf.d/05-receive-batching.conf"
        text = rf"[keyfile]\nunmanaged-devices=interface-name:{interface}\n"
        reload = f"nmcli general reload && nmcli device set {interface} managed no"
        remedy = f"printf '{text}' > {file} && {reload}"
        return f"NetworkManager ({device})", remedy, "DHCP" in device or "connecting" in device
    return None, "", False


def _network_manager(interface: str) -> str | None:
    """NetworkManager's state of the interface; None if it does not run or does not manage it."""
    command = ["nmcli", "-g", _NM_FIELDS, "device", "show", interface]
    try:
        return nm_state(programs.run(command, timeout_s=_WITHIN_S))
    except AgentError:
        return None


def nm_state(said: str) -> str | None:
    """From nmcli's ``100 (connected)`` and the connection's name; None: not managed."""
    lines = said.splitlines()
    number = lines[0].split() if lines else []
    if not number or not number[0].isdigit() or number[0] in (_NM_UNMANAGED, "0"):
        return None
    words = " ".join(number[1:]).strip("()")[:40] or number[0]
    name = lines[1].strip()[:40] if len(lines) > 1 else ""
    by = ", by DHCP" if any("ip_address" in line for line in lines[2:]) else ""
    return (f"{words}, {name}" if name else words) + by


def _firewall(interface: str) -> Check:
    found = firewall(interface)
    return check(
        "firewall",
        found["kind"] is None,
        f"{found['kind']} filters incoming packets" if found["kind"] else "none",
        "if it blocks the test traffic (see the way from the generator, below): "
        f"{found['opens']}; it also costs time for each packet, which is measured too",
    )


def _conntrack(interface: str) -> Check:
    count = read_text(Path("/proc/sys/net/netfilter/nf_conntrack_count"))
    tracks = count is not None and count.isdigit() and int(count) > 0
    return check(
        "connection tracking",
        not tracks,
        f"{count} connections are tracked" if tracks else "none is tracked",
        "it costs time for each packet; exclude the test interface: "
        "nft add table inet rb '{ chain pre { type filter hook prerouting priority raw; "
        f'iifname "{interface}" notrack; }}; }}\'',
    )


def _clocksource() -> Check:
    at = Path("/sys/devices/system/clocksource/clocksource0")
    now = read_text(at / "current_clocksource")
    others = (read_text(at / "available_clocksource") or "").split()
    return check(
        "clocksource",
        now in _GOOD_CLOCKS,
        f"{now or 'unknown'} of {', '.join(others) or 'none'}",
        "a read takes 1 µs or more, and each packet takes several; dmesg says why the kernel "
        "rejected the TSC. Update the BIOS, or add tsc=reliable to the host's command line if "
        "its TSC is known to be reliable",
    )
