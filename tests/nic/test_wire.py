# SPDX-License-Identifier: MIT
"""The model as a process on a real veth pair, in namespaces of an ordinary user."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.nic


def why_not() -> str | None:
    for tool in ("unshare", "ip"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    tried = subprocess.run(["unshare", "-Urn", "true"], capture_output=True, text=True)
    if tried.returncode:
        return f"no user namespaces here: {tried.stderr.strip()}"
    return None


def test_in_a_namespace() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    inside = Path(__file__).with_name("wire_inside.py")
    command = ["unshare", "-Urn", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(inside)],
        capture_output=True,
        text=True,
        cwd=inside.parents[2],
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
