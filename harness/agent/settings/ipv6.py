# SPDX-License-Identifier: MIT
"""IPv6 on the test interface: off, or with one address for a load over it.

While it is off, none of its own packets are counted with those measured.
"""

from __future__ import annotations

from ipaddress import IPv6Interface
from pathlib import Path
from typing import Any

from harness.agent import setting
from harness.agent.faults import AgentError
from harness.agent.foreign import read_text
from harness.agent.interface.links import Links
from harness.agent.setting import Declaration, Setting, numbered, write_text

_ABSENT = "the kernel has no IPv6"


def _parsed(text: str) -> IPv6Interface:
    try:
        return IPv6Interface(text)
    except ValueError as error:
        raise AgentError(f"not an address: {error}", kind="configuration") from error


def _off(interface: str) -> Path:
    return setting.PROC_SYS / "net/ipv6/conf" / interface / "disable_ipv6"


def _in_use(interface: str) -> Setting:
    """Whether IPv6 is on, and the addresses: an interface that goes down loses only these."""
    links = Links(interface)

    def write(value: dict[str, Any]) -> None:
        write_text(_off(interface), str(int(not value["on"])))
        if value["on"]:
            links.set_test_addresses_v6(value["addresses"])

    def read() -> dict[str, Any]:
        on = read_text(_off(interface)) == "0"
        return {"on": on, "addresses": links.addresses_v6() if on else []}

    return Setting("ipv6_address", read, write)


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
        _off,
        wanted=lambda _now, _asked: 1,
        by="address",
        absent=_ABSENT,
    ),
    Declaration(
        "ipv6_address",
        _in_use,
        wanted=lambda _now, asked: {"on": True, "addresses": [str(_parsed(asked["address6"]))]},
        by="address6",
        check=_parsed,
    ),
)
