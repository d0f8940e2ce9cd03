# SPDX-License-Identifier: MIT
"""The figure of varied factors: the gain of each step by level, or by list length.

Uses only the report document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from harness.report import levels
from harness.report.plots import COLOURS, MARKERS, SOFT, Plot, axes_below, finished

Document = dict[str, Any]

_ASIDE = 0.06
_LONG = 14
"""Letters of a name in the legend of which two have room in a line."""


def drawn(report: Document) -> Iterator[Plot]:
    """The figure, if factors were varied and there is a gain to show."""
    rows = [row for row in report["rows"] if row["variant"] != report["baseline"]]
    panels = [
        ("packets/s, %", [(row, row) for row in rows if row["ratio_to_step0"] is not None]),
        (
            "CPU time/packet, %",
            [(row, row["cost"]) for row in rows if row["cost"] and row["cost"]["ratio_to_step0"]],
        ),
    ]
    panels = [(unit, found) for unit, found in panels if found]
    if not panels:
        return
    by_list = "burst" in report["factors"] and all(row["list_len_p50"] for row in rows)
    combined = list(dict.fromkeys(tuple(row["levels"].items()) for row in rows))
    names = list(dict.fromkeys(_name(row, by_list=by_list) for row in rows))
    columns = 5 if max(map(len, names)) < _LONG else 2
    figure, axes = axes_below([2.0] * len(panels), legend_rows=-(-len(names) // columns))
    for at, (unit, found) in zip(axes, panels, strict=True):
        for place, name in enumerate(names):
            aside = _ASIDE * (place - (len(names) - 1) / 2)  # so that lines do not hide others
            points = [
                (
                    row["list_len_p50"] * 2**aside
                    if by_list
                    else combined.index(tuple(row["levels"].items())) + aside / 2,
                    one,
                )
                for row, one in found
                if _name(row, by_list=by_list) == name
            ]
            _line(at, points, name, place)
        at.axhline(0, color=SOFT, linewidth=1)
        at.set_ylabel(unit)
        if by_list:
            _length_axis(at, sorted({row["list_len_p50"] for row in rows}))
        else:
            shown = [", ".join(f"{key}={level}" for key, level in one) for one in combined]
            at.set_xticks(range(len(shown)), shown)
            at.set_xlim(-0.5, len(shown) - 0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=columns)
    yield finished(
        figure,
        "gain",
        levels.title(report),
        f"Change over step {report['baseline']} at the same level: median, and a line for its "
        "interval (of few blocks, their range). Less CPU time is better. "
        + "List lengths are medians over lists, counted in separate trials."
        * by_list,
    )


def _name(row: Document, *, by_list: bool) -> str:
    """What a line joins: a step, at one level of the factors that the axis does not show."""
    others = [f", {key}={level}" for key, level in row["levels"].items() if key != "burst"]
    return f"step {row['variant']}" + "".join(others) * by_list


def _line(at: Axes, points: list[tuple[float, Document]], name: str, place: int) -> None:
    if not points:
        return
    x = [where for where, _ in points]
    colour = COLOURS[place % len(COLOURS)]
    y = [100 * (one["ratio_to_step0"] - 1) for _, one in points]
    ends = [levels.interval_of(one) or one["ratio_range"] for _, one in points]
    low, high = ([100 * (end[side] - 1) for end in ends] for side in (0, 1))
    at.vlines(x, low, high, color=colour)
    at.plot(x, y, marker=MARKERS[place % len(MARKERS)], color=colour, label=name)


def _length_axis(at: Axes, lengths: list[int]) -> None:
    at.set_xscale("log", base=2)
    at.xaxis.set_major_locator(FixedLocator(lengths))
    at.xaxis.set_minor_locator(NullLocator())
    at.set_xticklabels([str(length) for length in lengths])
    at.set_xlabel("packets in a list (median)")
