# SPDX-License-Identifier: MIT
"""Many campaigns over time, as a document with a schema, as text and as one HTML page.

:func:`document` is the JSON; table and page use only this document.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from tabulate import tabulate

from harness.base.errors import ConfigurationError
from harness.report.verdicts import percent
from harness.results.changes import MIN_CAMPAIGNS
from harness.results.trend import METRICS, History, Series

SCHEMA = "receive-batching/trend"
VERSION = 1

HEADERS = ("line", "metric", "newest, change over the control (interval)", "level now", "since",
           "scatter", "campaigns", "changes")  # fmt: skip
CONTROL_HEADERS = ("the control itself", "newest", "range")
CHANGE_HEADERS = ("", "line", "metric", "change (interval)", "first campaign after it", "kernel",
                  "last campaign before it", "campaigns before, after")  # fmt: skip
CAMPAIGN_HEADERS = ("began", "directory", "profile, blocks", "newest kernel")
_NONE = "—"
_WHAT = (
    "each figure is the change over the control, measured within the blocks of a campaign; "
    "the control itself shows what the bed did"
)

Document = dict[str, Any]


def document(trend: History) -> Document:
    """``trend`` as JSON-ready data; the keys are stable within a version.

    ``campaign``, ``after`` and the keys of ``missing`` are places in ``campaigns``.
    """
    last = trend.campaigns[-1].campaign
    findings = trend.findings()
    told = [finding.outcome for finding in findings]
    numbers = iter(range(1, 1 + sum(len(one.changes) for one in trend.series)))
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "bed": last.bed,
        "bed_kind": last.bed_kind,
        "virtual": last.virtual,
        "label": last.label,
        "control": trend.control,
        "newest": {
            "directory": str(trend.newest),
            "outcome": "moved" if "missed" in told else "open" if "open" in told else "steady",
            "findings": [asdict(finding) for finding in findings],
        },
        "metrics": {
            name: {"title": about.title, "unit": about.unit, "better": about.better}
            for name, about in METRICS.items()
            if any(one.metric == name for one in trend.series)
        },
        "campaigns": [
            {
                "directory": str(one.directory),
                "id": one.campaign.id,
                "began": one.began.astimezone(UTC).isoformat(timespec="seconds"),
                "profile": one.campaign.profile,
                "blocks": one.campaign.blocks,
                "steps": list(one.campaign.steps),
                "kernel": one.kernel(one.campaign.steps[-1]),
                "control": dict(one.control),
            }
            for one in trend.campaigns
        ],
        "series": [_series(trend, one, numbers) for one in trend.series],
        "left_out": [
            {
                "directory": str(one.directory),
                "created": one.created,
                "reasons": list(one.reasons),
            }
            for one in trend.left_out
        ],
        "least_campaigns": MIN_CAMPAIGNS,
    }


def _series(trend: History, series: Series, numbers: Iterator[int]) -> Document:
    line = series.line
    return {
        "line": line,
        "title": trend.title(line),
        "metric": series.metric,
        "points": [
            {
                "campaign": place,
                "kernel": trend.campaigns[place].kernel(line),
                "ratio": point.ratio,
                "interval": [point.interval.low, point.interval.high],
                "confidence": point.interval.confidence,
                "blocks": point.blocks,
            }
            for place, point in series.points.items()
        ],
        "scatter": series.scatter,
        "levels": list(series.levels),
        "changes": [
            {
                "number": next(numbers),
                "campaign": change.first,
                "after": change.before,
                "began": trend.campaigns[change.first].began.isoformat(timespec="seconds"),
                "kernel": trend.campaigns[change.first].kernel(line),
                "ratio": change.shift.ratio,
                "interval": list(change.shift.interval),
                "campaigns": list(change.shift.campaigns),
                "new": change.shift.new,
            }
            for change in series.changes
        ],
        "missing": {str(place): why for place, why in series.missing.items()},
    }


def table(trend: Document) -> str:
    """For a terminal: what moved, the metrics, and what was left out."""
    facts = [_facts(trend), *[trend["label"]] * trend["virtual"]]
    drawn = [
        tabulate(rows, headers=headers, disable_numparse=True)
        for headers, rows in ((HEADERS, _rows(trend)), (CONTROL_HEADERS, _control(trend)))
        if rows
    ]
    parts = [*facts, "", *_newest(trend), *_told(trend), "", "\n\n".join(drawn)]
    parts += ["", *_notes(trend)]
    parts += [
        f"left out: {directory}{f' ({began})' if began != _NONE else ''}: {why}"
        for directory, began, why in _left_out(trend)
    ]
    return "\n".join(parts).rstrip("\n")


def page(trend: Document) -> str:
    """``trend`` as a complete HTML document."""
    # Imported late: the plotting library takes longer to import than a table to print.
    from harness.report.html import rendered
    from harness.report.trend_plots import plots

    return rendered(
        "trend.html.j2",
        trend=trend,
        facts=_facts(trend),
        newest=_newest(trend),
        change_headers=CHANGE_HEADERS,
        changes=_changes(trend),
        headers=HEADERS,
        rows=_rows(trend),
        control_headers=CONTROL_HEADERS,
        control=_control(trend),
        left_out=_left_out(trend),
        notes=_notes(trend),
        plots=plots(trend),
        campaign_headers=CAMPAIGN_HEADERS,
        campaigns=[
            (_date(one["began"]), one["directory"], f"{one['profile']}, {one['blocks']}",
             one["kernel"])
            for one in trend["campaigns"]
        ],
    )  # fmt: skip


def _facts(trend: Document) -> str:
    campaigns = trend["campaigns"]
    first, last = (_date(campaigns[end]["began"]) for end in (0, -1))
    number = "1 campaign" if len(campaigns) == 1 else f"{len(campaigns)} campaigns"
    return f"bed {trend['bed']} · {number}, {first} to {last} · control {trend['control']}"


def _newest(trend: Document) -> list[str]:
    """The outcome of the newest campaign, in sentences."""
    newest = trend["newest"]
    findings = newest["findings"]
    found = {
        outcome: [finding for finding in findings if finding["outcome"] == outcome]
        for outcome in ("missed", "open", "met")
    }
    lines = [f"moved: {_without_word(one)}: {one['why']}" for one in found["missed"]]
    lines += [f"cannot tell: {_without_word(one)}: {one['why']}" for one in found["open"]]
    if found["met"]:
        number = len(found["met"])
        others = "other " * bool(lines)
        lines.append(
            f"steady: {number} {others}metric{'s' * (number > 1)} of {newest['directory']}"
        )
    return lines


def _without_word(finding: Document) -> str:
    text: str = finding["expected"]
    return text.removesuffix(" steady")


def _rows(trend: Document) -> list[list[str]]:
    """The cells under :data:`HEADERS`, as text."""
    rows = []
    last = len(trend["campaigns"]) - 1
    for series in trend["series"]:
        point, changes = series["points"][-1], series["changes"]
        since = changes[-1]["began"] if changes else _began(trend, series["points"][0])
        rows.append(
            [
                series["title"],
                trend["metrics"][series["metric"]]["title"],
                _with_interval(point)
                if point["campaign"] == last
                else f"{_NONE} ({series['missing'][str(last)]})",
                percent(series["levels"][-1]),
                _date(since)[:10],
                f"±{100 * series['scatter']:.1f}%",
                str(len(series["points"])),
                " ".join(f"({change['number']})" for change in changes) or "none",
            ]
        )
    return rows


def _control(trend: Document) -> list[list[str]]:
    """The cells under :data:`CONTROL_HEADERS`: what the bed did."""
    rows = []
    for name, about in trend["metrics"].items():
        own = [one["control"][name] for one in trend["campaigns"] if name in one["control"]]
        if own:
            span = f"{_number(min(own))} … {_number(max(own))}"
            rows.append([f"{about['title']}, {about['unit']}", _number(own[-1]), span])
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _began(trend: Document, point: Document) -> str:
    found: str = trend["campaigns"][point["campaign"]]["began"]
    return found


def _changes(trend: Document) -> list[list[str]]:
    """The cells under :data:`CHANGE_HEADERS`, as text, in the order of the figures."""
    campaigns = trend["campaigns"]
    return [
        [
            f"({change['number']})",
            series["title"],
            trend["metrics"][series["metric"]]["title"],
            _with_interval(change) + ", new" * change["new"],
            _where(campaigns[change["campaign"]]),
            change["kernel"],
            _where(campaigns[change["after"]]),
            f"{change['campaigns'][0]}, {change['campaigns'][1]}",
        ]
        for series in trend["series"]
        for change in series["changes"]
    ]


def _told(trend: Document) -> list[str]:
    """A sentence for each change."""
    campaigns = trend["campaigns"]
    return [
        f"({change['number']}) {series['title']}, "
        f"{trend['metrics'][series['metric']]['title']}: {_with_interval(change)} between "
        f"{_where(campaigns[change['after']])} and {_where(campaigns[change['campaign']])} "
        f"({change['kernel']})"
        for series in trend["series"]
        for change in series["changes"]
    ] or ["no metric moved"]


def _with_interval(found: Document) -> str:
    low, high = found["interval"]
    return f"{percent(found['ratio'])} ({percent(low)} … {percent(high)})"


def _where(campaign: Document) -> str:
    return f"{_date(campaign['began'])}, {campaign['directory']}"


def _left_out(trend: Document) -> list[tuple[str, str, str]]:
    return [
        (one["directory"], _date(one["created"]) if one["created"] else _NONE,
         "; ".join(one["reasons"]))
        for one in trend["left_out"]
    ]  # fmt: skip


def _notes(trend: Document) -> list[str]:
    """What a reader must know of the figures, and what a series lacks."""
    notes = [_WHAT]
    for series in trend["series"]:
        what = f"{series['title']}, {trend['metrics'][series['metric']]['title']}"
        if len(series["points"]) < trend["least_campaigns"]:
            notes.append(
                f"{what}: {len(series['points'])} of the {trend['least_campaigns']} campaigns "
                "without which no change is looked for"
            )
        by_reason: dict[str, list[str]] = {}
        for place, why in series["missing"].items():
            by_reason.setdefault(why, []).append(trend["campaigns"][int(place)]["directory"])
        for why, where in by_reason.items():
            more = f" and {len(where) - 1} more" if len(where) > 1 else ""
            notes.append(f"{what}: no figure of {where[-1]}{more}: {why}")
    return notes


def _date(began: str) -> str:
    """A time as a reader wants it, in UTC; as it is if it is none."""
    try:
        return f"{datetime.fromisoformat(began).astimezone(UTC):%Y-%m-%d %H:%M}"
    except ValueError:
        return began


def _json(trend: Document) -> str:
    return json.dumps(trend, indent=1, allow_nan=False)


_FORMATS: Mapping[str, Callable[[Document], str]] = MappingProxyType(
    {"table": table, "json": _json, "html": page}
)
FORMATS = tuple(_FORMATS)


def render(trend: Document, form: str) -> str:
    """``trend`` in one of :data:`FORMATS`.

    Raises:
        ConfigurationError: no such format.
    """
    try:
        return _FORMATS[form](trend)
    except KeyError as error:
        raise ConfigurationError(
            f"no format is named {form!r}", hint=f"choose one of {', '.join(FORMATS)}"
        ) from error
