# SPDX-License-Identifier: MIT
"""Where the noise of a rate comes from: blocks, boots, layouts, trials.

Standard deviations of the logarithm of the rate, so shares of it, by analysis of variance with
steps as fixed effects. What boots of a block share (the hour, the load of the machine) is
removed by pairing; the rest is what an interval has to cover.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.results.figures import BootFigures
from harness.results.ranks import Floats


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Standard deviations, as shares; ``None``: it cannot be estimated."""

    block: float
    """What all boots of a block share; of several beds, within a bed."""
    boot: float
    """What is new with each boot; if :attr:`layout` is ``None``, also with its layout."""
    layout: float | None
    """What a layout changes; known only if layouts were booted in several blocks."""
    trial: float | None
    """What is new with each trial; between time-sliced boots, what their slices do not share."""


def spread_of(boots: Mapping[str, Sequence[BootFigures]], metric: str) -> Spread | None:
    """The spread of ``metric`` over ``boots`` by step; ``None``: no two blocks have two steps."""
    by_step = {
        step: {boot.boot.block: boot for boot in of if boot.of(metric)}
        for step, of in boots.items()
    }
    by_step = {step: of for step, of in by_step.items() if of}
    if len(by_step) < 2:
        return None
    blocks = sorted(set.intersection(*(set(of) for of in by_step.values())))
    steps = [[of[block] for block in blocks] for of in by_step.values()]
    if len(blocks) < 2:
        return None
    means = np.array(
        [[statistics.fmean(map(math.log, boot.of(metric).values())) for boot in of] for of in steps]
    )
    trials = [[boot.of(metric) for boot in of] for of in steps]
    sliced = all(len({of[b].turns for of in steps} - {None}) == 1 for b in range(len(blocks)))
    trial = _of_trials(trials, sliced=sliced)
    each = statistics.harmonic_mean([len(found) for of in trials for found in of])
    rest = _centred(means)
    layout, boot = _of_boots(rest, [one.release or "" for one in steps[0]])
    boot = max(0.0, boot - (trial or 0.0) / each)
    # Blocks of several beds differ by their beds; that is no noise.
    shared = means.mean(axis=0)
    beds = [one.bed for one in steps[0]]
    for bed in set(beds):
        own = [place for place, of in enumerate(beds) if of == bed]
        shared[own] -= shared[own].mean()
    freedom = len(blocks) - len(set(beds))
    inside = boot + (layout or 0.0) + (trial or 0.0) / each
    block = float((shared**2).sum()) / freedom - inside / len(steps) if freedom > 0 else 0.0
    return Spread(
        block=math.sqrt(max(0.0, block)),
        boot=math.sqrt(boot),
        layout=None if layout is None else math.sqrt(layout),
        trial=None if trial is None else math.sqrt(trial),
    )


def _centred(table: Floats) -> Floats:
    """What is left of a table without the means of its rows and columns."""
    rows, columns = table.mean(axis=1, keepdims=True), table.mean(axis=0, keepdims=True)
    return np.asarray(table - rows - columns + table.mean())


def _of_trials(trials: Sequence[Sequence[Mapping[int, float]]], *, sliced: bool) -> float | None:
    """The variance between trials of a boot; if ``sliced``, without what a moment shares."""
    total, freedom = 0.0, 0
    for block in zip(*trials, strict=True):
        if sliced:
            common = sorted(set.intersection(*(set(found) for found in block)))
            if len(common) > 1:
                table = np.log([[found[index] for index in common] for found in block])
                total += float((_centred(table) ** 2).sum())
                freedom += (len(block) - 1) * (len(common) - 1)
        else:
            for found in block:
                logs = np.log(list(found.values()))
                total += float(((logs - logs.mean()) ** 2).sum())
                freedom += logs.size - 1
    return total / freedom if freedom else None


def _of_boots(rest: Floats, releases: Sequence[str]) -> tuple[float | None, float]:
    """The variance between layouts, if boots share them, and between boots (with their trials).

    ``rest`` has a row for each step and a column for each block.
    """
    steps, blocks = rest.shape
    layouts = sorted(set(releases))
    if not 1 < len(layouts) < blocks:
        return None, float((rest**2).sum()) / ((steps - 1) * (blocks - 1))
    places = [[at for at, of in enumerate(releases) if of == layout] for layout in layouts]
    inside = sum(
        float(((rest[:, own] - rest[:, own].mean(axis=1, keepdims=True)) ** 2).sum())
        for own in places
    ) / ((steps - 1) * (blocks - len(layouts)))
    between = sum(len(own) * float((rest[:, own].mean(axis=1) ** 2).sum()) for own in places) / (
        (steps - 1) * (len(layouts) - 1)
    )
    # The usual effective number of blocks of a layout, where it is not the same for all.
    sizes = [len(own) for own in places]
    each = (blocks - sum(size**2 for size in sizes) / blocks) / (len(layouts) - 1)
    return max(0.0, (between - inside) / each), inside
