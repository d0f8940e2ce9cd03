# SPDX-License-Identifier: MIT
from __future__ import annotations

import csv
import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from harness.base.errors import ConfigurationError
from harness.commands.plan import plan as plan_command
from harness.commands.report import report as report_command
from harness.plan import DESIGN
from harness.report import FORMATS, document, render
from harness.report.verdicts import sentences
from harness.results.analysis import analyse
from harness.results.rows import Analysis, list_lengths
from harness.results.samples import ResultDirectory
from harness.trials.readings import Stage
from tests.unit.synthetic import make_campaign

pytestmark = pytest.mark.unit

TEXT_FORMATS = tuple(form for form in FORMATS if form != "html")  # has a test of its own
FIXTURES = Path(__file__).parent / "fixtures"
Json = dict[str, Any]


def _analyse(root: Path) -> Analysis:
    return analyse(ResultDirectory.open(root))


def _document(root: Path) -> Json:
    return document(_analyse(root))


def _rows(report: Json) -> dict[str, Json]:
    return {row["step"]: row for row in report["rows"]}


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six blocks with a real effect at step 8 and none at step 1."""
    return make_campaign(
        tmp_path_factory.mktemp("standard"),
        effects={"0": 1.0, "1": 1.0, "2": 1.05, "7": 1.1, "8": 1.14},
        blocks=6,
        noise=lambda rng: rng.gauss(0, 0.01),
    )


def test_effects_put_in_come_out(standard: Path) -> None:
    rows = _rows(_document(standard))
    assert list(rows) == ["0", "1", "2", "7", "8"]
    for step, effect in {"0": 1.0, "1": 1.0, "2": 1.05, "7": 1.1, "8": 1.14}.items():
        assert rows[step]["ratio_to_step0"] == pytest.approx(effect, abs=0.03)
        assert rows[step]["stack_rx_pps"] == pytest.approx(200_000 * effect, rel=0.03)
        assert rows[step]["delivered_pps"] == pytest.approx(4_000 * effect, rel=0.03)
        assert rows[step]["boots"] == 6
        assert rows[step]["drops"]["nic_ring"] == pytest.approx(0.1, abs=1e-3)
        low, high = rows[step]["ratio_range"]
        assert low <= rows[step]["ratio_to_step0"] <= high
        assert sorted(rows[step]["ratio_by_block"]) == list("123456")


def test_lists_are_shown_where_there_are_lists(standard: Path) -> None:
    rows = _rows(_document(standard))
    assert [rows[s]["list_len_p50"] for s in ("0", "1", "2", "8")] == [None, None, 64, 64]
    assert rows["0"]["ip_rcv_per_packet"] == rows["2"]["ip_rcv_per_packet"] == 1.0
    assert rows["7"]["ip_rcv_per_packet"] < 0.001
    assert [stage["name"] for stage in rows["8"]["stages"]] == [
        "netif_receive_skb_list",
        "ip_list_rcv",
    ]
    assert rows["8"]["traced_to_timed"] == pytest.approx(0.7, abs=0.03)


def test_verdicts_see_the_effect_and_not_its_absence(standard: Path) -> None:
    report = _document(standard)
    verdicts = {verdict["step"]: verdict for verdict in report["verdicts"]}
    assert verdicts["8"]["verdict"] == "faster"
    assert verdicts["8"]["interval"][0] > 1.05
    assert verdicts["8"]["interval"] == _rows(report)["8"]["ratio_interval"]
    assert verdicts["1"]["verdict"] in ("no difference", "inconclusive")
    assert verdicts["1"]["interval"][0] < 1 < verdicts["1"]["interval"][1]
    assert report["no_verdict"] is None
    table = render(report, "table")
    assert "step 8 against step 0: faster (+" in table
    assert "97% interval" in table


def _slow_down(trial: Json, factor: float) -> None:
    """Let the window of ``trial`` have lasted ``factor`` times as long for the same packets."""
    start, end = trial["window"]["start"], trial["window"]["end"]
    span = end["monotonic_ns"] - start["monotonic_ns"]
    end["monotonic_ns"] = start["monotonic_ns"] + round(span * factor)
    for stream in trial["netperf"]:
        stream["elapsed_s"] *= factor


def test_pairing_takes_out_what_a_block_shares(tmp_path: Path) -> None:
    """Blocks far apart from one another (a machine that others use) do no harm."""
    per_block: dict[int, float] = {}

    def slower(boot: Json, block: int, *_: Any) -> Json:
        factor = per_block.setdefault(block, random.Random(block).uniform(1, 4))
        for trial in boot["trials"]:
            if trial["window"]:
                _slow_down(trial, factor)
        return boot

    root = make_campaign(
        tmp_path,
        effects={"0": 1.0, "8": 1.14},
        blocks=6,
        noise=lambda rng: rng.gauss(0, 0.005),
        edit=slower,
    )
    [verdict] = _document(root)["verdicts"]
    assert verdict["interval"] == pytest.approx([1.14, 1.14], abs=0.04)


def test_boots_that_took_turns_are_paired_trial_by_trial(tmp_path: Path) -> None:
    """What slows one trial down slows that trial of all boots of the block down."""

    def slower(boot: Json, block: int, *_: Any) -> Json:
        factors = [1.0, 2.0, 4.0]
        random.Random(block).shuffle(factors)
        for trial in boot["trials"]:
            if trial["kind"] == "timed":
                _slow_down(trial, factors[trial["index"]])
        if boot["step"] == "8":  # what is left of it has another median
            lost = factors.index(1.0)
            boot["trials"] = [
                trial
                for trial in boot["trials"]
                if trial["kind"] != "timed" or trial["index"] != lost
            ]
        return boot

    root = make_campaign(
        tmp_path,
        effects={"0": 1.0, "8": 1.14},
        blocks=6,
        noise=lambda rng: rng.gauss(0, 0.005),
        edit=slower,
        slice_s=0.3,
    )
    [verdict] = _document(root)["verdicts"]
    assert verdict["interval"] == pytest.approx([1.14, 1.14], abs=0.04)


def test_published_ratios_are_computed_from_rates(standard: Path) -> None:
    rows = _rows(_document(standard))
    assert round(rows["2"]["published_ratio"], 3) == 1.103
    assert round(rows["8"]["published_ratio"], 3) == 1.270
    assert rows["7"]["published_ratio"] is None
    assert "published hardware result" in render(_document(standard), "table")


def test_what_was_delivered_is_judged_too(standard: Path) -> None:
    """A stack that takes more packets may deliver fewer."""
    report = _document(standard)
    found = _rows(report)["8"]["measures"]["delivered_pps"]["verdict"]
    assert found["verdict"] == "higher"
    assert found["p_corrected"] >= found["p_value"]
    printed = render(report, "table")
    assert "datagrams read by netserver: step 8 against step 0: higher (" in printed
    assert "other measures" not in printed  # it has a column of its own


def test_two_blocks_give_no_verdict() -> None:
    report = _document(FIXTURES / "result-v1")
    assert report["complete"]
    assert report["verdicts"] == []
    assert report["no_verdict"] == "not enough boots for a verdict (2 of 6 blocks)"
    assert report["no_verdict"] in render(report, "table")
    assert all(row["ratio_interval"] is None for row in report["rows"])


@pytest.mark.parametrize("form", TEXT_FORMATS)
def test_an_unfinished_campaign_is_incomplete_and_judges_nothing(
    standard: Path, tmp_path: Path, form: str
) -> None:
    root = tmp_path / "killed"
    shutil.copytree(standard, root)
    shutil.rmtree(max((root / "boots").iterdir()))
    report = _document(root)
    assert not report["complete"]
    assert report["verdicts"] == []
    assert report["no_verdict"] == "incomplete: 29 of 30 boots"
    shown = render(report, form)
    assert "faster" not in shown
    if form in ("table", "markdown"):
        assert "INCOMPLETE: 29 of 30 boots are finished" in shown
        assert "b06-p05" in shown


def test_a_boot_that_failed_is_named_with_its_error(tmp_path: Path) -> None:
    def panicked(boot: Json, block: int, _: int, step: str) -> Json:
        if (block, step) == (3, "8"):
            boot |= {
                "outcome": "failed",
                "error": {"class": "KernelError", "message": "panic in ip_list_rcv"},
            }
        return boot

    root = make_campaign(tmp_path, effects={"0": 1.0, "8": 1.2}, blocks=6, edit=panicked)
    report = _document(root)
    assert not report["complete"]
    assert _rows(report)["8"]["boots"] == 5
    assert "KernelError: panic in ip_list_rcv" in render(report, "table")


def test_nothing_measured_yet(tmp_path: Path) -> None:
    root = make_campaign(tmp_path, effects={"0": 1.0, "8": 1.0}, blocks=6, edit=lambda *_: None)
    report = _document(root)
    for form in TEXT_FORMATS:
        assert render(report, form)
    assert _rows(report)["8"]["stack_rx_pps"] is None
    assert "INCOMPLETE: 0 of 12 boots" in render(report, "table")


def test_void_trials_are_listed_and_left_out(tmp_path: Path) -> None:
    def moved(boot: Json, block: int, _: int, step: str) -> Json:
        if (block, step) == (1, "8"):
            timed = [trial for trial in boot["trials"] if trial["kind"] == "timed"]
            timed[0]["window"]["placement"]["irq"]["31"] = {"1": 900}
            # An absurd rate that must not reach the median.
            timed[0]["window"]["end"]["monotonic_ns"] = (
                timed[0]["window"]["start"]["monotonic_ns"] + 1000
            )
        return boot

    quiet: dict[str, Any] = {"effects": {"0": 1.0, "8": 1.1}, "blocks": 6, "trials": 2}
    root = make_campaign(tmp_path, **quiet, edit=moved)
    report = _document(root)
    [void] = report["void"]
    assert (void["block"], void["step"], void["kind"], void["index"]) == (1, "8", "timed", 0)
    assert "irq-moved" in {reason["rule"] for reason in void["reasons"]}
    assert _rows(report)["8"]["void_trials"] == 1
    assert max(_rows(report)["8"]["ratio_by_block"].values()) < 1.3
    for form in ("table", "markdown"):
        assert "void: block 1, step 8, timed trial 1: irq" in render(report, form)
    assert report["complete"]


def test_a_boot_without_valid_trials_costs_its_block(tmp_path: Path) -> None:
    def spoilt(boot: Json, block: int, _: int, step: str) -> Json:
        if (block, step) == (1, "0"):
            for trial in boot["trials"]:
                trial["netperf"][0]["status"] = 1
        return boot

    root = make_campaign(tmp_path, effects={"0": 1.0, "8": 1.1}, blocks=6, edit=spoilt)
    report = _document(root)
    assert report["complete"]
    assert sorted(_rows(report)["8"]["ratio_by_block"]) == list("23456")
    assert report["no_verdict"] == "not enough boots for a verdict (5 of 6 blocks)"


def test_without_the_baseline_nothing_is_compared(tmp_path: Path) -> None:
    root = make_campaign(tmp_path, effects={"2": 1.0, "8": 1.1}, blocks=6)
    report = _document(root)
    assert report["no_verdict"] == "step 0 was not booted: nothing to compare with"
    assert _rows(report)["8"]["ratio_to_step0"] is None
    assert render(report, "table")


def test_virtual_figures_are_never_shown_as_hardware(standard: Path) -> None:
    report = _document(standard)
    assert report["virtual"]
    for form in ("table", "markdown"):
        assert "virtual bed, TCG: not a hardware figure" in render(report, form)
    assert report["label"] == "virtual bed, TCG: not a hardware figure"


def test_csv_is_a_row_a_step(standard: Path) -> None:
    report = _document(standard)
    rows = list(csv.DictReader(io.StringIO(render(report, "csv"))))
    assert [row["step"] for row in rows] == ["0", "1", "2", "7", "8"]
    assert float(rows[4]["ratio_to_step0"]) == _rows(report)["8"]["ratio_to_step0"]
    assert rows[0]["list_len_p50"] == ""
    assert rows[4]["verdict"] == "faster"
    assert {row["virtual"] for row in rows} == {"True"}


def test_markdown_tables_have_as_many_cells_in_every_row(standard: Path) -> None:
    lines = [line for line in render(_document(standard), "markdown").splitlines() if "|" in line]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert len(lines) == 2 + 5


@pytest.mark.parametrize("steps", [("0", "2", "8"), ("0",)])
def test_the_report_is_as_its_schema_says(tmp_path: Path, steps: tuple[str, ...]) -> None:
    make_campaign(tmp_path, effects={step: 1.0 + int(step) / 40 for step in steps}, blocks=6)
    printed = CliRunner().invoke(report_command, ["--schema", "report"])
    checked = Draft202012Validator(json.loads(printed.stdout))
    for root in (tmp_path, FIXTURES / "result-v1"):
        report = _document(root)
        checked.validate(report)
        assert set(checked.schema["required"]) == set(report)
        assert set(checked.schema["$defs"]["row"]["required"]) <= set(report["rows"][0])


@pytest.mark.parametrize("name", ["campaign", "boot"])
def test_files_of_a_result_are_as_their_schema_says(name: str) -> None:
    printed = CliRunner().invoke(report_command, ["--schema", name])
    checked = Draft202012Validator(json.loads(printed.stdout))
    found = [*(FIXTURES / "result-v1").rglob(f"{name}.json")]
    assert found
    for path in found:
        checked.validate(json.loads(path.read_text()))


def test_old_results_still_read() -> None:
    """Every figure the first version reported of this directory is reported still."""
    expected = json.loads((FIXTURES / "result-v1.report.json").read_text())
    _assert_contains(_document(FIXTURES / "result-v1"), expected, "report")


def test_the_design_that_planned_and_the_one_that_judged_are_told(standard: Path) -> None:
    old, new = _document(FIXTURES / "result-v1"), _document(standard)
    assert (old["campaign"]["design"], old["design"]) == (None, DESIGN)
    [note] = [note for note in old["notes"] if "design" in note]
    assert note == f"planned before designs had names; its words are judged by design {DESIGN}"
    assert new["campaign"]["design"] == DESIGN
    assert not [note for note in new["notes"] if "design" in note]


def _assert_contains(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        assert expected.keys() <= found.keys(), where
        for name, value in expected.items():
            _assert_contains(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, value in enumerate(expected):
            _assert_contains(found[index], value, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected), where
    else:
        assert found == expected, where


def test_the_command_prints_every_format() -> None:
    for form in TEXT_FORMATS:
        ran = CliRunner().invoke(report_command, [str(FIXTURES / "result-v1"), "--format", form])
        assert ran.exit_code == 0, ran.output
        assert ran.output.endswith("\n")
    assert json.loads(CliRunner().invoke(
        report_command, [str(FIXTURES / "result-v1"), "--format", "json"]
    ).output)["schema"] == "receive-batching/report"  # fmt: skip


def test_the_plan_is_shown_without_touching_anything() -> None:
    words = ["--steps", "0,2,8,shipped", "--seed", "3"]
    ran = CliRunner().invoke(plan_command, [*words, "--bed", "virtual"])
    assert ran.exit_code == 0, ran.output
    assert "2 blocks × 4 steps = 8 boots" in ran.output
    assert "no verdict: 2 of the 7 blocks it needs" in ran.output
    usual = CliRunner().invoke(plan_command, words).output
    assert "step 0, each group for itself: step 8, then step 2 · step shipped" in usual
    assert "CPU of the interrupt: 0" in ran.output
    assert "irq-moved" in ran.output


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'pdf'"):
        render({}, "pdf")


def _stage(lengths: dict[int, int], overflow: int = 0, longest: int | None = None) -> Stage:
    counts = [lengths.get(length, 0) for length in range(65)]
    return Stage(name="netif_receive_skb_list", lengths=counts, overflow=overflow, max=longest)


def test_percentiles_are_of_lists() -> None:
    found = list_lengths(_stage({0: 100, 1: 5, 8: 4, 64: 1}))
    assert found is not None
    assert (found.lists, found.p50, found.p90, found.max) == (10, 1, 8, 64)
    assert list_lengths(_stage({0: 100})) is None
    long = list_lengths(_stage({64: 1}, overflow=9, longest=90))
    assert long is not None
    assert (long.p50, long.max) == (65, 90)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60))
def test_percentiles_are_lengths_that_occurred(lengths: list[int]) -> None:
    counts = {length: lengths.count(length) for length in lengths}
    found = list_lengths(_stage(counts))
    assert found is not None
    ordered = sorted(lengths)
    assert found.p50 == ordered[(len(ordered) + 1) // 2 - 1]
    assert found.max == ordered[-1]
    assert found.p50 <= found.p90 <= found.max


@pytest.mark.parametrize(
    ("verdict", "interval", "said"),
    [
        ("faster", (1.042, 1.061), "step 8 receives 4.2 to 6.1 % more packets per second than"),
        ("slower", (0.81, 0.862), "step 8 receives 13.8 to 19.0 % fewer packets per second than"),
        ("no difference", (0.99, 1.012), "step 8 and step 0 do not differ by more than 2 %"),
        ("inconclusive", (0.964, 1.01), "step 8 against step 0 is open: -3.6 to +1.0 %"),
    ],
)
def test_a_verdict_is_a_sentence(verdict: str, interval: tuple[float, float], said: str) -> None:
    told = {
        "step": "8", "baseline": "0", "verdict": verdict, "interval": interval, "blocks": 14,
        "unit": "block", "beds_differ": False, "margin": 0.02,
    }  # fmt: skip
    report = {"verdicts": [told], "trend": None, "no_verdict": None, "rows": [], "baseline": "0"}
    [line] = sentences(report)
    assert line.startswith(said)
    assert line.endswith("(14 blocks)")
    [line] = sentences(report | {"verdicts": [told | {"beds_differ": True}]})
    assert line == "step 8 against step 0: beds differ (14 blocks)"
    [line] = sentences(report | {"verdicts": [told | {"unit": "layout"}]})
    assert line.endswith("(14 layouts, some in several blocks)")
