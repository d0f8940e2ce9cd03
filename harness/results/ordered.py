# SPDX-License-Identifier: MIT
"""The claim about a series as a whole: does the rate rise or fall as patches are added?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.plan import MIN_BLOCKS_FOR_VERDICT
from harness.results.ranks import CONFIDENCE, page
from harness.results.stats import Paired


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Page's test over all measured steps of the series; each block is a row."""

    steps: tuple[str, ...]
    blocks: int
    of_layouts: bool
    """Is a row the mean of a layout's blocks, because layouts were used again?"""
    rises: bool
    """The direction of the sum of ranks, whether or not it is more than chance."""
    p_value: float
    p_corrected: float = 1.0
    """Corrected for the other comparisons of the campaign."""

    @property
    def found(self) -> bool:
        """Is there a trend, after correction?"""
        return self.p_corrected < 1 - CONFIDENCE


def trend_of(
    changes: Mapping[str, Paired | None], steps: Sequence[str], baseline: str
) -> Trend | None:
    """The trend over ``steps``, in that order; ``None``: too few blocks have all of them.

    ``changes`` are each step's ratios to ``baseline`` by block. Ranks within a block are the
    same as those of the rates.
    """
    others = [step for step in steps if step != baseline]
    known = [pair for step in others if (pair := changes.get(step))]
    if len(known) < len(others) or not known:
        return None
    blocks = set.intersection(*(set(pair.blocks) for pair in known))
    kept = [pair.of_blocks(blocks) for pair in known]
    columns = dict(zip(others, (pair.units for pair in kept), strict=True))
    count = len(next(iter(columns.values())))
    if count < MIN_BLOCKS_FOR_VERDICT:
        return None
    columns[baseline] = np.zeros(count)
    rises, p_value = page(np.column_stack([columns[step] for step in steps]))
    return Trend(
        steps=tuple(steps),
        blocks=count,
        of_layouts=kept[0].shares_layouts,
        rises=rises,
        p_value=p_value,
    )
