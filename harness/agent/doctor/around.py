# SPDX-License-Identifier: MIT
"""What surrounds a test interface on its host, as the doctor judges it: whoever else sets it up
or listens there, what slows packets down or holds them back, and what the host can send.
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
"""Of netserver's control connection."""
_WITHIN_S = 10.0
_LISTEN = "0A"
_GOOD_CLOCKS = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter")
_STREAM_PPS = 850_000
"""What a core sends of one-byte datagrams by netperf: six make the five million packets a second
of the published measurement.
"""
_RECEIVER_PPS = 5_000_000
# One of the system's own: it comes back at each boot. What was begun by ssh does not.
_UNIT = re.compile(r"/system\.slice/(?:\S*/)?(?!sshd?[@.])([\w@.\\-]+\.service)$", re.MULTILINE)
_NM_UNMANAGED = "10"
_NM_FIELDS = "GENERAL.STATE,GENERAL.CONNECTION,DHCP4.OPTION"


def checks(interface: str, role: str) -> Iterator[Check]:
    """Those of ``interface`` on a host in its ``role``."""
    if not (NET / interface).exists():
        return
    if role == "dut":
        yield _port()
    else:
        yield _strength()
    yield from _pause(interface)
    yield _speed(interface)
    yield _managed(interface)
    yield _firewall(interface)
    yield _conntrack(interface)
    if role == "dut":
        yield _clocksource()


def listener(port: int, root: str = "/") -> dict[str, Any] | None:
    """Who listens on TCP ``port``: ``pid``, ``name`` and systemd's ``unit``, as far as is known."""
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
    return {"pid": None, "name": "a process that is not to be seen", "unit": None}


def _port() -> Check:
    taken = listener(PORT)
    who = ""
    remedy = f"see who holds it: ss -ltnp sport = :{PORT}"
    if taken is not None:
        who = f"{taken['name']}" + (f" (process {taken['pid']})" if taken["pid"] else "")
        if taken["unit"]:
            who += f" of {taken['unit']}"
            remedy = f"systemctl disable --now {taken['unit']}"
        elif taken["pid"]:
            remedy = f"kill {taken['pid']}"
    return check(
        "netserver's port",
        ok=taken is None,
        detail=f"TCP {PORT} is taken by {who}" if taken else f"TCP {PORT} is free",
        remedy=f"{remedy}; a run starts a netserver of its own there",
        needed=True,
    )


def _strength() -> Check:
    cpus = len(os.sched_getaffinity(1)) if Path("/proc/1").exists() else os.cpu_count() or 1
    offers = cpus * _STREAM_PPS
    return check(
        "what it can send",
        ok=offers >= _RECEIVER_PPS,
        detail=f"some {offers / 1e6:.1f} million one-byte packets/s from {cpus} CPUs, by estimate",
        remedy=f"a receiver of {_RECEIVER_PPS / 1e6:.0f} million packets/s is saturated by some "
        f"{-(-_RECEIVER_PPS // _STREAM_PPS)} cores: more of them, or find out: harness doctor "
        "--flood",
        needed=False,
    )


def _pause(interface: str) -> Iterator[Check]:
    ethtool = Ethtool(interface)
    try:
        pause = ethtool.pause()
        counted = paused(ethtool.statistics(ethtool.statistics_values()))
    except OSError as error:
        yield check("pause frames", ok=True, detail=f"not told: {error.strerror}", needed=False)
        return
    on = [way for way in ("rx", "tx") if pause and pause[way]]
    seen = ", ".join(f"{name} {count}" for name, count in counted.items() if count)
    state = f"{' and '.join(on)} on" if on else "off" if pause else "not told by the driver"
    yield check(
        "pause frames",
        ok=not on,
        detail=state + (f"; since the driver was loaded: {seen}" if seen else ""),
        remedy=f"ethtool -A {interface} autoneg off rx off tx off, here and at the other end: a "
        "sender that is paused looks like a receiver that drops nothing",
        needed=False,
    )


def paused(statistics: dict[str, int]) -> dict[str, int]:
    """Those of a NIC's counters that are of pause frames, by the driver's own names."""
    return {
        name: count
        for name, count in statistics.items()
        if re.search(r"pause|flow_control|_xo(n|ff)_", name) and "global" not in name
    }


def _speed(interface: str) -> Check:
    speed, duplex = read_text(NET / interface / "speed"), read_text(NET / interface / "duplex")
    known = speed is not None and speed.isdigit() and int(speed) > 0
    half = duplex == "half"
    return check(
        "link speed",
        ok=known and not half,
        detail=f"{speed} Mbit/s, {duplex or 'unknown'} duplex" if known else "unknown: is it up?",
        remedy=f"ethtool {interface} shows what both ends offer",
        needed=False,
    )


def _managed(interface: str) -> Check:
    by, remedy, _ = manager(interface)
    return check(
        "set up by",
        ok=by is None,
        detail=by or "nobody else",
        remedy=f"{remedy}; it may change addresses and offloads while a kernel is measured",
        needed=False,
    )


def others(*, interface: str) -> dict[str, Any]:
    """Whoever would undo a run on ``interface``: ``manager`` with its ``remedy`` and whether it
    asks for an address by ``dhcp``, and the ``service`` that holds netserver's port.
    """
    by, remedy, dhcp = manager(interface)
    held = listener(PORT)
    service = held["unit"] if held else None
    return {"manager": by, "remedy": remedy, "dhcp": dhcp, "service": service, "port": PORT}


def manager(interface: str, root: str = "/") -> tuple[str | None, str, bool]:
    """What sets ``interface`` up beside us, how to keep it from that for good (hosts reboot), and
    whether it asks for an address by DHCP, and takes ours away while it has none.
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
    """The state it has the interface in; None where it leaves it alone or is not there."""
    try:
        said = programs.run(
            ["nmcli", "-g", _NM_FIELDS, "device", "show", interface],
            timeout_s=_WITHIN_S,
        )
    except AgentError:
        return None
    return nm_state(said)


def nm_state(said: str) -> str | None:
    """From nmcli's ``100 (connected)`` and the connection's name; None: it is not managed."""
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
        ok=found["kind"] is None,
        detail=f"{found['kind']} filters what comes in" if found["kind"] else "none",
        remedy=f"if it keeps the test traffic out (the way from the generator, below): "
        f"{found['opens']}; each packet is also judged by it, which is measured too",
        needed=False,
    )


def _conntrack(interface: str) -> Check:
    count = read_text(Path("/proc/sys/net/netfilter/nf_conntrack_count"))
    tracks = count is not None and count.isdigit() and int(count) > 0
    return check(
        "connection tracking",
        ok=not tracks,
        detail=f"{count} connections are tracked" if tracks else "none is tracked",
        remedy="it looks at each packet before the socket does; leave the test interface out: "
        "nft add table inet rb '{ chain pre { type filter hook prerouting priority raw; "
        f'iifname "{interface}" notrack; }}; }}\'',
        needed=False,
    )


def _clocksource() -> Check:
    at = Path("/sys/devices/system/clocksource/clocksource0")
    now = read_text(at / "current_clocksource")
    others = (read_text(at / "available_clocksource") or "").split()
    return check(
        "clocksource",
        ok=now in _GOOD_CLOCKS,
        detail=f"{now or 'unknown'} of {', '.join(others) or 'none'}",
        remedy="reading it takes a µs or more, several times a packet: dmesg tells why the TSC was "
        "given up; a BIOS update, or tsc=reliable on the host's command line where that is known "
        "to hold",
        needed=False,
    )
