# SPDX-License-Identifier: MIT
"""All comparisons of a campaign, corrected for their number.

Each question that a campaign asks is answered wrongly in at most 5 % of campaigns: the rate,
with the trend over the series and what varied factors do; where factors are varied, the same of
the CPU time per packet; the rate on each of several beds; what was delivered; the counts of the
CPU; and each ``--also``, whose measures share the 5 % (percentiles, which have no line of their
own in the report, apart from the others).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.plan import families, ordered_steps
from harness.results.contrasts import contrasts
from harness.results.figures import BootFigures
from harness.results.ordered import Trend, trend_of
from harness.results.ranks import CONFIDENCE
from harness.results.rows import COST, PRIMARY, Contrast, paired, primary_of
from harness.results.samples import Campaign
from harness.results.stats import Paired, Verdict, corrected, judge
from harness.trials import COMPARED, RATES

_Compared = tuple[Paired | None, Verdict | None]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Every comparison of a campaign, by step."""

    primary: dict[str, _Compared]
    trend: Trend | None
    measures: dict[str, dict[str, _Compared]]
    on_beds: dict[str, dict[str, _Compared]]
    cost: dict[str, _Compared]
    """The CPU time per packet, where factors are varied; else empty."""
    contrasts: tuple[Contrast, ...]


def judge_campaign(
    campaign: Campaign,
    boots: Mapping[str, Sequence[BootFigures]],
    *,
    complete: bool,
    look: float | None = None,
) -> Judged:
    """Compare all steps, whose ``boots`` these are; without verdicts unless ``complete``.

    ``look`` is the p-value that decides at a look of the campaign, if it has looks.
    """
    compare = _Comparing(campaign, complete, look)
    primary = _changes(PRIMARY, campaign, boots)
    series = ordered_steps(campaign.steps, campaign.baseline, ranged=campaign.ranged)
    trend = trend_of(primary, series, campaign.baseline) if complete else None
    beside = (trend.p_value,) if trend else ()
    every = [boot for of in boots.values() for boot in of]
    measured = [
        name
        for name in COMPARED
        if any(boot.of(name) for boot in every)
        and not (name in RATES and campaign.beds)  # a rate of several beds means nothing
    ]
    measures: dict[str, dict[str, _Compared]] = {}
    for question in dict.fromkeys(map(_question, measured)):
        names = [name for name in measured if _question(name) == question]
        changes = {name: _changes(name, campaign, boots) for name in names}
        measures |= compare(changes)
    on_beds = {
        bed: _changes(
            PRIMARY,
            campaign,
            {step: [boot for boot in of if boot.bed == bed] for step, of in boots.items()},
        )
        for bed in campaign.beds
    }
    compared, found = compare.crossed(primary, PRIMARY, boots, beside=beside)
    costs = _changes(COST, campaign, boots) if campaign.factors else {}
    cost, found_of_cost = compare.crossed(costs, COST, boots)
    return Judged(
        primary=compared,
        trend=trend and replace(trend, p_corrected=compare.last(compared, beside)),
        measures={name: measures[name] for name in measured},
        on_beds=compare(on_beds, chained=True),
        cost=cost,
        contrasts=(*found, *found_of_cost),
    )


def _question(measure: str) -> tuple[str, bool]:
    """What a user asked to get ``measure``."""
    about = COMPARED[measure]
    return about.also or measure * (measure in RATES), about.sentence


def _changes(
    metric: str, campaign: Campaign, boots: Mapping[str, Sequence[BootFigures]]
) -> dict[str, Paired | None]:
    """Each step's change of ``metric`` against its baseline."""
    return {
        step: paired(boots[step], boots.get(campaign.baseline_of(step), ()), metric)
        for step in campaign.steps
    }


def _places(
    campaign: Campaign, changes: Mapping[str, Mapping[str, Paired | None]]
) -> dict[tuple[str, str], int]:
    """The comparisons among ``changes``, by name and step, numbered."""
    found = [
        (name, step)
        for name, of in changes.items()
        for step, pair in of.items()
        if pair and not campaign.is_baseline(step)
    ]
    return {one: place for place, one in enumerate(found)}


def _families(
    campaign: Campaign,
    names: Sequence[str],
    places: Mapping[tuple[str, str], int],
    *,
    chained: bool = False,
) -> list[list[int]]:
    """The order of decisions: each of ``names`` for itself or, ``chained``, after those before."""
    return [
        [places[name, step] for step in family for name in together if (name, step) in places]
        for together in ([names] if chained else [[name] for name in names])
        for family in families(campaign.steps, campaign.baseline)
    ]


@dataclass(frozen=True)
class _Comparing:
    """How the comparisons of a campaign are judged."""

    campaign: Campaign
    complete: bool
    look: float | None

    @property
    def level(self) -> float:
        return 1 - CONFIDENCE if self.look is None else self.look

    def first(self, places: Mapping[tuple[str, str], int]) -> int | None:
        """The comparison that has to be decided before all others, in a campaign with looks."""
        return None if self.look is None else places.get((PRIMARY, primary_of(self.campaign) or ""))

    def __call__(
        self,
        changes: Mapping[str, Mapping[str, Paired | None]],
        *,
        beside: Sequence[float] = (),
        chained: bool = False,
    ) -> dict[str, dict[str, _Compared]]:
        """All ``changes``, by name and step, with verdicts corrected for all of them."""
        return self._judged(changes, [], beside=beside, chained=chained)[0]

    def crossed(
        self,
        changes: Mapping[str, Paired | None],
        metric: str,
        boots: Mapping[str, Sequence[BootFigures]],
        *,
        beside: Sequence[float] = (),
    ) -> tuple[dict[str, _Compared], list[Contrast]]:
        """All ``changes`` of ``metric`` by step, and what varied factors do to it; corrected for
        all of them together."""
        chains = contrasts(self.campaign, boots, changes, metric)
        found, verdicts = self._judged(
            {metric: changes}, [[one.change for one in chain] for chain in chains], beside=beside
        )
        flat = [one for chain in chains for one in chain]
        told = [replace(one, verdict=of) for one, of in zip(flat, verdicts, strict=True)]
        return found[metric], told

    def _judged(
        self,
        changes: Mapping[str, Mapping[str, Paired | None]],
        more: Sequence[Sequence[Paired]],
        *,
        beside: Sequence[float] = (),
        chained: bool = False,
    ) -> tuple[dict[str, dict[str, _Compared]], list[Verdict | None]]:
        """``changes`` with verdicts, and the verdicts of ``more``, each a family in its order."""
        places = _places(self.campaign, changes)
        pairs = [pair for name, step in places if (pair := changes[name][step])]
        families = _families(self.campaign, list(changes), places, chained=chained)
        for chain in more:
            families.append([*range(len(pairs), len(pairs) + len(chain))])
            pairs += chain
        verdicts: list[Verdict | None] = [None] * len(pairs)
        if self.complete:
            verdicts = judge(
                pairs, families, beside=beside, level=self.level, first=self.first(places)
            )
        found = dict(zip(places, verdicts, strict=False))
        told = {
            name: {step: (pair, found.get((name, step))) for step, pair in of.items()}
            for name, of in changes.items()
        }
        return told, verdicts[len(places) :]

    def last(self, compared: Mapping[str, _Compared], beside: Sequence[float]) -> float:
        """The corrected p-value of the claim ``beside`` the comparisons of the rate."""
        changes = {PRIMARY: {step: pair for step, (pair, _) in compared.items()}}
        places = _places(self.campaign, changes)
        verdicts = [compared[step][1] for _, step in places]
        return corrected(
            [verdict.p_value if verdict else 1.0 for verdict in verdicts],
            _families(self.campaign, [PRIMARY], places),
            beside,
            level=self.level,
            first=self.first(places),
        )[-1]
