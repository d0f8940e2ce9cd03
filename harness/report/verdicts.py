# SPDX-License-Identifier: MIT
"""Verdicts in words: the sentences above a table, and the lines with all figures below it.

Uses only the report document.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from harness import cells
from harness.plan import BASELINE, MIN_BLOCKS_FOR_VERDICT
from harness.report import levels
from harness.results.ranks import CONFIDENCE

Document = dict[str, Any]


def sentences(report: Document) -> Iterator[str]:
    """What a reader wants first: each verdict on the primary rate, or why there is none."""
    yield from map(_sentence, report["verdicts"])
    if report["trend"]:
        yield _trend(report["trend"], report["baseline"])
    yield from levels.sentences(report)
    if report["no_verdict"]:
        yield f"no verdict: {report['no_verdict']}"
    elif lacking := _without_verdict(report):
        yield f"no verdict on step {', '.join(lacking)}: {MIN_BLOCKS_FOR_VERDICT} blocks are needed"


def _sentence(verdict: Document) -> str:
    step, base = (_named(verdict, verdict[role]) for role in ("step", "baseline"))
    step = _at(verdict["step"]) + step
    low, high = (100 * (bound - 1) for bound in verdict["interval"])
    blocks = f"({_units(verdict)})"
    if verdict["beds_differ"]:
        return f"{step} against {base}: beds differ {blocks}"
    if verdict["verdict"] == "no difference":
        return (
            f"{step} and {base} do not differ by more than {100 * verdict['margin']:g} % {blocks}"
        )
    if verdict["verdict"] in ("faster", "slower"):
        least, most = sorted((abs(low), abs(high)))
        more = "more" if verdict["verdict"] == "faster" else "fewer"
        return (
            f"{step} receives {least:.1f} to {most:.1f} % {more} packets per second than {base} "
            f"{blocks}"
        )
    plain = " before correction for the other comparisons" if low * high > 0 else ""
    return (
        f"{step} against {base} is open: {low:+.1f} to {high:+.1f} % packets per second"
        f"{plain} {blocks}"
    )


def _units(found: Document) -> str:
    """How many independent observations there are: blocks, or layouts if they were used again."""
    again = ", some in several blocks" if found["unit"] == "layout" else ""
    return f"{found['blocks']} {found['unit']}s{again}"


def _trend(trend: Document, baseline: str) -> str:
    first, *others = trend["steps"]
    of = "steps" if baseline == BASELINE else "commits"
    over = f"{first} to {others[-1]}" if len(others) > 4 else ", ".join((first, *others))
    word = "shows no trend" if trend["verdict"] == "inconclusive" else trend["verdict"]
    return (
        f"over {of} {over} the packet rate {word} (Page's trend test, {_units(trend)}: "
        f"p {trend['p_value']:.2g}, corrected {trend['p_corrected']:.2g})"
    )


def _named(verdict: Document, step: str) -> str:
    of_series = cells.variant_of(verdict["baseline"]) == BASELINE
    return f"{'step' if of_series else 'variant'} {cells.variant_of(step)}"


def _at(step: str) -> str:
    """The levels of a cell, before what is said of it."""
    found = cells.levels_of(step)
    return f"at {', '.join(f'{key}={level}' for key, level in found.items())}, " if found else ""


def verdict_line(verdict: Document) -> str:
    """One verdict as a sentence, with the figures needed to check it."""
    word, p_beds = verdict["verdict"], verdict["p_beds"]
    if word == "no difference":
        word += f" larger than {100 * verdict['margin']:g}%"
    if verdict["beds_differ"]:
        word += ": beds differ"
    agree = "" if p_beds is None else f"; the same on all beds: p {p_beds:.3g}"
    low, high = verdict["interval"]
    too_many = verdict["p_value"] < 1 - CONFIDENCE <= verdict["p_corrected"]
    corrected = f"{verdict['p_corrected']:.3g}" + f", not below {1 - CONFIDENCE:.2g}" * too_many
    step, base = (_named(verdict, verdict[role]) for role in ("step", "baseline"))
    return (
        f"{_at(verdict['step'])}{step} against {base}: {word} "
        f"({percent(verdict['ratio'])}, {verdict['confidence']:.0%} interval "
        f"{percent(low)} … {percent(high)} over {_units(verdict)}; "
        f"Wilcoxon p {verdict['p_value']:.3g}, corrected {corrected}; "
        f"equal within ±{100 * verdict['margin']:g}%: p {verdict['p_equivalent']:.3g}, corrected "
        f"{verdict['p_equivalent_corrected']:.3g}; {_detectable(verdict)}{agree})"
    )


def _detectable(verdict: Document) -> str:
    least = verdict["smallest_detectable"]
    return "no difference detectable" if least is None else f"detectable from ±{100 * least:.1f}%"


def _without_verdict(report: Document) -> list[str]:
    """The steps without a verdict, each with its number of compared blocks."""
    judged = {verdict["step"] for verdict in report["verdicts"]}
    return [
        f"{row['step']} ({len(row['ratio_by_block'] or ())})"
        for row in report["rows"]
        if row["step"] not in judged and cells.variant_of(row["step"]) != report["baseline"]
    ]


def verdict_lines(report: Document) -> Iterator[str]:
    """Every verdict: of the rates, of the other measures, of each bed."""
    yield from (verdict_line(verdict) for verdict in report["verdicts"])
    for name, about in report["measures"].items():
        for row in report["rows"]:
            verdict = row["measures"].get(name, {}).get("verdict")
            if verdict and about["sentence"]:
                yield f"{about['title']}: {verdict_line(verdict)}"
            if verdict and about["published"]:
                yield _resolved(about, row["measures"][name])
    for row in report["rows"]:
        for found in row["beds"]:
            if found["verdict"]:
                yield f"bed {found['bed']}: {verdict_line(found['verdict'])}"


def _resolved(about: Document, found: Document) -> str:
    """Whether this campaign could detect the difference that the series' author expected."""
    detectable = found["median"] * (found["verdict"]["smallest_detectable"] or math.inf)
    word = "could" if detectable <= about["published"] else "could not"
    return (
        f"  the author of the series expected +{1000 * about['published']:.0f} ns, which {word} be "
        f"detected here: the limit is ±{1000 * detectable:,.0f} ns"
    )


def percent(ratio: float) -> str:
    """A ratio as a change in percent."""
    return f"{100 * (ratio - 1):+.1f}%"
