# SPDX-License-Identifier: MIT
"""What a scene is: how the guest is set up, what is sent, what is watched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tests.behaviour import traffic
from tests.behaviour.traffic import DUT, DUT6, GENERATOR, GENERATOR6, PORTS, Kind


@dataclass(frozen=True, kw_only=True)
class Socket:
    """A UDP socket of the guest."""

    name: str
    port: int
    family: int = 4
    peer: tuple[str, int] | None = None
    group: tuple[str, str] | None = None
    """A multicast group and the interface it is joined on."""
    device: str | None = None
    """The only device it takes packets from, and sends through."""
    namespace: str | None = None
    stamped: bool = False
    busy_poll_us: int = 0
    room: int = 4 << 20
    """Octets, of which the kernel counts more than what a datagram holds."""
    between: int = 0
    """Datagrams that are read after each burst; the drops that the kernel tells with them count."""
    waiting: int = 0
    """Threads that wait for a datagram each from the beginning."""
    member: bool = False
    """Of a reuseport group that chooses by the first bit of the payload."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """One way to set the guest up, and what it gets. Another object is another scene."""

    name: str
    setup: Sequence[str] = ()
    """Commands, an argument vector each; ``write VALUE FILE`` is one more."""
    on: str = "{nic}"
    """Which device gets the addresses and routes."""
    table: str = "main"
    """The routing table that gets them."""
    nft: str = ""
    taps: Sequence[tuple[str, int]] = ()
    """Devices and protocols of packet sockets."""
    xdp: tuple[str, str] | None = None
    """A device that gets a generic XDP program, and where that redirects to."""
    sockets: Sequence[Socket] | None = None
    """None: the usual ones, on every port but the closed one."""
    namespaces: Sequence[str] = ()
    """Further network namespaces, there before the setup and watched too."""
    kinds: Mapping[Kind, int] = field(default_factory=lambda: traffic.EVERYTHING)
    first: Sequence[Mapping[Kind, int]] = ()
    """Kinds of bursts that come before the others."""
    macs: Sequence[str] = ("{dut}",)
    flows: int = 40
    largest: int = 1400
    bursts: int = 8
    one_order: bool = False
    """Taps tell the order of TCP among all else too: the traffic has to determine it."""
    no_memory: bool = False
    """All UDP sockets together have what they may have, so each gets a page at most."""
    streams: int = 0
    """TCP connections of the generator's own, in place of bursts; then only they are compared."""
    rounds: int = 0
    """Requests on each of them, answered one by one."""
    busy_poll_us: int = 0
    """How long the guest's end of them polls."""
    churn: Sequence[str] = ()
    """Commands run under a flood instead; then only splats count."""

    def asked(self) -> dict[str, int]:
        """What both ends of its TCP connections have to know."""
        return {"port": traffic.STREAM_PORT, "rounds": self.rounds, "request": 64}

    def told(self, **names: str) -> dict[str, Any]:
        """What the guest's end is told."""

        def put(text: str) -> str:
            for name, value in names.items():
                text = text.replace(f"{{{name}}}", value)
            return text

        on = put(self.on)
        setup = (*self.setup, *addressed(on, table=self.table))
        sockets = usual(on) if self.sockets is None else self.sockets
        return {
            "nic": names["nic"],
            "setup": [put(line) for line in setup],
            "nft": put(self.nft),
            "taps": [(put(device), protocol) for device, protocol in self.taps],
            "xdp": [put(device) for device in self.xdp] if self.xdp else None,
            "sockets": [
                asdict(each) | {"group": each.group and [each.group[0], put(each.group[1])]}
                for each in sockets
            ],
            "namespaces": list(self.namespaces),
            "one_order": self.one_order,
            "no_memory": self.no_memory,
            "streams": self.streams and {**self.asked(), "busy_poll_us": self.busy_poll_us},
        }


def usual(on: str, namespace: str | None = None, *, vrf: str | None = None) -> list[Socket]:
    """Sockets on all ports but the closed one; connected ones; one in a multicast group."""
    where = f" {namespace}" if namespace else ""
    found = [
        Socket(name=f"udp{family} {port}{where}", port=port, family=family, namespace=namespace)
        for family in (4, 6)
        for port in PORTS
        if port != traffic.CLOSED
    ]
    found[1] = replace(found[1], group=(traffic.GROUP, on))
    for family, peer in ((4, GENERATOR), (6, GENERATOR6)):
        found.append(
            Socket(
                name=f"connected{family}{where}",
                port=PORTS[0],
                family=family,
                peer=(peer, traffic.CONNECTED),
                device=vrf,
                namespace=namespace,
            )
        )
    return found


def addressed(device: str, *, ip: str = "ip", table: str = "main") -> list[str]:
    """Commands that give ``device`` the guest's addresses and its routes to the generator."""
    return [
        f"{ip} link set lo up",
        f"{ip} link set {device} up",
        f"{ip} address add {DUT}/24 dev {device}",
        f"{ip} address add {DUT6}/64 dev {device} nodad",
        f"{ip} neighbour add {GENERATOR} lladdr {{generator}} dev {device} nud permanent",
        f"{ip} neighbour add {GENERATOR6} lladdr {{generator}} dev {device} nud permanent",
        f"{ip} route add table {table} default via {GENERATOR} dev {device}",
        f"{ip} -6 route add table {table} default via {GENERATOR6} dev {device}",
    ]
