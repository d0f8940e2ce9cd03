# SPDX-License-Identifier: MIT
"""What varied factors do: to the baseline, and to the gain of each variant (the interaction).

Both are ratios by block, like every comparison. An interaction is a variant's ratio to the
baseline at one level over the same at the first level, the *reference*. With several factors,
a block's ratio is the geometric mean over the levels of the others.

For each factor there are two families: the interactions, of the last step first, and the effects
on the baseline. In each the last level comes first.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness import cells
from harness.plan import families
from harness.results.figures import BootFigures
from harness.results.rows import Contrast, paired
from harness.results.samples import Campaign
from harness.results.stats import Paired


def contrasts(
    campaign: Campaign,
    boots: Mapping[str, Sequence[BootFigures]],
    changes: Mapping[str, Paired | None],
    metric: str,
) -> list[list[Contrast]]:
    """The families of contrasts of ``metric``; ``changes`` are each cell's against its baseline."""
    crossed = _Crossed(campaign, boots, changes, metric)
    variants = list(dict.fromkeys(map(cells.variant_of, campaign.steps)))
    others = [step for family in families(variants, campaign.baseline) for step in family]
    found = []
    for factor, (reference, *levels) in campaign.factors.items():
        for steps in (others, [campaign.baseline]):
            family = [
                Contrast(
                    metric=metric,
                    factor=factor,
                    level=level,
                    reference=reference,
                    step=step,
                    baseline=campaign.baseline,
                    change=change,
                )
                for step in steps
                for level in reversed(levels)
                if (change := crossed.change(step, factor, level))
            ]
            found += [family] if family else []
    return found


@dataclass(frozen=True)
class _Crossed:
    campaign: Campaign
    boots: Mapping[str, Sequence[BootFigures]]
    changes: Mapping[str, Paired | None]
    metric: str

    def change(self, step: str, factor: str, level: str) -> Paired | None:
        """``level`` of ``factor`` against the reference, over the levels of all other factors."""
        factors = self.campaign.factors
        beside = cells.combined(factors | {factor: ("",)})
        reference = factors[factor][0]
        return _mean([
            self._at(*(cells.named(step, rest | {factor: one}) for one in (level, reference)))
            for rest in beside
        ])  # fmt: skip

    def _at(self, own: str, base: str) -> Paired | None:
        if self.campaign.is_baseline(own):
            return paired(self.boots.get(own, ()), self.boots.get(base, ()), self.metric)
        return _over(self.changes.get(own), self.changes.get(base))


def _over(own: Paired | None, base: Paired | None) -> Paired | None:
    """The ratio of two ratios, of the blocks that have both."""
    both = sorted({*own.blocks} & {*base.blocks}) if own and base else []
    if not own or not base or not both:
        return None
    one, other = own.of_blocks(both), base.of_blocks(both)
    ratios = tuple(a / b for a, b in zip(one.ratios, other.ratios, strict=True))
    return replace(one, ratios=ratios)


def _mean(pairs: Sequence[Paired | None]) -> Paired | None:
    """The geometric mean by block, of the blocks that all have."""
    known = [pair for pair in pairs if pair]
    if len(known) < len(pairs) or not known:
        return None
    both = sorted(set.intersection(*({*pair.blocks} for pair in known)))
    if not both:
        return None
    kept = [pair.of_blocks(both) for pair in known]
    logs = zip(*(pair.logs for pair in kept), strict=True)
    return replace(kept[0], ratios=tuple(math.exp(statistics.fmean(row)) for row in logs))
