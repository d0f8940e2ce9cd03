# SPDX-License-Identifier: MIT
"""CPU time at a paced load, latency and the non-drop rate, on a real guest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.guest.conftest import harness

pytestmark = pytest.mark.guest


def test_what_is_measured_beside_the_rate(tmp_path: Path) -> None:
    also = [word for extra in ("cpu", "icache", "latency", "ndr") for word in ("--also", extra)]
    out = tmp_path / "result"
    done = harness("run", "--steps", "0", "--blocks", "1", *also, "--out", str(out))
    assert done.returncode == 0, done.stderr
    [boot] = [json.loads(path.read_text()) for path in out.glob("boots/*/boot.json")]
    found: dict[str, list[dict]] = {}
    for trial in boot["trials"]:
        found.setdefault(trial["kind"], []).append(trial)

    paced = [trial for trial in found["paced"] if not trial["void"]]
    assert paced
    for trial in paced:
        start, end = (trial["window"][which] for which in ("start", "end"))
        packets = end["snmp"]["Ip"]["InReceives"] - start["snmp"]["Ip"]["InReceives"]
        seconds = (end["monotonic_ns"] - start["monotonic_ns"]) / 1e9
        assert packets / seconds == pytest.approx(trial["paced_pps"], rel=0.15)

    [counted] = found["icache"]
    assert not counted["void"]
    start, end = (counted["window"][which]["snmp"] for which in ("start", "end"))
    packets = end["Ip"]["InReceives"] - start["Ip"]["InReceives"]
    assert end["Udp"]["InDatagrams"] == start["Udp"]["InDatagrams"]  # netserver stands still
    executed, missed = (
        counted["window"]["pmu"]["counts"][name]["count"]
        for name in ("instructions", "L1-icache-load-misses")
    )
    assert 500 < executed / packets < 20_000
    assert 0 < missed < executed / 20

    assert len(found["latency"]) == 4
    for trial in found["latency"]:
        trips = trial["round_trips"]
        assert 0 < trips["p50_us"] <= trips["p90_us"] <= trips["p99_us"]

    [ndr] = found["ndr"]
    assert ndr["ndr_pps"] > 1000
    assert {tried["passed"] for tried in ndr["search"]} == {True, False}
    for tried in ndr["search"]:
        assert 0 < tried["read"] <= tried["sent"] + 20
    assert [tried["asked_pps"] for tried in ndr["search"][-3:]] == [ndr["ndr_pps"]] * 3

    settings = boot["settings"]["restored"]
    assert "pacing_bytes_per_s" in settings["generator"]["restored"]
    assert {"busy_read_us", "coalesce"} <= set(settings["dut"]["restored"])
    assert settings["dut"]["failed"] == settings["generator"]["failed"] == []
