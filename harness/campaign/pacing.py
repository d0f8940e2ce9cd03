# SPDX-License-Identifier: MIT
"""The rate in packets/s that a receiver takes; paced loads are shares of it.

All boots of a block get the same loads, otherwise their costs could not be compared. If
they are up together, the rate is that of the slowest boot, so that the largest share is
below the limit of each. If they run one after the other, all later blocks use the slowest
boot of the bed's first block, and the first block uses its first boot.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import plan
from harness.results import samples
from harness.trials import saturation
from harness.trials.block import Taken
from harness.trials.counted import Delta
from harness.trials.paced import PacedTrial
from harness.trials.readings import Trial
from harness.trials.timed import TimedTrial


def taken(trials: Iterable[Trial], cpu: int, *, holdoff_us: float = 0.0) -> Taken | None:
    """The median over a boot's saturated timed trials, or if there are none, over all of them."""
    found: list[Taken] = []
    for trial in trials:
        if not isinstance(trial, TimedTrial) or trial.kind == "warmup":
            continue
        if trial.window is None or trial.void:
            continue
        start, end = trial.window.start, trial.window.end
        pps = Delta(start, end).ip_pps
        if not pps:
            continue
        judged = saturation.judge(start, end, cpus=[cpu], holdoff_us=holdoff_us)
        found.append(Taken(pps, judged.saturated is True))
    chosen = [one.pps for one in found if one.saturated] or [one.pps for one in found]
    return Taken(statistics.median(chosen), any(one.saturated for one in found)) if found else None


def slowest(boots: Iterable[Taken | None]) -> Taken | None:
    """The lowest of the known rates."""
    return min(filter(None, boots), key=lambda one: one.pps, default=None)


def kept(
    root: Path, planned: plan.Plan, block: int, cpu: int, own: Sequence[plan.PlannedBoot]
) -> Taken | None:
    """The rate for ``block`` from finished boots under ``root``, not counting ``own``."""
    bed = planned.bed_of(block)
    others = [
        boot for boot in planned.boots() if planned.bed_of(boot.block) == bed and boot not in own
    ]
    for boot in _finished(root, [one for one in others if one.block == block]):
        for trial in boot.trials:
            if isinstance(trial, PacedTrial) and trial.paced_of_pps:
                return Taken(trial.paced_of_pps, trial.paced_of_saturated is True)
    before = sorted({one.block for one in others if one.block < block})
    by_block = (
        slowest(
            taken(boot.trials, cpu, holdoff_us=samples.holdoff_us(boot.settings))
            for boot in _finished(root, [one for one in others if one.block == number])
        )
        for number in before
    )
    return next((found for found in by_block if found is not None), None)


def _finished(root: Path, boots: Iterable[plan.PlannedBoot]) -> Iterable[samples.Boot]:
    for boot in boots:
        path = samples.boot_directory(root, boot) / "boot.json"
        if path.is_file() and (found := samples.read_boot(path)).outcome == "ok":
            yield found
