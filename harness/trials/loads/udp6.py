# SPDX-License-Identifier: MIT
"""The same datagrams over IPv6."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Address
from typing import TYPE_CHECKING, Any

from harness.trials.loads.udp import Udp

if TYPE_CHECKING:
    from harness.config import Bed

_BENCHMARK = IPv6Address("2001:2::")
"""The prefix for benchmarks (RFC 5180); it is 48 bits long, of which one network is used."""
_PREFIX = 64


class Udp6(Udp):
    """Over IPv6, from and to addresses that are made from those of hosts.yaml."""

    name = "udp6"
    summary = "UDP_STREAM over IPv6"
    headers_bytes = 14 + 40 + 8
    unprobed = ("ipv6_rcv", "ipv6_list_rcv")

    def refused(self, bed: Bed) -> str | None:
        if bed.steering == "ntuple":
            return "steering: ntuple steers UDP over IPv4 only; set steering: auto or rss"
        return None

    def settings(self, bed: Bed) -> dict[str, dict[str, Any]]:
        return {
            role: {"address6": f"{of_v4(host.address)}/{_PREFIX}"}
            for role, host in (("dut", bed.dut), ("generator", bed.generator))
        }

    def also(self, bed: Bed) -> dict[str, list[str]]:
        return {
            "dut": [str(of_v4(bed.generator.address))],
            "generator": [str(of_v4(bed.dut.address))],
        }

    def listens(self, bed: Bed) -> str:
        return str(of_v4(bed.dut.address))


def of_v4(address: IPv4Interface) -> IPv6Address:
    """The IPv6 address of the host with ``address``: as unique as that is."""
    return IPv6Address(int(_BENCHMARK) | int(address.ip))
