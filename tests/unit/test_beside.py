# SPDX-License-Identifier: MIT
"""What is measured beside the rate: paced cost, latency, the highest rate without loss."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from harness.beds.registry import profile
from harness.plan import PACED_SHARES
from harness.report import document, render
from harness.report.plots import plots
from harness.results.analysis import analyse
from harness.results.expect import OTHER_METRICS, RATE_METRICS, check, parse
from harness.results.rows import Analysis
from harness.results.samples import ResultDirectory
from harness.trials import EXTRAS, MEASURES, ndr
from harness.trials.latency import CELLS
from harness.trials.search import Bounds
from tests.unit.synthetic import Host, make_campaign, trial, trials_of

pytestmark = pytest.mark.unit

Json = dict[str, Any]
_PACED_PPS = 40_000
OF_UDP = [name for name in MEASURES if name != "goodput_mbps"]
"""Those of the usual load; test_loads.py has the others."""


def test_a_rate_that_only_the_generator_bounds_is_no_rate_of_the_dut() -> None:
    def row(asked: float, offered: float, lost: int) -> Json:
        sent = round(offered)
        return {"asked_pps": asked, "offered_pps": offered, "sent": sent, "read": sent - lost}

    bounds = Bounds(40_000, 42_000)
    tried = [row(40_000, 40_000, 0), row(42_000, 39_000, 0), row(84_000, 39_000, 900)]
    assert "generator" in str(ndr.why_not_found(bounds, tried, 0.001))
    tried.append(row(42_000, 42_000, 100))
    assert ndr.why_not_found(bounds, tried, 0.001) is None
    assert "generator" in str(ndr.why_not_found(bounds, tried, 0.005))
    assert "even at the lowest rate" in str(ndr.why_not_found(Bounds(None, 1000), tried, 0.001))


def with_extras(boot: Json, block: int, _position: int, step: str) -> Json:
    """Step 8 costs a tenth less, waits 4 % longer in one cell and takes a fifth more."""
    better = step == "8"
    rng = random.Random(10 * block + better)
    cost_ns = 9000 * (0.9 if better else 1.0) * rng.uniform(0.99, 1.01)
    host = Host()
    for index, share in enumerate((None, *PACED_SHARES)):
        paced = trial(host, "paced", index, _PACED_PPS, 4.0, int(step))
        paced |= {"paced_pps": _PACED_PPS, "paced_share": share}
        start, end = (paced["window"][which]["cpu"][0] for which in ("start", "end"))
        end["idle_ns"] = start["idle_ns"] + round(4e9 - cost_ns * _PACED_PPS * 4)
        boot["trials"].append(paced)
    boot["trials"].append(_emulated(trial(host, "icache", 0, 40_000, 2.0, int(step)), better))
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
    for timed in boot["trials"]:
        if timed["kind"] == "timed":
            timed["window"]["pmu"] = _pmu(timed["window"], better)
    rates = {"zero_loss_pps": 0.9 * ndr_pps, "ndr_pps": ndr_pps, "pdr_pps": 1.1 * ndr_pps}
    boot["trials"].append({"kind": "ndr", "index": 0, "search": [], **rates})
    return boot


def _emulated(counted: Json, better: bool) -> Json:
    """2800 instructions a packet; of step 8 ten fewer in one function, 150 more in another."""
    found = {"ip_rcv": (1, 130, 1), "__slab_free": (0, 0, 0), "udp_rcv": (1, 2670, 0)}
    if better:
        found |= {"ip_rcv": (0, 120, 1), "__slab_free": (2, 150, 0)}
    start, end = (counted["window"][which] for which in ("start", "end"))
    packets = end["snmp"]["Ip"]["InReceives"] - start["snmp"]["Ip"]["InReceives"]
    each = sum(instructions for _, instructions, _ in found.values())
    on_s = (end["monotonic_ns"] - start["monotonic_ns"]) / 1e9
    counts = {"instructions": each * packets, "L1-icache-load-misses": packets}
    counted["window"]["pmu"] = {
        "cpu": 0,
        "counts": {name: {"count": count, "on_s": on_s} for name, count in counts.items()},
    }
    # It was counted for longer than the window lasted.
    names = ("calls", "instructions", "misses")
    counted["functions"] = {
        name: dict(zip(names, (3 * packets * count for count in counts), strict=True))
        for name, counts in found.items()
    }
    return counted


def _pmu(window: Json, better: bool) -> Json:
    """2000 cycles a packet, a quarter less after step 8; one event shares its counter."""
    packets = (
        window["end"]["snmp"]["Ip"]["InReceives"] - window["start"]["snmp"]["Ip"]["InReceives"]
    )
    window_s = (window["end"]["monotonic_ns"] - window["start"]["monotonic_ns"]) / 1e9
    cycles = 2000 * packets * (0.75 if better else 1.0)
    return {
        "cpu": 0,
        "counts": {
            "cycles": {"count": cycles, "on_s": window_s, "running": 1.0},
            # Switched on late: what counts is its rate.
            "instructions": {"count": 0.99 * cycles, "on_s": 0.99 * window_s, "running": 1.0},
            "L1-icache-load-misses": {"count": cycles / 100, "on_s": window_s, "running": 0.5},
        },
        "absent": {},
    }


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    root = make_campaign(
        tmp_path_factory.mktemp("beside"), effects={"0": 1, "8": 1}, blocks=9, edit=with_extras
    )
    return analyse(ResultDirectory.open(root))


@pytest.fixture(scope="module")
def report(analysis: Analysis) -> Json:
    return document(analysis)


def test_every_measure_is_compared_and_judged(report: Json) -> None:
    assert list(report["measures"]) == ["delivered_pps", *OF_UDP]
    measures = report["rows"][1]["measures"]
    assert measures["paced_cpu_ns_per_packet"]["median"] == pytest.approx(8100, rel=0.02)
    assert measures["cycles_per_packet"]["median"] == pytest.approx(1500, rel=1e-6)
    assert measures["instructions_per_packet"]["median"] == pytest.approx(1500, rel=1e-6)
    assert measures["l1i_misses_per_packet"]["median"] == pytest.approx(15, rel=1e-6)
    assert measures["emulated_instructions_per_packet"]["median"] == pytest.approx(2940, rel=1e-6)
    assert measures["emulated_l1i_misses_per_packet"]["median"] == pytest.approx(1, rel=1e-6)
    assert report["absent"] == {}
    outcomes = {name: found["verdict"]["verdict"] for name, found in measures.items()}
    assert outcomes["paced_cpu_ns_per_packet"] == "lower"
    assert [outcomes[name] for name in ndr.LOSSES] == ["higher"] * 3
    assert outcomes["emulated_instructions_per_packet"] == "higher"
    assert outcomes["cycles_per_packet"] == "lower"
    assert outcomes[f"rr_mean_us_{CELLS[1].name}"] == "higher"
    assert outcomes[f"rr_mean_us_{CELLS[2].name}"] == "no difference"


def test_where_the_instructions_are_is_told_by_function(report: Json) -> None:
    [before, after] = [row["functions"] for row in report["rows"]]
    assert list(before) == ["udp_rcv", "ip_rcv", "__slab_free"]  # most first
    assert after["__slab_free"] == pytest.approx({"calls": 2, "instructions": 150, "misses": 0})
    lines = render(report, "table").splitlines()
    [begins] = [n for n, line in enumerate(lines) if line.startswith("instructions per packet, by")]
    assert [line.split() for line in lines[begins + 2 : begins + 4]] == [
        ["__slab_free", "0.0", "150.0"],
        ["ip_rcv", "130.0", "120.0"],
    ]
    assert lines[begins + 4] == ""
    assert "<td>__slab_free</td><td>0.0</td><td>150.0</td>" in render(report, "html")
    assert "counted" in {plot.name for plot in plots(report)}


def test_the_page_judges_and_draws_what_was_paced(report: Json) -> None:
    verdicts, _, rest = render(report, "html").partition("<h2>Results</h2>")
    assert "CPU time per packet at a paced load: step 8 against step 0: lower" in verdicts
    assert "CPU time per packet at 90% of the saturating load: step 8 against" in verdicts
    assert "step 8 against step 0: lower" not in rest
    drawn = {plot.name: plot for plot in plots(report)}
    assert drawn["paced"].title == "CPU time per packet at paced loads"
    assert "90% of the saturating load" in drawn["paced"].svg


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("step8 ndr_pps > 1.1x step0", "met"),
        ("step8 paced_cpu_ns_per_packet > step0", "missed"),
        ("step8 ndr_pps > 55000", "met"),
        ("step8 pdr_pps > 1.1x step0", "met"),
        ("step8 zero_loss_pps > 55000", "missed"),
        ("step8 cycles_per_packet < 0.8x step0", "met"),
        ("step8 l1i_misses_per_packet > 16", "missed"),
    ],
)
def test_measures_can_be_expected(analysis: Analysis, text: str, outcome: str) -> None:
    assert check(parse(text, ["0", "8"]), analysis).outcome == outcome


@pytest.mark.parametrize("metric", [*RATE_METRICS, *OTHER_METRICS, *OF_UDP])
def test_what_is_expected_of_is_the_figure_in_the_report(
    analysis: Analysis, report: Json, metric: str
) -> None:
    figure = analysis.row("8").figure(metric)
    shown = report["rows"][1]
    assert figure == (shown["measures"][metric]["median"] if metric in MEASURES else shown[metric])
    assert figure is not None


def test_the_reports_show_measures_and_what_could_be_resolved(report: Json) -> None:
    table = render(report, "table")
    for loss in ("no", "at most 0.1%", "at most 0.5%"):
        assert f"highest rate with {loss} loss, packets/s" in table
    assert "the author of the series expected +160 ns, which could not be detected" in table
    assert "instructions per packet, instructions" in table
    assert "not available" not in table
    assert "l1i_misses_per_packet" in render(report, "csv").splitlines()[0]
    page = render(report, "html")
    assert 'id="latency"' in page
    assert str(CELLS[3]) in page
    assert "rr_p99_us_moderation_busy_poll" in render(report, "csv").splitlines()[0]


def test_what_the_cpu_did_not_count_is_said_once_and_is_not_0(tmp_path: Path) -> None:
    why = "not supported by the CPU's PMU"

    def edit(boot: Json, block: int, position: int, step: str) -> Json:
        boot = with_extras(boot, block, position, step)
        for found in boot["trials"]:
            if found["kind"] == "timed":
                counts = found["window"]["pmu"]["counts"]
                del counts["cycles"], counts["instructions"]
                found["window"]["pmu"]["absent"] = {"cycles": why, "instructions": why}
        return boot

    root = make_campaign(tmp_path, effects={"0": 1, "8": 1}, blocks=2, edit=edit)
    report = document(analyse(ResultDirectory.open(root)))
    assert "cycles_per_packet" not in report["measures"]
    assert "l1i_misses_per_packet" in report["measures"]
    assert report["absent"]["cycles_per_packet"]["reasons"] == [why]
    table = render(report, "table")
    assert table.count(why) == 1
    assert f"not available: cycles per packet, instructions per packet: {why}" in table
    assert why in render(report, "markdown")
    assert "cycles_per_packet" not in render(report, "csv").splitlines()[0]


def test_a_search_of_an_earlier_version_has_one_rate(tmp_path: Path) -> None:
    def edit(boot: Json, *place: Any) -> Json:
        boot = with_extras(boot, *place)
        for name in ("zero_loss_pps", "pdr_pps"):
            del boot["trials"][-1][name]
        return boot

    root = make_campaign(tmp_path, effects={"0": 1, "8": 1}, blocks=2, edit=edit)
    report = document(analyse(ResultDirectory.open(root)))
    assert ndr.LOSSES.keys() & report["measures"].keys() == {"ndr_pps"}
    assert ndr.LOSSES.keys() & report["absent"].keys() == set()


def test_a_rate_above_what_the_generator_sends_is_said_to_be_absent(tmp_path: Path) -> None:
    def edit(boot: Json, *place: Any) -> Json:
        boot = with_extras(boot, *place)
        del boot["trials"][-1]["pdr_pps"]
        boot["trials"][-1]["not_found"] = {"pdr_pps": "the generator cannot send as much"}
        return boot

    root = make_campaign(tmp_path, effects={"0": 1, "8": 1}, blocks=2, edit=edit)
    report = document(analyse(ResultDirectory.open(root)))
    assert report["void"] == []
    assert "zero_loss_pps" in report["measures"]
    line = "not available: highest rate with at most 0.5% loss: the generator cannot send as much"
    assert line in render(report, "table")


def test_what_the_nic_is_not_and_was_not_set_to_is_said(tmp_path: Path) -> None:
    skipped = [
        {"setting": "offloads.lro", "why": "the driver cannot change it"},
        {"setting": "governor", "why": "the host has no cpufreq"},
    ]

    def edit(boot: Json, *_: Any) -> Json:
        boot["settings"] = {"dut": {"after": {}, "skipped": skipped}}
        boot["inventory"] = {"dut": {"nic": {"warnings": ["no EF10 function of sfc"]}}}
        return boot

    root = make_campaign(tmp_path, effects={"0": 1, "8": 1}, blocks=1, edit=edit)
    table = render(document(analyse(ResultDirectory.open(root))), "table")
    assert "the dut's NIC: no EF10 function of sfc" in table
    assert "not set on the dut: offloads.lro: the driver cannot change it" in table
    assert "governor" not in table


def test_a_paced_trial_off_its_rate_is_void(tmp_path: Path) -> None:
    def edit(boot: Json, block: int, position: int, step: str) -> Json:
        boot = with_extras(boot, block, position, step)
        for found in boot["trials"]:
            if found["kind"] == "paced":
                found["paced_pps"] = round(_PACED_PPS * 1.1)
        return boot

    root = make_campaign(tmp_path, effects={"0": 1, "8": 1}, blocks=1, edit=edit)
    report = document(analyse(ResultDirectory.open(root)))
    assert [void["reasons"][0]["rule"] for void in report["void"]] == ["rate-missed"] * 8
    assert "paced_cpu_ns_per_packet" not in report["measures"]


def test_extras_add_trials_of_their_own_to_every_boot() -> None:
    usual = [trial.kind for trial in trials_of(profile("quick"), 2)]
    kinds = [trial.kind for trial in trials_of(profile("quick", extras=EXTRAS), 2)]
    assert kinds == [*usual, *["paced"] * 9, "icache", *["latency"] * 4, "ndr"]


def test_a_load_is_paced_to_shares_or_to_the_rate_that_a_bed_names() -> None:
    def paced(pps: int | None) -> list[tuple[int, float | None]]:
        trials = trials_of(profile("quick", extras=["cpu"], paced_pps=pps), 2)
        return [(trial.index, trial.share) for trial in trials if trial.kind == "paced"]

    assert paced(None) == [(index, PACED_SHARES[index // 3]) for index in range(9)]
    assert paced(40_000) == [(index, None) for index in range(3)]
