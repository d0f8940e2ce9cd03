# SPDX-License-Identifier: MIT
"""How often the words of a report are wrong, over simulated campaigns with known effects.

Simulated is what a boot's rate does; judged are the campaigns by the code that judges real
ones. A block is a row of boots in the planned order, so noise can depend on the time. Noise has
a standard deviation of 3 % in a block's ratio unless its row says otherwise.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from harness import cells
from harness.plan import BASELINE, LOOKS, PlannedBoot, balanced_blocks
from harness.results.figures import BootFigures
from harness.results.judged import Judged, judge_campaign
from harness.results.power import detectable
from harness.results.rows import PRIMARY, primary_of
from harness.results.samples import Campaign
from harness.results.stats import MARGIN
from tests.bench import command, show

Floats = NDArray[np.float64]
Row = dict[str, float | str | int]
Noise = Callable[[np.random.Generator, tuple[int, int]], Floats]

SERIES = tuple(str(step) for step in range(9))
USUAL = ("0", "2", "8", "shipped")
BLOCKS = (8, 12)
RATIO_SD = 0.03
_BOOT_SD = RATIO_SD / math.sqrt(2)
_MARGIN = math.log1p(MARGIN)


@dataclass(frozen=True)
class Setting:
    """What noise does to boots."""

    noise: Noise
    """Of all boots of a campaign, a row for each block in the order of boots; variance about 1."""
    layout: float = 0.0
    """Standard deviation of a layout's effect on a step, in those of a boot."""
    again: int = 1
    """In how many blocks each layout is booted."""
    trusting: bool = False
    """Is a layout that is used again taken for a new one? A design that the harness has not."""


def _normal(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return rng.standard_normal(shape)


def _autocorrelated(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Each boot's noise is 0.8 times that of the boot before, plus its own."""
    steps = rng.standard_normal(shape[0] * shape[1])
    for at in range(1, steps.size):
        steps[at] = 0.8 * steps[at - 1] + 0.6 * steps[at]
    return steps.reshape(shape)


def _drifting(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Half a standard deviation from each boot to the next, in one direction."""
    return rng.standard_normal(shape) + 0.5 * np.arange(shape[0] * shape[1]).reshape(shape)


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "normal": Setting(_normal),
        "heavy tails (t3)": Setting(lambda rng, shape: rng.standard_t(3, shape) / math.sqrt(3)),
        "skewed (exponential)": Setting(lambda rng, shape: rng.exponential(1, shape)),
        "one boot in ten far off": Setting(
            lambda rng, shape: (
                rng.standard_normal(shape) * np.where(rng.random(shape) < 0.1, 10.0, 1.0)
            )
        ),
        "two kinds of boot": Setting(
            lambda rng, shape: rng.choice([-1.0, 1.0], shape) + 0.2 * rng.standard_normal(shape)
        ),
        "drift": Setting(_drifting),
        "autocorrelation": Setting(_autocorrelated),
        "a layout a block, effect 2x noise": Setting(_normal, layout=2.0),
        "layouts in 2 blocks each, effect 1x": Setting(_normal, layout=1.0, again=2),
        "layouts in 2 blocks each, effect 2x": Setting(_normal, layout=2.0, again=2),
    }
)
"""Those of a design in which every word may be believed."""
TRUSTING = Setting(_normal, layout=2.0, again=2, trusting=True)
"""To show what the layout's mean as a unit is for."""
ALL = {**SETTINGS, "(the last, each block taken for a new layout)": TRUSTING}


@dataclass
class Tally:
    """Shares of the campaigns."""

    covered: float = 0.0
    """Of the intervals, those that hold the true effect."""
    difference: float = 0.0
    """With a wrong "faster" or "slower"."""
    trend: float = 0.0
    """With a wrong trend."""
    interaction: float = 0.0
    """With a wrong word on the gain at a level."""
    equal: float = 0.0
    """With a wrong "no difference"."""
    wrong: float = 0.0
    """With any wrong word."""
    primary: float = 0.0
    """In which the last step of the series got the right "faster" or "slower"."""
    rising: float = 0.0
    """In which the right trend was found."""
    blocks: float = 0.0
    """Of a campaign with looks, on average."""


def simulate(
    setting: Setting, effects: Mapping[str, float], *, blocks: int, campaigns: int, seed: int = 1
) -> Tally:
    """Judge ``campaigns`` in which each step has the log-ratio ``effects`` to step 0."""
    rng = np.random.default_rng([seed, blocks])
    return _tally(
        (
            (
                judge_campaign(*_campaign(setting, effects, blocks, rng, number), complete=True),
                blocks,
            )
            for number in range(campaigns)
        ),
        effects,
        campaigns,
    )


def simulate_looks(
    setting: Setting, effects: Mapping[str, float], *, campaigns: int, seed: int = 1
) -> Tally:
    """The same of campaigns that end at the declared looks."""
    rng = np.random.default_rng([seed, 0])

    def ended(number: int) -> tuple[Judged, int]:
        campaign, boots = _campaign(setting, effects, LOOKS[-1][0], rng, number)
        for blocks, level in LOOKS:
            part = {step: of[: blocks * setting.again] for step, of in boots.items()}
            judged = judge_campaign(campaign, part, complete=True, look=level)
            _, verdict = judged.primary[primary_of(campaign) or ""]
            if verdict is not None and verdict.outcome != "inconclusive":
                break
        return judged, blocks

    return _tally((ended(number) for number in range(campaigns)), effects, campaigns)


def _tally(
    campaigns: Iterable[tuple[Judged, int]], effects: Mapping[str, float], count: int
) -> Tally:
    tally, steps = Tally(), list(effects)
    for judged, blocks in campaigns:
        found = _wrong(judged, effects)
        tally.blocks += blocks / count
        tally.covered += found.covered / count
        tally.difference += found.difference / count
        tally.trend += found.trend / count
        tally.equal += found.equal / count
        tally.interaction += found.interaction / count
        any_word = found.difference or found.trend or found.equal or found.interaction
        tally.wrong += bool(any_word) / count
        last = judged.primary[[step for step in steps if cells.variant_of(step) in SERIES][-1]][1]
        tally.primary += (last is not None and last.outcome == "faster") / count
        rises = judged.trend is not None and judged.trend.found and judged.trend.rises
        tally.rising += rises / count
    return tally


def _campaign(
    setting: Setting,
    effects: Mapping[str, float],
    blocks: int,
    rng: np.random.Generator,
    number: int,
) -> tuple[Campaign, dict[str, list[BootFigures]]]:
    steps = list(effects)
    count = blocks * setting.again
    order = balanced_blocks(steps, count, seed=number)
    noise = _BOOT_SD * setting.noise(rng, (count, len(steps)))
    layouts = _BOOT_SD * setting.layout * rng.standard_normal((blocks, len(steps)))
    boots: dict[str, list[BootFigures]] = {step: [] for step in steps}
    for block, row in enumerate(order):
        for position, step in enumerate(row):
            log = effects[step] + noise[block, position]
            log += layouts[block % blocks, steps.index(step)]
            rates = {PRIMARY: 1e6 * math.exp(log)}
            boots[step].append(
                BootFigures(
                    boot=PlannedBoot(block + 1, position + 1, step),
                    bed=None,
                    release=str(block if setting.trusting else block % blocks),
                    turns=None,
                    rates=rates,
                    trials={0: rates},
                    drops={},
                    offered=0,
                )
            )
    return _named(tuple(steps)), boots


@lru_cache
def _named(steps: tuple[str, ...]) -> Campaign:
    return Campaign.model_construct(steps=[*steps], baseline=BASELINE, block_beds=[], ranged=False)


def _wrong(judged: Judged, effects: Mapping[str, float]) -> Tally:
    """Which words of one campaign are wrong."""
    found, verdicts = Tally(), []
    for step, (_, verdict) in judged.primary.items():
        if verdict is None or cells.variant_of(step) == BASELINE:
            continue
        true, word = effects[step] - effects[cells.beside(step, BASELINE)], verdict.outcome
        low, high = map(math.log, verdict.interval)
        verdicts.append(low <= true <= high)
        if not _right(word, true):
            found.equal += word == "no difference"
            found.difference += word != "no difference"
    for one in judged.contrasts:
        own, base = (
            _effect(effects, one.step, one.factor, at) for at in (one.level, one.reference)
        )
        wrong = one.verdict and not _right(one.verdict.outcome, own - base)
        found.interaction += bool(wrong) and one.interaction
        found.difference += bool(wrong) and not one.interaction
    if verdicts:
        found.covered = sum(verdicts) / len(verdicts)
    if judged.trend and judged.trend.found:
        series = [effects[step] for step in judged.trend.steps]
        found.trend = not (judged.trend.rises and series[-1] > series[0])
    found.difference, found.equal = bool(found.difference), bool(found.equal)
    found.interaction = bool(found.interaction)
    return found


def _right(word: str, true: float) -> bool:
    """Is ``word`` right of a log-ratio?"""
    right = {"faster": true > 0, "slower": true < 0, "no difference": abs(true) < _MARGIN}
    return right.get(word, True)


def _effect(effects: Mapping[str, float], step: str, factor: str, level: str) -> float:
    """The gain of ``step`` at ``level``, or what the baseline does there; over other factors."""
    there = [
        effects[cell] - (0.0 if step == BASELINE else effects[cells.beside(cell, BASELINE)])
        for cell in effects
        if cells.variant_of(cell) == step and cells.levels_of(cell)[factor] == level
    ]
    return sum(there) / len(there)


def same(steps: Sequence[str] = SERIES) -> dict[str, float]:
    """No step does anything."""
    return dict.fromkeys(steps, 0.0)


def at_margin(first: int = 1) -> dict[str, float]:
    """From step ``first`` on, steps gain exactly the declared margin."""
    return {step: _MARGIN if int(step) >= first else 0.0 for step in SERIES}


def stairs(gain: float) -> dict[str, float]:
    """Each step gains its part of ``gain``."""
    return {step: math.log1p(gain) * int(step) / 8 for step in SERIES}


def _row(name: str, blocks: int | None, campaigns: int) -> Row:
    """Errors with that noise; ``blocks`` of ``None``: at the declared looks."""
    setting = ALL[name]

    def found(effects: Mapping[str, float], seed: int) -> Tally:
        if blocks is None:
            return simulate_looks(setting, effects, campaigns=campaigns, seed=seed)
        return simulate(setting, effects, blocks=blocks, campaigns=campaigns, seed=seed)

    series = found(same(), 0)
    return {
        "noise": name,
        "blocks": blocks or "looks",
        "coverage": series.covered,
        "A/A of 9 steps": series.wrong,
        "its trend": series.trend,
        "A/A of 0, 2, 8, shipped": found(same(USUAL), 1).wrong,
        "all at the margin": found(at_margin(), 2).wrong,
        "half at 0, half at the margin": found(at_margin(5), 3).wrong,
    }


def _power(blocks: int, campaigns: int) -> Row:
    """What is found, with normal noise."""
    shown: Row = {"blocks": blocks}
    for change in (0.02, 0.05, 0.10):
        effects = same() | {"8": math.log1p(change)}
        found = simulate(SETTINGS["normal"], effects, blocks=blocks, campaigns=campaigns)
        shown[f"step 8 by {change:.0%}"] = found.primary
    for gain in (0.02, 0.05):
        found = simulate(SETTINGS["normal"], stairs(gain), blocks=blocks, campaigns=campaigns)
        shown[f"trend of stairs to {gain:.0%}"] = found.rising
    shown["what was called detectable"] = _found_again(blocks, campaigns)
    return shown


def _power_of_looks(campaigns: int) -> Row:
    shown: Row = {}
    for change in (0.0, 0.02, 0.05, 0.10):
        found = simulate_looks(
            SETTINGS["normal"], same() | {"8": math.log1p(change)}, campaigns=campaigns
        )
        shown[f"step 8 by {change:.0%}"] = found.primary
        shown[f"{change:.0%}: blocks"] = f"{found.blocks:.1f}"
    return shown


def _found_again(blocks: int, campaigns: int) -> float:
    """How often a campaign finds in step 8 what another campaign's spread called detectable."""
    rng, found = np.random.default_rng(3), 0
    for _ in range(campaigns):
        least = detectable(blocks, RATIO_SD * float(rng.standard_normal(blocks).std(ddof=1)), 0.025)
        effects = same() | {"8": math.log1p(least or 0.0)}
        seed = int(rng.integers(2**31))
        once = simulate(SETTINGS["normal"], effects, blocks=blocks, campaigns=1, seed=seed)
        found += once.primary > 0
    return found / campaigns


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.verdicts", description=__doc__)
    parser.add_argument("--campaigns", type=int, default=2000, help="of each cell (default: 2000)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with ProcessPoolExecutor(chosen.processes) as pool:
        errors = [
            pool.submit(_row, name, blocks, chosen.campaigns)
            for name in ALL
            for blocks in (*BLOCKS, None)
        ]
        power = [pool.submit(_power, blocks, chosen.campaigns) for blocks in BLOCKS]
        looks = [pool.submit(_power_of_looks, chosen.campaigns)]
        tables = {
            name: [row.result() for row in rows]
            for name, rows in {"errors": errors, "power": power, "looks": looks}.items()
        }
    if chosen.json:
        show({"bench": "verdicts", "campaigns": chosen.campaigns, **tables}, [], as_json=True)
        return
    for table in tables.values():
        shown = [
            {name: f"{v:.1%}" if isinstance(v, float) else str(v) for name, v in row.items()}
            for row in table
        ]
        show({}, shown, as_json=False)
        print()


if __name__ == "__main__":
    command(main)
