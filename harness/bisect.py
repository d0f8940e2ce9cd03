# SPDX-License-Identifier: MIT
"""Bisection: the first kernel in a sequence at which a metric has changed.

Hides how a decision is made and stored. A rate is decided from paired blocks: if the
exact signed-rank interval of its ratio to the good end is neither completely outside the
bound nor completely inside, more blocks are measured. A figure that probes count exactly
is compared directly. Each decision is written to ``bisect.json`` at once. The caller
passes in the function that measures, so this module works only on analyses.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tabulate import tabulate

from harness.base.errors import ConfigurationError, InfrastructureError, KernelError
from harness.plan import MIN_BLOCKS_FOR_VERDICT
from harness.report.verdicts import percent
from harness.results.expect import (
    RATE_METRICS,
    ExpectationMissedError,
    ExpectationOpenError,
)
from harness.results.ranks import CONFIDENCE
from harness.results.rows import LIST_LEN, Analysis, Row
from harness.results.samples import write_atomic
from harness.trials import MEASURES

FIGURE_METRICS = ("ip_rcv_per_packet", "list_len_p50", "list_len_p90", "list_len_max")
METRICS = (*RATE_METRICS, *MEASURES, *FIGURE_METRICS)
LOOK_BLOCKS = MIN_BLOCKS_FOR_VERDICT
"""Number of blocks between two tests of a rate; an exact figure is tested after each block."""
JOURNAL = "bisect.json"

Document = dict[str, Any]
Outcome = Literal["good", "bad", "open", "dead"]
"""Of a point; ``dead``: its kernel could not be built or booted, or died."""
Measure = Callable[[str, Sequence[str], int], Analysis]
"""``measure(name, points, blocks)`` measures ``points`` in ``blocks`` blocks in total.

``name`` is the same for all tests of a decision, so blocks measured before are kept.
"""


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Question(_Kept):
    """The search: between ``points[0]``, the good end, and ``points[-1]``, the bad end."""

    metric: str
    by: float
    kind: Literal["step", "commit"]
    points: tuple[str, ...]
    max_blocks: int
    profile: str
    bed: str

    @property
    def good(self) -> str:
        """The end with which every point is compared."""
        return self.points[0]

    @property
    def bad(self) -> str:
        """The end at which the metric has changed."""
        return self.points[-1]

    @property
    def exact(self) -> bool:
        """Is the metric counted exactly, unlike a rate with noise?"""
        return self.metric in FIGURE_METRICS

    @property
    def looks(self) -> tuple[int, ...]:
        """The total numbers of blocks after which a decision is attempted."""
        if self.exact:
            return tuple(range(1, 1 + self.max_blocks // LOOK_BLOCKS))
        return tuple(range(LOOK_BLOCKS, self.max_blocks + 1, LOOK_BLOCKS))

    @property
    def confidence(self) -> float:
        """The confidence of the interval at each test.

        High enough that at most one decision in twenty is wrong over all its tests: a
        decision is wrong only if one particular end of an interval is on the wrong side.
        """
        return max(CONFIDENCE, 1 - 2 * (1 - CONFIDENCE) / len(self.looks))


class Decision(_Kept):
    """The decision about one point."""

    point: str
    title: str | None = None
    outcome: Outcome
    value: float | None
    """Its ratio to the good end, or the figure of an exact metric; ``None``: not measured."""
    interval: tuple[float, float] | None = None
    good_value: float | None = None
    """The figure of the good end, for an exact metric."""
    blocks: int
    why: str | None = None
    """Why its kernel is dead, or why there is no value."""


class Search(_Kept):
    """``bisect.json``."""

    schema_: Literal["receive-batching/bisect"] = Field(
        default="receive-batching/bisect", alias="schema"
    )
    version: Literal[1] = 1
    id: str = Field(default_factory=lambda: secrets.token_hex(8))
    question: Question
    seed: int
    decisions: tuple[Decision, ...] = ()

    def of(self, point: str) -> Decision | None:
        """The decision about ``point``, if it has been made."""
        return next((made for made in self.decisions if made.point == point), None)


def search(points: Sequence[str], decide: Callable[[str], Outcome]) -> tuple[int, int]:
    """Indices of a good point and of a bad one after it; the ends are known to be good and bad.

    They are neighbours unless a decision is open or all points between them are dead.
    """
    good, bad = 0, len(points) - 1
    dead: set[int] = set()
    while alive := [index for index in range(good + 1, bad) if index not in dead]:
        middle = min(alive, key=lambda index: abs(index - (good + bad) // 2))
        outcome = decide(points[middle])
        if outcome == "open":
            break
        if outcome == "dead":
            dead.add(middle)
        else:
            good, bad = (middle, bad) if outcome == "good" else (good, middle)
    return good, bad


def judge_interval(low: float, high: float, *, by: float, rising: bool | None) -> Outcome:
    """Whether an interval of ratios is outside the bound (bad), inside (good), or both (open).

    ``rising`` is the direction of the change; ``None``: both directions count.
    """
    up, down = rising is not False, rising is not True
    if (up and low >= 1 + by) or (down and high <= 1 - by):
        return "bad"
    within = (not up or high < 1 + by) and (not down or low > 1 - by)
    return "good" if within else "open"


def judge_figure(value: float, *, good: float, bad: float, by: float) -> Outcome:
    """Has ``value`` moved from ``good`` towards ``bad`` by ``by`` of the larger of the two?"""
    moved = math.copysign(1, bad - good) * (value - good)
    return "bad" if moved > 0 and moved >= by * max(abs(good), abs(bad)) else "good"


def begin(
    directory: Path, question: Question, *, seed: int, resume: bool, retry_failed: bool = False
) -> Search:
    """The journal in ``directory``; a new one unless ``resume``.

    With ``retry_failed`` its dead points are dropped.

    Raises:
        ConfigurationError: there is already one, or none to resume, or one of another search.
        InfrastructureError: it is damaged or cannot be written.
    """
    path = directory / JOURNAL
    if not resume:
        if os.path.lexists(path):
            raise ConfigurationError(
                f"{directory} already holds a bisection",
                hint="name another directory, or continue it with --resume",
            )
        journal = Search(question=question, seed=seed)
        _write(directory, journal)
        return journal
    if not path.is_file():
        raise ConfigurationError(
            f"{directory} holds no bisection to resume", hint="name its directory with --out"
        )
    try:
        journal = Search.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InfrastructureError(
            f"{path} is not a bisection journal of this version",
            hint="the file is damaged, or another version of the harness wrote it",
        ) from error
    was, now = journal.question.model_dump(), question.model_dump()
    for name in was:
        if was[name] != now[name]:
            raise ConfigurationError(
                f"the bisection cannot be resumed: its {name} was {was[name]}, not {now[name]}",
                hint="use the same options as before, or another directory",
            )
    if retry_failed:
        alive = tuple(made for made in journal.decisions if made.outcome != "dead")
        journal = journal.model_copy(update={"decisions": alive})
    return journal


def run(
    journal: Search,
    directory: Path,
    measure: Measure,
    *,
    say: Callable[[str], None],
    titles: Mapping[str, str] | None = None,
) -> Search:
    """Make every decision that is not in ``journal`` yet; returns the complete journal.

    A point whose kernel cannot be built or booted is skipped.

    Raises:
        KernelError: the kernel of an end cannot be built or booted.
        HarnessError: any other error that ended a measurement; earlier decisions are kept.
    """
    question = journal.question

    def decide(point: str) -> Outcome:
        nonlocal journal
        decision = journal.of(point)
        if decision is None:
            say(f"comparing {question.kind} {point} with {question.good}")
            try:
                decision = _decide(point, journal, measure, titles or {})
            except KernelError as error:
                if point == question.bad:
                    raise
                decision = Decision(
                    point=point,
                    title=(titles or {}).get(point),
                    outcome="dead",
                    value=None,
                    blocks=0,
                    why=error.message,
                )
            journal = journal.model_copy(update={"decisions": (*journal.decisions, decision)})
            _write(directory, journal)
        say(f"{question.kind} {point} is {decision.outcome}: {_shown(decision)}")
        return decision.outcome

    if decide(question.bad) == "bad":
        search(question.points, decide)
    return journal


def _decide(point: str, journal: Search, measure: Measure, titles: Mapping[str, str]) -> Decision:
    """Measure ``point`` until it is good or bad, or blocks run out."""
    question, ends = journal.question, journal.of(journal.question.bad)
    # A figure needs no pair: the figure of the good end is known after the ends are compared.
    points = (point,) if question.exact and ends else (question.good, point)
    decision = Decision(point=point, outcome="open", value=None, blocks=0)
    for blocks in question.looks:
        analysis = measure(f"{question.kind}-{point}", points, blocks)
        look = _look_at_figures if question.exact else _look_at_ratios
        decision = decision.model_copy(
            update={
                "title": titles.get(point) or analysis.row(point).title,
                "blocks": blocks,
                **look(analysis, point, question, ends),
            }
        )
        if decision.outcome != "open":
            break
    return decision


def _look_at_ratios(
    analysis: Analysis, point: str, question: Question, ends: Decision | None
) -> Document:
    paired = analysis.against(point, question.good, question.metric)
    if paired is None:
        rows = (analysis.row(point), analysis.row(question.good))
        trials = sum(row.unsaturated_trials for row in rows)
        return {"why": f"{trials} trials did not saturate the receiver"} if trials else {}
    seen: Document = {"value": paired.estimate, "blocks": len(paired.ratios)}
    if interval := paired.interval(question.confidence):
        ends_at = interval.low, interval.high
        rising = ends.value > 1 if ends and ends.value else None
        outcome = judge_interval(*ends_at, by=question.by, rising=rising)
        seen |= {"interval": ends_at, "outcome": outcome}
    return seen


def _look_at_figures(
    analysis: Analysis, point: str, question: Question, ends: Decision | None
) -> Document:
    value = figure(analysis.row(point), question.metric)
    good = ends.good_value if ends else figure(analysis.row(question.good), question.metric)
    bad = ends.value if ends else value
    if value is None or good is None or bad is None:
        return {}
    outcome = judge_figure(value, good=good, bad=bad, by=question.by)
    return {"value": value, "good_value": good, "outcome": outcome}


def figure(row: Row, metric: str) -> float | None:
    """An exact metric of a step; without lists, list lengths are 0."""
    if row.traced_pps is None:  # no traced trial, or only void ones
        return None
    found = row.figure(metric)
    return 0.0 if found is None and metric.startswith(LIST_LEN) else found


def result(journal: Search) -> Document:
    """The journal, with the result of the search: ``outcome``, ``between`` and ``found``."""
    question = journal.question
    ends = journal.of(question.bad)
    shown = journal.model_dump(mode="json", by_alias=True)
    shown |= {"outcome": "open", "between": [question.good, question.bad], "found": None}
    shown["confidence"] = None if question.exact else question.confidence
    if ends is not None and ends.outcome == "good":
        shown["outcome"] = "no difference"
    elif ends is not None and ends.outcome == "bad":
        known = {made.point: made.outcome for made in journal.decisions}
        good, bad = search(question.points, lambda point: known.get(point, "open"))
        shown["between"] = [question.points[good], question.points[bad]]
        if bad - good == 1:
            decision = journal.of(question.points[bad])
            assert decision is not None
            shown["outcome"] = "found"
            shown["found"] = {"point": decision.point, "title": decision.title}
    return shown | {"sentence": _sentence(journal, shown)}


def _sentence(journal: Search, shown: Document) -> str:
    question, kind = journal.question, journal.question.kind
    whose, by = f"that of {kind} {question.good}", f"{100 * question.by:g}%"
    if found := shown["found"]:
        title = f" ({found['title']})" if found["title"] else ""
        return (
            f"the first {kind} at which {question.metric} differs from {whose} by at least {by} "
            f"is {kind} {found['point']}{title}; {kind} {shown['between'][0]} does not differ"
        )
    ends = journal.of(question.bad)
    if shown["outcome"] == "no difference" and ends:
        return (
            f"{question.metric} of {kind} {question.bad} does not differ from {whose} by {by}: "
            f"{_shown(ends)}"
        )
    good, bad = shown["between"]
    within = question.points[question.points.index(good) : question.points.index(bad)]
    dead = [made.point for made in journal.decisions if made.outcome == "dead"]
    passed = ", ".join(point for point in dead if point in within)
    return f"inconclusive between {kind} {good} and {kind} {bad}" + (
        f"; kernels that failed: {passed}" if passed else ""
    )


def require(shown: Document) -> None:
    """Raise unless the search has found the change.

    Raises:
        ExpectationMissedError: the ends do not differ.
        ExpectationOpenError: a decision is still open.
    """
    if shown["outcome"] == "no difference":
        raise ExpectationMissedError(shown["sentence"])
    if shown["outcome"] == "open":
        hint = "search again with more --max-blocks"
        if shown["decisions"][0]["outcome"] == "bad" and shown["decisions"][0]["interval"]:
            ends = percent(shown["decisions"][0]["value"])
            hint += f"; the ends differ by {ends}: --by half of that needs the fewest blocks"
        raise ExpectationOpenError(shown["sentence"], hint=hint)


def table(journal: Search) -> str:
    """Every point that was decided, in the order of the points."""
    question = journal.question
    ends = journal.of(question.bad)
    good = f"{ends.good_value:.6g}" if ends and ends.good_value is not None else "—"
    rows = [[question.good, good, "good end", "", ""]]
    for point in question.points:
        if decision := journal.of(point):
            shown = f"{decision.value:.6g}" if decision.good_value is not None else _shown(decision)
            rows.append(
                [point, shown, decision.outcome, str(decision.blocks), decision.title or ""]
            )
    how = f"\nover {question.good} ({question.confidence:.1%} interval)"
    what = question.metric + ("" if question.exact else how)
    headers = [question.kind, what, "verdict", "blocks", "title"]
    return tabulate(rows, headers=headers, disable_numparse=True)


def _shown(decision: Decision) -> str:
    if decision.value is None:
        return decision.why or "not measured"
    if decision.good_value is not None:
        return f"{decision.value:.6g}; the good end has {decision.good_value:.6g}"
    if decision.interval is None:
        return percent(decision.value)
    low, high = decision.interval
    return f"{percent(decision.value)} ({percent(low)} … {percent(high)})"


def _write(directory: Path, journal: Search) -> None:
    write_atomic(directory / JOURNAL, journal.model_dump_json(by_alias=True, indent=1).encode())
