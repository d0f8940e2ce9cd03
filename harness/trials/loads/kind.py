# SPDX-License-Identifier: MIT
"""The interface of a load. Each load is one module here, registered in ``__init__.py``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from harness.trials.counted import Delta
from harness.trials.readings import Loaded, Whole

if TYPE_CHECKING:
    from harness.config import Bed

Counters = Mapping[str, Any]
"""An answer of the agent's ``counters``."""


@dataclass(frozen=True)
class Law:
    """A conservation rule on one trial: packets in = packets out + counted drops.

    ``into`` may exceed ``out`` by ``more`` and fall short of it by ``fewer``, beside the
    tolerance of the rule.
    """

    rule: str
    into: int
    out: int
    fewer: int = 0
    more: int = 0


class LoadKind(ABC):
    """One load: what both hosts are set to, where the streams go, what must add up."""

    name: ClassVar[str]
    """Its name in hosts.yaml and on the command line."""
    summary: ClassVar[str]
    """What it is, for ``--help``."""
    saturates: ClassVar[str] = "the wire, which repeats frames, or the generator's CPUs"
    """What sends more than the dut can take."""
    ends: ClassVar[str] = "datagrams read by netserver"
    """What ``delivered_pps`` counts."""
    headers_bytes: ClassVar[int] = 14 + 20 + 8
    """Of one frame."""
    test: ClassVar[str] = "UDP_STREAM"
    """The test of netperf."""
    merged: ClassVar[bool] = False
    """May GRO merge its frames before IP?"""
    sliced: ClassVar[bool] = True
    """Can its senders be stopped and continued, so that boots take turns?"""
    paced: ClassVar[bool] = True
    """Can it be limited to a number of packets per second?"""
    unprobed: ClassVar[Sequence[str]] = ()
    """The functions by which its packets enter IP, if the probes do not count there."""

    def refused(self, bed: Bed) -> str | None:  # noqa: ARG002
        """Why ``bed`` cannot have it."""
        return None

    def on(self, bed: Bed) -> Bed:
        """``bed`` as this load needs it."""
        return bed

    def settings(self, bed: Bed) -> dict[str, dict[str, Any]]:  # noqa: ARG002
        """By role, what it asks of ``settings_apply`` beside what every load asks."""
        return {"dut": {}, "generator": {}}

    def also(self, bed: Bed) -> dict[str, list[str]]:  # noqa: ARG002
        """By role, further addresses that this host reaches at the other host's MAC address."""
        return {"dut": [], "generator": []}

    def listens(self, bed: Bed) -> str:
        """The address of netserver's control connection."""
        return str(bed.dut.address.ip)

    def target(self, bed: Bed) -> str | None:  # noqa: ARG002
        """Where messages go, if not to the address of the control connection."""
        return None

    def read(self, now: Counters) -> int:
        """How many packets have come to their end on the dut; ``now`` was just read."""
        return sum(_of(now, table, "InDatagrams") for table in ("Udp", "Udp6"))

    @abstractmethod
    def delivered(self, delta: Delta) -> int | None:
        """How many packets came to their end; None: not counted."""

    def measures(self, delta: Delta) -> dict[str, float]:  # noqa: ARG002
        """Its own measures over a window in which the dut was busy."""
        return {}

    @abstractmethod
    def laws(
        self, sample: Loaded, whole: Whole, delta: Delta, drops: Mapping[str, int]
    ) -> Iterator[Law]:
        """What must add up from IP on; the rules below IP are those of every load.

        ``delta`` is over ``whole``, and ``drops`` what was dropped in it, by place.
        """


def entered(now: Counters) -> int:
    """Packets that have entered IP, of both versions; ``now`` was just read."""
    return sum(_of(now, table, "InReceives") for table in ("Ip", "Ip6"))


def _of(now: Counters, table: str, name: str) -> int:
    return int(now["snmp"].get(table, {}).get(name, 0))
