# SPDX-License-Identifier: MIT
"""What the harness has to know of a NIC's driver: its counters, its functions, its quirks.

Every default is what holds of a driver that nobody has described: the counters of
``struct rtnl_link_stats64`` alone, and every way of steering tried.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

Firmware = Mapping[str, Optional[str]]


class Function(NamedTuple):
    """A chip, the adapters it is on, and which function this is: ``PF`` or ``VF``."""

    chip: str
    adapters: str
    kind: str


@dataclass(frozen=True)
class CounterNames:
    """Names of ``ethtool -S``, by what they count; a driver without a counter names none.

    A set is in use where all names of ``known_by`` are there. No name may be that of
    another driver's counter with another meaning.
    """

    known_by: tuple[str, ...] = ()
    at_port: str | None = None
    """Frames that came to the port, those dropped for want of a descriptor included."""
    ring_drops: tuple[str, ...] | None = None
    """Frames lost for want of a descriptor; None: the link's ``rx_missed_errors`` has them."""
    other_drops: tuple[str, ...] = ()
    """Frames the NIC dropped for any other reason."""
    driver_drops: tuple[str, ...] = ()
    """Frames the driver took from a queue and did not pass on."""
    kept: tuple[str, ...] = ()
    """Frames the port may count and keeps for itself: flow control."""
    in_link_dropped: tuple[str, ...] = ()
    """Those of the above that the driver adds to the link's ``rx_dropped`` too."""
    of_32_bits: frozenset[str] = frozenset()
    """Counters that begin again after 2^32."""
    queue_packets: re.Pattern[str] = re.compile(r".*\.rx_packets")
    """Frames taken from one receive queue."""
    pauses: re.Pattern[str] = re.compile(
        r"(port[._])?"
        r"([rt]x_pause(_frames|_pkts?|_ctrl(_phy)?)?|[rt]x_flow_control_xoff|link_xoff_[rt]x)"
        r"([._]nic)?"
    )
    """Pause frames; ``tx`` in the name tells those sent. Most drivers use one of these names."""


def _no_firmware(_text: str) -> Firmware | None:
    return None


@dataclass(frozen=True)
class Driver:
    """One NIC driver of the kernel."""

    name: str
    """Of the kernel's module, as ``ethtool -i`` shows it."""
    family: str = "NIC"
    """Of its NICs, as a reader knows them: ``EF10``."""
    makes_lists: bool = False
    """Does the series make it hand lists to the stack?"""
    counters: tuple[CounterNames, ...] = ()
    """Sets of counters, the first that fits is used: a function of a NIC may see fewer."""
    functions: Mapping[str, Function] = field(default_factory=dict)
    """By ``VENDOR:DEVICE`` of PCI; empty: every function that the driver takes is fit."""
    firmware: Callable[[str], Firmware | None] = _no_firmware
    """``version``, ``variant`` and ``tx_variant`` from what ``ethtool -i`` shows."""
    firmware_hint: str = "the vendor's utilities show and write it"
    steering: tuple[str, ...] = ("channels", "rss", "ntuple")
    """What works of the ways to fewer receive queues; ``auto`` takes the first that does."""
    queue_irq: re.Pattern[str] = re.compile(r"(?!.*-(tx|xdp)-\d+$).*-(?P<queue>\d+)")
    """Name of a receive queue's interrupt."""
    statistics_s: float = 1.0
    """The NIC's own counters may be so old when they are read."""
