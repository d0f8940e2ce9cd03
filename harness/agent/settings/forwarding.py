# SPDX-License-Identifier: MIT
"""The test interface forwards IPv4 packets, as a router does whose ports are one interface."""

from __future__ import annotations

from harness.agent import setting
from harness.agent.setting import numbered

_V4 = "net/ipv4"


def _as(value: int) -> object:
    return lambda _now, _asked: value


SETTINGS = (
    numbered(
        "redirects_of_all",
        lambda _: setting.PROC_SYS / _V4 / "conf/all/send_redirects",
        # Otherwise every sender is told, again and again, that there is a shorter way.
        wanted=_as(0),
        by="forwarding",
    ),
    numbered(
        "redirects",
        lambda interface: setting.PROC_SYS / _V4 / "conf" / interface / "send_redirects",
        wanted=_as(0),
        by="forwarding",
    ),
    numbered(
        # netserver opens its socket for an address of another host.
        "foreign_bind",
        lambda _: setting.PROC_SYS / _V4 / "ip_nonlocal_bind",
        wanted=_as(1),
        by="forwarding",
    ),
    numbered(
        "forwarding",
        lambda interface: setting.PROC_SYS / _V4 / "conf" / interface / "forwarding",
        wanted=_as(1),
        by="forwarding",
    ),
)
