# SPDX-License-Identifier: MIT
"""The highest rate without loss, searched as in RFC 2544, 26.1.

RFC 2544 needs only one trial per rate. Here the rate that was found has to pass several
more times; if it does not, a lower rate is tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness.plan import PlannedTrial, Profile
from harness.trials import rules
from harness.trials.kind import Conditions, Figure, Kind, Measure, Panel, Told, VoidRule
from harness.trials.load import LoadOnBoot, end_all, pace
from harness.trials.readings import Declared, Trial, Whole

if TYPE_CHECKING:
    from harness.beds.bed import RunningBed
    from harness.config import Load
    from harness.trials.block import Block, MeasuredBoot

LOSS = 0.001
"""The share of packets that may be lost at the highest rate without loss."""
RESOLUTION = 0.03
_CONFIRMATIONS = 3
_TRIALS = 15
"""Trials of a typical search: 18 searches on the virtual bed took 12 to 19."""
_FIRST_PPS = 40_000
"""The first rate of a search if the rate of the stack is not known."""
_FIRST_SHARE = 0.5
"""The first rate of other searches, as a share of the rate that the stack takes."""
_LEAST_PPS = 1000.0
_DRAIN_S = 0.3
_OFFERED = 0.95


class RateTried(Declared):
    """One rate of a search: packets sent and read, counted while nothing is in flight."""

    asked_pps: float
    offered_pps: float
    sent: int
    read: int
    passed: bool


class NdrTrial(Trial):
    """One search."""

    kind: Literal["ndr"] = "ndr"
    search: list[RateTried] | None = None
    ndr_pps: float | None = None
    whole: Whole | None = None
    """Until its end, while netserver is still running."""


class Ndr(Kind[NdrTrial]):
    """One search per boot, while the other boots of its block are frozen."""

    name = "ndr"
    sample = NdrTrial
    also = "ndr"
    paces = True
    summary = "the highest rate without loss"
    measures = {
        "ndr_pps": Measure(
            "highest rate without loss",
            "packets/s",
            better="higher",
            source="packets sent and packets read, counted while nothing is in flight",
            also="ndr",
        )
    }
    rules = {
        "rate-not-found": VoidRule(
            "the search for the highest rate is limited by loss at the dut, not by the generator"
        )
    }
    figure = Figure(
        "ndr",
        "Highest rate without loss",
        f"With at most {LOSS:.1%} of the packets lost: boots (dots) and their median (bar).",
        [Panel("", "packets/s", ["ndr_pps"])],
    )

    def planned(self, profile: Profile, ordinal: int) -> Iterator[PlannedTrial]:  # noqa: ARG002
        yield PlannedTrial("ndr", 0, profile.trace_s)

    def lasts_s(self, trial: PlannedTrial) -> float:
        return trial.duration_s * _TRIALS

    def measure(self, block: Block, planned: Sequence[PlannedTrial]) -> None:
        taken = block.taken()
        usual_pps = taken.paced(_FIRST_SHARE) if taken else _FIRST_PPS
        first_pps = block.bed.paced_pps or usual_pps

        def measure(boot: MeasuredBoot, trial: PlannedTrial) -> None:
            load = LoadOnBoot(block, boot.bed, first_pps)
            load.begin()
            load.ramp_up()
            found: dict[str, Any] = {"index": trial.index, "void": load.void}
            if not load.void:
                found["ndr_pps"], found["search"] = highest_rate(
                    block.load, boot.bed, first_pps=first_pps, trial_s=trial.duration_s
                )
                if why := why_no_highest_rate(found["ndr_pps"], found["search"]):
                    found["void"] = [{"rule": "rate-not-found", "detail": why}]
                found["whole"] = load.whole()
            end_all({boot: load})
            boot.trials.append(NdrTrial.model_validate(found))

        block.alone("highest rate without loss", planned, measure)

    def judge(self, sample: NdrTrial, conditions: Conditions) -> Told:
        values = {} if sample.ndr_pps is None else {"ndr_pps": sample.ndr_pps}
        return Told(void=rules.alone(sample.void, sample.whole, conditions), values=values)


def highest_rate(
    load: Load, bed: RunningBed, *, first_pps: float, trial_s: float
) -> tuple[float | None, list[dict[str, Any]]]:
    """The highest rate without loss of a bed whose streams have started, and every rate tried.

    Each rate is sent for ``trial_s`` seconds, with a pause before and after it in which all
    packets arrive: what was sent and not read by then is lost.
    """
    tried: list[dict[str, Any]] = []

    def passes(pps: float) -> bool:
        pace(bed, load, pps)
        sent, read = _at_rest(bed)
        bed.generator.netperf_resume()
        began_s = time.monotonic()
        time.sleep(trial_s)
        bed.generator.netperf_pause()
        lasted_s = time.monotonic() - began_s
        now = _at_rest(bed)
        sent, read = now[0] - sent, now[1] - read
        row = {"asked_pps": pps, "offered_pps": sent / lasted_s, "sent": sent, "read": read}
        row["passed"] = not _lossy(row) and row["offered_pps"] >= _OFFERED * pps
        tried.append(row)
        return bool(row["passed"])

    bed.generator.netperf_pause()
    return search(passes, first_pps, confirmations=_CONFIRMATIONS), tried


def why_no_highest_rate(pps: float | None, tried: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the result of :func:`highest_rate` is not a limit of the dut; ``None``: it is one."""
    if pps is None:
        return "not even the lowest rate passed"
    above = [row for row in tried if not row["passed"] and row["asked_pps"] > pps]
    nearest = min(above, key=lambda row: row["asked_pps"], default=None)
    if nearest is None or _lossy(nearest):
        return None
    return (
        f"the generator was asked for {nearest['asked_pps']:,.0f} packets/s and sent "
        f"{nearest['offered_pps']:,.0f}, and none was lost"
    )


def _lossy(row: Mapping[str, Any]) -> bool:
    return bool(row["sent"] - row["read"] > LOSS * row["sent"])


def _at_rest(bed: RunningBed) -> tuple[int, int]:
    """Packets sent by the generator and read by the dut's programs, after both are idle."""
    time.sleep(_DRAIN_S)
    sent = bed.generator.counters(interface=bed.generator_interface)
    read = bed.dut.counters(interface=bed.dut_interface)
    return sent["link"]["tx_packets"], read["snmp"]["Udp"]["InDatagrams"]


def search(
    passes: Callable[[float], bool], first_pps: float, *, confirmations: int
) -> float | None:
    """The highest rate found that passes ``1 + confirmations`` times in a row, in packets/s.

    Starts at ``first_pps``, doubles or halves until a passing and a failing rate are known,
    and bisects between them until they differ by :data:`RESOLUTION`. ``None``: not even
    1000 packets/s pass.
    """
    low, high = 0.0, 0.0
    rate = max(first_pps, _LEAST_PPS)
    while not (low and high):
        if passes(rate):
            low, rate = rate, 2 * rate
        else:
            if rate == _LEAST_PPS:
                return None
            high, rate = rate, max(rate / 2, _LEAST_PPS)
    while high / low > 1 + RESOLUTION:
        middle = (low * high) ** 0.5
        if passes(middle):
            low = middle
        else:
            high = middle
    lacking = confirmations
    while low >= _LEAST_PPS:
        if all(passes(low) for _ in range(lacking)):
            return low
        low, lacking = low / (1 + RESOLUTION), 1 + confirmations
    return None
