# SPDX-License-Identifier: MIT
"""Campaigns on two guests that are known only as machines, and what goes wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.guest.conftest import harness

pytestmark = pytest.mark.guest


def test_the_fast_part_of_the_fault_suite(tmp_path: Path, built: object) -> None:
    done = harness("selftest", "faults", "--fast", "--format", "json", "--out", str(tmp_path))
    found = json.loads(done.stdout)
    assert [one["fault"] for one in found if one["wrong"]] == [], done.stdout
    assert done.returncode == 0
    assert len(found) > 1
