# SPDX-License-Identifier: MIT
"""Factors that are not code reach real kernels: lists as long as the bursts, a command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import cells
from harness.results.rows import DRIVER_STAGE
from tests.guest.conftest import harness

pytestmark = pytest.mark.guest

UNKNOWN = "harness_vary=1"
"""The kernel names such a word on its console, and passes it on to init."""


def test_levels_reach_the_kernel(tmp_path: Path) -> None:
    asked = ["--bed", "native", "--profile", "smoke", "--steps", "8", "--seed", "1"]
    factors = ["--vary", "burst=8,32", "--vary", f"cmdline={UNKNOWN}"]
    done = harness("run", *asked, *factors, "--out", str(tmp_path / "out"))
    assert done.returncode == 0
    assert "List length against gain" in done.stdout
    report = json.loads(harness("report", str(tmp_path / "out"), "--format", "json").stdout)
    assert report["complete"], report["problems"]
    assert report["factors"] == {"burst": ["8", "32"], "cmdline": ["default", UNKNOWN]}
    assert len(report["rows"]) == 4
    booted = {path: json.loads(path.read_text()) for path in (tmp_path / "out").rglob("boot.json")}
    for path, boot in booted.items():
        levels = cells.levels_of(boot["step"])
        console = path.with_name("console.log").read_text()
        assert (UNKNOWN in console) == (levels["cmdline"] == UNKNOWN)
        # A busy machine may void a trial, but its lists are as long as they are.
        [trace] = (trial["trace"] for trial in boot["trials"] if trial.get("trace"))
        lists = [one["lengths"] for one in trace["stages"] if one["name"] == DRIVER_STAGE]
        assert [usual(lengths) for lengths in lists if sum(lengths)] == [int(levels["burst"])]


def usual(lengths: list[int]) -> int:
    """The length of most lists."""
    return max(range(1, len(lengths)), key=lambda length: lengths[length])
