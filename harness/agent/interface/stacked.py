# SPDX-License-Identifier: MIT
"""Finds the interfaces that share a wire, stacked to any depth.

Bridges, bonds, teams, VLANs, macvlans, tunnels, both ends of a veth pair, and functions of
one port: traffic of one also uses those below it. rtnetlink names a link's lower device and its
master, /sys every pair in the kernel's lists of adjacent devices.
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
"""Kinds of master that forward nothing between their members: they only route for them."""


@dataclass(frozen=True)
class Interface:
    """An interface of this network namespace; ``below`` are the indices of those below it."""

    index: int
    name: str
    kind: str | None
    below: frozenset[int]
    master: int | None


def interfaces() -> dict[int, Interface]:
    """All interfaces of this network namespace, by index.

    Raises:
        OSError: the kernel refuses to list them.
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
        # The index of a lower interface in another namespace means nothing in this one.
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
    """Every interface that shares a wire with one of ``start``, including those.

    Each with the path to it: ``br0 > eth0``.
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
    # /sys also lists the members of a VRF as its lower devices.
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
    """The interfaces below ``name`` in /sys, and the PF of the same port if it is a VF."""
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
