# SPDX-License-Identifier: MIT
"""CPU time at a paced load, latency and the highest rates with little loss, on real kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import config
from harness.plan import PACED_SHARES
from harness.trials.ndr import LOSSES
from tests.guest.conftest import harness

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("bed", ["native", pytest.param("virtual", marks=pytest.mark.deep)])
def test_what_is_measured_beside_the_rate(bed: str, tmp_path: Path) -> None:
    also = [word for extra in ("cpu", "latency", "ndr") for word in ("--also", extra)]
    out = tmp_path / "result"
    asked = ["--bed", bed, "--steps", "0", "--blocks", "1", *also]
    done = harness("run", *asked, "--out", str(out))
    assert done.returncode == 0, done.stderr
    [boot] = [json.loads(path.read_text()) for path in out.glob("boots/*/boot.json")]
    found: dict[str, list[dict[str, Any]]] = {}
    for trial in boot["trials"]:
        found.setdefault(trial["kind"], []).append(trial)

    # A trial has its load or, where others have this machine, is void for want of it.
    report = json.loads(harness("report", str(out), "--format", "json").stdout)
    void = {
        (trial["kind"], trial["index"]): {reason["rule"] for reason in trial["reasons"]}
        for trial in report["void"]
    }
    assert {trial["paced_share"] for trial in found["paced"]} == {*PACED_SHARES}
    for trial in found["paced"]:
        start, end = _ends(trial, "monotonic_ns")
        share = _packets(trial) / (end - start) * 1e9 / trial["paced_pps"]
        assert share < 1.15
        missed = "rate-missed" in void.get(("paced", trial["index"]), ())
        assert missed == (abs(share - 1) > 0.05)

    assert len(found["latency"]) == 4
    for trial in found["latency"]:
        trips = trial["round_trips"]
        assert 0 < trips["p50_us"] <= trips["p90_us"] <= trips["p99_us"]

    [ndr] = found["ndr"]
    assert ndr["ndr_pps"] > 1000
    assert {tried["passed"] for tried in ndr["search"]} == {True, False}
    for tried in ndr["search"]:
        assert 0 < tried["read"] <= tried["sent"] + 20
    again = [tried["passed"] for tried in ndr["search"] if tried["asked_pps"] == ndr["ndr_pps"]]
    assert again.count(True) >= 2
    rates = [ndr[name] for name in LOSSES if ndr[name] is not None]
    assert rates == sorted(rates)

    settings = boot["settings"]["restored"]
    # The wire of the native bed repeats frames, and is paced itself.
    paced = "pacing_bytes_per_s" in settings["generator"]["restored"]
    assert paced == (bed == "virtual")
    assert {"busy_read_us", "coalesce"} <= set(settings["dut"]["restored"])
    assert settings["dut"]["failed"] == settings["generator"]["failed"] == []


def test_what_the_emulator_executed(tmp_path: Path) -> None:
    out, hosts = tmp_path / "result", tmp_path / "hosts.yaml"
    usual = config.locate(None).read_text()
    assert "accelerator: auto" in usual
    hosts.write_text(usual.replace("accelerator: auto", "accelerator: tcg"))
    words = ["--hosts", str(hosts), "--bed", "virtual", "--profile", "smoke", "--steps", "8"]
    done = harness("run", *words, "--also", "icache", "--out", str(out))
    assert done.returncode == 0
    [boot] = [json.loads(path.read_text()) for path in out.glob("boots/*/boot.json")]
    [counted] = [trial for trial in boot["trials"] if trial["kind"] == "icache"]
    assert not counted["void"]
    start, end = _ends(counted, "snmp")
    assert end["Udp"]["InDatagrams"] == start["Udp"]["InDatagrams"]  # netserver stands still
    executed, missed = (
        counted["window"]["pmu"]["counts"][name]["count"]
        for name in ("instructions", "L1-icache-load-misses")
    )
    assert 500 < executed / _packets(counted) < 20_000
    assert 0 < missed < executed / 20

    functions = counted["functions"]
    # For each packet once, for each list once, not at all; and all that was executed is there.
    calls = {name: found["calls"] for name, found in functions.items()}
    assert 1 / 65 < calls["ip_list_rcv"] / calls["udp_rcv"] < 1 / 8
    assert calls["ip_rcv_core"] == pytest.approx(calls["udp_rcv"], rel=0.01)
    assert "ip_rcv" not in functions
    whole = sum(found["instructions"] for found in functions.values())
    assert whole / calls["udp_rcv"] == pytest.approx(executed / _packets(counted), rel=0.05)


def _ends(trial: dict[str, Any], name: str) -> list[Any]:
    return [trial["window"][which][name] for which in ("start", "end")]


def _packets(trial: dict[str, Any]) -> int:
    start, end = _ends(trial, "snmp")
    return int(end["Ip"]["InReceives"] - start["Ip"]["InReceives"])
