# SPDX-License-Identifier: MIT
"""Each setting of the agent fails in turn, on a real veth: the host is as it was before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.agent.settings.registry import ARGUMENTS, DECLARED
from tests.unit import settings_inside

pytestmark = pytest.mark.unit

SETTINGS = set(DECLARED) - {"ntuple"}
"""All but ntuple, which asks for a NIC with receive rules."""


def _missing() -> str | None:
    if os.geteuid() != 0:
        return "needs root: RPS and RFS are root's alone, also in a namespace of its own"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "ip", "link", "add", "type", "veth"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if tried.returncode == 0 else f"needs a namespace and veth: {tried.stderr.strip()}"


WHY_NOT = _missing()
on_a_veth = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def _inside(check: str, at: Path) -> list[str]:
    root = Path(settings_inside.__file__).parents[2]
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-m", "tests.unit.settings_inside",
         check, str(at)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@on_a_veth
def test_every_setting_is_made_there_and_put_back(tmp_path: Path) -> None:
    assert settings_inside.WANTED.keys() >= ARGUMENTS - {"steering", "up"}
    assert set(_inside("made", tmp_path)) == SETTINGS


@on_a_veth
@pytest.mark.parametrize(
    "check",
    [
        pytest.param("each_in_turn", id="one fails, in every way, at its position"),
        pytest.param("for_ever", id="one cannot be put back: it is named, the rest is put back"),
        pytest.param("after_the_last", id="what comes after the settings fails"),
        pytest.param("killed", id="the agent is killed before and after each write"),
        pytest.param("managed", id="an interrupt is managed by its driver"),
    ],
)
def test_the_host_is_as_it_was(check: str, tmp_path: Path) -> None:
    assert _inside(check, tmp_path) == []
