# SPDX-License-Identifier: MIT
"""Many campaigns of one bed over time: what each measured, and where a metric moved.

Followed is the ratio to the control, the kernel that is the baseline of every campaign. Each
campaign measures it within its blocks, so a change of the bed does not change it. The bed is
what the control's own rate shows.

Campaigns are compared with the newest complete one. Those that were measured under other
conditions, with another control or by other rules are left out, with the reasons.
"""

from __future__ import annotations

import functools
import math
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from harness import cells
from harness.base.errors import ConfigurationError, HarnessError, InfrastructureError
from harness.plan import MIN_BLOCKS_FOR_VERDICT
from harness.results import changes
from harness.results.analysis import analyse
from harness.results.changes import MIN_CAMPAIGNS
from harness.results.compare import differs, unlike
from harness.results.expect import ExpectationResult
from harness.results.figures import median, recorded_tolerances
from harness.results.rows import PRIMARY, Analysis, named
from harness.results.samples import Campaign, ResultDirectory
from harness.results.stats import Interval
from harness.trials import MEASURES, RATES

_EACH = 10
"""Campaigns for which another process is worth its start."""

NEWEST_COMMIT = "newest commit"
"""The line of campaigns of commits: the last variant of each."""

METRICS = {PRIMARY: RATES[PRIMARY], **RATES, **MEASURES}
"""What can be followed, the primary rate first."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One metric of one line in one campaign, over the control's."""

    ratio: float
    """Hodges-Lehmann estimate."""
    interval: Interval
    blocks: int
    error: float
    """Standard error of the logarithm of the ratio, from the scatter of the blocks."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is kept of a campaign that was read."""

    directory: Path
    began: datetime
    campaign: Campaign
    settings: dict[str, Any]
    inventory: dict[str, Any]
    incomplete: str | None
    """Why it is incomplete."""
    unmeasured: str
    """Why there is not even a metric without a ratio, if that is so."""
    boots: int
    ratios: Mapping[tuple[str, str], Ratio]
    """By line and metric."""
    missing: Mapping[tuple[str, str], str]
    """By line and metric, why there is no ratio."""
    control: Mapping[str, float]
    """The control's own value of each metric; empty if there are several beds."""

    def kernel(self, line: str) -> str:
        """The kernel of ``line``: its commit and title, or the step's release."""
        step = _step_of(self.campaign, line)
        variant = self.campaign.variants.get(step, {})
        if self.campaign.of_commits:
            return f"{step} {variant.get('subject') or ''}".rstrip()
        return next((one for one in _releases(variant).values() if one), step)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A campaign that is not followed, and why."""

    directory: Path
    created: str | None
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A metric moved between two campaigns."""

    before: int
    """The last campaign before it, by its place among :attr:`History.campaigns`."""
    first: int
    """The first campaign after it: its date is the date of the change."""
    shift: changes.Shift


@dataclass(frozen=True, kw_only=True)
class Series:
    """One metric of one line over time."""

    line: str
    metric: str
    points: Mapping[int, Ratio]
    """By campaign, its place among :attr:`History.campaigns`, in that order."""
    changes: tuple[Change, ...]
    levels: tuple[float, ...]
    """The mean ratio from each change to the next, the first from the beginning."""
    scatter: float
    """Standard deviation between campaigns, of the logarithm of the ratio."""
    missing: Mapping[int, str]
    """Campaigns without a point, with the reason."""


@dataclass(frozen=True, kw_only=True)
class History:
    """Comparable campaigns in the order in which they began."""

    campaigns: tuple[Measured, ...]
    series: tuple[Series, ...]
    left_out: tuple[LeftOut, ...]
    newest: Path
    """The newest campaign of all, which may be left out."""

    @property
    def control(self) -> str:
        """The kernel that all are compared with."""
        campaign = self.campaigns[-1].campaign
        control = f"{named(campaign, campaign.baseline)}: {_title(campaign, _control(campaign))}"
        return control + ", at the levels of each line" * bool(campaign.factors)

    def title(self, line: str) -> str:
        """``line`` as a sentence calls it."""
        own = cells.variant_of(line) == NEWEST_COMMIT
        return line if own else named(self.campaigns[-1].campaign, line)

    def findings(self) -> list[ExpectationResult]:
        """For each series whether the newest campaign has it steady: met, missed or open."""
        last = self.campaigns[-1]
        if self.newest != last.directory:
            [left] = [one for one in self.left_out if one.directory == self.newest]
            why = f"the newest campaign, {self.newest}, is left out: {'; '.join(left.reasons)}"
            return [ExpectationResult("no metric moved", "", "open", why)]
        long = [one for one in self.series if len(one.points) >= MIN_CAMPAIGNS]
        if not long:
            most = max((len(one.points) for one in self.series), default=0)
            why = f"{most} of the {MIN_CAMPAIGNS} comparable campaigns that it needs"
            return [ExpectationResult("no metric moved", "", "open", why)]
        return [self._finding(one) for one in long]

    def _finding(self, series: Series) -> ExpectationResult:
        newest = len(self.campaigns) - 1
        expected = f"{self.title(series.line)} {series.metric} steady"
        if why := series.missing.get(newest):
            return ExpectationResult(expected, series.line, "open", why)
        new = [change for change in series.changes if change.shift.new]
        if new:
            told = "; ".join(
                f"{100 * (change.shift.ratio - 1):+.1f} % from {first.began:%F %R} "
                f"({first.kernel(series.line)})"
                for change in new
                for first in [self.campaigns[change.first]]
            )
            return ExpectationResult(expected, series.line, "missed", told)
        ratio = series.points[newest].ratio
        return ExpectationResult(
            expected,
            series.line,
            "met",
            f"{ratio:.3f}x the control, the level of its group is {series.levels[-1]:.3f}x",
        )


@dataclass
class _Sorted:
    """The campaigns that were named, on their way into a trend."""

    kept: list[Measured] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def leave(self, one: Measured, *reasons: str) -> None:
        self.left_out.append(
            LeftOut(directory=one.directory, created=one.campaign.created, reasons=reasons)
        )


def trend(directories: Sequence[Path], metrics: Sequence[str] = ()) -> History:
    """The trend of the campaigns in ``directories``; each holds one, or directories that do.

    ``metrics`` are those to follow; by default all that were measured.

    Raises:
        ConfigurationError: no campaign is complete, or a metric is unknown.
    """
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ConfigurationError(
            f"no metric is named {unknown[0]!r}", hint=f"choose one of {', '.join(METRICS)}"
        )
    found = _Sorted()
    for one in _read(_campaigns_in(directories), metrics):
        if isinstance(one, LeftOut):
            found.left_out.append(one)
        else:
            found.kept.append(one)
    found.kept.sort(key=lambda one: (one.began, one.campaign.id))
    _leave_copies(found)
    newest = _newest(found)
    _leave_incomplete(found)
    if not found.kept:
        reasons = [f"{one.directory}: {'; '.join(one.reasons)}" for one in found.left_out]
        raise ConfigurationError(
            "no campaign can be followed" + "".join(f"\n  {line}" for line in reasons),
            hint="name directories that `harness run --out DIR` has written",
        )
    reference = found.kept[-1]
    for one in list(found.kept):
        if reasons := list(_unlike(one, reference)):
            found.kept.remove(one)
            found.leave(one, *reasons)
    campaigns = tuple(found.kept)
    return History(
        campaigns=campaigns,
        series=tuple(_series(campaigns)),
        left_out=tuple(found.left_out),
        newest=newest,
    )


def _newest(found: _Sorted) -> Path:
    """The newest of all; one that cannot be read is as new as its file."""
    times = {one.directory: one.began.timestamp() for one in found.kept}
    for one in found.left_out:
        path = one.directory / "campaign.json"
        if one.created is None and path.is_file():
            times[one.directory] = path.stat().st_mtime
    return max(times, key=lambda one: times[one], default=Path())


def _read(directories: Sequence[Path], metrics: Sequence[str]) -> Iterable[Measured | LeftOut]:
    """Each campaign or why it cannot be read; many are read by several processes.

    Judging the trials of one takes some tens of milliseconds, so a year of nights is seconds.
    """
    one = functools.partial(_one, metrics=metrics)
    workers = min(len(os.sched_getaffinity(0)), len(directories) // _EACH)
    if workers < 2:
        return [one(directory) for directory in directories]
    # Ctrl-C is the main process's; the others end with it.
    with ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("fork"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_IGN),
    ) as pool:
        return [*pool.map(one, directories, chunksize=_EACH // 2)]


def _one(directory: Path, metrics: Sequence[str]) -> Measured | LeftOut:
    try:
        return measured(directory, metrics)
    except HarnessError as error:
        return LeftOut(directory=directory, created=None, reasons=(error.message,))


def measured(directory: Path, metrics: Sequence[str] = ()) -> Measured:
    """The figures of the campaign in ``directory``.

    Raises:
        HarnessError: it cannot be read, or it is not known when it began.
    """
    result = ResultDirectory.open(directory)
    campaign = result.campaign
    began = _time(campaign)
    analysis = analyse(result)
    ratios, missing = {}, {}
    lines = dict.fromkeys(_lines(campaign))
    chosen = metrics or [
        name
        for name in METRICS
        if any(boot.of(name) for row in analysis.rows for boot in row.measured)
    ]
    for key in ((line, metric) for line in lines for metric in chosen):
        told = _ratio(analysis, *key)
        if isinstance(told, str):
            missing[key] = told
        else:
            ratios[key] = told
    control = _control(campaign)
    base = [row for row in analysis.rows if row.step == control and not campaign.beds]
    values = {
        name: median(median(boot.of(name).values()) for row in base for boot in row.measured)
        for name in chosen
    }
    return Measured(
        directory=directory,
        began=began,
        campaign=campaign,
        settings=analysis.settings,
        inventory=analysis.inventory,
        incomplete=None if analysis.complete else analysis.no_verdict,
        unmeasured=analysis.no_verdict or "no trial is valid",
        boots=analysis.boots_done,
        ratios=ratios,
        missing=missing,
        control={name: value for name, value in values.items() if value is not None},
    )


def _time(campaign: Campaign) -> datetime:
    try:
        found = datetime.fromisoformat(campaign.created)
    except ValueError as error:
        raise InfrastructureError(f"its start, {campaign.created!r}, is not a time") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _control(campaign: Campaign) -> str:
    """The baseline; where factors were varied, at the first levels."""
    return next((step for step in campaign.steps if campaign.is_baseline(step)), campaign.baseline)


def _lines(campaign: Campaign) -> list[str]:
    """What is followed; where factors were varied, at each combination of levels."""
    if not any(map(campaign.is_baseline, campaign.steps)):
        return []
    others = [step for step in campaign.steps if not campaign.is_baseline(step)]
    return [cells.beside(one, NEWEST_COMMIT) for one in others] if campaign.of_commits else others


def _step_of(campaign: Campaign, line: str) -> str:
    newest = cells.variant_of(campaign.steps[-1])
    return cells.beside(line, newest) if campaign.of_commits else line


def _ratio(analysis: Analysis, line: str, metric: str) -> Ratio | str:
    """The ratio of ``line`` to the control; or why there is none."""
    campaign = analysis.campaign
    step = _step_of(campaign, line)
    paired = analysis.against(step, campaign.baseline_of(step), metric)
    interval = paired.interval() if paired else None
    if paired is None or interval is None:
        blocks = len(paired.ratios) if paired else 0
        return f"{blocks} of the {MIN_BLOCKS_FOR_VERDICT} blocks that an interval needs"
    if paired.beds_differ:
        return "its beds differ, so there is no single ratio"
    return Ratio(
        ratio=paired.estimate,
        interval=interval,
        blocks=paired.logs.size,
        error=float(np.std(paired.units, ddof=1)) / math.sqrt(paired.units.size),
    )


def _campaigns_in(directories: Iterable[Path]) -> list[Path]:
    """Each of ``directories``, or those under it if it holds campaigns and is none; each once."""
    found: dict[Path, Path] = {}
    for directory in directories:
        below = sorted(path.parent for path in directory.glob("*/campaign.json"))
        own = (directory / "campaign.json").exists() or not below
        for one in [directory] if own else below:
            found.setdefault(one.resolve(), one)
    return [*found.values()]


def _leave_copies(found: _Sorted) -> None:
    """Of the copies of a campaign keep the one that has most boots."""
    first: dict[tuple[str, str, int], Measured] = {}
    for one in sorted(found.kept, key=lambda one: -one.boots):
        campaign = one.campaign
        kept = first.setdefault((campaign.id, campaign.created, campaign.seed), one)
        if kept is not one:
            found.kept.remove(one)
            found.leave(one, f"the same campaign as {kept.directory}")


def _leave_incomplete(found: _Sorted) -> None:
    """Leave out what has no ratio at all."""
    for one in list(found.kept):
        why = one.incomplete
        if why is None and not one.ratios:
            why = "; ".join(dict.fromkeys(one.missing.values())) or one.unmeasured
        if why is not None:
            found.kept.remove(one)
            found.leave(one, why)


def _unlike(one: Measured, reference: Measured) -> Iterator[str]:
    """Why ``one`` cannot be followed together with ``reference``."""
    yield from unlike(one, reference)
    yield from differs(
        "void rules",
        *({**recorded_tolerances(side.campaign)} for side in (one, reference)),
    )
    if one.campaign.baseline == reference.campaign.baseline:
        yield from _controls_differ(one.campaign, reference.campaign)


def _controls_differ(one: Campaign, other: Campaign) -> Iterator[str]:
    """Where the content of the control differs.

    A commit is named by its content. Its release and images are not compared: they also depend
    on the files in which the other variants differ, because those are what layouts move.
    """
    controls = [side.variants.get(_control(side), {}) for side in (one, other)]
    for name in ("compiler", "config_sha256", "arch", "bed_patches"):
        was, now = ([*value] if isinstance(value := side.get(name), list | tuple) else value
                    for side in controls)  # fmt: skip
        yield from differs(f"control: {name}", was, now)
    if one.of_commits and one.baseline != "worktree":
        return
    was, now = (_releases(side) for side in controls)
    both = was.keys() & now.keys()
    if not any(was[layout] and now[layout] for layout in both):
        yield "control: its release is not recorded for a layout that both have"
    for layout in sorted(both):
        if was[layout] != now[layout]:
            yield f"control: {was[layout]} and {now[layout]}"
            return


def _releases(variant: Mapping[str, Any]) -> dict[int, str | None]:
    """By layout, the release of a variant, which names its content."""
    layouts = variant.get("layouts") or [variant]
    return {one.get("layout", 1): one.get("release") for one in layouts}


def _title(campaign: Campaign, step: str) -> str:
    variant = campaign.variants.get(step, {})
    release = next((one for one in _releases(variant).values() if one), "")
    parts = (variant.get("subject"), release, variant.get("source"))
    return ", ".join(str(part) for part in parts if part) or "not recorded"


def _series(campaigns: Sequence[Measured]) -> Iterator[Series]:
    keys = dict.fromkeys(key for one in campaigns for key in (*one.ratios, *one.missing))
    order = list(METRICS)
    for line, metric in sorted(keys, key=lambda key: order.index(key[1])):
        key = (line, metric)
        points = {
            place: one.ratios[key] for place, one in enumerate(campaigns) if key in one.ratios
        }
        if not points:
            continue
        missing = {
            place: one.missing.get(key, "not measured")
            for place, one in enumerate(campaigns)
            if key not in one.ratios
        }
        found = changes.find(
            [math.log(one.ratio) for one in points.values()],
            [one.error for one in points.values()],
        )
        places = [*points]
        judged = len(campaigns) - 1 in points
        yield Series(
            line=line,
            metric=metric,
            points=points,
            changes=tuple(
                Change(
                    before=places[one.start - 1],
                    first=places[one.start],
                    shift=replace(one, new=one.new and judged),
                )
                for one in found.shifts
            ),
            levels=found.levels,
            scatter=found.scatter,
            missing=missing,
        )
