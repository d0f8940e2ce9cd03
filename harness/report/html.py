# SPDX-License-Identifier: MIT
"""The report as one self-contained HTML file, for screens and for paper.

Uses only the report document. The file contains no script and loads nothing; all text
from a result is escaped.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import jinja2
import matplotlib as mpl

from harness.report import level_plots, levels
from harness.report.plots import STYLE, Plot, plots
from harness.report.text import (
    BED_HEADERS,
    HEADERS,
    bed_cells,
    below_lines,
    cells,
    function_cells,
    head_lines,
    look_line,
    machines_line,
    measure_cells,
)
from harness.report.verdicts import sentences, verdict_lines

Document = dict[str, Any]


def rendered(template: str, **values: Any) -> str:
    """``template`` of this room, filled in; text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harness.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(values)


def page(report: Document) -> str:
    """``report`` as a complete HTML document."""
    campaign = report["campaign"]
    verdicts = list(verdict_lines(report))
    return rendered(
        "page.html.j2",
        report=report,
        facts=head_lines(report)[0],
        look=look_line(report),
        machines=machines_line(report),
        headers=[header.replace("\n", " ") for header in HEADERS],
        rows=list(zip(report["rows"], cells(report), strict=True)),
        bed_headers=[header.replace("\n", " ") for header in BED_HEADERS],
        bed_rows=bed_cells(report),
        sentences=list(sentences(report)),
        verdicts=verdicts,
        measures=measure_cells(report),
        functions=function_cells(report),
        notes=[line for line in below_lines(report) if line not in verdicts],
        levels=[
            (levels.title(report), levels.headers(report), levels.level_cells(report)),
            ("What levels do", levels.CONTRAST_HEADERS, levels.contrast_cells(report)),
        ]
        if report.get("factors")
        else [],
        plots=[*_of_levels(report), *plots(report)],
        tables=[
            ("Settings", list(_flat(report["settings"]))),
            ("Hosts", list(_flat(report["inventory"]))),
            ("Kernels", list(_flat(campaign["variants"]))),
            (
                "Plan",
                list(_flat({name: campaign[name] for name in ("trial", "load", "placement")}))
                + [
                    (f"block {number}" + (f", bed {bed}" if bed else ""), " ".join(order))
                    for number, (order, bed) in enumerate(
                        itertools.zip_longest(campaign["order"], campaign["block_beds"]), start=1
                    )
                ],
            ),
            ("Provenance", list(_flat(campaign["provenance"]))),
        ],
    )


def _of_levels(report: Document) -> list[Plot]:
    if not report.get("factors"):
        return []
    with mpl.rc_context(STYLE):
        return list(level_plots.drawn(report))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Nested data as pairs of dotted name and value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{index}]")
    elif name:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
