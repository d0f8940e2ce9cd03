# SPDX-License-Identifier: MIT
"""The dut routes: each datagram leaves through the interface by which it came.

The datagrams are for an address that no host has. The generator sends them to the dut's MAC
address, and the dut to the generator's, by static neighbours; the generator drops them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from harness.trials.counted import Delta
from harness.trials.loads.kind import Counters, Law, LoadKind
from harness.trials.readings import Loaded, Whole

if TYPE_CHECKING:
    from harness.config import Bed


class Forward(LoadKind):
    """IPv4 forwarding."""

    name = "forward"
    summary = "UDP_STREAM that the dut forwards, back out of its interface"
    ends = "packets forwarded"

    def refused(self, bed: Bed) -> str | None:
        if beyond(bed) is None:
            return (
                f"{bed.dut.address} has no third address in its network, to which the dut could "
                "forward; give both hosts a prefix of 29 bits or fewer"
            )
        return None

    def settings(self, bed: Bed) -> dict[str, dict[str, Any]]:  # noqa: ARG002
        return {"dut": {"forwarding": True}, "generator": {}}

    def also(self, bed: Bed) -> dict[str, list[str]]:
        return {role: [str(beyond(bed))] for role in ("dut", "generator")}

    def target(self, bed: Bed) -> str:
        return str(beyond(bed))

    def read(self, now: Counters) -> int:
        return int(now["snmp"]["Ip"]["ForwDatagrams"])

    def delivered(self, delta: Delta) -> int | None:
        return delta.forwarded

    def laws(
        self,
        sample: Loaded,  # noqa: ARG002
        whole: Whole,  # noqa: ARG002
        delta: Delta,
        drops: Mapping[str, int],
    ) -> Iterator[Law]:
        if delta.ip_in is not None:
            # Delivered here: netperf's control connections.
            out = delta.forwarded + delta.delivered_here
            yield Law("forward-conservation", delta.ip_in - drops["ip"], out)
        if delta.forwarded and delta.qdisc_dropped is not None:
            lost = drops["ip_out"] + drops["qdisc"] + drops["driver_out"]
            sent = delta.link("tx_packets")
            yield Law("sent-conservation", delta.forwarded - lost, sent, fewer=delta.sent_here)


def beyond(bed: Bed) -> IPv4Address | None:
    """An address of the test network that is neither host's: its last one; None: there is none."""
    taken = {bed.dut.address.ip, bed.generator.address.ip}
    network = bed.dut.address.network
    last = int(network.broadcast_address)
    for address in range(last - 1, max(last - 4, int(network.network_address)), -1):
        if IPv4Address(address) not in taken:
            return IPv4Address(address)
    return None
