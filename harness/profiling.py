# SPDX-License-Identifier: MIT
"""Where the time of a packet goes: the functions in which kernels are found, side by side.

The function that a kernel under load executes is noted at many moments. Its share of the samples
is its share of the CPU time. Kernels of this machine take turns, so that a slowdown of the machine
affects all of them equally.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.beds.bed import RunningBed
from harness.trials.loads.kind import entered

TURN_S = 0.5


@dataclass
class Profile:
    """What was found of one kernel."""

    samples: Counter[str] = field(default_factory=Counter)
    """By function."""
    packets: int = 0
    """That entered IP meanwhile."""
    cpu_ns: int = 0
    """CPU time of the kernel meanwhile, or the time of the sampled CPU."""

    @property
    def ns_per_packet(self) -> float:
        return self.cpu_ns / self.packets if self.packets else math.nan

    def of(self, function: str) -> tuple[float, float]:
        """Nanoseconds per packet in ``function``, and their standard error."""
        total = self.samples.total()
        if not total:
            return math.nan, math.nan
        share = self.samples[function] / total
        error = math.sqrt(share * (1 - share) / total)
        return share * self.ns_per_packet, error * self.ns_per_packet


def turns(duration_s: float) -> int:
    """How many turns of each kernel make ``duration_s``."""
    return math.ceil(duration_s / TURN_S)


def measure(
    beds: Mapping[str, RunningBed], duration_s: float, cpu: int, done: Callable[[], None]
) -> dict[str, Profile]:
    """Profile ``cpu`` of each of ``beds``, of which only the last runs, for ``duration_s``.

    ``done`` is called after each of :func:`turns`.
    """
    found = {name: Profile() for name in beds}
    up = list(beds.values())[-1]
    for _ in range(turns(duration_s)):
        for name, bed in beds.items():
            if bed is not up:
                up.freeze()
                bed.thaw()
                up = bed
            _turn(bed, found[name], cpu)
        done()
    return found


def _turn(bed: RunningBed, found: Profile, cpu: int) -> None:
    before = _counted(bed)
    found.samples.update(bed.sampled(TURN_S, cpu))
    after = _counted(bed)
    found.packets += after[0] - before[0]
    found.cpu_ns += after[1] - before[1]


def _counted(bed: RunningBed) -> tuple[int, int]:
    """Packets that have entered IP, and the time in ns of what is sampled: a kernel or a CPU."""
    read = bed.dut.counters(interface=bed.dut_interface)
    spent_ns = read["kernel_cpu_ns"]
    return entered(read), read["monotonic_ns"] if spent_ns is None else spent_ns


def rows(found: Mapping[str, Profile]) -> list[dict[str, Any]]:
    """Each function with its time per packet by step; the largest first.

    With several steps ``more`` is the time of the last above that of the first, and ``error``
    the standard error of that difference, in ns.
    """
    names = {name for profile in found.values() for name in profile.samples}
    first, *_, last = found.values() if len(found) > 1 else (None, None)
    table = []
    for name in names:
        row: dict[str, Any] = {
            "function": name,
            "ns": {step: profile.of(name)[0] for step, profile in found.items()},
        }
        if first is not None and last is not None:
            (before, before_error), (after, after_error) = first.of(name), last.of(name)
            row["more"], row["error"] = after - before, math.hypot(before_error, after_error)
        table.append(row)
    return sorted(table, key=lambda row: -max(row["ns"].values()))
