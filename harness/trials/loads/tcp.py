# SPDX-License-Identifier: MIT
"""Bulk transfers of netperf's TCP_STREAM. GRO is what list receive competes with here.

TCP sends as much as it gets acknowledged, and GRO merges its segments before IP. So packets
per second say little: the measure is the payload, read from the octets that entered IP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from harness.trials.counted import Delta
from harness.trials.loads.kind import Counters, Law, LoadKind
from harness.trials.readings import Loaded, Whole

if TYPE_CHECKING:
    from harness.config import Bed

HEADERS_BYTES = 20 + 32
"""Of a packet at IP, merged or not: IPv4, and TCP with timestamps."""
_LONGEST_PAYLOAD = 1460
_ON_THIS_MACHINE = ("netns", "uml")


class Tcp(LoadKind):
    """Over IPv4."""

    name = "tcp"
    summary = "TCP_STREAM of netperf over IPv4, judged by its payload"
    saturates = "the generator, whose TCP sends as much as is acknowledged"
    ends = "segments, as GRO merged them"
    test = "TCP_STREAM"
    merged = True
    sliced = False  # netperf takes a send that a stop cuts short for the end of the test
    paced = False

    def on(self, bed: Bed) -> Bed:
        """With a wire that delivers each frame once: a segment again is a duplicate."""
        if (wire := getattr(bed.dut, "wire", None)) is None:
            return bed
        once = wire.model_copy(update={"repeat": 1})
        return bed.model_copy(update={"dut": bed.dut.model_copy(update={"wire": once})})

    def settings(self, bed: Bed) -> dict[str, dict[str, Any]]:
        here = bed.generator.kind in _ON_THIS_MACHINE
        return {"dut": {}, "generator": {"segmentation": False} if here else {}}

    def read(self, now: Counters) -> int:
        return int(now["snmp"]["Tcp"]["InSegs"])

    def delivered(self, delta: Delta) -> int | None:
        return delta.snmp("Tcp", "InSegs")

    def measures(self, delta: Delta) -> dict[str, float]:
        octets = _payload(delta)
        return {"goodput_mbps": 8 * octets / delta.duration_s / 1e6} if octets > 0 else {}

    def laws(
        self,
        sample: Loaded,
        whole: Whole,  # noqa: ARG002
        delta: Delta,
        drops: Mapping[str, int],
    ) -> Iterator[Law]:
        if delta.ip_in is not None:
            others = (delta.datagrams or 0) + delta.udp("InErrors") + drops["udp_noport"]
            yield Law("ip-conservation", delta.ip_in - drops["ip"], delta.control + others)
        received = [stream.octets_received for stream in sample.netperf]
        if received and None not in received:
            duplicates = delta.netstat("TcpExt", "TCPDSACKOldSent", "TCPDSACKOfoSent")
            yield Law(
                "payload-conservation",
                _payload(delta),
                sum(octets for octets in received if octets),
                more=duplicates * _LONGEST_PAYLOAD,
            )


def _payload(delta: Delta) -> int:
    """Octets of payload that entered IP."""
    return delta.netstat("IpExt", "InOctets") - HEADERS_BYTES * (delta.ip_in or 0)
