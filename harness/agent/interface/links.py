# SPDX-License-Identifier: MIT
"""Addresses, neighbours, up state and pacing of one interface, through rtnetlink."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.agent.faults import need

_NUD_PERMANENT = 0x80
_IFA_F_PERMANENT, _IFA_F_NODAD = 0x80, 0x02
_SCOPE_LINK = 253
_IFF_UP = 0x1
_ROOT = 0xFFFFFFFF
_PACER = 0x7262 << 16
_PACER_BURST_BYTES = 2000
_PACER_QUEUE_BYTES = 1 << 18


class Links:
    """Reads and writes plain values; a write replaces everything there."""

    def __init__(self, interface: str) -> None:
        self._index = socket.if_nametoindex(interface)

    def up(self) -> bool:
        """Is the interface administratively up?"""
        with self._route() as route:
            return bool(route.get_links(self._index)[0]["flags"] & _IFF_UP)

    def set_up(self, up: bool) -> None:
        """Raises OSError if the kernel refuses."""
        with self._route() as route:
            route.link("set", index=self._index, state="up" if up else "down")

    def addresses(self) -> list[str]:
        """The IPv4 addresses with their prefix, ``["10.0.0.2/24"]``."""
        with self._route() as route:
            rows = route.get_addr(family=socket.AF_INET, index=self._index)
        return sorted(f"{row.get_attr('IFA_ADDRESS')}/{row['prefixlen']}" for row in rows)

    def set_addresses(self, wanted: list[str]) -> None:
        """Raises OSError where the kernel refuses."""
        self._set_addresses(set(self.addresses()), set(wanted))

    def addresses_v6(self) -> list[str]:
        """The IPv6 addresses that somebody configured, without the kernel's own.

        Switching IPv6 off removes them, and they do not come back by themselves.
        """
        with self._route() as route:
            rows = route.get_addr(family=socket.AF_INET6, index=self._index)
        found = {
            f"{row.get_attr('IFA_ADDRESS')}/{row['prefixlen']}"
            for row in rows
            if row["family"] == socket.AF_INET6
            and row["scope"] != _SCOPE_LINK
            and (row.get_attr("IFA_FLAGS") or row["flags"]) & _IFA_F_PERMANENT
        }
        return sorted(found)

    def set_addresses_v6(self, wanted: list[str]) -> None:
        """Raises OSError where the kernel refuses."""
        self._set_addresses(set(self.addresses_v6()), set(wanted))

    def set_test_addresses_v6(self, wanted: list[str]) -> None:
        """As :meth:`set_addresses_v6`, for addresses in use at once: nobody else has them."""
        self._set_addresses(set(self.addresses_v6()), set(wanted), flags=_IFA_F_NODAD)

    def _set_addresses(self, now: set[str], wanted: set[str], **more: int) -> None:
        """Try all changes; then raise the first refusal."""
        refused: OSError | None = None
        for verb, some in (("del", now - wanted), ("add", wanted - now)):
            for text in sorted(some):
                at = ipaddress.ip_interface(text)
                try:
                    with self._route() as route:
                        route.addr(
                            verb,
                            family=_family(text),
                            index=self._index,
                            address=str(at.ip),
                            prefixlen=at.network.prefixlen,
                            **(more if verb == "add" else {}),
                        )
                except OSError as error:
                    refused = refused or error
        if refused is not None:
            raise refused

    def neighbours(self) -> dict[str, str]:
        """The permanent neighbours of IPv4 and IPv6: address to MAC address."""
        with self._route() as route:
            rows = [
                row
                for family in (socket.AF_INET, socket.AF_INET6)
                for row in route.get_neighbours(family=family, ifindex=self._index)
            ]
        return {
            row.get_attr("NDA_DST"): row.get_attr("NDA_LLADDR").lower()
            for row in rows
            if row["state"] & _NUD_PERMANENT and row.get_attr("NDA_LLADDR")
        }

    def set_neighbours(self, wanted: dict[str, str]) -> None:
        """Raises OSError where the kernel refuses."""
        now = self.neighbours()
        with self._route() as route:
            for address in now.keys() - wanted.keys():
                route.neigh("del", family=_family(address), dst=address, ifindex=self._index)
            for address, mac in wanted.items():
                if now.get(address) != mac:
                    route.neigh(
                        "replace",
                        family=_family(address),
                        dst=address,
                        lladdr=mac,
                        ifindex=self._index,
                        state=_NUD_PERMANENT,
                    )

    def way_to(self, address: str) -> tuple[str, str, str | None]:
        """The route there: interface, source address, and the next hop's MAC address if known."""
        with self._route() as route:
            [way] = route.route("get", dst=address)
            index, hop = way.get_attr("RTA_OIF"), way.get_attr("RTA_GATEWAY") or address
            rows = route.get_neighbours(family=socket.AF_INET, ifindex=index)
        known = (row.get_attr("NDA_LLADDR") for row in rows if row.get_attr("NDA_DST") == hop)
        return socket.if_indextoname(index), way.get_attr("RTA_PREFSRC"), next(known, None)

    def pacing(self) -> int | str:
        """The limit of :meth:`set_pacing` in bytes a second, headers included; 0: none.

        If somebody else has set up a qdisc, its name.
        """
        with self._route() as route:
            for discipline in route.get_qdiscs(index=self._index):
                if discipline["parent"] == _ROOT and discipline["handle"] == _PACER:
                    options = discipline.get_attr("TCA_OPTIONS")
                    return int(options.get_attr("TCA_TBF_PARMS")["rate"])
                if discipline["parent"] == _ROOT and discipline["handle"]:
                    return str(discipline.get_attr("TCA_KIND"))
        return 0

    def qdisc_dropped(self) -> int:
        """How many packets its queueing discipline has dropped, in 32 bits."""
        with self._route() as route:
            for discipline in route.get_qdiscs(index=self._index):
                # That of the interface: its counters include those of each queue.
                if discipline["parent"] == _ROOT:
                    return int(discipline.get_attr("TCA_STATS")["drop"])
        return 0

    def set_pacing(self, bytes_per_s: int) -> None:
        """Replace the interface's default qdisc by a token bucket; 0 removes it.

        Raises OSError if the kernel refuses, or somebody else has set up a qdisc.
        """
        now = self.pacing()
        if isinstance(now, str):
            raise OSError(f"the interface has a qdisc that is not of the harness: {now}")
        with self._route() as route:
            if bytes_per_s:
                route.tc(
                    "replace",
                    "tbf",
                    index=self._index,
                    handle=_PACER,
                    rate=bytes_per_s,
                    burst=max(_PACER_BURST_BYTES, bytes_per_s // 1000),
                    limit=_PACER_QUEUE_BYTES,
                )
            elif now:
                route.tc("del", index=self._index, parent=_ROOT)

    @contextmanager
    def _route(self) -> Iterator[Any]:
        with rtnetlink() as route:
            yield route


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextmanager
def rtnetlink() -> Iterator[Any]:
    """pyroute2's rtnetlink; its errors are raised as OSError."""
    pyroute2 = need("pyroute2")
    try:
        with pyroute2.IPRoute() as route:
            yield route
    except pyroute2.NetlinkError as error:
        raise OSError(error.code, str(error)) from error


def netlink_error() -> type[Exception]:
    """The exception of calls inside :func:`rtnetlink`."""
    error: type[Exception] = need("pyroute2").NetlinkError
    return error
