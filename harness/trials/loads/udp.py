# SPDX-License-Identifier: MIT
"""Datagrams of netperf's UDP_STREAM to sockets of netserver."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from harness.trials.counted import Delta
from harness.trials.loads.kind import Law, LoadKind
from harness.trials.readings import Loaded, Whole

# The least that a frame is charged to a UDP buffer (sk_buff and data).
_MIN_TRUESIZE_BYTES = 512


class Udp(LoadKind):
    """Over IPv4."""

    name = "udp"
    summary = "UDP_STREAM of netperf over IPv4"

    def delivered(self, delta: Delta) -> int | None:
        return delta.datagrams

    def laws(
        self, sample: Loaded, whole: Whole, delta: Delta, drops: Mapping[str, int]
    ) -> Iterator[Law]:
        datagrams, ip_in = delta.datagrams, delta.ip_in
        if ip_in is not None and datagrams is not None:
            waiting = [
                sum(socket.queued_bytes for socket in snapshot.udp_sockets) // _MIN_TRUESIZE_BYTES
                for snapshot in (whole.before, whole.after)
            ]
            yield Law(
                "ip-conservation",
                ip_in - drops["ip"] - delta.forwarded,
                datagrams + delta.udp("InErrors") + drops["udp_noport"],
                fewer=waiting[0],
                more=waiting[1] + delta.control,
            )
        received = [stream.messages_received for stream in sample.netperf]
        if received and datagrams is not None and None not in received:
            yield Law("delivery-conservation", datagrams, sum(count for count in received if count))
