# SPDX-License-Identifier: MIT
"""The trend of many campaigns: what is found, what is left out, and how a nightly job ends."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from harness.base.errors import ConfigurationError, HarnessError
from harness.commands.trend import trend as command
from harness.report.trend import document, render
from harness.results import trend as module
from harness.results.changes import MIN_CAMPAIGNS, Grouped, find
from harness.results.expect import ExpectationMissedError, ExpectationOpenError
from harness.results.trend import NEWEST_COMMIT, trend
from tests.unit.synthetic import make_campaign
from tests.unit.test_report_html import Page

pytestmark = pytest.mark.unit

Json = dict[str, Any]
NIGHTS = 14
PLANTED = 9
DRIFT = 0.4
FIRST = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def night(root: Path, number: int, *, step8: float = 1.2, **options: Any) -> Path:
    """The campaign of one night; the bed becomes slower from night to night."""
    about = {"id": f"id{number}", "created": (FIRST + timedelta(days=number)).isoformat()}
    return make_campaign(
        root / f"night{number:02d}",
        effects=options.pop("effects", {"0": 1.0, "8": step8}),
        base_pps=200_000 * (1 - DRIFT * number / NIGHTS),
        seed=number,
        about=about | options.pop("about", {}),
        **{"blocks": 6, "trials": 1, "trace_blocks": 0} | options,
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nights with a change of 6 % in step 8."""
    root = tmp_path_factory.mktemp("nights")
    for number in range(NIGHTS):
        night(root, number, step8=1.2 * (0.94 if number >= PLANTED else 1.0))
    return root


@pytest.fixture
def nights(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(written, tmp_path / "nights"))


def edited(directory: Path, edit: Callable[[Json], Any]) -> Path:
    path = directory / "campaign.json"
    campaign = json.loads(path.read_text())
    edit(campaign)
    path.write_text(json.dumps(campaign))
    return directory


def ended(*arguments: str | Path) -> tuple[int, str]:
    """Exit code of the command, and its output with the message of its error."""
    done = CliRunner().invoke(command, [str(one) for one in arguments])
    if done.exception and not isinstance(done.exception, HarnessError | SystemExit):
        raise done.exception
    code = getattr(done.exception, "exit_code", done.exit_code)
    return code, f"{done.output}{done.exception or ''}"


def test_a_planted_change_is_found_and_dated(written: Path) -> None:
    directories = [*written.iterdir()]
    random.Random(3).shuffle(directories)
    found = document(trend(directories))
    assert [one["directory"] for one in found["campaigns"]] == sorted(map(str, directories))
    series = next(one for one in found["series"] if one["metric"] == "stack_rx_pps")
    [change] = series["changes"]
    assert (change["after"], change["campaign"]) == (PLANTED - 1, PLANTED)
    assert change["began"] == (FIRST + timedelta(days=PLANTED)).isoformat()
    assert change["interval"][0] < 0.94 < change["interval"][1] < 1
    assert series["levels"] == [pytest.approx(1.2, rel=0.02), pytest.approx(1.128, rel=0.02)]
    assert change["new"] is False
    assert found["newest"]["outcome"] == "steady"
    assert "-5.9%" in render(found, "table") or "-6." in render(found, "table")


def test_a_bed_that_drifts_is_no_change(tmp_path: Path) -> None:
    for number in range(NIGHTS):
        night(tmp_path, number)
    found = document(trend([tmp_path]))
    assert all(not series["changes"] for series in found["series"])
    own = [one["control"]["stack_rx_pps"] for one in found["campaigns"]]
    assert own[-1] < (1 - DRIFT / 2) * own[0]
    assert "no metric moved" in render(found, "table")


def made_up(seed: int, *, count: int = 30, moved: float = 0.0, at: int = 0) -> Grouped:
    """Campaigns that scatter by 1 %; from ``at`` on all of them ``moved``."""
    rng = np.random.default_rng(seed)
    logs = rng.normal(0.2, 0.01, count)
    logs[at:] += moved
    return find(logs.tolist(), [0.01] * count)


@pytest.mark.parametrize("count", [MIN_CAMPAIGNS, 30])
def test_noise_is_no_change(count: int) -> None:
    wrong = sum(bool(made_up(seed, count=count).shifts) for seed in range(150))
    assert wrong <= 5


@pytest.mark.parametrize(
    ("moved", "at", "least"), [(0.05, 29, 40), (-0.04, 25, 50), (0.03, 15, 50)]
)
def test_most_changes_are_found(moved: float, at: int, least: int) -> None:
    found = [made_up(seed, moved=moved, at=at) for seed in range(60)]
    assert sum(any(abs(one.start - at) <= 1 for one in each.shifts) for each in found) >= least


def test_a_change_is_new_once(written: Path) -> None:
    rng = np.random.default_rng(4)
    logs = [*rng.normal(0, 0.01, 20), *rng.normal(0.08, 0.01, 10)]
    new = [any(one.new for one in find(logs[:end], [0.01] * end).shifts) for end in range(8, 31)]
    assert new.index(True) in (21 - 8, 22 - 8)
    assert sum(new) == 1


def test_the_way_back_from_one_campaign_is_not_new() -> None:
    logs = np.random.default_rng(5).normal(0, 0.01, 22)
    logs[20] += 0.3
    shifts = find(logs.tolist(), [0.01] * 22).shifts
    assert [(one.start, one.new) for one in shifts] == [(20, False), (21, False)]
    assert [one.new for one in find(logs[:21].tolist(), [0.01] * 21).shifts] == [True]
    # To another level it is.
    logs[21] += 0.15
    assert find(logs.tolist(), [0.01] * 22).shifts[-1].new


def test_a_metric_that_repeats_exactly_has_no_change() -> None:
    assert find([0.1] * 20, [0.0] * 20).shifts == ()
    assert len(find([0.1] * 10 + [0.11] * 10, [0.0] * 20).shifts) == 1


def _variant(campaign: Json, **changes: Any) -> None:
    campaign["variants"]["0"] |= changes


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda c: c.update(bed="other"), "bed: other and virtual"),
        (lambda c: c.update(load={"streams": 3, "message_bytes": 1}), "load.streams: 3 and 2"),
        (lambda c: c["placement"].update(rx_queues=2), "placement.rx_queues: 2 and None"),
        (lambda c: c["trial"].update(slice_s=0.3), "boots time-sliced: True and False"),
        (lambda c: c["provenance"].update(cpu_model="X"), "cpu_model: X and None"),
        (lambda c: _variant(c, release="6.13"), "control: 6.13 and 6.12.0-rb-s0"),
        (lambda c: _variant(c, compiler="gcc 14"), "control: compiler: gcc 14 and None"),
        (
            lambda c: c["provenance"]["void_rules"]["cpu-throttled"]["tolerances"].update(share=1),
            "void rules.cpu-throttled.share: 1 and 0.05",
        ),
        (lambda c: c.update(created="some day"), "its start, 'some day', is not a time"),
        (lambda c: c.update(version=2), "this harness reads 1"),
        (
            lambda c: c.update(id="id3", created="2026-01-05T03:04:05+00:00", seed=3),
            "the same campaign as",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_told(
    nights: Path, edit: Callable[[Json], Any], reason: str
) -> None:
    other = edited(nights / "night02", edit)
    found = document(trend([nights]))
    [left] = found["left_out"]
    assert left["directory"] in (str(other), str(nights / "night03"))
    assert reason in "; ".join(left["reasons"])
    assert len(found["campaigns"]) == NIGHTS - 1
    assert f"left out: {left['directory']}" in render(found, "table")


def test_what_is_incomplete_or_damaged_is_told(nights: Path) -> None:
    shutil.rmtree(next((nights / "night01/boots").iterdir()))
    (nights / "night02/campaign.json").write_text("{")
    edited(nights / "night03", lambda c: c.update(blocks=5, order=c["order"][:5]))
    night(nights, 20, effects={"2": 1.0, "8": 1.2})  # as bisect boots them
    (nights / "empty").mkdir()
    old = Path(__file__).parent / "fixtures/result-v1"
    found = trend([nights, nights / "empty", old, nights / "night05"])
    told = {one.directory.name: "; ".join(one.reasons) for one in found.left_out}
    assert set(told) == {"night01", "night02", "night03", "night20", "empty", "result-v1"}
    assert told["night20"] == "step 0 was not booted: nothing to compare with"
    assert told["night01"] == "incomplete: 11 of 12 boots"
    assert "not valid JSON" in told["night02"]
    assert told["night03"] == "5 of the 6 blocks that an interval needs"
    assert "holds no campaign" in told["empty"]
    assert told["result-v1"] == "2 of the 6 blocks that an interval needs"


def test_nothing_to_follow_is_an_error(tmp_path: Path) -> None:
    old = Path(__file__).parent / "fixtures/result-v1"
    with pytest.raises(ConfigurationError, match=r"no campaign can be followed\n.*2 of the 6 blo"):
        trend([old])
    with pytest.raises(ConfigurationError, match="no metric is named 'pps'"):
        trend([old], ["pps"])


def test_a_night_that_moves_a_metric_fails(nights: Path) -> None:
    assert ended(nights, "--expect-steady")[0] == 0
    night(nights, NIGHTS, step8=1.0)
    code, told = ended(nights, "--expect-steady", "--metric", "stack_rx_pps")
    assert code == ExpectationMissedError.exit_code
    assert "expected step 8 stack_rx_pps steady: missed (-1" in told
    assert "2026-01-16 03:04 (6.12.0-rb-s8)" in told
    assert "moved: step 8 stack_rx_pps: -1" in told
    # Without the option it is shown, and is no error.
    assert ended(nights)[0] == 0


def test_a_night_that_cannot_tell_fails_otherwise(nights: Path) -> None:
    few = sorted(nights.iterdir())[: MIN_CAMPAIGNS - 1]
    code, told = ended(*few, "--expect-steady")
    assert code == ExpectationOpenError.exit_code
    assert f"7 of the {MIN_CAMPAIGNS} comparable campaigns" in told
    last = nights / f"night{NIGHTS - 1:02d}"
    shutil.rmtree(next((last / "boots").iterdir()))
    code, told = ended(nights, "--expect-steady", "--format", "json")
    assert code == ExpectationOpenError.exit_code
    assert "is left out: incomplete: 11 of 12 boots" in told
    # What cannot be read does not say when it began.
    (last / "campaign.json").write_text("{")
    code, told = ended(nights, "--expect-steady")
    assert code == ExpectationOpenError.exit_code
    assert "campaign.json is not valid JSON" in told


def test_a_metric_that_the_newest_lacks_is_open(nights: Path) -> None:
    def without(boot: Json, *_: Any) -> Json:
        for one in boot["trials"]:
            for end in ("start", "end"):
                if one["window"]:
                    one["window"][end]["cpu"] = []
        return boot

    night(nights, NIGHTS, step8=1.2 * 0.94, edit=without)
    code, told = ended(nights, "--expect-steady")
    assert code == ExpectationOpenError.exit_code
    assert "expected step 8 cpu_ns_per_packet steady: open (" in told
    assert "stack_rx_pps" not in told.rpartition("expected")[2]


@pytest.fixture(scope="module")
def of_commits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("commits")
    for number in range(1, MIN_CAMPAIGNS + 1):
        base, newest = "0a0a0a0a0a0a", f"{number:012x}"
        make_campaign(
            root / f"<b>night{number}",
            effects={base: 1.0, newest: 1.3 if number == MIN_CAMPAIGNS else 1.1},
            blocks=6, trials=1, trace_blocks=0, seed=number,
            about={
                "id": str(number),
                "created": (FIRST + timedelta(days=number)).isoformat(),
                "baseline": base,
                "variants": {
                    base: {"subject": "<i>v6.12</i>", "release": f"6.12-g{base}-{number}",
                           "compiler": "gcc 13" if number == 1 else "gcc 12"},
                    newest: {"subject": f"<script>alert({number})</script>",
                             "release": f"6.12-g{newest}", "compiler": "gcc 12"},
                },
            },
        )  # fmt: skip
    return root


def test_commits_are_one_line(of_commits: Path) -> None:
    found = trend([of_commits])
    assert {one.line for one in found.series} == {NEWEST_COMMIT}
    # The release of a control also depends on what the commits touch; its compiler counts.
    assert [one.reasons for one in found.left_out] == [("control: compiler: gcc 13 and gcc 12",)]
    assert len(found.campaigns) == MIN_CAMPAIGNS - 1
    last = document(found)["series"][0]["points"][-1]
    assert last["kernel"] == "000000000008 <script>alert(8)</script>"


def test_names_cannot_become_part_of_the_page(of_commits: Path) -> None:
    page = render(document(trend([of_commits])), "html")
    shown = Page(page)
    assert "script" not in shown.tags
    assert "b" not in shown.tags
    assert "i" not in shown.tags
    assert "<script>alert(8)</script>" in shown.text


def test_the_page_is_whole_and_needs_no_network(written: Path) -> None:
    text = render(document(trend([written])), "html")
    page = Page(text)
    assert page.tags.count("svg") == page.tags.count("figure") == 5
    assert len(page.ids) == len(set(page.ids))
    assert "trend-stack_rx_pps" in page.ids
    assert all(use.startswith(("#", "url(#", "data:,")) for use in page.uses)
    assert "script" not in page.tags
    # A change is told in words and numbers, not by colour alone.
    assert "between" in render(document(trend([written])), "table")
    assert "(1)" in page.text


def test_many_campaigns_are_read_by_several_processes(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = document(trend([written]))
    monkeypatch.setattr(module, "_EACH", 4)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert document(trend([written])) == alone


def test_what_draws_and_what_groups_is_imported_late() -> None:
    code = (
        "import sys\nimport harness.commands.trend\n"
        "print({'matplotlib', 'jinja2', 'jumpavg'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_json_and_its_schema(written: Path) -> None:
    code, told = ended(written, "--format", "json", "--metric", "cpu_ns_per_packet")
    found = json.loads(told)
    assert (code, found["schema"], found["version"]) == (0, "receive-batching/trend", 1)
    assert {one["metric"] for one in found["series"]} == {"cpu_ns_per_packet"}
    assert _numbers(found["campaigns"]) > 0


def _numbers(campaigns: Sequence[Json]) -> int:
    return sum(len(one["control"]) for one in campaigns)
