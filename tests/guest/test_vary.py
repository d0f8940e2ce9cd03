# SPDX-License-Identifier: MIT
"""Factors that are not code reach real kernels: lists as long as the bursts, a command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import cells
from tests.guest.conftest import harness

pytestmark = pytest.mark.guest

UNKNOWN = "harness_vary=1"
"""The kernel names such a word on its console, and passes it on to init."""


def test_levels_reach_the_kernel(tmp_path: Path) -> None:
    asked = ["--bed", "native", "--profile", "smoke", "--steps", "0,8", "--seed", "1"]
    factors = ["--vary", "burst=8,32", "--vary", f"cmdline={UNKNOWN}"]
    done = harness("run", *asked, *factors, "--out", str(tmp_path / "out"))
    assert done.returncode == 0
    assert "List length against gain" in done.stdout
    report = json.loads(harness("report", str(tmp_path / "out"), "--format", "json").stdout)
    assert report["complete"], report["problems"]
    assert report["factors"] == {"burst": ["8", "32"], "cmdline": ["default", UNKNOWN]}
    assert len(report["rows"]) == 8
    for row in report["rows"]:
        levels = cells.levels_of(row["step"])
        length = row["list_len_p50"]
        assert length == (int(levels["burst"]) if row["variant"] == "8" else None)
    consoles = {
        json.loads(path.read_text())["step"]: path.with_name("console.log").read_text()
        for path in (tmp_path / "out").glob("boots/*/boot.json")
    }
    for step, console in consoles.items():
        assert (UNKNOWN in console) == (cells.levels_of(step)["cmdline"] == UNKNOWN)
