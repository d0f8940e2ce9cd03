# SPDX-License-Identifier: MIT
"""Finds packet sockets of others on an interface, and their owners.

An AF_PACKET socket, bound to an interface or to none, gets each packet of its protocol singly,
before IP. For a socket that wants IP or everything, the stack takes the lists of received
packets apart (deliver_ptype_list_skb, net/core/dev.c).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.agent.faults import parsing
from harness.agent.foreign import read_bytes, read_text, shown

_PROC = Path("/proc")
_SOCKET_FUNCTIONS = re.compile(r"t?packet_rcv\w*")
_ALL, _IPV4 = 0x0003, 0x0800
"""ETH_P_ALL, ETH_P_IP"""
_IN_PATH = ("ALL", f"{_IPV4:04x}")
_REMEDIES: Mapping[str, str] = {
    "dhclient": "dhclient -r {interface}",
    "dhcpcd": "add `denyinterfaces {interface}` to /etc/dhcpcd.conf, and restart dhcpcd",
    "NetworkManager": "nmcli device set {interface} managed no",
    "systemd-network": "add a .network file with `[Match] Name={interface}` and `[Link] "
    "Unmanaged=yes` to /etc/systemd/network, then networkctl reload",
    "lldpd": "lldpcli configure system interface pattern '*,!{interface}'",
}
"""By the name of the process in /proc/PID/comm, which has at most 15 characters."""


class Row(NamedTuple):
    """A row of /proc/net/ptype: a receiver of packets of ``type`` (``ALL`` or four hex digits)."""

    type: str
    device: str | None
    function: str


class Socket(NamedTuple):
    """A row of /proc/net/packet; ``interface`` is its index, 0 for a socket bound to none."""

    protocol: int
    interface: int
    inode: int


def packet_taps(interface: str, index: int, *, without: Iterable[int] = ()) -> list[dict[str, Any]]:
    """The taps on ``interface``: ``type``, ``device``, ``function``, ``processes``.

    A process is ``{"pid": …, "name": …}``; there is none if no visible process has the socket
    open. ``in_path``: it gets IPv4 packets. ``detail`` and ``remedy`` are texts for a person.
    Sockets that only processes in ``without`` have open are omitted.
    """
    sockets = [
        one
        for one in parse_packet(read_text(_PROC / "net/packet") or "")
        if one.protocol and one.interface in (0, index)
    ]
    # /proc/net/ptype lists taps that are not sockets, but no sockets for one protocol on one
    # interface, such as a DHCP client's for IPv4 (ptype_specific, net/core/net-procfs.c).
    rows = [_row(one, interface) for one in sockets]
    rows += [
        row
        for row in parse_ptype(read_text(_PROC / "net/ptype") or "")
        if _concerns(row, interface)
    ]
    holders = _holders({one.inode for one in sockets}) if sockets else {}
    mine = set(without)
    found: dict[tuple[str, str | None], dict[str, Any]] = {}
    for row in rows:
        pids = {
            pid
            for one in sockets
            if _row(one, interface)[:2] == row[:2]
            for pid in holders.get(one.inode, ())
        }
        if (pids and pids <= mine) or row[:2] in found:
            continue
        processes = [{"pid": pid, "name": _name(pid)} for pid in sorted(pids - mine)]
        detail, remedy = _told(row, processes, interface)
        found[row[:2]] = {
            **row._asdict(),
            "in_path": row.type in _IN_PATH,
            "processes": processes,
            "detail": detail,
            "remedy": remedy,
        }
    return [*found.values()]


def _row(one: Socket, interface: str) -> Row:
    kind = "ALL" if one.protocol == _ALL else f"{one.protocol:04x}"
    return Row(kind, interface if one.interface else None, "packet_rcv")


def _told(row: Row, processes: Sequence[Mapping[str, Any]], interface: str) -> tuple[str, str]:
    """A description of the tap, and how to remove it."""
    whose = ", ".join(f"{one['name']} (process {one['pid']})" for one in processes)
    where = f"on {interface}" if row.device else f"on all interfaces, including {interface},"
    what = {"ALL": "all packets", f"{_IPV4:04x}": "IPv4 packets"}.get(
        row.type, f"type {row.type} packets"
    )
    if not _SOCKET_FUNCTIONS.fullmatch(row.function):
        return (
            f"the kernel's {row.function} takes {what} {where}".rstrip(","),
            f"unload the module of {row.function}, or choose another interface",
        )
    remedies = {
        _REMEDIES.get(one["name"], "end {name}: kill {pid}").format(interface=interface, **one)
        for one in processes
    }
    return (
        f"{whose or 'a process in another container'} has a packet socket {where} for {what}",
        "; ".join(sorted(remedies)) or "ss --packet --processes names it in its own namespace",
    )


@parsing("/proc/net/ptype")
def parse_ptype(text: str) -> list[Row]:
    """The rows; after a module's function, the module's name in brackets is skipped."""
    rows = []
    for line in text.split("\n")[1:]:
        words = [word for word in line.split() if not re.fullmatch(r"\[\S+\]", word)]
        if len(words) < 2:
            continue
        if words[0] != "ALL":
            int(words[0], 16)
        rows.append(Row(words[0], words[1] if len(words) > 2 else None, words[-1]))
    return rows


@parsing("/proc/net/packet")
def parse_packet(text: str) -> list[Socket]:
    """The packet sockets of this network namespace."""
    rows = [line.split() for line in text.split("\n")[1:] if line.strip()]
    return [Socket(int(row[3], 16), int(row[4]), int(row[8])) for row in rows]


def _concerns(row: Row, interface: str) -> bool:
    """Is it a tap on ``interface``? The stack's own protocols have no device and no socket."""
    if row.device is None:
        return bool(_SOCKET_FUNCTIONS.fullmatch(row.function))
    return row.device == interface


def _holders(inodes: set[int]) -> dict[int, set[int]]:
    """The visible processes that have each socket open."""
    names = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, set[int]] = {}
    for process in _PROC.glob("[0-9]*"):
        # It may end meanwhile.
        with contextlib.suppress(OSError), os.scandir(process / "fd") as files:
            for file in files:
                with contextlib.suppress(OSError):
                    inode = names.get(str(Path(file.path).readlink()))
                    if inode is not None:
                        found.setdefault(inode, set()).add(int(process.name))
    return found


def _name(pid: int) -> str:
    return shown(read_bytes(_PROC / str(pid) / "comm") or b"?").strip()
