# SPDX-License-Identifier: MIT
"""Finds what others have set up between an interface and the stack: XDP, tc, bonds and the like.

They would be measured with the receive path, so a run is refused. No setting of the harness
removes them; the person who set them up has to.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from harness.agent.load import descendants

from . import links, stacked
from .taps import packet_taps

_INGRESS = 0xFFFFFFF1
"""TC_H_INGRESS, the parent of the qdiscs ingress and clsact."""
_CLSACT_INGRESS = 0xFFFFFFF2
_RECEIVING = ("macvlan", "macvtap", "ipvlan", "ipvtap", "macsec")
"""Kinds of interface that take packets from the one below (netdev_rx_handler_register)."""

Found = dict[str, Any]
"""``what``, ``detail``, ``remedy``, and ``stops``: a measurement through it would be void."""


def found(interface: str) -> dict[str, Any]:
    """``packet_taps`` on ``interface``, and what else is ``in_the_way``.

    Taps of this agent and of its child processes are omitted.
    """
    index = socket.if_nametoindex(interface)
    own = {os.getpid(), *descendants(os.getpid())}
    return {
        "packet_taps": packet_taps(interface, index, without=own),
        "in_the_way": [*_programs(interface, index), *_members(interface, index)],
    }


def _programs(interface: str, index: int) -> Iterator[Found]:
    with links.rtnetlink() as route:
        link = route.get_links(index)[0]
        qdiscs = [row for row in route.get_qdiscs(index=index) if row["parent"] == _INGRESS]
        filters = 0
        for qdisc in qdiscs:
            for parent in (_CLSACT_INGRESS, qdisc["handle"]):
                with contextlib.suppress(links.netlink_error()):
                    rows = route.get_filters(index=index, parent=parent)
                    filters += sum(row["parent"] in (parent, 0) for row in rows)
    xdp = link.get_attr("IFLA_XDP")
    # An older pyroute2 does not decode it.
    if hasattr(xdp, "get_attr") and xdp.get_attr("IFLA_XDP_ATTACHED") is not None:
        number = xdp.get_attr("IFLA_XDP_PROG_ID")
        yield {
            "what": "XDP program",
            "detail": f"on {interface}, program {number or 'of unknown number'}",
            "remedy": f"end what loaded it, or: ip link set dev {interface} xdp off",
            "stops": True,
        }
    for qdisc in qdiscs:
        kind = qdisc.get_attr("TCA_KIND")
        yield {
            "what": f"tc {kind}",
            "detail": f"a {kind} qdisc on {interface} {'with' if filters else 'without'} filters",
            "remedy": f"tc qdisc del dev {interface} {kind}",
            "stops": filters > 0,
        }


def _members(interface: str, index: int) -> Iterator[Found]:
    table = stacked.interfaces()
    here = table.get(index)
    above = None if here is None or here.master is None else table.get(here.master)
    if above is not None:
        yield {
            "what": f"{above.kind or 'upper'} member",
            "detail": f"{interface} belongs to {above.name} ({above.kind or 'unknown kind'})",
            "remedy": f"ip link set dev {interface} nomaster",
            "stops": True,
        }
    for other in table.values():
        if other.kind in _RECEIVING and index in other.below:
            yield {
                "what": f"{other.kind} above",
                "detail": f"{other.name} ({other.kind}) takes packets of {interface}",
                "remedy": f"ip link del dev {other.name}",
                "stops": True,
            }
