# SPDX-License-Identifier: MIT
"""Interfaces that lie on each other: which of them have one wire, to any depth.

Bridges, bonds, teams, VLANs, macvlans, tunnels, both ends of a veth pair, and functions of
one port: what goes over one goes over those below it. rtnetlink names a link's lower and
its master, /sys every pair that the kernel's own list of neighbours has.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.agent.foreign import printable, read_text

from .links import rtnetlink

_NET = Path("/sys/class/net")

_APART = ("vrf",)
"""Kinds of master that route for their members and carry nothing from one to another."""


@dataclass(frozen=True)
class Interface:
    """One of this network namespace; ``below`` are indices of those it lies on."""

    index: int
    name: str
    kind: str | None
    below: frozenset[int]
    master: int | None


def interfaces() -> dict[int, Interface]:
    """All of this network namespace, by index.

    Raises:
        OSError: the kernel does not say.
    """
    with rtnetlink() as route:
        rows = list(route.get_links())
    there = {row["index"] for row in rows}
    names = {str(row.get_attr("IFLA_IFNAME")): int(row["index"]) for row in rows}
    found = {}
    for row in rows:
        info = row.get_attr("IFLA_LINKINFO")
        name = str(row.get_attr("IFLA_IFNAME"))
        below = {names[other] for other in _lower(name) if other in names}
        # The number of a lower interface in another namespace says nothing in this one.
        link = row.get_attr("IFLA_LINK")
        if link in there and link != row["index"] and row.get_attr("IFLA_LINK_NETNSID") is None:
            below.add(link)
        found[row["index"]] = Interface(
            index=row["index"],
            name=printable(name),
            kind=info.get_attr("IFLA_INFO_KIND") if info else None,
            below=frozenset(below),
            master=row.get_attr("IFLA_MASTER"),
        )
    return found


def together(start: Iterable[str], table: Mapping[int, Interface]) -> dict[str, str]:
    """Every interface that shares a wire with one of ``start``, those included.

    Each with the way to it in words: ``br0 > eth0``.
    """
    beside: dict[int, set[int]] = {index: set() for index in table}
    for one in table.values():
        for other in one.below:
            beside[one.index].add(other)
            beside.setdefault(other, set()).add(one.index)
        master = None if one.master is None else table.get(one.master)
        if master is not None and master.kind not in _APART:
            beside[one.index].add(master.index)
            beside[master.index].add(one.index)
    # /sys has members of a VRF as its lower ones, too.
    for one in table.values():
        if one.kind in _APART:
            for other in beside[one.index]:
                beside[other].discard(one.index)
            beside[one.index] = set()
    wanted = {*start}
    ways = {one.index: one.name for one in table.values() if one.name in wanted}
    waiting = [*ways]
    while waiting:
        index = waiting.pop(0)
        for other in sorted(beside[index]):
            if other in table and other not in ways:
                ways[other] = f"{ways[index]} > {table[other].name}"
                waiting.append(other)
    return {table[index].name: way for index, way in ways.items()}


def _lower(name: str) -> set[str]:
    """The names below ``name`` that /sys has, and the port of which it is a function."""
    at = _NET / name
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for path in at.iterdir():
            if path.name.startswith("lower_"):
                found.add(path.name[len("lower_") :])
        port = read_text(at / "dev_port")
        for path in (at / "device/physfn/net").glob("*"):
            if port is None or read_text(path / "dev_port") == port:
                found.add(path.name)
    return found
