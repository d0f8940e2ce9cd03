# SPDX-License-Identifier: MIT
"""Two campaigns side by side, as text: what :mod:`harness.results.compare` found."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from harness.plan import MIN_BLOCKS_FOR_VERDICT
from harness.report.verdicts import percent

Document = dict[str, Any]
_NONE = "—"


def table(comparison: Document) -> str:
    """The comparison as text for a terminal."""
    one, other = comparison["campaigns"]
    rows = [
        [
            step["step"],
            "change over step 0" if step["metric"] == "ratio_to_step0" else "stack packets/s",
            *(_value(step, index) for index in (0, 1)),
            _NONE
            if step["change"] is None
            else f"{percent(step['change'])} ({percent(step['interval'][0])} … "
            f"{percent(step['interval'][1])}, {step['confidence']:.0%})",
            _NONE
            if step["p_value"] is None
            else f"{step['p_value']:.2g} ({step['p_corrected']:.2g})",
            step["verdict"]
            or f"not enough boots ({min(step['blocks'])} of {MIN_BLOCKS_FOR_VERDICT})",
        ]
        for step in comparison["steps"]
    ]
    headers = ["step", "of", "first", "second", "second over first", "p (corrected)", "verdict"]
    return "\n".join(
        [
            f"first: {one['created']}, kernel {one['kernel']}, seed {one['seed']}",
            f"second: {other['created']}, kernel {other['kernel']}, seed {other['seed']}",
            comparison["label"],
            "",
            tabulate(rows, headers=headers, disable_numparse=True),
        ]
    )


def _value(step: Document, index: int) -> str:
    value = step["medians"][index]
    if value is None:
        return _NONE
    return percent(value) if step["metric"] == "ratio_to_step0" else f"{value:,.0f}"
