# SPDX-License-Identifier: MIT
"""The search for the step where a metric moves, over measurements that are simulated."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from harness import bisect, kernels, plan
from harness.base.errors import ConfigurationError, HarnessError, InfrastructureError, KernelError
from harness.beds import registry
from harness.campaign import run as campaign
from harness.commands import bisect as command
from harness.results import samples
from harness.results.analysis import analyse
from harness.results.expect import ExpectationMissedError, ExpectationOpenError
from harness.results.rows import PRIMARY, Analysis, Row
from harness.results.samples import Boot, ResultDirectory, boot_directory, write_boot
from tests.unit.synthetic import Host, analysed, make_campaign, row_of, trial, trials_of
from tests.unit.test_kernel_source import git

pytestmark = pytest.mark.unit

STEPS = tuple(str(step) for step in range(9))


def question(**changes: Any) -> bisect.Question:
    asked: dict[str, Any] = {
        "metric": "stack_rx_pps", "by": 0.02, "kind": "step", "points": STEPS,
        "max_blocks": 18, "profile": "standard", "bed": "virtual",
    }  # fmt: skip
    return bisect.Question(**asked | changes)


class Measuring(Protocol):
    def measure(self, name: str, points: Sequence[str], blocks: int) -> Analysis: ...


class Bed:
    """Analyses as a bed would give, of rates with known effects and noise between boots."""

    def __init__(self, effects: Mapping[str, float], noise: float = 0.004, seed: int = 1) -> None:
        self.effects, self.noise, self.seed = effects, noise, seed
        self.asked: list[tuple[str, tuple[str, ...], int]] = []

    def measure(self, name: str, points: Sequence[str], blocks: int) -> Analysis:
        self.asked.append((name, tuple(points), blocks))
        # As with kept boots, more blocks of one decision begin with those there were.
        return analysed(*(self._row(name, point, blocks) for point in points))

    def _row(self, name: str, point: str, blocks: int) -> Row:
        rng = np.random.default_rng([self.seed, *name.encode(), int(point)])
        rates = 1e5 * self.effects[point] * np.exp(self.noise * rng.standard_normal(blocks))
        return row_of(point, [{PRIMARY: rate} for rate in rates], title=f"patch {point}")


def staircase(*, at: int, height: float) -> dict[str, float]:
    return {step: 1 + height * (int(step) >= at) for step in STEPS}


def bisected(
    tmp_path: Path, bed: Measuring, asked: bisect.Question, **options: Any
) -> dict[str, Any]:
    journal = bisect.begin(tmp_path, asked, seed=1, resume=False)
    return bisect.result(bisect.run(journal, tmp_path, bed.measure, say=lambda _: None, **options))


@given(st.integers(2, 300), st.data())
def test_the_search_ends_at_the_first_bad_point_after_few_decisions(
    size: int, data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, size - 1))
    asked: list[str] = []

    def decide(point: str) -> bisect.Outcome:
        asked.append(point)
        return "bad" if int(point) >= first else "good"

    assert bisect.search([str(n) for n in range(size)], decide) == (first - 1, first)
    assert len(asked) == len(set(asked)) <= math.ceil(math.log2(size))


def test_the_search_stops_where_a_decision_stays_open() -> None:
    assert bisect.search(STEPS, lambda point: "open" if point == "6" else "good") == (4, 8)


@given(
    st.floats(0.5, 2),
    st.floats(1, 1.5),
    st.floats(0.001, 0.5),
    st.sampled_from([None, True, False]),
)
def test_an_interval_is_judged_by_where_all_of_it_lies(
    low: float, width: float, by: float, rising: bool | None
) -> None:
    high = low * width
    outcome = bisect.judge_interval(low, high, by=by, rising=rising)
    moved = {
        "bad" if (rising is not False and r >= 1 + by) or (rising is not True and r <= 1 - by)
        else "good"
        for r in (low, high)
    }  # fmt: skip
    across = rising is None and low <= 1 - by and high >= 1 + by
    assert outcome == ("open" if len(moved) > 1 or across else moved.pop())


@pytest.mark.parametrize("height", [0.2, -0.2])
@pytest.mark.parametrize("at", range(1, 9))
def test_the_step_is_found_whichever_way_the_metric_moves(
    tmp_path: Path, at: int, height: float
) -> None:
    bed = Bed(staircase(at=at, height=height))
    shown = bisected(tmp_path, bed, question())
    assert shown["found"] == {"point": str(at), "title": f"patch {at}"}
    assert f"by at least 2% is step {at} (patch {at})" in shown["sentence"]
    bisect.require(shown)
    assert len(bed.asked) <= 4  # the ends, and three times the middle
    assert all(points[0] == "0" and blocks == 6 for _, points, blocks in bed.asked)


@pytest.mark.parametrize("max_blocks", [6, 18, 30])
def test_a_decision_errs_less_often_than_it_says(max_blocks: int) -> None:
    """The worst case: the ratio stands at the bound itself, so either verdict can be wrong."""
    asked = question(max_blocks=max_blocks, points=("0", "1", "8"))
    found, runs = {"good": 0, "bad": 0, "open": 0}, 1000
    ends = bisect.Decision(point="8", outcome="bad", value=1.5, blocks=6)
    journal = bisect.Search(question=asked, seed=1, decisions=(ends,))
    for seed in range(runs):
        bed = Bed({"0": 1.0, "1": 1.02}, noise=0.03, seed=seed)
        found[bisect._decide("1", journal, bed.measure, {}).outcome] += 1
    slack = 2.6 * math.sqrt(0.05 * 0.95 / runs)
    assert max(found["good"], found["bad"]) / runs <= 0.05 + slack
    assert found["open"] > 0.85 * runs


def test_noise_leads_a_search_nowhere_wrong(tmp_path: Path) -> None:
    """Four decisions of which each errs at most one time in twenty; in truth far fewer do."""
    effects, asked = staircase(at=5, height=0.1), question(by=0.05)
    found = [
        bisected(tmp_path / str(seed), Bed(effects, noise=0.03, seed=seed), asked)
        for seed in range(60)
    ]
    wrong = [shown for shown in found if shown["found"] and shown["found"]["point"] != "5"]
    right = [shown for shown in found if shown["found"] and shown["found"]["point"] == "5"]
    assert len(wrong) <= 2
    assert len(right) >= 40


def test_more_blocks_are_measured_until_the_interval_says_something(tmp_path: Path) -> None:
    bed = Bed(staircase(at=1, height=0.1), noise=0.06, seed=4)
    shown = bisected(tmp_path, bed, question(points=("0", "8")))
    assert shown["found"]
    assert [blocks for _, _, blocks in bed.asked] == [6, 12]
    assert {name for name, _, _ in bed.asked} == {"step-8"}
    assert shown["decisions"][0]["blocks"] == 12


def test_a_decision_that_stays_open_ends_the_search(tmp_path: Path) -> None:
    bed = Bed(staircase(at=6, height=0.3) | {"4": 1.02})
    shown = bisected(tmp_path, bed, question())
    assert shown["outcome"] == "open"
    assert shown["sentence"] == "inconclusive between step 0 and step 8"
    assert [blocks for _, _, blocks in bed.asked] == [6, 6, 12, 18]
    with pytest.raises(
        ExpectationOpenError, match="inconclusive between step 0 and step 8"
    ) as told:
        bisect.require(shown)
    assert told.value.exit_code == 7
    assert "the ends differ by +29.9%" in str(told.value.hint)


def test_ends_that_do_not_differ(tmp_path: Path) -> None:
    shown = bisected(tmp_path, Bed(staircase(at=9, height=0), noise=0.002), question())
    assert shown["outcome"] == "no difference"
    with pytest.raises(
        ExpectationMissedError, match=r"does not differ .* by 2%: .0\.\d% \("
    ) as told:
        bisect.require(shown)
    assert told.value.exit_code == 6


class Dies(Bed):
    """A bed on which kernels of some steps do not live."""

    def __init__(self, effects: Mapping[str, float], *dead: str) -> None:
        super().__init__(effects)
        self.dead = dead

    def measure(self, name: str, points: Sequence[str], blocks: int) -> Analysis:
        if points[-1] in self.dead:
            raise KernelError(f"step {points[-1]} died")
        return super().measure(name, points, blocks)


class Breaks(Bed):
    """A bed that fails at one step."""

    def measure(self, name: str, points: Sequence[str], blocks: int) -> Analysis:
        if "6" in points:
            raise InfrastructureError("no power")
        return super().measure(name, points, blocks)


def test_a_search_goes_on_from_its_journal(tmp_path: Path) -> None:
    effects = staircase(at=7, height=0.2)
    with pytest.raises(InfrastructureError, match="no power"):
        bisected(tmp_path, Breaks(effects), question())
    bed = Bed(effects)
    kept = bisect.begin(tmp_path, question(), seed=99, resume=True)
    assert (kept.seed, [made.point for made in kept.decisions]) == (1, ["8", "4"])
    shown = bisect.result(bisect.run(kept, tmp_path, bed.measure, say=lambda _: None))
    assert shown["found"]["point"] == "7"
    assert [name for name, _, _ in bed.asked] == ["step-6", "step-7"]
    written = json.loads((tmp_path / "bisect.json").read_text())
    assert written["decisions"] == shown["decisions"]


def test_a_point_without_a_kernel_is_passed_over(tmp_path: Path) -> None:
    shown = bisected(tmp_path, Dies(staircase(at=6, height=0.2), "4"), question())
    assert shown["found"]["point"] == "6"
    assert [made["point"] for made in shown["decisions"] if made["outcome"] == "dead"] == ["4"]


def test_where_only_points_without_kernels_are_left(tmp_path: Path) -> None:
    effects = staircase(at=6, height=0.2)
    shown = bisected(tmp_path, Dies(effects, "4", "5", "6"), question())
    assert (shown["found"], shown["between"]) == (None, ["3", "7"])
    assert "between step 3 and step 7; kernels that failed: 4, 5, 6" in shown["sentence"]
    assert "step 5 died" in bisect.table(bisect.begin(tmp_path, question(), seed=1, resume=True))

    kept = bisect.begin(tmp_path, question(), seed=1, resume=True, retry_failed=True)
    shown = bisect.result(bisect.run(kept, tmp_path, Bed(effects).measure, say=lambda _: None))
    assert shown["found"]["point"] == "6"


def test_an_end_without_a_kernel_ends_the_search(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="step 8 died"):
        bisected(tmp_path, Dies(staircase(at=6, height=0.2), "8"), question())


def test_what_is_no_search_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no bisection"):
        bisect.begin(tmp_path, question(), seed=1, resume=True)
    bisect.begin(tmp_path, question(), seed=1, resume=False)
    with pytest.raises(ConfigurationError, match="already holds"):
        bisect.begin(tmp_path, question(), seed=1, resume=False)
    with pytest.raises(ConfigurationError, match=r"its by was 0\.02, not 0\.05"):
        bisect.begin(tmp_path, question(by=0.05), seed=1, resume=True)
    (tmp_path / "bisect.json").write_text("{")
    with pytest.raises(InfrastructureError, match="is not a bisection journal"):
        bisect.begin(tmp_path, question(), seed=1, resume=True)


class TracedBed:
    """Analyses of campaigns of traced trials alone, as they lie on disk."""

    def __init__(self, root: Path, void: int = 0) -> None:
        self.root, self.void = root, void
        self.asked: list[tuple[tuple[str, ...], int]] = []

    def measure(self, name: str, points: Sequence[str], blocks: int) -> Analysis:
        self.asked.append((tuple(points), blocks))

        def edit(boot: dict[str, Any], block: int, *_: object) -> dict[str, Any]:
            boot["trials"] = [trial for trial in boot["trials"] if trial["kind"] == "trace"]
            if block <= self.void:
                boot["trials"][0]["trace"]["missed"] = 10**6
            return boot

        where = make_campaign(
            self.root / f"{name}-{len(self.asked)}", effects=dict.fromkeys(points, 1.0),
            blocks=blocks, trace_blocks=blocks, edit=edit,
        )  # fmt: skip
        return analyse(ResultDirectory.open(where))


@pytest.mark.parametrize(
    ("metric", "step"), [("ip_rcv_per_packet", "7"), ("list_len_p50", "2"), ("list_len_max", "2")]
)
def test_what_probes_count_is_decided_by_one_boot(tmp_path: Path, metric: str, step: str) -> None:
    bed = TracedBed(tmp_path)
    shown = bisected(tmp_path, bed, question(metric=metric))
    assert shown["found"]["point"] == step
    assert bed.asked[0] == (("0", "8"), 1)
    assert all(len(points) == 1 and blocks == 1 for points, blocks in bed.asked[1:])


def test_a_void_trace_is_measured_again(tmp_path: Path) -> None:
    bed = TracedBed(tmp_path, void=1)
    asked = question(metric="ip_rcv_per_packet", points=("0", "2", "8"))
    shown = bisected(tmp_path, bed, asked)
    assert shown["found"]["point"] == "8"
    assert [blocks for _, blocks in bed.asked] == [1, 2, 1, 2]
    assert bisected(tmp_path / "never", TracedBed(tmp_path, void=9), asked)["outcome"] == "open"


@pytest.mark.parametrize(("good", "bad"), [(1.0, 3e-4), (3e-4, 1.0), (0.0, 64.0)])
def test_figures_have_moved_or_not_by_the_scale_of_the_ends(good: float, bad: float) -> None:
    def judged(value: float) -> str:
        return bisect.judge_figure(value, good=good, bad=bad, by=0.02)

    assert judged(good) == judged(good + (good - bad)) == "good"
    assert judged(bad) == "bad"
    assert judged(good + 0.001 * (bad - good)) == "good"
    assert bisect.judge_figure(good, good=good, bad=good, by=0.02) == "good"


def test_the_table_has_a_line_a_point(tmp_path: Path) -> None:
    bed = Bed(staircase(at=7, height=0.2))
    journal = bisect.begin(tmp_path, question(), seed=1, resume=False)
    lines = bisect.table(
        bisect.run(journal, tmp_path, bed.measure, say=lambda _: None)
    ).splitlines()
    assert [line.split()[0] for line in lines[-5:]] == ["0", "4", "6", "7", "8"]
    assert "good end" in lines[-5]
    assert all(word in lines[-1] for word in ("+2", " … ", "bad", "6", "patch 8"))


@pytest.mark.parametrize("points", [("0", "8"), ("0",), ("a", "b", "c")])
def test_fewer_blocks_of_a_seed_are_the_first_of_more(points: tuple[str, ...]) -> None:
    few, more = (
        plan.make_plan(points, registry.profile("standard", blocks=blocks), seed=11).order
        for blocks in (6, 18)
    )
    assert more[:6] == few


class Booting:
    """Stands where guests are booted and kernels built: boots are written, not done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, effects: Mapping[str, float]) -> None:
        self.effects = effects
        self.booted: list[str] = []
        monkeypatch.setattr(
            kernels.Kernels, "build", lambda wanted, _: dict.fromkeys(wanted.names, (self,))
        )
        monkeypatch.setattr(registry, "made_meanwhile", contextlib.nullcontext)
        monkeypatch.setattr(registry, "opened", lambda *_, **__: contextlib.nullcontext(self))
        monkeypatch.setattr(campaign, "run", self.run)

    accelerator = "tcg"

    def provenance(self) -> dict[str, object]:
        return {"release": "6.12.0", "layout": 1, "image_sha256": ""}

    def run(self, setup: campaign.Setup, directory: Path, **_: object) -> None:
        for planned in setup.plan.boots():
            if (boot_directory(directory, planned) / "boot.json").exists():
                continue
            self.booted.append(planned.directory)
            host, rng = Host(), random.Random(planned.directory)
            pps = 1e5 * self.effects[planned.step] * math.exp(rng.gauss(0, 0.03))
            number = int(planned.step) if planned.step.isdigit() else 0
            made = [
                trial(host, kind.kind, kind.index, pps, kind.duration_s, number)
                for kind in trials_of(setup.plan.profile, planned.block)
            ]
            boot = {"block": planned.block, "position": planned.position, "step": planned.step,
                    "outcome": "ok", "trials": made, "turns": f"block {planned.block}"}  # fmt: skip
            write_boot(directory, Boot.model_validate(boot))


@pytest.fixture
def repository(tmp_path: Path) -> tuple[Path, list[str]]:
    """A git tree of five commits, and their names."""
    tree = tmp_path / "tree"
    tree.mkdir()
    git(tree, "init", "-q")
    (tree / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 12\n")
    git(tree, "add", "Makefile")
    for n in range(5):
        git(tree, "commit", "-q", "--allow-empty", "-m", f"commit {n}")
    return tree, git(tree, "log", "--reverse", "--abbrev=12", "--format=%h").split()


def commanded(*arguments: str) -> tuple[int | str, str]:
    done = CliRunner().invoke(command.bisect, ["--bed", "virtual", *arguments])
    if isinstance(done.exception, HarnessError):
        return done.exception.exit_code, str(done.exception)
    assert done.exception is None, done.output
    return done.exit_code, done.stdout


def test_the_command_adds_blocks_to_a_campaign_and_goes_on_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bed = Booting(monkeypatch, staircase(at=5, height=0.12) | {"4": 1.042})
    asked = ("--good", "0", "--bad", "8", "--by", "5%", "--seed", "3", "--out", str(tmp_path))
    code, told = commanded(*asked)
    assert code == 0
    assert "first step at which stack_rx_pps differs from that of step 0 by at least 5%" in told
    assert "is step 5" in told
    kept = samples.read_campaign(tmp_path / "step-4")
    assert kept.blocks in (12, 18)
    assert len(bed.booted) == len(list(tmp_path.rglob("boot.json")))
    before = len(bed.booted)
    assert commanded(*asked, "--resume") == (0, told)
    assert len(bed.booted) == before
    (tmp_path / "bisect.json").unlink()  # as if killed before the first decision was written
    bisect.begin(tmp_path, question(by=0.05), seed=3, resume=False)
    assert commanded(*asked, "--resume") == (0, told)
    assert len(bed.booted) == before
    assert samples.read_campaign(tmp_path / "step-4") == kept


def test_the_command_searches_commits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: tuple[Path, list[str]]
) -> None:
    tree, names = repository
    Booting(monkeypatch, {name: 1.2 if n >= 2 else 1.0 for n, name in enumerate(names)})
    asked = ("--tree", str(tree), "--good", "HEAD~4", "--bad", "HEAD", "--format", "json")
    code, told = commanded(*asked, "--by", "10%", "--out", str(tmp_path / "out"))
    assert code == 0
    assert json.loads(told)["found"] == {"point": names[2], "title": "commit 2"}
    assert (tmp_path / "out" / f"commit-{names[2]}" / "campaign.json").exists()


def test_a_later_look_has_the_layouts_of_the_earlier_one_and_more(tmp_path: Path) -> None:
    make_campaign(tmp_path, effects={"0": 1.0, "8": 1.0}, blocks=2)
    kept = ResultDirectory.open(tmp_path).campaign

    def with_layouts(*names: str) -> samples.Campaign:
        layouts = [{"layout": name} for name in names]
        told = {step: one | {"layouts": layouts} for step, one in kept.variants.items()}
        return kept.model_copy(update={"variants": told})

    few, more = with_layouts("1", "2"), with_layouts("1", "2", "3")
    assert command._with_layouts(few, more) == more.variants
    assert command._with_layouts(with_layouts("2"), more) != more.variants
