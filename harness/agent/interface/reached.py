# SPDX-License-Identifier: MIT
"""The interfaces that carry the ssh connection through which this agent was started.

sudo removes SSH_CONNECTION from the environment, so the sockets of the sshd above this process
and the environments of the processes in between are searched. With a jump host, it is the jump
host's connection.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from harness.agent.faults import parsing
from harness.agent.foreign import read_bytes, read_text, shown

from .links import rtnetlink
from .stacked import Interface

_PROC = Path("/proc")
_ESTABLISHED = 0x01
_MOST_ANCESTORS = 64


class Connection(NamedTuple):
    """The addresses of this host and of the other end."""

    local: str
    peer: str


class Row(NamedTuple):
    """One of /proc/net/tcp or tcp6."""

    connection: Connection
    state: int
    inode: int


def connections() -> set[Connection]:
    """The ssh connections through which this process was started; empty if none."""
    found: set[Connection] = set()
    said: set[Connection] = set()
    own = _namespace(os.getpid())
    for pid in ancestors(os.getpid()):
        name = shown(read_bytes(_PROC / str(pid) / "comm") or b"").strip()
        if name.startswith("sshd") and _namespace(pid) == own:
            inodes = _sockets(pid)
            for table in ("tcp", "tcp6"):
                rows = parse_tcp(read_text(_PROC / str(pid) / "net" / table) or "")
                found |= {
                    row.connection
                    for row in rows
                    if row.state == _ESTABLISHED and row.inode in inodes
                }
        told = parse_environ(read_bytes(_PROC / str(pid) / "environ") or b"")
        said |= {told} if told else set()
    return found or said


def interfaces(table: Mapping[int, Interface], reached: set[Connection]) -> set[str]:
    """The interfaces that have a connection's local address, or route to its other end."""
    locals_ = {one.local for one in reached}
    found: set[int] = set()
    with rtnetlink() as route:
        for row in route.get_addr():
            here = row.get_attr("IFA_LOCAL") or row.get_attr("IFA_ADDRESS")
            if here is not None and _plain(str(here)) in locals_:
                found.add(row["index"])
    for one in reached:
        if (index := _way(one)) is not None:
            found.add(index)
    return {table[index].name for index in found if index in table} - {"lo"}


def ancestors(pid: int) -> Iterator[int]:
    """``pid``, its parent, and so on."""
    for _ in range(_MOST_ANCESTORS):
        if pid <= 0:
            return
        yield pid
        stat = read_bytes(_PROC / str(pid) / "stat") or b""
        try:
            pid = int(stat[stat.rindex(b")") + 1 :].split()[1])
        except (ValueError, LookupError):
            return


@parsing("/proc/net/tcp")
def parse_tcp(text: str) -> list[Row]:
    """The TCP sockets of /proc/net/tcp or tcp6."""
    rows = []
    for line in text.split("\n")[1:]:
        if words := line.split():
            connection = Connection(_address(words[1]), _address(words[2]))
            rows.append(Row(connection, int(words[3], 16), int(words[9])))
    return rows


def parse_environ(environ: bytes) -> Connection | None:
    """SSH_CONNECTION (``client port server port``) in a /proc/PID/environ."""
    for word in environ.split(b"\0"):
        name, _, value = word.partition(b"=")
        words = shown(value).split()
        if name == b"SSH_CONNECTION" and len(words) == 4:
            with contextlib.suppress(ValueError):
                return Connection(_plain(words[2]), _plain(words[0]))
    return None


def _address(text: str) -> str:
    """The address in ``0200000A:0016``: 32-bit words in the machine's byte order."""
    digits = text.partition(":")[0]
    if len(digits) not in (8, 32):
        raise ValueError(text)
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    return _plain(socket.inet_ntop(socket.AF_INET6 if len(words) > 1 else socket.AF_INET, packed))


def _plain(text: str) -> str:
    """The address without its scope; an IPv4-mapped one as IPv4."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _sockets(pid: int) -> set[int]:
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for path in (_PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError, ValueError):
                kind, _, number = str(path.readlink()).partition(":")
                if kind == "socket":
                    found.add(int(number.strip("[]")))
    return found


def _namespace(pid: int) -> int | None:
    try:
        return (_PROC / str(pid) / "ns/net").stat().st_ino
    except OSError:
        return None


def _way(one: Connection) -> int | None:
    """The index of the interface on the route to the peer; None without a route."""
    family = socket.AF_INET6 if ":" in one.peer else socket.AF_INET
    asked: dict[str, Any] = {"dst": one.peer, "family": family}
    with contextlib.suppress(OSError, LookupError), rtnetlink() as route:
        for row in route.route("get", **asked):
            found = row.get_attr("RTA_OIF")
            return None if found is None else int(found)
    return None
