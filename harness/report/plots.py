# SPDX-License-Identifier: MIT
"""The figures of the HTML report, each an SVG element.

Uses only the report document. Text stays text, so that a figure can be searched and read
aloud. The same document gives the same bytes.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report.text import PLACES
from harness.report.verdicts import percent
from harness.trials import KINDS
from harness.trials.kind import Panel

Document = dict[str, Any]

# The width of a phone held upright, so that letters keep their size there.
_WIDTH_IN = 5.4
INK, SOFT, ACCENT = "#1c2733", "#8a97a5", "#0b6e99"
# Okabe and Ito's colours, safe for colour-blind readers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#555555")
MARKERS = "os^vD*"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "receive-batching",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e8ed",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class Plot:
    """One figure: its name in the page, its title, caption and SVG."""

    name: str
    title: str
    caption: str
    svg: str


def plots(report: Document) -> list[Plot]:
    """Every figure for which there are data."""
    with mpl.rc_context(STYLE):
        return list(_drawn(report))


def _drawn(report: Document) -> Iterator[Plot]:
    rows = [row for row in report["rows"] if row["boots"]]
    compared = [row for row in rows if row["ratio_to_step0"] is not None]
    if any(row["step"] != report["baseline"] for row in compared):
        figure, [axes] = axes_below([2.6])
        _changes(axes, report, compared)
        yield finished(
            figure,
            "change",
            f"Change over step {report['baseline']}",
            "Stack packets/s of each step over the baseline's boot of the same block: median "
            "(dot), range of the blocks (thin line), interval (thick line, if there are enough "
            "blocks). "
            f"Diamonds: {report['published']['source']}.",
        )
    rated = [row for row in rows if any(boot["trials"] for boot in row["by_boot"])]
    if rated:
        figure, [axes] = axes_below([2.5], legend_rows=-(-len(rated) // 5))
        _rates(axes, rated)
        beds = " A line joins the boots of one bed; each bed has its own marker."
        yield finished(
            figure,
            "rates",
            "Rate of every boot",
            "Stack packets/s: the median of each boot (line) and every valid trial (dots)."
            + beds * bool(report["campaign"]["beds"]),
        )
    stages = list(dict.fromkeys(stage["name"] for row in rows for stage in row["stages"]))
    if stages:
        shown = [_rows_with(rows, stage) for stage in stages]
        figure, drawn = axes_below([0.22 * len(found) + 0.06 for found in shown])
        for axes, found, stage in zip(drawn, shown, stages, strict=True):
            _lengths(axes, found, stage)
        yield finished(
            figure,
            "lists",
            "List lengths by stage",
            "Share of a step's lists by length; darker means more. "
            "Counted in separate trials with probes attached.",
        )
    if any(row["drops"] for row in rows):
        figure, [axes] = axes_below([0.28 * len(rows)], legend_rows=2)
        _drops(axes, rows)
        yield finished(
            figure,
            "drops",
            "Where packets went",
            "Shares of the frames that reached the NIC, from before the load to after it.",
        )
    if any(row["cpu_ns_per_packet"] for row in rows):
        figure, [axes] = axes_below([1.7])
        _cost(axes, rows)
        yield finished(
            figure,
            "cost",
            "CPU time per packet",
            "System, interrupt and softirq time of the interrupt's CPU per packet at IP: "
            "boots (dots) and their median (bar).",
        )
    yield from _declared(report, rows)


def _declared(report: Document, rows: list[Document]) -> Iterator[Plot]:
    """The figures that kinds of trial declare, as far as they were measured."""
    for declared in (kind.figure for kind in KINDS if kind.figure):
        panels = [one for one in declared.panels if one.measures[-1] in report["measures"]]
        if panels:
            heights = [1.5 if len(panel.measures) == 1 else 0.22 * len(rows) for panel in panels]
            figure, drawn = axes_below(heights)
            for axes, panel in zip(drawn, panels, strict=True):
                _panel(axes, rows, panel)
            yield finished(figure, declared.name, declared.title, declared.caption)


def _rows_with(rows: list[Document], stage: str) -> list[Document]:
    return [row for row in rows if any(found["name"] == stage for found in row["stages"])]


def axes_below(heights_in: list[float], *, legend_rows: int = 0) -> tuple[Figure, list[Axes]]:
    """Axes below one another, of the given heights; fixed margins make the layout fast."""
    left, right, above, below, legend = 0.74, 0.16, 0.24, 0.46, 0.19 * legend_rows
    total = sum(heights_in) + (above + below) * len(heights_in) + legend
    figure = Figure(figsize=(_WIDTH_IN, total))
    axes, top = [], total
    for height in heights_in:
        top -= above + height
        axes.append(
            figure.add_axes(
                (
                    left / _WIDTH_IN,
                    top / total,
                    (_WIDTH_IN - left - right) / _WIDTH_IN,
                    height / total,
                )
            )
        )
        top -= below
    return figure, axes


def finished(figure: Figure, name: str, title: str, caption: str) -> Plot:
    """``figure`` as an element of a page; ``name`` is unique in it."""
    out = io.StringIO()
    # savefig() would draw everything twice.
    FigureCanvasSVG(figure).print_svg(  # type: ignore[no-untyped-call]
        out, metadata={"Date": None, "Creator": None}
    )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    # Ids must be unique in the page, not only in the figure.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    # Without a size of its own the figure follows the width of the page.
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    return Plot(name, title, caption, svg)


def _steps_axis(axes: Axes, rows: list[Document]) -> None:
    axes.set_xticks(range(len(rows)), [row["step"] for row in rows])
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("step")
    axes.grid(visible=False, axis="x")


def _changes(axes: Axes, report: Document, rows: list[Document]) -> None:
    at = np.arange(len(rows))
    change = [100 * (row["ratio_to_step0"] - 1) for row in rows]
    low, high = ([100 * (row["ratio_range"][end] - 1) for row in rows] for end in (0, 1))
    axes.axhline(0, color=SOFT, linewidth=1)
    axes.vlines(at, low, high, color=ACCENT, linewidth=1, label="range of blocks")
    judged = [place for place, row in zip(at, rows, strict=True) if row["ratio_interval"]]
    if judged:
        intervals = [rows[place]["ratio_interval"] for place in judged]
        axes.vlines(
            judged,
            [100 * (interval[0] - 1) for interval in intervals],
            [100 * (interval[1] - 1) for interval in intervals],
            color=ACCENT,
            linewidth=4,
            alpha=0.45,
            label="interval",
        )
    axes.plot(at, change, "o", color=ACCENT, label="median")
    for place, row, top in zip(at, rows, high, strict=True):
        if row["step"] != report["baseline"]:
            axes.annotate(
                percent(row["ratio_to_step0"]),
                (place, top),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
    known = [
        (place, 100 * (row["published_ratio"] - 1))
        for place, row in zip(at, rows, strict=True)
        if row["published_ratio"]
    ]
    if len(known) > 1:
        axes.plot(
            *zip(*known, strict=True),
            "D:",
            color=COLOURS[1],
            markerfacecolor="none",
            label="published, on hardware",
        )
    _steps_axis(axes, rows)
    axes.set_ylabel("change, %")
    axes.legend(loc="upper left")


def _rates(axes: Axes, rows: list[Document]) -> None:
    styles = itertools.cycle(itertools.product(("-", "--"), COLOURS))
    for row, (line, colour) in zip(rows, styles, strict=False):
        beds = list(dict.fromkeys(boot["bed"] for boot in row["by_boot"]))
        for bed in beds:
            boots = [boot for boot in row["by_boot"] if boot["bed"] == bed and boot["trials"]]
            axes.plot(
                [boot["block"] for boot in boots],
                [boot["stack_rx_pps"] / 1e3 for boot in boots],
                line,
                marker=MARKERS[beds.index(bed) % len(MARKERS)],
                markersize=3,
                linewidth=1.2,
                color=colour,
                label=f"step {row['step']}" if bed == beds[0] else None,
            )
        trials = [(boot["block"], pps / 1e3) for boot in row["by_boot"] for pps in boot["trials"]]
        axes.plot(
            *zip(*trials, strict=True), ".", markersize=3, alpha=0.35, color=colour, linewidth=0
        )
    last = max(boot["block"] for row in rows for boot in row["by_boot"])
    axes.set_xlim(0.5, last + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("block")
    axes.set_ylabel("thousand packets/s")
    axes.figure.legend(loc="lower center", ncols=5)


def _lengths(axes: Axes, rows: list[Document], stage: str) -> None:
    size = 66  # 0 to 64, and longer
    shares = np.zeros((len(rows), size - 1))
    for index, row in enumerate(rows):
        found = next(found for found in row["stages"] if found["name"] == stage)
        counts = np.zeros(size)
        lengths = found["lengths"][: size - 1]
        counts[: len(lengths)] = lengths
        counts[-1] = found["overflow"]
        shares[index] = counts[1:] / max(1.0, counts[1:].sum())
    axes.pcolormesh(
        np.arange(0.5, size + 0.4),
        np.arange(len(rows) + 1) - 0.5,
        shares,
        cmap="Blues",
        norm=PowerNorm(0.4, vmin=0, vmax=1),
        edgecolors="#f2f4f6",
        linewidth=0.2,
    )
    axes.set_yticks(range(len(rows)), [f"step {row['step']}" for row in rows])
    axes.invert_yaxis()
    axes.set_xticks([1, 8, 16, 24, 32, 40, 48, 56, 64])
    axes.set_title(stage, fontsize=9, loc="left")
    axes.set_xlabel("packets in a list")
    axes.grid(visible=False)


def _drops(axes: Axes, rows: list[Document]) -> None:
    at = np.arange(len(rows))
    left = np.zeros(len(rows))
    places = [place for place in PLACES if any(row["drops"].get(place, 0) >= 5e-4 for row in rows)]
    for place, colour in zip(places, itertools.cycle(COLOURS[1:])):
        width = np.asarray([100 * row["drops"].get(place, 0.0) for row in rows])
        axes.barh(at, width, left=left, color=colour, height=0.7, label=PLACES[place])
        left += width
    rest = np.maximum(0.0, 100 - left)
    axes.barh(at, rest, left=left, color="#dfe6ec", height=0.7, label="delivered")
    axes.set_yticks(at, [f"step {row['step']}" for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of frames at the NIC")
    axes.grid(visible=False, axis="y")
    axes.figure.legend(loc="lower center", ncols=4)


def _panel(axes: Axes, rows: list[Document], panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=9, loc="left")
    if len(panel.measures) == 1:
        _measured(axes, rows, panel.measures[0])
        axes.set_ylabel(panel.unit)
    else:
        _spread(axes, rows, panel.measures)
        axes.set_xlabel(panel.unit)


def _spread(axes: Axes, rows: list[Document], measures: Sequence[str]) -> None:
    """Three percentiles (line) and the mean (dot) of each step."""
    for place, row in enumerate(rows):
        found = [row["measures"].get(name) for name in measures]
        if all(found):
            *percentiles, mean = (one["median"] for one in found)
            axes.hlines(place, percentiles[0], percentiles[-1], color=ACCENT, linewidth=2)
            axes.plot(percentiles, [place] * len(percentiles), "|", color=ACCENT, markersize=8)
            axes.plot([mean], [place], "o", color=COLOURS[1], markersize=4)
    axes.set_yticks(range(len(rows)), [f"step {row['step']}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _cost(axes: Axes, rows: list[Document]) -> None:
    name = "cpu_ns_per_packet"
    for place, row in enumerate(rows):
        costs = [boot[name] for boot in row["by_boot"] if name in boot]
        _dots(axes, place, costs, row[name])
    _steps_axis(axes, rows)
    axes.set_ylabel("ns per packet")


def _measured(axes: Axes, rows: list[Document], name: str) -> None:
    """One measure: each boot's median over its trials, and the step's."""
    for place, row in enumerate(rows):
        trials = [boot["measures"].get(name, {}) for boot in row["by_boot"]]
        medians = [float(np.median([*each.values()])) for each in trials if each]
        _dots(axes, place, medians, row["measures"].get(name, {}).get("median"))
    _steps_axis(axes, rows)


def _dots(axes: Axes, place: int, boots: list[float], middle: float | None) -> None:
    axes.plot([place] * len(boots), boots, ".", color=ACCENT, alpha=0.5)
    if middle:
        axes.hlines(middle, place - 0.25, place + 0.25, color=INK)
