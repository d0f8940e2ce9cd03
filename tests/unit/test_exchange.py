# SPDX-License-Identifier: MIT
"""The formats for CI, read by those who read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import junitparser
import kcidb_io
import pytest

from harness.report import document, render
from harness.results.analysis import analyse
from harness.results.expect import hold, parse
from harness.results.samples import ResultDirectory
from tests.unit.synthetic import make_campaign
from tests.unit.test_beside import OF_UDP, with_extras

pytestmark = pytest.mark.unit

STEPS = ("0", "2", "8")


def lose_a_boot(boot: Any, block: int, _position: int, step: str) -> Any:
    if (block, step) != (2, "2"):
        return boot
    return boot | {
        "outcome": "failed",
        "trials": [],
        "error": {"class": "KernelError", "message": "BUG: \x1b[31m<oops> & more"},
    }


def report(root: Path, *expectations: str, blocks: int = 6, **options: Any) -> dict[str, Any]:
    make_campaign(
        root, effects=dict(zip(STEPS, (1, 1.1, 1.3), strict=True)), blocks=blocks, **options
    )
    analysis = analyse(ResultDirectory.open(root))
    return document(analysis, hold(analysis, [parse(text, STEPS) for text in expectations]))


def outcomes(xml: str) -> dict[str, list[str]]:
    [suite] = junitparser.JUnitXml.fromstring(xml.encode())
    return {case.name: [type(result).__name__ for result in case.result] for case in suite}


EXPECTED = ("step8 stack_rx_pps > 1.1x step0", "step2 stack_rx_pps > 1.5x step0")


def test_junit(tmp_path: Path) -> None:
    assert outcomes(render(report(tmp_path, *EXPECTED), "junit")) == {
        "step0": [],
        "step2": [],
        "step8": [],
        f"expected {EXPECTED[0]}": [],
        f"expected {EXPECTED[1]}": ["Failure"],
    }


def test_measures_of_every_kind_go_along(tmp_path: Path) -> None:
    made = report(tmp_path, edit=with_extras)
    for form in ("junit", "ktap", "kcidb"):
        shown = render(made, form)
        assert [name for name in OF_UDP if name not in shown] == []


def test_junit_of_a_campaign_in_which_a_kernel_died(tmp_path: Path) -> None:
    xml = render(report(tmp_path, EXPECTED[0], edit=lose_a_boot), "junit")
    found = outcomes(xml)
    assert found["step2"] == ["Error"]
    assert found["step8"] == []
    assert found[f"expected {EXPECTED[0]}"] == ["Skipped"]
    assert "&lt;oops&gt; &amp; more" in xml


def test_ktap(tmp_path: Path) -> None:
    lines = render(report(tmp_path, *EXPECTED, edit=lose_a_boot), "ktap").splitlines()
    assert lines[0] == "KTAP version 1"
    assert "1..5" in lines
    results = [line for line in lines if not line.startswith(("#", "KTAP", "1.."))]
    assert results == [
        "ok 1 step0",
        "not ok 2 step2",
        "ok 3 step8",
        f"ok 4 expected {EXPECTED[0]} # SKIP the campaign cannot tell",
        f"ok 5 expected {EXPECTED[1]} # SKIP the campaign cannot tell",
    ]


@pytest.mark.parametrize("edit", [lambda boot, *_: boot, lose_a_boot, with_extras])
def test_kcidb_is_what_its_schema_asks_for(tmp_path: Path, edit: Any) -> None:
    made = json.loads(render(report(tmp_path, *EXPECTED, edit=edit), "kcidb"))
    kcidb_io.schema.V5_3.validate(made)
    statuses = {test["comment"]: test["status"] for test in made["tests"] if "number" not in test}
    lost = edit is lose_a_boot
    assert statuses["step2"] == ("ERROR" if lost else "DONE")
    assert statuses[f"expected {EXPECTED[1]}"] == ("SKIP" if lost else "FAIL")
    builds = {build["id"] for build in made["builds"]}
    assert {test["build_id"] for test in made["tests"]} <= builds
    assert len({test["id"] for test in made["tests"]}) == len(made["tests"])


def test_google_benchmark(tmp_path: Path) -> None:
    shown = report(tmp_path)
    made = json.loads(render(shown, "google-benchmark"))
    medians = {
        entry["run_name"]: entry["items_per_second"]
        for entry in made["benchmarks"]
        if entry["run_type"] == "aggregate"
    }
    assert medians == {f"receive/step{row['step']}": row["stack_rx_pps"] for row in shown["rows"]}
    boots = [entry for entry in made["benchmarks"] if entry["run_type"] == "iteration"]
    assert len(boots) == 6 * len(STEPS)
    for entry in boots:
        assert entry["real_time"] * entry["items_per_second"] == pytest.approx(1e9)


def test_every_format_holds_an_incomplete_campaign(tmp_path: Path) -> None:
    shown = report(tmp_path, blocks=1, edit=lambda *_: None)
    for form in ("junit", "ktap", "kcidb"):
        assert "step8" in render(shown, form)
    assert json.loads(render(shown, "google-benchmark"))["benchmarks"] == []
