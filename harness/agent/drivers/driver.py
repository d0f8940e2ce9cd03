# SPDX-License-Identifier: MIT
"""The declaration of a NIC driver: its counters, its PCI functions, its quirks.

The defaults are for a driver without a module: only the counters of
``struct rtnl_link_stats64``, and every way of steering is tried.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Optional

Firmware = Mapping[str, Optional[str]]


class Function(NamedTuple):
    """A chip, the adapters with it, and the kind of function: ``PF`` or ``VF``."""

    chip: str
    adapters: str
    kind: str


@dataclass(frozen=True)
class CounterNames:
    """Names of ``ethtool -S`` counters by meaning; empty if the driver has no such counter.

    The set applies if all names in ``known_by`` exist. They must not fit another driver's
    counters.
    """

    known_by: tuple[str, ...] = ()
    at_port: str | None = None
    """Frames that arrived at the port, including those dropped for lack of a descriptor."""
    ring_drops: tuple[str, ...] | None = None
    """Frames dropped for lack of a descriptor; None: the link's ``rx_missed_errors``."""
    other_drops: tuple[str, ...] = ()
    """Frames the NIC dropped for any other reason."""
    driver_drops: tuple[str, ...] = ()
    """Frames the driver took from a queue but did not pass on."""
    kept: tuple[str, ...] = ()
    """Frames the port may count but consumes itself: flow control."""
    in_link_dropped: tuple[str, ...] = ()
    """Counters of the above that the driver also adds to the link's ``rx_dropped``."""
    of_32_bits: frozenset[str] = frozenset()
    """Counters that wrap at 2^32."""
    queue_packets: re.Pattern[str] = re.compile(r".*\.rx_packets")
    """Frames taken from one receive queue."""
    pauses: re.Pattern[str] = re.compile(
        r"(port[._])?"
        r"([rt]x_pause(_frames|_pkts?|_ctrl(_phy)?)?|[rt]x_flow_control_xoff|link_xoff_[rt]x)"
        r"([._]nic)?"
    )
    """Pause frames; those sent have ``tx`` in the name. Most drivers use one of these names."""


def _no_firmware(_text: str) -> Firmware | None:
    return None


@dataclass(frozen=True)
class Driver:
    """One NIC driver of the kernel."""

    name: str
    """The kernel module, as ``ethtool -i`` shows it."""
    family: str = "NIC"
    """The common name of its NICs, such as ``EF10``."""
    makes_lists: bool = False
    """Does the series make it hand lists to the stack?"""
    counters: tuple[CounterNames, ...] = ()
    """The first set that applies is used: some functions of a NIC have fewer counters."""
    functions: Mapping[str, Function] = field(default_factory=dict)
    """By ``VENDOR:DEVICE`` of PCI; empty: every function of the driver is suitable."""
    firmware: Callable[[str], Firmware | None] = _no_firmware
    """``version``, ``variant`` and ``tx_variant`` from what ``ethtool -i`` shows."""
    firmware_hint: str = "the vendor's utilities show and write it"
    steering: tuple[str, ...] = ("channels", "rss", "ntuple")
    """The ways to fewer receive queues that work; ``auto`` takes the first."""
    queue_irq: re.Pattern[str] = re.compile(r"(?!.*-(tx|xdp)-\d+$).*-(?P<queue>\d+)")
    """The name of a receive queue's interrupt."""
    statistics_s: float = 1.0
    """The maximum age of the NIC's own counters when they are read."""
