# SPDX-License-Identifier: MIT
"""IPv6 on the test interface: off, or with one address for a load over it.

While it is off, none of its own packets are counted with those measured.
"""

from __future__ import annotations

from ipaddress import IPv6Interface

from harness.agent import setting
from harness.agent.faults import AgentError
from harness.agent.interface.links import Links
from harness.agent.setting import Declaration, Setting, numbered

_ABSENT = "the kernel has no IPv6"


def _parsed(text: str) -> IPv6Interface:
    try:
        return IPv6Interface(text)
    except ValueError as error:
        raise AgentError(f"not an address: {error}", kind="configuration") from error


# In this order: an interface without IPv6 takes no address.
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
        wanted=lambda _now, asked: int(asked["address6"] is None),
        by="address",
        absent=_ABSENT,
    ),
    Declaration(
        "ipv6_address",
        lambda at: Setting("ipv6_address", Links(at).addresses_v6, Links(at).set_test_addresses_v6),
        wanted=lambda _now, asked: [str(_parsed(asked["address6"]))],
        by="address6",
        check=_parsed,
    ),
)
