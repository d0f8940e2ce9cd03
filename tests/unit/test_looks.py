# SPDX-License-Identifier: MIT
"""Campaigns that end at a declared look, where their primary comparison is decided."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.base.errors import ConfigurationError
from harness.beds import registry
from harness.cli import cli
from harness.plan import LOOKS, Plan, make_plan
from harness.report import document, render
from harness.results.analysis import analyse
from harness.results.expect import check, parse
from harness.results.samples import ResultDirectory
from harness.results.stats import corrected
from tests.bench.verdicts import SETTINGS, same, simulate_looks
from tests.unit.synthetic import make_campaign

pytestmark = pytest.mark.unit

Json = dict[str, Any]
BLOCKS = tuple(blocks for blocks, _ in LOOKS)


def _campaign(
    root: Path,
    effects: Mapping[str, float],
    *,
    finished: int = 18,
    noise: Callable[[random.Random], float] = lambda rng: rng.gauss(0, 0.02),
) -> Path:
    """A campaign with looks, of which so many blocks are ``finished``."""

    def edit(boot: Json, block: int, _position: int, step: str) -> Json | None:
        return boot | {"release": f"s{step}-l{block}"} if block <= finished else None

    make_campaign(root, effects=effects, blocks=18, trials=1, edit=edit, noise=noise)
    path = root / "campaign.json"
    campaign = json.loads(path.read_text())
    campaign["trial"]["looks"] = LOOKS
    path.write_text(json.dumps(campaign))
    return root


def _report(root: Path) -> Json:
    return document(analyse(ResultDirectory.open(root)))


EFFECTS = {"0": 1.0, "2": 1.05, "8": 1.2, "shipped": 1.0}


def test_a_decided_campaign_ends_at_the_first_look(tmp_path: Path) -> None:
    report = _report(_campaign(tmp_path, EFFECTS))
    assert report["complete"]
    assert report["look"] == {
        "declared": BLOCKS, "blocks": 7, "level": 0.0157, "primary": "8", "decided": True
    }  # fmt: skip
    found = {verdict["step"]: verdict for verdict in report["verdicts"]}
    primary = found["8"]
    assert (primary["verdict"], primary["blocks"], primary["p_value"]) == ("faster", 7, 2 / 128)
    assert primary["p_corrected"] == pytest.approx(2 / 128 * 0.05 / 0.0157)
    # The interval is as sure as the decision at this look.
    assert primary["confidence"] == pytest.approx(1 - 2 / 128)
    assert primary["asked_confidence"] == pytest.approx(1 - 0.0157)
    assert found["shipped"]["verdict"] == "inconclusive"
    said = "looks after 7, 10, 14, 18 blocks; ended at the look after 7: step 8 was decided"
    assert said in render(report, "table").splitlines()
    assert said in render(report, "html")


def test_what_comes_after_the_look_is_not_read(tmp_path: Path) -> None:
    report = _report(_campaign(tmp_path, EFFECTS, finished=8))
    assert report["look"]["blocks"] == 7
    assert report["boots_done"] == report["boots_planned"] == 28


def test_between_looks_nothing_is_decided(tmp_path: Path) -> None:
    report = _report(_campaign(tmp_path, EFFECTS, finished=6))
    assert not report["complete"]
    assert report["verdicts"] == []
    assert report["look"] == {
        "declared": BLOCKS, "blocks": 7, "level": 0.0157, "primary": "8", "decided": False
    }  # fmt: skip
    text = render(report, "table")
    assert "on its way to the look after 7" in text
    assert "INCOMPLETE: 24 of 28 boots are finished" in text


@pytest.mark.parametrize("finished", [12, 18])
def test_an_open_campaign_goes_on_to_the_last_look(tmp_path: Path, finished: int) -> None:
    def noise(rng: random.Random) -> float:
        return rng.gauss(0, 0.1)

    root = _campaign(tmp_path, {"0": 1.0, "8": 1.0}, finished=finished, noise=noise)
    report = _report(root)
    assert report["complete"] == (finished == 18)
    assert report["look"]["blocks"] == (18 if finished == 18 else 14)
    assert not report["look"]["decided"]
    said = "ended at the last look, after 18: step 8 is still open"
    assert (said in render(report, "table")) == (finished == 18)


def test_no_step_is_decided_before_the_primary_one(tmp_path: Path) -> None:
    def noise(rng: random.Random) -> float:
        return rng.gauss(0, 0.005)

    effects = {"0": 1.0, "2": 1.3, "8": 1.02, "shipped": 1.3}
    report = _report(_campaign(tmp_path, effects, noise=lambda rng: 4 * noise(rng)))
    found = {verdict["step"]: verdict for verdict in report["verdicts"]}
    first = found["8"]["p_corrected"]
    assert all(verdict["p_corrected"] >= first for verdict in found.values())
    assert report["trend"]["p_corrected"] >= first


def test_the_first_place_is_decided_before_all_others() -> None:
    assert corrected([0.04, 0.001], [[0], [1]], first=0) == pytest.approx([0.04, 0.04])
    assert corrected([0.001, 0.02], [[0], [1]], [0.03], first=0) == pytest.approx(
        [0.001, 0.04, 0.04]
    )
    assert corrected([0.001, 0.01], [[0, 1]], level=0.01, first=0) == pytest.approx([0.005, 0.05])


def test_an_expectation_is_judged_as_surely_as_its_look(tmp_path: Path) -> None:
    analysis = analyse(ResultDirectory.open(_campaign(tmp_path, EFFECTS)))
    found = check(parse("step8 stack_rx_pps > 1.05x step0", analysis.campaign.steps), analysis)
    assert found.outcome == "met"
    assert "98% interval" in found.why


def test_a_plan_with_looks_cannot_have_other_blocks() -> None:
    for kind in registry.KINDS:
        found = registry.profile("thorough", bed_kind=kind)
        assert (found.blocks, found.layouts, found.looks) == (18, 18, LOOKS)
        assert registry.profile("thorough", bed_kind=kind, blocks=18) == found
        with pytest.raises(ConfigurationError, match="ends at declared looks"):
            registry.profile("thorough", bed_kind=kind, blocks=20)


def _plan() -> Plan:
    return make_plan("08", registry.profile("thorough", bed_kind="hardware"), seed=3)


def test_looks_part_the_plan() -> None:
    plan = _plan()
    assert plan.looks == BLOCKS
    assert plan.too_few_blocks is None
    parts = [list(plan.until(look).groups()) for look in plan.looks]
    assert [*itertools.chain(*parts)] == [*plan.groups()]
    assert [len(part) for part in parts] == [14, 6, 8, 8]
    # Numbers go on: boot 15 of 20.
    assert len(list(plan.until(10).boots())) == 20


def test_a_plan_without_looks_has_one_part() -> None:
    plan = make_plan("08", registry.profile("standard", bed_kind="hardware"), seed=3)
    assert plan.looks == (10,)
    assert list(plan.until(10).groups()) == list(plan.groups())


def test_campaigns_with_looks_are_seldom_wrong() -> None:
    found = simulate_looks(SETTINGS["normal"], same(), campaigns=300)
    assert found.wrong <= 0.05 + 3 * 0.0126
    assert found.covered >= 0.95


def test_a_search_has_looks_of_its_own() -> None:
    done = CliRunner().invoke(cli, ["bisect", "--good", "0", "--bad", "8", "--profile", "thorough"])
    assert done.exit_code == 2
    assert "'smoke', 'quick', 'standard'" in done.output
    assert "thorough ends after 7" in CliRunner().invoke(cli, ["run", "--help"]).output
