# SPDX-License-Identifier: MIT
"""The address for test traffic, an interface that is up, and the other host as a neighbour."""

from __future__ import annotations

from ipaddress import IPv4Interface

from harness.agent.faults import AgentError
from harness.agent.interface.links import Links
from harness.agent.setting import Asked, Declaration, Setting


def parsed(text: str) -> IPv4Interface:
    """``198.18.0.2/24``.

    Raises:
        AgentError: it is something else.
    """
    try:
        return IPv4Interface(text)
    except ValueError as error:
        raise AgentError(f"not an address: {error}", kind="configuration") from error


def _addresses(interface: str) -> Setting:
    links = Links(interface)
    return Setting("addresses", links.addresses, links.set_addresses)


def _up(interface: str) -> Setting:
    links = Links(interface)
    return Setting("up", links.up, links.set_up)


def _neighbours(interface: str) -> Setting:
    links = Links(interface)
    return Setting("neighbours", links.neighbours, links.set_neighbours)


def _with_peer(now: dict[str, str], asked: Asked) -> dict[str, str]:
    return {**now, asked["peer"]["address"]: asked["peer"]["mac"].lower()}


SETTINGS = (
    Declaration(
        "addresses",
        _addresses,
        wanted=lambda now, asked: sorted({*now, str(parsed(asked["address"]))}),
        by="address",
        check=parsed,
        hint="is the address used elsewhere on this host?",
    ),
    Declaration("up", _up, wanted=lambda _now, _asked: True, asked=lambda _asked, _skipped: True),
    Declaration("neighbours", _neighbours, wanted=_with_peer, by="peer"),
)
