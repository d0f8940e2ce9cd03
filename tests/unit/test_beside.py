# SPDX-License-Identifier: MIT
"""What is measured beside the rate: paced cost, latency, the highest rate without loss."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import ndr
from harness.analysis import analyse
from harness.metrics import MEASURES
from harness.plan import CELLS, EXTRAS, profile
from harness.report import document, render
from harness.report.expect import check, parse
from harness.samples import ResultDirectory
from tests.unit.synthetic import Host, make_campaign, trial

pytestmark = pytest.mark.unit

Json = dict[str, Any]
_PACED_PPS = 40_000


@given(limit=st.floats(1001, 1e8), first=st.floats(1000, 1e8), confirmations=st.integers(0, 4))
def test_the_search_comes_as_near_to_the_limit_as_its_resolution(
    limit: float, first: float, confirmations: int
) -> None:
    found = ndr.search(lambda pps: pps <= limit, first, confirmations=confirmations)
    assert found is not None
    assert limit / (1 + ndr.RESOLUTION) <= found <= limit


def test_no_rate_is_found_where_none_passes() -> None:
    assert ndr.search(lambda _: False, 40_000, confirmations=3) is None


def test_a_rate_that_passes_by_chance_gives_way_to_one_that_holds() -> None:
    draw = random.Random(3).random
    tried: list[tuple[float, bool]] = []

    def passes(pps: float) -> bool:
        tried.append((pps, pps <= 50_000 or (pps <= 60_000 and draw() < 0.5)))
        return tried[-1][1]

    found = ndr.search(passes, 40_000, confirmations=5)
    assert found is not None
    assert found <= 60_000
    assert tried[-5:] == [(found, True)] * 5


def with_extras(boot: Json, block: int, _position: int, step: str) -> Json:
    """Step 8 costs a tenth less, waits 4 % longer in one cell and takes a fifth more."""
    better = step == "8"
    rng = random.Random(10 * block + better)
    cost_ns = 9000 * (0.9 if better else 1.0) * rng.uniform(0.99, 1.01)
    host = Host()
    paced = trial(host, "paced", 0, _PACED_PPS, 4.0, int(step))
    paced["paced_pps"] = _PACED_PPS
    start, end = (paced["window"][which]["cpu"][0] for which in ("start", "end"))
    end["idle_ns"] = start["idle_ns"] + round(4e9 - cost_ns * _PACED_PPS * 4)
    boot["trials"].append(paced)
    for index, cell in enumerate(CELLS):
        slower = 1.04 if better and index == 1 else 1.0
        mean = 400 * slower * rng.uniform(0.999, 1.001)
        boot["trials"].append(
            {
                "kind": "latency",
                "index": index,
                "cell": {"moderation": cell.moderation, "busy_poll": cell.busy_poll},
                "round_trips": {
                    "transactions_per_s": 1e6 / mean,
                    "mean_us": mean,
                    "p50_us": 390,
                    "p90_us": 450,
                    "p99_us": 900,
                },
            }
        )
    ndr_pps = 50_000 * (1.2 if better else 1.0) * rng.uniform(0.99, 1.01)
    boot["trials"].append({"kind": "ndr", "index": 0, "ndr_pps": ndr_pps, "search": []})
    return boot


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Json:
    root = make_campaign(
        tmp_path_factory.mktemp("beside"), effects={"0": 1, "8": 1}, blocks=6, edit=with_extras
    )
    return document(analyse(ResultDirectory.open(root)))


def test_every_measure_is_compared_and_judged(report: Json) -> None:
    assert list(report["measures"]) == list(MEASURES)
    measures = report["rows"][1]["measures"]
    assert measures["paced_cpu_ns_per_packet"]["median"] == pytest.approx(8100, rel=0.02)
    outcomes = {name: found["verdict"]["verdict"] for name, found in measures.items()}
    assert outcomes["paced_cpu_ns_per_packet"] == "lower"
    assert outcomes["ndr_pps"] == "higher"
    assert outcomes[f"rr_mean_us_{CELLS[1].name}"] == "higher"
    assert outcomes[f"rr_mean_us_{CELLS[2].name}"] == "no difference"


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("step8 ndr_pps > 1.1x step0", "met"),
        ("step8 paced_cpu_ns_per_packet > step0", "missed"),
        ("step8 ndr_pps > 55000", "met"),
    ],
)
def test_measures_can_be_expected(report: Json, text: str, outcome: str) -> None:
    assert check(parse(text, ["0", "8"]), report).outcome == outcome


def test_the_reports_show_measures_and_what_could_be_resolved(report: Json) -> None:
    table = render(report, "table")
    assert "highest rate without loss, packets/s" in table
    assert "the author of the series expected +160 ns, which could not be seen" in table
    page = render(report, "html")
    assert 'id="latency"' in page
    assert str(CELLS[3]) in page
    assert "rr_p99_us_moderation_busy_poll" in render(report, "csv").splitlines()[0]


def test_a_paced_trial_off_its_rate_is_void(tmp_path: Path) -> None:
    def edit(boot: Json, block: int, position: int, step: str) -> Json:
        boot = with_extras(boot, block, position, step)
        for found in boot["trials"]:
            if found["kind"] == "paced":
                found["paced_pps"] = round(_PACED_PPS * 1.1)
        return boot

    root = make_campaign(tmp_path, effects={"0": 1, "8": 1}, blocks=1, edit=edit)
    report = document(analyse(ResultDirectory.open(root)))
    assert [void["reasons"][0]["rule"] for void in report["void"]] == ["rate-missed"] * 2
    assert "paced_cpu_ns_per_packet" not in report["measures"]


def test_extras_add_trials_of_their_own_to_every_boot() -> None:
    usual = [trial.kind for trial in profile("quick").trials_of(2)]
    kinds = [trial.kind for trial in profile("quick", extras=EXTRAS).trials_of(2)]
    assert kinds[: len(usual)] == usual
    assert kinds[len(usual) :] == ["paced"] * 3 + ["latency"] * 4 + ["ndr"]
