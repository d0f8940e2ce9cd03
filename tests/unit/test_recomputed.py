# SPDX-License-Identifier: MIT
"""Every p-value and interval of a report, computed again by scipy from its raw samples."""

from __future__ import annotations

import csv
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import page_trend_test, wilcoxon

from harness.report import document, render
from harness.results.analysis import analyse
from harness.results.samples import ResultDirectory
from tests.unit.synthetic import make_campaign

pytestmark = pytest.mark.unit

Json = dict[str, Any]
Floats = NDArray[np.float64]

EFFECTS = {"0": 1.0, "2": 1.0, "5": 1.03, "8": 1.06, "shipped": 1.05}
BLOCKS = 10


def _report(root: Path, *, layouts: int = BLOCKS, effects: dict[str, float] = EFFECTS) -> Json:
    def edit(boot: Json, block: int, _position: int, step: str) -> Json:
        return boot | {"release": f"6.12.0-rb-s{step}-l{(block - 1) % layouts}"}

    make_campaign(root, effects=effects, blocks=BLOCKS, seed=5, edit=edit)
    return document(analyse(ResultDirectory.open(root)))


def _logs(report: Json) -> dict[str, Floats]:
    """By step, the logarithm of its median rate over the baseline's, by block."""
    rates = {
        row["step"]: np.log(
            [
                statistics.median(boot["trials"])
                for boot in sorted(row["by_boot"], key=lambda boot: boot["block"])
            ]
        )
        for row in report["rows"]
    }
    return {step: rate - rates["0"] for step, rate in rates.items()}


def _by_scipy(values: Floats, bound: float) -> float:
    lower = wilcoxon(values + bound, alternative="greater", method="exact").pvalue
    upper = wilcoxon(values - bound, alternative="less", method="exact").pvalue
    return float(max(lower, upper))


def _ends_where_scipy_refuses(values: Floats, interval: list[float], level: float) -> None:
    low, high = np.log(interval)
    inside = {low - 1e-9: False, low + 1e-9: True, high - 1e-9: True, high + 1e-9: False}
    for centre, kept in inside.items():
        assert (wilcoxon(values - centre, method="exact").pvalue > level) is np.bool_(kept)


def test_scipy_agrees_with_every_p_value_and_interval(tmp_path: Path) -> None:
    report = _report(tmp_path)
    logs = _logs(report)
    assert [verdict["step"] for verdict in report["verdicts"]] == ["2", "5", "8", "shipped"]
    for verdict in report["verdicts"]:
        values = logs[verdict["step"]]
        assert verdict["unit"] == "block"
        assert verdict["p_value"] == pytest.approx(wilcoxon(values, method="exact").pvalue)
        equivalent = _by_scipy(values, math.log1p(verdict["margin"]))
        assert verdict["p_equivalent"] == pytest.approx(equivalent)
        _ends_where_scipy_refuses(values, verdict["interval"], 0.05)
        _ends_where_scipy_refuses(values, verdict["equivalence_interval"], 0.1)


def test_scipy_agrees_with_the_trend(tmp_path: Path) -> None:
    report = _report(tmp_path)
    logs, trend = _logs(report), report["trend"]
    assert trend["steps"] == ["0", "2", "5", "8"]
    rows = np.column_stack([logs[step] for step in trend["steps"]])
    one_sided = page_trend_test(rows, method="exact").pvalue
    assert trend["p_value"] == pytest.approx(2 * one_sided)
    assert trend["verdict"] == "rises"
    [line] = [one for one in render(report, "table").splitlines() if "Page's trend test" in one]
    assert line.startswith("over steps 0, 2, 5, 8 the packet rate rises (Page's trend test, 10 bl")
    assert line in render(report, "html").replace("&#39;", "'")


def test_p_values_are_corrected_for_the_series_the_other_variant_and_the_trend(
    tmp_path: Path,
) -> None:
    report = _report(tmp_path)
    found = {verdict["step"]: verdict for verdict in report["verdicts"]}
    trend = report["trend"]["p_value"]
    plain = {step: verdict["p_value"] for step, verdict in found.items()}
    assert 3 * trend < 2 * plain["8"] < 2 * plain["shipped"] < plain["5"] < plain["2"]
    assert report["trend"]["p_corrected"] == pytest.approx(3 * trend)
    assert found["8"]["p_corrected"] == pytest.approx(2 * plain["8"])
    assert found["shipped"]["p_corrected"] == pytest.approx(2 * plain["shipped"])
    assert found["5"]["p_corrected"] == pytest.approx(plain["5"])
    assert found["2"]["p_corrected"] == pytest.approx(plain["2"])
    words = {step: verdict["verdict"] for step, verdict in found.items()}
    assert words == {"2": "inconclusive", "5": "inconclusive", "8": "faster",
                     "shipped": "inconclusive"}  # fmt: skip
    assert "+0.5 to +3.9 % packets per second before correction for" in render(report, "table")
    lines = {line["step"]: line for line in csv.DictReader(render(report, "csv").splitlines())}
    assert float(lines["shipped"]["p_value"]) == pytest.approx(plain["shipped"])
    assert float(lines["shipped"]["p_corrected"]) == pytest.approx(2 * plain["shipped"])
    assert lines["0"]["p_corrected"] == ""


def test_of_layouts_in_several_blocks_the_means_are_judged(tmp_path: Path) -> None:
    report = _report(tmp_path, layouts=7)
    values = _logs(report)["8"]
    means = np.asarray([values[at::7].mean() for at in range(7)])
    [verdict] = [one for one in report["verdicts"] if one["step"] == "8"]
    assert (verdict["unit"], verdict["blocks"]) == ("layout", 7)
    assert verdict["p_value"] == pytest.approx(wilcoxon(means, method="exact").pvalue)
    assert "(7 layouts, some in several blocks)" in render(report, "table")
    assert (report["trend"]["unit"], report["trend"]["blocks"]) == ("layout", 7)


def test_few_layouts_give_no_verdict_and_say_so(tmp_path: Path) -> None:
    report = _report(tmp_path, layouts=2)
    assert report["verdicts"] == []
    assert report["trend"] is None
    assert "2 of 6 layouts" in report["no_verdict"]


@pytest.mark.parametrize("steps", [["0", "8"], ["0", "0again"], ["2", "5", "8"]])
def test_no_trend_is_tested_where_no_series_is(tmp_path: Path, steps: list[str]) -> None:
    report = _report(tmp_path, effects=dict.fromkeys(steps, 1.0))
    assert report["trend"] is None
    assert "trend" not in render(report, "table")
