# SPDX-License-Identifier: MIT
"""What is said of a campaign on several beds: of each, and of all where they agree."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.base.errors import ConfigurationError
from harness.report import document, render
from harness.results.analysis import analyse
from harness.results.compare import compare
from harness.results.expect import check, hold, parse
from harness.results.ranks import beds_p
from harness.results.rows import Analysis
from harness.results.samples import ResultDirectory, read_campaign
from harness.results.stats import Paired, judge
from tests.unit.synthetic import make_campaign

pytestmark = pytest.mark.unit

Json = dict[str, Any]
Beds = Mapping[str, Mapping[str, float]]

ALIKE: Beds = {"a": {"0": 1, "8": 1}, "b": {"0": 3, "8": 3}}
"""One bed is thrice as fast, and step 8 does the same on both."""
UNLIKE: Beds = {"a": {"8": 1.1}, "b": {"0": 3, "8": 3 / 1.1}}


def measured(root: Path, beds: Beds, *, blocks: int = 12, **options: Any) -> Analysis:
    effects = options.pop("effects", {"0": 1.0, "8": 1.2})
    make_campaign(root, effects=effects, blocks=blocks, beds=beds, trials=2, **options)
    return analyse(ResultDirectory.open(root))


def report(root: Path, beds: Beds, **options: Any) -> Json:
    return document(measured(root, beds, **options))


def test_beds_that_agree_give_one_verdict(tmp_path: Path) -> None:
    found = report(tmp_path, ALIKE)
    [verdict] = found["verdicts"]
    assert verdict["verdict"] == "faster"
    assert verdict["interval"][0] < 1.2 < verdict["interval"][1] < 1.25
    assert verdict["blocks"] == 12
    assert verdict["p_beds"] > 0.05
    base, step8 = found["rows"]
    assert base["stack_rx_pps"] is step8["stack_rx_pps"] is None  # of unlike machines
    a, b = step8["beds"]
    assert (a["bed"], b["bed"], a["boots"], b["boots"]) == ("a", "b", 6, 6)
    assert b["stack_rx_pps"] / a["stack_rx_pps"] == pytest.approx(3, rel=0.1)
    assert a["verdict"]["verdict"] == b["verdict"]["verdict"] == "faster"
    assert {boot["block"] % 2: boot["bed"] for boot in step8["by_boot"]} == {1: "a", 0: "b"}


def test_beds_that_do_not_agree_give_none_for_all(tmp_path: Path) -> None:
    analysis = measured(tmp_path, UNLIKE, effects={"0": 1.0, "8": 1.0})
    found = document(analysis)
    [verdict] = found["verdicts"]
    assert verdict["verdict"] == "inconclusive"
    assert verdict["beds_differ"]
    own = [bed["verdict"]["verdict"] for bed in found["rows"][1]["beds"]]
    assert own == ["faster", "slower"]
    text = render(found, "table")
    assert "step 8 against step 0: inconclusive: beds differ (" in text
    assert [line.split()[4:6] for line in text.splitlines() if line.startswith("8 ")] == [
        ["beds", "differ"]
    ]
    assert "bed b: step 8 against step 0: slower (" in text
    [finding] = hold(analysis, [parse("step8 stack_rx_pps < 2x step0", ["0", "8"])])
    assert finding.outcome == "open"


def test_both_say_faster_and_the_sizes_differ(tmp_path: Path) -> None:
    analysis = measured(tmp_path, {"a": {"8": 1.2}, "b": {}})
    [verdict] = document(analysis)["verdicts"]
    assert (verdict["verdict"], verdict["beds_differ"]) == ("inconclusive", True)
    missed = check(parse("step8 stack_rx_pps > 1.01x step0", ["0", "8"]), analysis)
    assert missed.outcome == "open"
    assert "but beds differ" in missed.why


def test_what_too_few_blocks_cannot_tell_is_said(tmp_path: Path) -> None:
    found = report(tmp_path, ALIKE, blocks=6)
    [verdict] = found["verdicts"]
    assert (verdict["verdict"], verdict["p_beds"]) == ("faster", None)
    assert all(bed["verdict"] is None for bed in found["rows"][1]["beds"])
    assert "too few blocks to test this" in render(found, "table")


def test_a_bed_against_itself_has_to_agree_with_the_others(tmp_path: Path) -> None:
    odd: Beds = {"a": {"0again": 1.06}, "b": {"0again": 1 / 1.06}}
    [finding] = hold(measured(tmp_path, odd, effects={"0": 1.0, "0again": 1.0}), [])
    assert finding.outcome == "missed"
    assert "but beds differ" in finding.why


@pytest.mark.parametrize(("number", "mask"), [("position", "block"), ("block", "position")])
def test_interrupts_have_other_numbers_after_another_boot(
    tmp_path: Path, number: str, mask: str
) -> None:
    def edit(boot: dict[str, Any], *_: object) -> dict[str, Any]:
        irqs = {str(20 + boot[number]): boot[mask]}
        return boot | {"settings": {"dut": {"after": {"irq_affinity": irqs}}}}

    found = report(tmp_path, ALIKE, edit=edit, blocks=1)
    varied = [] if mask == "block" else ["dut.after.irq_affinity"]
    assert found["settings_varied"] == varied


def test_every_format_has_the_beds(tmp_path: Path) -> None:
    settings = {"dut": {"after": {"rx_queues": 1}}}
    found = report(
        tmp_path,
        ALIKE,
        edit=lambda boot, *_: boot | {"settings": settings, "inventory": {"dut": {"cpus": 4}}},
    )
    assert found["settings"] == {"a": settings, "b": settings}
    assert found["inventory"]["b"] == {"dut": {"cpus": 4}}
    assert found["settings_varied"] == []
    text = render(found, "table")
    assert text.startswith("beds a, b · ")
    rows = [line.split() for line in text.splitlines() if line[:2] in ("a ", "b ")]
    assert [row[:2] for row in rows] == [["a", "0"], ["a", "8"], ["b", "0"], ["b", "8"]]
    lines = list(csv.DictReader(io.StringIO(render(found, "csv"))))
    assert [(line["bed"], line["step"]) for line in lines] == [
        ("all", "0"), ("a", "0"), ("b", "0"), ("all", "8"), ("a", "8"), ("b", "8"),
    ]  # fmt: skip
    assert lines[3]["stack_rx_pps"] == ""
    assert float(lines[5]["stack_rx_pps"]) > 6e5
    assert lines[5]["verdict"] == "faster"
    page = render(found, "html")
    assert "<h2>By bed</h2>" in page
    assert "block 2, bed b" in page
    assert "By bed" not in render(found, "markdown")
    assert "| a     | 0" in render(found, "markdown")
    for form in ("junit", "ktap", "kcidb", "google-benchmark"):
        assert "nan" not in render(found, form).lower()
    assert json.loads(render(found, "json"))["campaign"]["block_beds"] == ["a", "b"] * 6


def test_one_bed_has_no_more_than_before(tmp_path: Path) -> None:
    make_campaign(tmp_path, effects={"0": 1.0, "8": 1.2}, blocks=6, trials=2)
    found = document(analyse(ResultDirectory.open(tmp_path)))
    assert found["campaign"]["beds"] == []
    assert found["verdicts"][0]["p_beds"] is None
    assert all(row["beds"] == [] and row["stack_rx_pps"] for row in found["rows"])
    assert "bed" not in render(found, "csv").splitlines()[0].split(",")
    text = render(found, "table")
    assert text.count("bed") == 1 + text.count("virtual bed")


def test_a_boot_of_another_bed_does_not_count(tmp_path: Path) -> None:
    def moved(boot: Json, block: int, _position: int, step: str) -> Json:
        return boot | {"bed": "b"} if (block, step) == (1, "8") else boot

    found = report(tmp_path, ALIKE, edit=moved)
    [problem] = found["problems"]
    assert problem.endswith("-s8: on bed b, not a")
    assert found["verdicts"] == []
    assert len(found["rows"][1]["ratio_by_block"]) == 11


def test_beds_that_are_not_those_of_the_blocks_are_no_campaign(tmp_path: Path) -> None:
    make_campaign(tmp_path, effects={"0": 1.0}, blocks=2, beds=ALIKE, trials=1)
    path = tmp_path / "campaign.json"
    path.write_text(path.read_text().replace('"block_beds":["a","b"]', '"block_beds":["a"]'))
    with pytest.raises(Exception, match="does not name a bed for each block"):
        read_campaign(tmp_path)


def test_campaigns_of_other_beds_are_not_compared(tmp_path: Path) -> None:
    inventory = {role: {"cpus": 4} for role in ("dut", "generator")}

    def known(boot: Json, *_: Any) -> Json:
        return boot | {"inventory": inventory}

    one = measured(tmp_path / "1", ALIKE, edit=known)
    assert [step["metric"] for step in compare(one, one)["steps"]] == ["ratio_to_step0"]
    other = measured(tmp_path / "2", {"a": {}, "c": {}}, edit=known)
    with pytest.raises(ConfigurationError, match="bed: "):
        compare(one, other)
    other = measured(tmp_path / "3", ALIKE, edit=known)
    larger = other.inventory | {"b": inventory | {"dut": {"cpus": 8}}}
    other = replace(other, inventory=larger)
    with pytest.raises(ConfigurationError, match="b dut: cpus: 4 and 8"):
        compare(one, other)


def test_beds_that_agree_are_seldom_told_apart() -> None:
    rng = np.random.default_rng(4)
    beds = tuple("abc" * 4)
    told = [beds_p(rng.standard_t(3, size=12), beds) < 0.05 for _ in range(300)]
    assert np.mean(told) < 0.08


def test_the_interval_over_beds_that_agree_covers_the_effect() -> None:
    rng = np.random.default_rng(5)
    beds = tuple("ab" * 5)
    verdicts = [
        judge([Paired(ratios=tuple(np.exp(0.1 + rng.normal(0, 0.05, 10))), beds=beds)])[0]
        for _ in range(300)
    ]
    covered = [v.interval[0] <= np.exp(0.1) <= v.interval[1] for v in verdicts if v]
    assert np.mean(covered) >= 0.93


def test_the_test_of_beds_is_exact_at_its_ends() -> None:
    # Of the 70 ways to deal 8 blocks to two beds, two set the beds wholly apart.
    assert beds_p(np.arange(8.0), tuple("aaaabbbb")) == pytest.approx(2 / 70, rel=0.15)
    assert beds_p(np.zeros(8), tuple("aaaabbbb")) == 1
