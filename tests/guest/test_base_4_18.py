# SPDX-License-Identifier: MIT
"""The series on Linux 4.18, of which no package has the source: the user names a tree."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harness import patches
from tests.guest.conftest import Campaign, harness

pytestmark = pytest.mark.guest

_TREE = "KERNEL_TREE_4_18"


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """Steps 0, 2 and 8 of the tree."""
    tree = os.environ.get(_TREE)
    if not tree:
        pytest.skip(f"{_TREE} names no git tree of Linux 4.18")
    assert patches.base_of(Path(tree))[0] == "linux-4.18"
    directory = tmp_path_factory.mktemp("campaign") / "result"
    asked = ["--tree", tree, "--bed", "virtual", "--steps", "0,2,8", "--profile", "smoke"]
    done = harness("run", *asked, "--out", str(directory))
    assert done.returncode == 0
    report = harness("report", str(directory), "--format", "json")
    return Campaign("virtual", directory, done.stdout, json.loads(report.stdout))


def test_lists_come_with_the_steps(campaign: Campaign) -> None:
    assert [void for void in campaign.report["void"] if not void["rates_only"]] == []
    assert campaign.row("0")["list_len_p50"] is None
    assert campaign.row("0")["ip_rcv_per_packet"] == pytest.approx(1, abs=0.02)
    assert campaign.row("2")["list_len_max"] > 1
    assert campaign.row("2")["ip_rcv_per_packet"] == pytest.approx(1, abs=0.02)
    assert campaign.row("8")["list_len_max"] > 1
    assert campaign.row("8")["ip_rcv_per_packet"] < 0.02
