# SPDX-License-Identifier: MIT
"""The figures of a trend: one for each metric, with a panel for each line and the control's own.

Uses only the document of the trend.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num

from harness.report.plots import ACCENT, COLOURS, INK, SOFT, STYLE, Plot, axes_below, finished

Document = dict[str, Any]


def plots(trend: Document) -> list[Plot]:
    """A figure for each metric that is followed."""
    with mpl.rc_context(STYLE):
        return list(_drawn(trend))


def _drawn(trend: Document) -> Iterator[Plot]:
    began = [datetime.fromisoformat(one["began"]) for one in trend["campaigns"]]
    at = [float(day) for day in date2num(began)]  # type: ignore[no-untyped-call]
    for name, about in trend["metrics"].items():
        lines = [one for one in trend["series"] if one["metric"] == name]
        own = [(day, one["control"][name]) for day, one in zip(at, trend["campaigns"], strict=True)
               if name in one["control"]]  # fmt: skip
        figure, axes = axes_below([1.6] * len(lines) + [1.0] * bool(own))
        for panel, series in zip(axes, lines, strict=False):
            _line(panel, series, at)
        if own:
            _control(axes[-1], own, about["unit"])
        for panel in axes:
            locator = AutoDateLocator(minticks=3, maxticks=7)  # type: ignore[no-untyped-call]
            panel.xaxis.set_major_locator(locator)
            panel.xaxis.set_major_formatter(
                ConciseDateFormatter(locator, tz="UTC")  # type: ignore[no-untyped-call]
            )
            margin = max(0.5, (at[-1] - at[0]) * 0.03)
            panel.set_xlim(at[0] - margin, at[-1] + margin)
        title = about["title"]
        caption = (
            f"{title[0].upper()}{title[1:]}, change over the control in each campaign (dot) with "
            "its interval (thin line); the mean of each group (thick line); changes (dashed, with "
            "their number); the newest campaign (diamond)."
        )
        below = " Lowest panel: the control itself, which shows what the bed did."
        yield finished(figure, f"trend-{name}", title, caption + below * bool(own))


def _line(axes: Axes, series: Document, at: list[float]) -> None:
    points = series["points"]
    days = [at[point["campaign"]] for point in points]
    share = [_percent(point["ratio"]) for point in points]
    low, high = ([_percent(point["interval"][end]) for point in points] for end in (0, 1))
    axes.vlines(days, low, high, color=ACCENT, linewidth=0.7, alpha=0.6)
    axes.plot(days, share, "o", color=ACCENT, markersize=2.5)
    if points[-1]["campaign"] == len(at) - 1:
        axes.plot(days[-1:], share[-1:], "D", color=COLOURS[1], markersize=5)
    starts = [at[change["campaign"]] for change in series["changes"]]
    ends = [at[change["after"]] for change in series["changes"]]
    spans = zip([days[0], *starts], [*ends, days[-1]], strict=True)
    for (start, end), level in zip(spans, series["levels"], strict=True):
        axes.hlines(_percent(level), start, end, color=INK, linewidth=1.6)
    for change, start, end in zip(series["changes"], starts, ends, strict=True):
        between = (start + end) / 2
        axes.axvline(between, color=COLOURS[1], linestyle="--", linewidth=1)
        axes.annotate(
            str(change["number"]),
            (between, 1),
            xycoords=("data", "axes fraction"),
            xytext=(2, -8),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_title(series["title"], fontsize=9, loc="left")
    axes.set_ylabel("change, %")


def _control(axes: Axes, own: list[tuple[float, float]], unit: str) -> None:
    thousands = unit == "packets/s"
    days, values = ([*side] for side in itertools.zip_longest(*own))
    axes.plot(days, [value / 1e3 if thousands else value for value in values], "s-", color=SOFT,
              markersize=2, linewidth=0.8)  # fmt: skip
    axes.set_title("control", fontsize=9, loc="left")
    axes.set_ylabel(f"1000 {unit}" if thousands else unit)


def _percent(ratio: float) -> float:
    return 100 * (ratio - 1)
