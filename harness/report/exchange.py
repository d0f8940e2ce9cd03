# SPDX-License-Identifier: MIT
"""The report in the formats of CI systems and kernel testers.

A campaign is a list of test cases: one for each step (it booted and was measured, with
its figures) and one for each expectation. JUnit XML, KTAP and kcidb contain the same
cases; Google-benchmark JSON has the rate and the time per packet of every boot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from harness.plan import PlannedBoot
from harness.trials import MEASURES, RATES

Document = dict[str, Any]
Outcome = Literal["done", "met", "missed", "open", "error"]

FIGURES: Mapping[str, str] = MappingProxyType(
    {
        **{
            name: RATES[name].unit
            for name in ("stack_rx_pps", "delivered_pps", "cpu_ns_per_packet")
        },
        "ratio_to_step0": "",
        "list_len_p50": "packets",
        "ip_rcv_per_packet": "calls/packet",
        **{name: measure.unit for name, measure in MEASURES.items()},
    }
)
"""Figures of a step that are exported, and their units."""

_ORIGIN = "receive_batching"
_KCIDB_VERSION = {"major": 5, "minor": 3}
_KCIDB_STATUS = {
    "done": "DONE",
    "met": "PASS",
    "missed": "FAIL",
    "open": "SKIP",
    "error": "ERROR",
}
_UNPRINTABLE = re.compile(r"[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, kw_only=True)
class _Case:
    kind: Literal["measured", "expected"]
    name: str
    step: str
    outcome: Outcome
    detail: str
    figures: Mapping[str, float]


def _cases(report: Document) -> Iterator[_Case]:
    for row in report["rows"]:
        of_step = PlannedBoot(0, 0, row["step"]).directory.partition("-s")[2]
        problems = [text for text in report["problems"] if f"-s{of_step}: " in text]
        void = _without_rates(report, row)
        yield _Case(
            kind="measured",
            name=f"step{row['step']}",
            step=row["step"],
            outcome="error" if problems else "open" if void else "done",
            detail=_UNPRINTABLE.sub("?", "\n".join(problems or void)),
            figures=_figures(row),
        )
    for found in report["expectations"]:
        yield _Case(
            kind="expected",
            name=f"expected {found['expected']}",
            step=found["step"],
            outcome=found["outcome"],
            detail=found["why"],
            figures={},
        )


def _without_rates(report: Document, row: Document) -> list[str]:
    """Why no rate of a step is valid; empty if one is valid or no timed trial was planned."""
    if any(boot["trials"] for boot in row["by_boot"]):
        return []
    own = [
        void for void in report["void"] if (void["step"], void["kind"]) == (row["step"], "timed")
    ]
    return [
        f"no rate: {len(own)} timed trials void, the first by {reason['rule']}: {reason['detail']}"
        for reason in (own[0]["reasons"] if own else ())[:1]
    ]


def junit(report: Document) -> str:
    """JUnit XML: one suite with a case for each step and each expectation."""
    from junitparser import Error, Failure, JUnitXml, Skipped, TestCase, TestSuite

    results = {"missed": Failure, "open": Skipped, "error": Error}
    suite = TestSuite(f"receive-batching {report['campaign']['bed']}")
    suite.timestamp = report["campaign"]["created"]
    suite.add_property("label", report["label"])
    suite.add_property("campaign", report["campaign"]["id"])
    for case in _cases(report):
        made = TestCase(case.name, classname="receive-batching")
        if result := results.get(case.outcome):
            made.result = [result(case.detail)]
        made.system_out = "\n".join([case.detail, *_figure_lines(case)]).strip()
        suite.add_testcase(made)
    xml = JUnitXml("receive-batching")
    xml.add_testsuite(suite)
    return str(xml.tostring(), "utf-8")  # type: ignore[no-untyped-call]


def ktap(report: Document) -> str:
    """KTAP, as in Documentation/dev-tools/ktap.rst."""
    cases = list(_cases(report))
    lines = ["KTAP version 1", f"# {report['label']}", f"1..{len(cases)}"]
    for number, case in enumerate(cases, start=1):
        lines += [f"# {line}" for line in [*case.detail.splitlines(), *_figure_lines(case)]]
        passed = "not ok" if case.outcome in ("missed", "error") else "ok"
        skipped = " # SKIP the campaign cannot tell" if case.outcome == "open" else ""
        lines.append(f"{passed} {number} {case.name}{skipped}")
    return "\n".join(lines)


def kcidb(report: Document) -> str:
    """KernelCI's report, schema 5.3: a checkout and a build per step, a test per figure."""
    campaign = report["campaign"]
    head = f"{_ORIGIN}:{campaign['id']}"
    checkouts, builds, tests = [], [], []
    for step, variant in campaign["variants"].items():
        own = {"id": f"{head}-step{step}", "origin": _ORIGIN}
        patches = variant.get("patches") or []
        checkouts.append(
            own
            | {
                "comment": f"{campaign['kernel'] or 'kernel'} with {len(patches)} patches",
                "valid": True,
                "start_time": campaign["created"],
            }
        )
        builds.append(
            own
            | {
                "checkout_id": own["id"],
                "architecture": "x86_64",
                "compiler": str(variant.get("compiler") or ""),
                "config_name": str(variant.get("config_sha256") or "")[:12],
                "status": "PASS",
                "misc": variant,
            }
        )
    for number, case in enumerate(_cases(report)):
        test = {
            "id": f"{head}-{number}",
            "origin": _ORIGIN,
            "build_id": f"{head}-step{case.step}",
            "environment": {"comment": f"bed {campaign['bed']}: {report['label']}"},
            "start_time": campaign["created"],
            "comment": case.name,
            "status": _KCIDB_STATUS[case.outcome],
        }
        if case.detail:
            test["log_excerpt"] = case.detail[-16384:]
        path = f"{_ORIGIN}.{case.kind}"
        tests.append(test | {"path": path})
        for name, value in case.figures.items():
            figure = {"value": value} | ({"unit": FIGURES[name]} if FIGURES[name] else {})
            tests.append(
                test
                | {
                    "id": f"{head}-{number}-{name}",
                    "path": f"{path}.{name}",
                    "status": "DONE",
                    "number": figure,
                }
            )
    return json.dumps(
        {"version": _KCIDB_VERSION, "checkouts": checkouts, "builds": builds, "tests": tests},
        indent=1,
    )


def google_benchmark(report: Document) -> str:
    """Google benchmark's JSON: the time per packet of each boot, and the median."""
    campaign = report["campaign"]
    benchmarks: list[Document] = []
    for family, row in enumerate(report["rows"]):
        name = f"receive/step{row['step']}"
        boots = [boot for boot in row["by_boot"] if boot.get("stack_rx_pps")]
        common = {
            "run_name": name,
            "family_index": family,
            "per_family_instance_index": 0,
            "repetitions": len(boots),
            "threads": 1,
        }
        for index, boot in enumerate(boots):
            benchmarks.append(
                {
                    "name": name,
                    **common,
                    "run_type": "iteration",
                    "repetition_index": index,
                    "iterations": len(boot["trials"]),
                    **_times(boot),
                }
            )
        if row["stack_rx_pps"]:
            benchmarks.append(
                {
                    "name": f"{name}_median",
                    **common,
                    "run_type": "aggregate",
                    "aggregate_name": "median",
                    "aggregate_unit": "time",
                    "iterations": len(boots),
                    **_times(row),
                }
            )
    context = {
        "date": campaign["created"],
        "host_name": campaign["bed"],
        "executable": "harness",
        "num_cpus": campaign["provenance"].get("host_cpus") or 0,
        "mhz_per_cpu": 0,
        "cpu_scaling_enabled": False,
        "caches": [],
        "library_build_type": "release",
        "label": report["label"],
        "complete": report["complete"],
    }
    return json.dumps({"context": context, "benchmarks": benchmarks}, indent=1)


def _times(rates: Document) -> Document:
    real_ns = 1e9 / rates["stack_rx_pps"]
    return {
        "real_time": real_ns,
        "cpu_time": rates.get("cpu_ns_per_packet") or real_ns,
        "time_unit": "ns",
        "items_per_second": rates["stack_rx_pps"],
    }


def _figures(row: Document) -> dict[str, float]:
    found = {name: row.get(name) for name in FIGURES}
    found |= {name: measured["median"] for name, measured in row["measures"].items()}
    return {name: value for name, value in found.items() if value is not None}


def _figure_lines(case: _Case) -> list[str]:
    return [f"{name}: {value:.6g} {FIGURES[name]}".rstrip() for name, value in case.figures.items()]
