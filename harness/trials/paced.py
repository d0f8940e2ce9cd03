# SPDX-License-Identifier: MIT
"""CPU time per packet at loads below the receiver's limit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from harness.plan import PACED_SHARES, PlannedTrial, Profile
from harness.trials.counted import Delta
from harness.trials.kind import Conditions, Figure, Kind, Measure, Panel, Told, VoidRule
from harness.trials.load import under_load, window
from harness.trials.readings import Void, Windowed
from harness.trials.timed import windowed

if TYPE_CHECKING:
    from harness.config import Bed
    from harness.trials.block import Block, MeasuredBoot

_SOURCE = "/proc/stat: time in which the interrupt's CPU was not idle"


def measure_at(share: float | None) -> str:
    """The measure at ``share`` of the rate that the receiver takes; ``None``: at a fixed rate."""
    return f"paced{'' if share is None else round(100 * share)}_cpu_ns_per_packet"


NAMES = tuple(measure_at(share) for share in (None, *PACED_SHARES))


class PacedTrial(Windowed):
    """A window under streams that are limited to a rate."""

    kind: Literal["paced"] = "paced"
    paced_pps: int | None = None
    """The rate; ``None``: it is not known what the receiver takes."""
    paced_share: float | None = None
    """The rate as a share of :attr:`paced_of_pps`; ``None``: hosts.yaml names the rate."""
    paced_of_pps: float | None = None
    """The rate that the receiver takes, the same for all boots of a block."""
    paced_of_saturated: bool | None = None
    """Was the receiver saturated at that rate?"""


class Paced(Kind[PacedTrial]):
    """Several trials at each load, side by side in all boots of a block."""

    name = "paced"
    sample = PacedTrial
    also = "cpu"
    paces = True
    summary = "CPU time per packet at paced loads"
    measures = {
        measure_at(None): Measure(
            "CPU time per packet at a paced load", "ns", source=_SOURCE, also="cpu"
        ),
        **{
            measure_at(share): Measure(
                f"CPU time per packet at {share:.0%} of the saturating load",
                "ns",
                source=_SOURCE,
                also="cpu",
            )
            for share in PACED_SHARES
        },
    }
    rules = {
        "rate-unknown": VoidRule(
            "timed trials have measured the rate that the receiver takes, of which paced loads "
            "are shares"
        ),
        "rate-missed": VoidRule("a paced load arrives at IP at its rate", {"share": 0.05}),
    }
    figure = Figure(
        "paced",
        "CPU time per packet at paced loads",
        "Time in which the interrupt's CPU was not idle, per packet at IP: boots (dots) and "
        "their median (bar).",
        [Panel(one.title, "ns per packet", [name]) for name, one in measures.items()],
    )

    def about(self, bed: Bed, profile: Profile) -> str:  # noqa: ARG002
        if bed.paced_pps:
            return f"CPU time per packet at {bed.paced_pps:,} packets/s"
        *shares, last = [f"{share:.0%}" for share in PACED_SHARES]
        return (
            f"CPU time per packet at {', '.join(shares)} and {last} of the rate of the slowest step"
        )

    def planned(self, profile: Profile, ordinal: int) -> Iterator[PlannedTrial]:  # noqa: ARG002
        paced = itertools.product(profile.paced_shares or (None,), range(profile.trials))
        for index, (share, _) in enumerate(paced):
            yield PlannedTrial("paced", index, profile.window_s, share)

    def measure(self, block: Block, planned: Sequence[PlannedTrial]) -> None:
        for share, trials in itertools.groupby(planned, lambda one: one.share):
            name = "paced trials" if share is None else f"trials paced to {share:.0%}"
            these = list(trials)
            with block.side_by_side(name, these):
                self._at(block, these, share)

    def _at(self, block: Block, planned: Sequence[PlannedTrial], share: float | None) -> None:
        """Trials at one load; all void if the rate that the receiver takes is not known."""
        of: dict[str, Any] = {"paced_pps": block.bed.paced_pps}
        if share is not None:
            taken = block.taken()
            if taken is None:
                detail = "no timed trial measured the rate that the receiver takes"
                void = Void(rule="rate-unknown", detail=detail)
                for boot, trial in itertools.product(block.up, planned):
                    boot.trials.append(
                        PacedTrial(index=trial.index, paced_share=share, void=[void])
                    )
                return
            of = {
                "paced_pps": taken.paced(share),
                "paced_share": share,
                "paced_of_pps": taken.pps,
                "paced_of_saturated": taken.saturated,
            }

        def sample(
            _: MeasuredBoot, shared: dict[str, Any], told: dict[str, Any] | None
        ) -> PacedTrial:
            return PacedTrial.model_validate(shared | of | {"window": told})

        begin = window(block.bed.placement.irq_cpu)
        under_load(block, planned, begin, sample, paced_pps=of["paced_pps"])

    def judge(self, sample: PacedTrial, conditions: Conditions) -> Told:
        own: list[Void] = []
        told = Told()
        if sample.window is not None:
            delta = Delta(sample.window.start, sample.window.end)
            asked, pps = sample.paced_pps, delta.ip_pps
            allowed = conditions.tolerances["rate-missed"]["share"]
            if asked and pps is not None and abs(pps - asked) > allowed * asked:
                detail = f"{pps:,.0f} packets/s at IP, asked {asked:,}"
                own.append(Void(rule="rate-missed", detail=detail))
            cost_ns = delta.cost_ns(conditions.irq_cpu)
            if asked and cost_ns is not None:
                told.values = {measure_at(sample.paced_share): cost_ns}
        told.void = windowed(sample, conditions, own)
        return told
