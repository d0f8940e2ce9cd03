# SPDX-License-Identifier: MIT
"""The highest rates without loss, with 0.1 % and with 0.5 % of loss, all found by one search.

A trial of a rate is that of RFC 2544, 26.1; :mod:`harness.trials.search` chooses the rates.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness.plan import PlannedTrial, Profile
from harness.trials import loads, rules, search
from harness.trials.kind import Conditions, Figure, Kind, Measure, Panel, Told, VoidRule
from harness.trials.load import LoadOnBoot, end_all, hold, release
from harness.trials.readings import Declared, Trial, Whole

if TYPE_CHECKING:
    from harness.beds.bed import RunningBed
    from harness.config import Bed, Load
    from harness.trials.block import Block, MeasuredBoot

LOSS = 0.001
"""The share of packets that may be lost at the rate ``ndr_pps``."""
LOSSES = {"zero_loss_pps": 0.0, "ndr_pps": LOSS, "pdr_pps": 0.005}
"""By measure, the share of packets that may be lost; one search finds all."""
_OTHER_PACKETS = 2
"""Packets of a trial that may be missing without a loss: the generator sends some that are
not of the load, such as ARP. They are never more than :data:`LOSS`."""
_TRIALS = 20
"""Trials of a typical search; see ``tests/bench/ndr_searches.py``."""
_FIRST_PPS = 40_000
"""The first rate of a search if the rate of the stack is not known."""
_FIRST_SHARE = 0.5
"""The first rate of other searches, as a share of the rate that the stack takes."""
_DRAIN_S = 0.3
_OFFERED = 0.95


def _loss(name: str) -> str:
    """The goal of a measure in words."""
    return f"at most {LOSSES[name]:.1%} loss" if LOSSES[name] else "no loss"


class RateTried(Declared):
    """One rate of a search: packets sent and read, counted while nothing is in flight."""

    asked_pps: float
    offered_pps: float
    sent: int
    read: int
    passed: bool
    """With at most :data:`LOSS`, which was the only goal of earlier versions."""


class NdrTrial(Trial):
    """One search."""

    kind: Literal["ndr"] = "ndr"
    search: list[RateTried] | None = None
    zero_loss_pps: float | None = None
    ndr_pps: float | None = None
    pdr_pps: float | None = None
    not_found: dict[str, str] = Field(default_factory=dict)
    """By measure, why its rate is not known although ``ndr_pps`` is."""
    whole: Whole | None = None
    """Until its end, while netserver is still running."""


class Ndr(Kind[NdrTrial]):
    """One search per boot, while the other boots of its block are frozen."""

    name = "ndr"
    sample = NdrTrial
    also = "ndr"
    paces = True
    summary = "the highest rates without loss, with 0.1% and with 0.5% of the packets lost"
    measures = {
        name: Measure(
            f"highest rate with {_loss(name)}",
            "packets/s",
            better="higher",
            source="packets sent and packets read, counted while nothing is in flight",
            also="ndr",
            sentence=name == "ndr_pps",
        )
        for name in LOSSES
    }
    rules = {
        "rate-not-found": VoidRule(
            "the search for the highest rate is limited by loss at the dut, not by the generator, "
            f"and ends within {search.MOST_TRIALS} trials"
        )
    }
    figure = Figure(
        "ndr",
        "Highest rates with little or no loss",
        "By the share of packets that may be lost: boots (dots) and their median (bar).",
        [Panel(_loss(name), "packets/s", [name]) for name in LOSSES],
    )

    def about(self, bed: Bed, profile: Profile) -> str:  # noqa: ARG002
        trial_s = profile.trace_s
        return (
            f"{self.summary} (one search for all: about {_TRIALS} trials of {trial_s:g} s, "
            f"at most {search.MOST_TRIALS} in {search.MOST_TRIALS * _takes_s(trial_s):.0f} s)"
        )

    def planned(self, profile: Profile, ordinal: int) -> Iterator[PlannedTrial]:  # noqa: ARG002
        yield PlannedTrial("ndr", 0, profile.trace_s)

    def lasts_s(self, trial: PlannedTrial) -> float:
        return _TRIALS * _takes_s(trial.duration_s)

    def measure(self, block: Block, planned: Sequence[PlannedTrial]) -> None:
        taken = block.taken()
        usual_pps = taken.paced(_FIRST_SHARE) if taken else _FIRST_PPS
        first_pps = block.bed.paced_pps or usual_pps
        # The same for the boots of a block that are compared side by side.
        phase = random.Random(block.boots[0].title).random()  # noqa: S311 (no secret)

        def measure(boot: MeasuredBoot, trial: PlannedTrial) -> None:
            load = LoadOnBoot(block, boot.bed, first_pps)
            load.begin()
            load.ramp_up()
            found: dict[str, Any] = {"index": trial.index, "void": load.void}
            if not load.void:
                found |= highest_rates(
                    block.load,
                    boot.bed,
                    first_pps=first_pps,
                    phase=phase,
                    trial_s=trial.duration_s,
                )
                found["whole"] = load.whole()
            end_all({boot: load})
            boot.trials.append(NdrTrial.model_validate(found))

        block.alone("highest rates without loss", planned, measure)

    def judge(self, sample: NdrTrial, conditions: Conditions) -> Told:
        found = {name: getattr(sample, name) for name in LOSSES}
        return Told(
            void=rules.alone(sample.void, sample.whole, conditions),
            values={name: pps for name, pps in found.items() if pps is not None},
            absent=sample.not_found,
        )


def highest_rates(
    load: Load, bed: RunningBed, *, first_pps: float, phase: float, trial_s: float
) -> dict[str, Any]:
    """The rates of :data:`LOSSES` of a bed whose streams have started, and every rate tried.

    Each rate is sent for ``trial_s`` seconds, with a pause before and after it in which all
    packets arrive: what was sent and not read by then is lost.

    Returns the fields of an :class:`NdrTrial`.
    """
    tried: list[dict[str, Any]] = []

    def attempt(pps: float) -> search.Outcome:
        sent, read = _at_rest(load, bed)
        release(bed, load, pps)
        began_s = time.monotonic()
        time.sleep(trial_s)
        hold(bed)
        lasted_s = time.monotonic() - began_s
        now = _at_rest(load, bed)
        sent, read = now[0] - sent, now[1] - read
        row = {"asked_pps": pps, "offered_pps": sent / lasted_s, "sent": sent, "read": read}
        row["passed"] = _offered(row) and not _lossy(row, LOSS)
        tried.append(row)
        unsent = 0 if _offered(row) else round(pps * lasted_s) - sent
        return search.Outcome(sent=sent, lost=_lost(row), unsent=unsent)

    hold(bed)
    found: dict[str, Any] = {"search": tried, "not_found": {}}
    try:
        bounds = search.highest_rates(
            attempt, list(LOSSES.values()), first_pps=first_pps, phase=phase
        )
    except search.UnfinishedError:
        return found | _void(f"not found in {len(tried)} trials")
    for (name, loss), bound in zip(LOSSES.items(), bounds, strict=True):
        why = why_not_found(bound, tried, loss)
        if name == "ndr_pps":
            found |= {name: bound.passes_pps} | (_void(why + _sent(bound, tried)) if why else {})
        elif why:
            found["not_found"][name] = why
        else:
            found[name] = bound.passes_pps
    return found


def why_not_found(
    bounds: search.Bounds, tried: Sequence[Mapping[str, Any]], loss: float
) -> str | None:
    """Why ``bounds`` are not those of the dut at a goal of ``loss``; ``None``: they are."""
    if bounds.passes_pps is None:
        return "packets are lost even at the lowest rate of the search"
    failed = [row for row in _at(bounds.fails_pps, tried) if _lossy(row, loss) or not _offered(row)]
    if 2 * sum(_lossy(row, loss) for row in failed) >= max(1, len(failed)):
        return None
    return "the generator cannot send as much as the dut takes"


def _sent(bounds: search.Bounds, tried: Sequence[Mapping[str, Any]]) -> str:
    """What the generator sent of a rate that failed."""
    return "".join(
        f"; asked for {row['asked_pps']:,.0f} packets/s, it sent {row['offered_pps']:,.0f}, "
        f"of which {_lost(row):,} were lost"
        for row in _at(bounds.fails_pps, tried)[-1:]
    )


def _at(pps: float | None, tried: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in tried if row["asked_pps"] == pps]


def _void(detail: str) -> dict[str, Any]:
    return {"void": [{"rule": "rate-not-found", "detail": detail}]}


def _lost(row: Mapping[str, Any]) -> int:
    lost = max(0, row["sent"] - row["read"])
    return 0 if lost <= min(_OTHER_PACKETS, LOSS * row["sent"]) else int(lost)


def _lossy(row: Mapping[str, Any], loss: float) -> bool:
    return bool(_lost(row) > loss * row["sent"])


def _offered(row: Mapping[str, Any]) -> bool:
    return bool(row["offered_pps"] >= _OFFERED * row["asked_pps"])


def _takes_s(trial_s: float) -> float:
    """Seconds that a trial of a rate takes, with its pauses."""
    return trial_s + 2 * _DRAIN_S


def _at_rest(load: Load, bed: RunningBed) -> tuple[int, int]:
    """Packets sent by the generator and read by the dut's programs, after both are idle."""
    time.sleep(_DRAIN_S)
    read = bed.dut.counters(interface=bed.dut_interface)
    return bed.sent(), loads.named(load.kind).read(read)
