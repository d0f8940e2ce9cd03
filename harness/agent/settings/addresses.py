# SPDX-License-Identifier: MIT
"""The address for test traffic, the interface's up state, and the other host as a neighbour."""

from __future__ import annotations

from ipaddress import IPv4Interface

from harness.agent.faults import AgentError
from harness.agent.interface.links import Links
from harness.agent.setting import Asked, Declaration, Setting


def parsed(text: str) -> IPv4Interface:
    """An address with its prefix, such as ``198.18.0.2/24``.

    Raises:
        AgentError: the text has another form.
    """
    try:
        return IPv4Interface(text)
    except ValueError as error:
        raise AgentError(f"not an address: {error}", kind="configuration") from error


def _with_peer(now: dict[str, str], asked: Asked) -> dict[str, str]:
    """``now`` with the other host, and the addresses that it also answers for."""
    peer = asked["peer"]
    mac = peer["mac"].lower()
    return {**now, **dict.fromkeys((peer["address"], *peer.get("also", ())), mac)}


SETTINGS = (
    Declaration(
        "addresses",
        lambda at: Setting("addresses", Links(at).addresses, Links(at).set_addresses),
        wanted=lambda now, asked: sorted({*now, str(parsed(asked["address"]))}),
        by="address",
        check=parsed,
        hint="is the address used elsewhere on this host?",
    ),
    Declaration(
        "up",
        lambda at: Setting("up", Links(at).up, Links(at).set_up),
        wanted=lambda _now, _asked: True,
        asked=lambda _asked, _skipped: True,
    ),
    Declaration(
        "neighbours",
        lambda at: Setting("neighbours", Links(at).neighbours, Links(at).set_neighbours),
        wanted=_with_peer,
        by="peer",
    ),
)
