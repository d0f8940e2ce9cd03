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
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    figure, axes = axes_below([2.0] * len(panels), legend_rows=-(-len(variants) // 5))
    for at, (unit, found) in zip(axes, panels, strict=True):
        for place, variant in enumerate(variants):
            _line(at, [one for one in found if one[0]["variant"] == variant], place, by_list)
        at.axhline(0, color=SOFT, linewidth=1)
        at.set_ylabel(unit)
        _axis(at, rows, by_list)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=5)
    yield finished(
        figure,
        "gain",
        levels.title(report),
        f"Change over step {report['baseline']} at the same level: median, and a line for its "
        "interval (of few blocks, their range). Less CPU time is better. "
        + "List lengths are medians over lists, counted in separate trials."
        * by_list,
    )


def _line(at: Axes, found: list[tuple[Document, Document]], place: int, by_list: bool) -> None:
    if not found:
        return
    rows = [row for row, _ in found]
    x = [float(row["list_len_p50"]) if by_list else _place(row, rows) for row in rows]
    colour = COLOURS[place % len(COLOURS)]
    y = [100 * (one["ratio_to_step0"] - 1) for _, one in found]
    ends = [levels.interval_of(one) or one["ratio_range"] for _, one in found]
    at.vlines(
        x,
        [100 * (low - 1) for low, _ in ends],
        [100 * (high - 1) for _, high in ends],
        color=colour,
    )
    at.plot(
        x, y, marker=MARKERS[place % len(MARKERS)], color=colour, label=f"step {rows[0]['variant']}"
    )


def _place(row: Document, rows: list[Document]) -> float:
    return float([one["levels"] for one in rows].index(row["levels"]))


def _axis(at: Axes, rows: list[Document], by_list: bool) -> None:
    if by_list:
        lengths = sorted({row["list_len_p50"] for row in rows})
        at.set_xscale("log", base=2)
        at.xaxis.set_major_locator(FixedLocator(lengths))
        at.xaxis.set_minor_locator(NullLocator())
        at.set_xticklabels([str(length) for length in lengths])
        at.set_xlabel("packets in a list (median)")
        return
    combined = list(dict.fromkeys(tuple(row["levels"].items()) for row in rows))
    shown = [", ".join(f"{key}={level}" for key, level in one) for one in combined]
    at.set_xticks(range(len(shown)), shown)
    at.set_xlim(-0.5, len(shown) - 0.5)
