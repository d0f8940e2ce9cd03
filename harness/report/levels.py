# SPDX-License-Identifier: MIT
"""Where factors were varied: the gain of each step by level, and what levels do.

Uses only the report document.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tabulate import tabulate

from harness.plan import BASELINE

Document = dict[str, Any]

_NONE = "—"
_CHANGE = "change [interval] or (range of blocks)"
_LIST_FACTOR = "burst"
"""It decides how long lists are."""
_RATE = "stack_rx_pps"


def title(report: Document) -> str:
    """The name of the table by level."""
    lists = _LIST_FACTOR in report["factors"]
    return "List length against gain" if lists else "Gain by level"


def headers(report: Document) -> list[str]:
    return [
        *report["factors"],
        "step",
        "list length p50/p90/max",
        f"packets/s: {_CHANGE}",
        "CPU ns/packet",
        f"CPU time: {_CHANGE}",
    ]


def level_cells(report: Document) -> list[list[str]]:
    """The table by level under :func:`headers`; the range if there are too few blocks."""
    return [
        [
            *row["levels"].values(),
            row["variant"],
            _lengths(row),
            _change(report, row, row),
            _NONE if cost is None else f"{cost['median']:,.0f}",
            _change(report, row, cost),
        ]
        for row in report["rows"]
        for cost in [row["cost"]]
    ]


def _lengths(row: Document) -> str:
    lengths = [row[f"list_len_{name}"] for name in ("p50", "p90", "max")]
    return _NONE if None in lengths else "/".join(str(length) for length in lengths)


def _change(report: Document, row: Document, found: Document | None) -> str:
    if row["variant"] == report["baseline"]:
        return "baseline"
    if found is None or found["ratio_to_step0"] is None:
        return _NONE
    return _with_interval(found["ratio_to_step0"], interval_of(found), found["ratio_range"])


def interval_of(found: Document) -> list[float] | None:
    """The interval of a row, or of a measure beside it."""
    if "ratio_interval" in found:
        return list(found["ratio_interval"]) if found["ratio_interval"] else None
    return list(found["verdict"]["interval"]) if found["verdict"] else None


def _with_interval(ratio: float, interval: list[float] | None, spread: list[float]) -> str:
    low, high = (f"{100 * (end - 1):+.1f}%" for end in interval or spread)
    ends = f"[{low} … {high}]" if interval else f"({low} … {high})"
    return f"{100 * (ratio - 1):+.1f}% {ends}"


CONTRAST_HEADERS = ("compared", "of", _CHANGE, "verdict")


def contrast_cells(report: Document) -> list[list[str]]:
    """What levels do, under :data:`CONTRAST_HEADERS`."""
    return [
        [
            f"{found['factor']}={found['level']} with {found['reference']}",
            ("" if found["kind"] == "baseline" else "gain of ")
            + f"{_named(found, found['step'])}, "
            + ("packets/s" if found["metric"] == _RATE else "CPU time/packet"),
            _with_interval(found["ratio"], found["interval"], found["ratio_range"]),
            found["verdict"]["verdict"] if found["verdict"] else _NONE,
        ]
        for found in report["contrasts"]
    ]


def tables(report: Document, tablefmt: str) -> list[str]:
    """Both tables, if factors were varied."""
    if not report.get("factors"):
        return []
    shown = [
        (title(report), headers(report), level_cells(report)),
        ("What levels do", CONTRAST_HEADERS, contrast_cells(report)),
    ]
    return [
        line
        for name, heads, rows in shown
        if rows
        for line in (
            f"{name}:",
            *[""] * (tablefmt != "simple"),
            tabulate(rows, headers=heads, tablefmt=tablefmt, disable_numparse=True),
            "",
        )
    ]


def flat(row: Document) -> Document:
    """The columns that a row of CSV has in addition."""
    cost = row.get("cost")
    if "levels" not in row:
        return {}
    found: Document = {"variant": row["variant"], **row["levels"]}
    low, high = (cost and cost["ratio_range"]) or (None, None)
    least, most = (cost and interval_of(cost)) or (None, None)
    return found | {
        "cpu_ratio_to_step0": cost and cost["ratio_to_step0"],
        "cpu_ratio_range_low": low,
        "cpu_ratio_range_high": high,
        "cpu_ratio_interval_low": least,
        "cpu_ratio_interval_high": most,
        "cpu_verdict": cost and cost["verdict"] and cost["verdict"]["verdict"],
    }


def sentences(report: Document) -> Iterator[str]:
    """The verdicts on what levels do, and on CPU time per packet where the rate has none."""
    if not report.get("factors"):
        return
    rated = {verdict["step"] for verdict in report["verdicts"]}
    for row in report["rows"]:
        verdict = row["cost"] and row["cost"]["verdict"]
        if verdict and row["step"] not in rated and row["variant"] != report["baseline"]:
            at = ", ".join(f"{key}={level}" for key, level in row["levels"].items())
            step, base = (_named(report, name) for name in (row["variant"], report["baseline"]))
            yield (
                f"at {at}, {step} needs {_more(verdict, 'CPU time per packet')} than {base} "
                f"{_blocks(verdict)}"
                if verdict["verdict"] in ("higher", "lower")
                else f"at {at}, CPU time per packet of {step} and {base}: {_not_found(verdict)}"
            )
    told = set()
    for found in report["contrasts"]:  # those of the rate come first
        compared = tuple(found[name] for name in ("factor", "level", "step"))
        if found["verdict"] and compared not in told:
            told.add(compared)
            yield _contrast(found, found["verdict"])


def _contrast(found: Document, verdict: Document) -> str:
    levels = [f"{found['factor']}={found[which]}" for which in ("reference", "level")]
    rate = found["metric"] == _RATE
    step, base = (_named(found, found[role]) for role in ("step", "baseline"))
    decided = verdict["verdict"]
    differs = decided not in ("no difference", "inconclusive")
    if found["kind"] == "interaction":
        what = f"{step}'s {'gain' if rate else 'CPU time per packet'} over {base}"
        between = f"between {' and '.join(levels)}"
        if not differs:
            return f"{what} {between}: {_not_found(verdict)}"
        least, most = _ends(verdict)
        word = "higher" if verdict["ratio"] > 1 else "lower"
        return (
            f"{what} differs {between}: the ratio is {least:.1f} to {most:.1f} % {word} at "
            f"{levels[1]} {_blocks(verdict)}"
        )
    if not differs:
        what = "packet rate" if rate else "CPU time per packet"
        return f"{step}'s {what} at {levels[1]} and at {levels[0]}: {_not_found(verdict)}"
    verb, of = ("receives", "packets per second") if rate else ("needs", "CPU time per packet")
    return (
        f"{step} {verb} {_more(verdict, of)} at {levels[1]} than at {levels[0]} {_blocks(verdict)}"
    )


def _named(found: Document, step: str) -> str:
    return f"{'step' if found['baseline'] == BASELINE else 'variant'} {step}"


def _ends(verdict: Document) -> tuple[float, float]:
    least, most = sorted(abs(100 * (end - 1)) for end in verdict["interval"])
    return least, most


def _more(verdict: Document, of: str) -> str:
    least, most = _ends(verdict)
    fewer = "fewer" if of.startswith("packets") else "less"
    return f"{least:.1f} to {most:.1f} % {'more' if verdict['ratio'] > 1 else fewer} {of}"


def _not_found(verdict: Document) -> str:
    if verdict["verdict"] == "no difference":
        return f"no difference larger than {100 * verdict['margin']:g} % {_blocks(verdict)}"
    low, high = (100 * (end - 1) for end in verdict["interval"])
    return f"open, {low:+.1f} to {high:+.1f} % {_blocks(verdict)}"


def _blocks(verdict: Document) -> str:
    return f"({verdict['blocks']} {verdict['unit']}s)"
