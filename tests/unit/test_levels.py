# SPDX-License-Identifier: MIT
"""Campaigns in which factors were varied: their verdicts, and every form of their report."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from harness import cells
from harness.base.errors import ConfigurationError
from harness.report import document, render, schema
from harness.results.analysis import analyse
from harness.results.compare import compare
from harness.results.expect import check, parse
from harness.results.rows import Analysis
from harness.results.samples import ResultDirectory, read_campaign
from harness.results.trend import trend
from tests.unit.synthetic import make_campaign
from tests.unit.test_report_html import Page

pytestmark = pytest.mark.unit

GAIN = {"1": 1.0, "8": 1.05, "64": 1.3}
"""Of step 8, by burst."""
RATE = {"1": 1.0, "8": 1.5, "64": 2.0}
"""Of step 0, over that at the first level."""
EFFECTS = {
    cell: RATE[level] * (GAIN[level] if cells.variant_of(cell) == "8" else 1.0)
    for cell in cells.crossed(("0", "8"), {"burst": tuple(GAIN)})
    for level in [cells.levels_of(cell)["burst"]]
}


def in_lists_of_the_burst(boot: Any, _block: int, _position: int, cell: str) -> Any:
    length = int(cells.levels_of(cell)["burst"])
    for trial in boot["trials"]:
        for stage in (trial["trace"] or {}).get("stages", ()):
            full, rest = divmod(stage["packets"], length)
            stage["lengths"] = [0] * 65
            stage["lengths"][length] = full
            stage["lengths"][rest] += bool(rest)
            stage.update(calls=full + bool(rest), max=length, min=rest or length)
    return boot


def measured(root: Path, *, blocks: int = 8, **options: Any) -> Analysis:
    usual: dict[str, Any] = {"effects": EFFECTS, "edit": in_lists_of_the_burst, "trials": 1}
    make_campaign(root, blocks=blocks, **usual | options)
    return analyse(ResultDirectory.open(root))


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return measured(tmp_path_factory.mktemp("levels") / "out")


@pytest.fixture(scope="module")
def report(analysis: Analysis) -> dict[str, Any]:
    return document(analysis)


def test_each_level_has_its_own_baseline(analysis: Analysis) -> None:
    assert analysis.complete
    for level, gain in GAIN.items():
        row = analysis.row(f"8[burst={level}]")
        assert row.change is not None
        assert row.change.estimate == pytest.approx(gain, rel=0.03)
        assert row.driver_lists is not None
        assert row.driver_lists.p50 == int(level)
        base = analysis.row(f"0[burst={level}]")
        assert base.change is not None
        assert set(base.change.ratios) == {1.0}
        assert base.verdict is None


def test_what_levels_do_is_found(analysis: Analysis) -> None:
    found = {(one.metric, one.step, one.level): one for one in analysis.contrasts}
    assert all(one.reference == "1" for one in analysis.contrasts)
    gain = found["stack_rx_pps", "8", "64"]
    assert gain.interaction
    assert gain.verdict is not None
    assert gain.verdict.outcome == "faster"
    assert gain.verdict.ratio == pytest.approx(1.3, rel=0.03)
    base = found["stack_rx_pps", "0", "8"]
    assert not base.interaction
    assert base.verdict is not None
    assert base.verdict.ratio == pytest.approx(1.5, rel=0.03)
    cost = found["cpu_ns_per_packet", "8", "64"].verdict
    assert cost is not None
    assert cost.ratio == pytest.approx(1 / 1.3, rel=0.03)
    assert [*found] == [
        (metric, step, level)
        for metric in ("stack_rx_pps", "cpu_ns_per_packet")
        for step in ("8", "0")
        for level in ("64", "8")
    ]


def test_an_interaction_is_the_difference_of_the_differences_of_each_block(
    analysis: Analysis,
) -> None:
    gain = next(one for one in analysis.contrasts if (one.step, one.level) == ("8", "64"))
    own, reference = (analysis.row(f"8[burst={level}]").change for level in ("64", "1"))
    assert own is not None
    assert reference is not None
    assert gain.change.ratios == tuple(
        a / b for a, b in zip(own.ratios, reference.ratios, strict=True)
    )


def test_with_two_factors_each_is_averaged_over_the_other(tmp_path: Path) -> None:
    effects = {
        cell: 1 + 0.2 * ("gro=off" in cell) * (cell[0] == "8") + 0.5 * ("rx_usecs=60" in cell)
        for cell in cells.crossed(("0", "8"), {"gro": ("on", "off"), "rx_usecs": ("0", "60")})
    }
    found = measured(tmp_path / "out", effects=effects, edit=lambda boot, *_: boot)
    one = next(one for one in found.contrasts if (one.factor, one.step) == ("gro", "8"))
    log = (math.log(1.2) + math.log(1.7 / 1.5)) / 2
    assert one.verdict is not None
    assert math.log(one.verdict.ratio) == pytest.approx(log, abs=0.03)
    assert document(found)["rows"][1]["levels"] == {"gro": "on", "rx_usecs": "0"}


def test_the_sentences_name_levels(report: dict[str, Any]) -> None:
    shown = render(report, "table")
    assert "at burst=64, step 8 receives " in shown
    assert "more packets per second than step 0 (8 blocks)" in shown
    assert "step 8's gain over step 0 differs between burst=1 and burst=64: the ratio is " in shown
    assert "% higher at burst=64 (8 blocks)" in shown
    assert "step 0 receives " in shown
    assert "more packets per second at burst=8 than at burst=1" in shown
    assert " needs " not in shown, "CPU time only where the rate has no verdict"
    assert "no verdict on step" not in shown
    assert "at burst=64, step 8 against step 0: faster" in shown


def test_list_length_stands_against_gain(report: dict[str, Any]) -> None:
    for form in ("table", "markdown"):
        shown = render(report, form)
        assert "List length against gain" in shown
        line = next(line for line in shown.splitlines() if "64/64/64" in line and "8[" not in line)
        assert line.replace("|", " ").split()[:2] == ["64", "8"]
        assert "What levels do" in shown


def test_the_page_has_the_figure_and_the_tables(report: dict[str, Any]) -> None:
    page = Page(render(report, "html"))
    html = render(report, "html")
    assert page is not None
    assert '<figure id="gain">' in html
    assert html.count("<h2>List length against gain</h2>") == 2
    assert "packets in a list (median)" in html
    assert "burst=64 with 1" in html


def test_programs_get_columns(report: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(render(report, "csv"))))
    assert [row["step"] for row in rows] == [*EFFECTS]
    last = rows[-1]
    assert (last["variant"], last["burst"], last["list_len_p50"]) == ("8", "64", "64")
    assert float(last["ratio_interval_low"]) > 1.2
    assert float(last["cpu_ratio_to_step0"]) == pytest.approx(1 / 1.3, rel=0.05)
    assert last["cpu_verdict"] == "lower"


def test_the_document_is_as_its_schema_says(report: dict[str, Any]) -> None:
    Draft202012Validator(schema()).validate(json.loads(render(report, "json")))
    assert report["factors"] == {"burst": ["1", "8", "64"]}
    words = {(one["kind"], one["metric"], one["level"]): one["verdict"]["verdict"]
             for one in report["contrasts"]}  # fmt: skip
    assert words["interaction", "stack_rx_pps", "64"] == "larger"
    assert words["interaction", "cpu_ns_per_packet", "64"] == "smaller"
    assert words["baseline", "stack_rx_pps", "64"] == "faster"
    assert words["baseline", "cpu_ns_per_packet", "64"] == "lower"


def test_a_campaign_without_levels_has_nothing_of_it(tmp_path: Path) -> None:
    make_campaign(tmp_path, effects={"0": 1.0, "8": 1.1}, blocks=6, trials=1)
    plain = document(analyse(ResultDirectory.open(tmp_path)))
    assert not plain.keys() & {"factors", "contrasts"}
    assert not plain["rows"][0].keys() & {"variant", "levels", "cost"}
    for form in ("table", "html", "csv"):
        shown = render(plain, form)
        assert "What levels do" not in shown
        assert "cpu_ratio" not in shown


@pytest.mark.parametrize("form", ["junit", "ktap", "kcidb", "google-benchmark"])
def test_a_cell_is_a_case(report: dict[str, Any], form: str) -> None:
    assert "step8[burst=64]" in render(report, form)


def test_a_lost_boot_is_that_of_its_cell(tmp_path: Path) -> None:
    def lose(boot: Any, block: int, position: int, cell: str) -> Any:
        kept = in_lists_of_the_burst(boot, block, position, cell)
        return None if (block, cell) == (2, "8[burst=8]") else kept

    shown = render(document(measured(tmp_path / "out", edit=lose, blocks=2)), "ktap")
    assert "not ok 4 step8[burst=8]" in shown
    assert "not ok" not in shown.replace("not ok 4 step8[burst=8]", "")


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("step8[burst=64] stack_rx_pps > 1.1x step0[burst=64]", "met"),
        ("8[burst=64] stack_rx_pps > 1.5x 0[burst=64]", "missed"),
        ("step0[burst=64] stack_rx_pps > 1.5x step0[burst=1]", "met"),
        ("step8[burst=8] list_len_p50 <= 8", "met"),
    ],
)
def test_an_expectation_names_a_cell(analysis: Analysis, text: str, outcome: str) -> None:
    assert check(parse(text, analysis.campaign.steps), analysis).outcome == outcome


def test_an_expectation_without_levels_is_refused(analysis: Analysis) -> None:
    with pytest.raises(ConfigurationError, match="step 8, which is not measured") as refused:
        parse("step8 stack_rx_pps > step0", analysis.campaign.steps)
    assert "8[burst=64]" in (refused.value.hint or "")


def test_levels_may_be_in_any_order() -> None:
    steps = cells.crossed(("0", "8"), {"gro": ("on", "off"), "burst": ("1", "8")})
    assert parse("8[burst=8,gro=on] > 0".replace(">", "void_trials <"), steps).step == (
        "8[gro=on,burst=8]"
    )


def test_campaigns_with_the_same_levels_are_compared(tmp_path: Path, analysis: Analysis) -> None:
    other = measured(tmp_path / "2", seed=3)
    found = compare(analysis, other)
    assert [one["step"] for one in found["steps"]] == [f"8[burst={level}]" for level in GAIN]
    assert all(one["verdict"] in ("no difference", "inconclusive") for one in found["steps"])


def test_with_other_levels_they_are_not(tmp_path: Path, analysis: Analysis) -> None:
    fewer = {cell: effect for cell, effect in EFFECTS.items() if "=8]" not in cell}
    other = measured(tmp_path / "2", effects=fewer)
    with pytest.raises(ConfigurationError, match="--vary burst: 1, 8, 64 and 1, 64"):
        compare(analysis, other)
    make_campaign(tmp_path / "3", effects={"0": 1.0, "8": 1.1}, blocks=6, trials=1)
    plain = analyse(ResultDirectory.open(tmp_path / "3"))
    with pytest.raises(ConfigurationError, match="--vary burst: 1, 8, 64 and not varied"):
        compare(analysis, plain)


def test_a_trend_has_a_line_for_each_level(tmp_path: Path) -> None:
    for number in (1, 2):
        about = {"id": str(number), "created": f"2026-01-0{number}T00:00:00Z"}
        measured(tmp_path / str(number), seed=number, about=about)
    make_campaign(
        tmp_path / "3", effects={"0": 1.0, "8": 1.1}, blocks=6, trials=1,
        about={"id": "3", "created": "2026-01-01T12:00:00Z"},
    )  # fmt: skip
    found = trend([tmp_path], ["stack_rx_pps"])
    assert [one.line for one in found.series] == [f"8[burst={level}]" for level in GAIN]
    assert found.series[2].points[0].ratio == pytest.approx(1.3, rel=0.03)
    assert "at the levels of each line" in found.control
    [left] = found.left_out
    assert any("--vary burst" in reason for reason in left.reasons)


def test_where_the_receiver_is_not_saturated_its_cpu_time_is_judged(tmp_path: Path) -> None:
    def idle(boot: Any, block: int, position: int, cell: str) -> Any:
        for trial in boot["trials"]:
            for end in (trial["window"] or {}).values():
                for cpu in end.get("cpu", ()) if isinstance(end, dict) else ():
                    cpu["idle_ns"] = end["monotonic_ns"] // 5
        return in_lists_of_the_burst(boot, block, position, cell)

    found = measured(tmp_path / "out", edit=idle)
    assert {one.metric for one in found.contrasts if one.verdict} == {"cpu_ns_per_packet"}
    shown = render(document(found), "table")
    assert "no verdict: the receiver was not saturated" in shown
    assert "at burst=64, step 8 needs " in shown
    assert "less CPU time per packet than step 0 (8 blocks)" in shown
    assert "CPU time per packet over step 0 differs between burst=1 and burst=64: the" in shown
    assert "% lower at burst=64 (8 blocks)" in shown
    assert "step 0 needs " in shown
    assert render(document(found), "html").count('aria-label="List length against gain"') == 1


def test_few_blocks_decide_nothing_of_many_comparisons(tmp_path: Path) -> None:
    """The smallest p-value of six blocks, 0.031, is shared by five families."""
    found = measured(tmp_path / "out", blocks=6)
    verdicts = [one.verdict for one in found.contrasts if one.metric == "stack_rx_pps"]
    assert all(one is not None and one.outcome == "inconclusive" for one in verdicts)
    first = found.contrasts[0].verdict
    assert first is not None
    assert first.p_corrected == pytest.approx(5 * first.p_value)


def test_few_blocks_show_figures_without_words(tmp_path: Path) -> None:
    found = document(measured(tmp_path / "out", blocks=4))
    shown = render(found, "table")
    assert "not enough boots for a verdict (4 of 6 blocks)" in shown
    assert found["contrasts"][0]["verdict"] is None
    assert "List length against gain" in shown
    assert render(found, "html")


def test_the_campaign_keeps_its_format(tmp_path: Path, analysis: Analysis) -> None:
    measured(tmp_path, blocks=1)
    assert read_campaign(tmp_path).factors == analysis.campaign.factors
    assert "factors" not in json.loads((tmp_path / "campaign.json").read_text())
