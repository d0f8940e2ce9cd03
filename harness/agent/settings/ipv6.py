# SPDX-License-Identifier: MIT
"""IPv6 is off on the test interface: its own packets would be counted with those measured."""

from __future__ import annotations

from harness.agent import setting
from harness.agent.interface.links import Links
from harness.agent.setting import Declaration, Setting, numbered

_ABSENT = "the kernel has no IPv6"


SETTINGS = (
    Declaration(
        "ipv6_addresses",
        lambda at: Setting("ipv6_addresses", Links(at).addresses_v6, Links(at).set_addresses_v6),
        wanted=lambda _now, _asked: [],
        by="address",
        absent=_ABSENT,
    ),
    numbered(
        "ipv6_off",
        lambda interface: setting.PROC_SYS / "net/ipv6/conf" / interface / "disable_ipv6",
        wanted=lambda _now, _asked: 1,
        by="address",
        absent=_ABSENT,
    ),
)
