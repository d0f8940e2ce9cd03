# SPDX-License-Identifier: MIT
"""A bisection over real kernels, of what the probes count."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.guest.conftest import STEPS, harness

pytestmark = pytest.mark.guest


def test_the_step_where_ip_takes_lists_is_found(tmp_path: Path) -> None:
    out = tmp_path / "result"
    asked = ["bisect", "--metric", "ip_rcv_per_packet", "--good", "0", "--bad", "8"]
    asked += ["--steps", ",".join(STEPS), "--out", str(out), "--format", "json"]
    done = harness(*asked)
    assert done.returncode == 0
    shown = json.loads(done.stdout)
    assert shown["found"]["point"] == "8"
    assert [made["point"] for made in shown["decisions"]] == ["8", "2"]
    assert len(list(out.glob("step-*/boots/*/boot.json"))) == 3
    again = harness(*asked, "--resume")
    assert (again.returncode, json.loads(again.stdout)) == (0, shown)
