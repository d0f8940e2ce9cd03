# SPDX-License-Identifier: MIT
"""No IPv6 on the test interface: its own packets would be counted among those measured."""

from __future__ import annotations

from harness.agent import setting
from harness.agent.interface.links import Links
from harness.agent.setting import Declaration, Setting, numbered

_ABSENT = "the kernel has no IPv6"


def _on(interface: str) -> Setting:
    links = Links(interface)
    return Setting("ipv6_addresses", links.addresses_v6, links.set_addresses_v6)


SETTINGS = (
    Declaration(
        "ipv6_addresses", _on, wanted=lambda _now, _asked: [], by="address", absent=_ABSENT
    ),
    numbered(
        "ipv6_off",
        lambda interface: setting.PROC_SYS / "net/ipv6/conf" / interface / "disable_ipv6",
        wanted=lambda _now, _asked: 1,
        by="address",
        absent=_ABSENT,
    ),
)
