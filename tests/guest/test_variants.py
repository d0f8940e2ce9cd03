# SPDX-License-Identifier: MIT
"""Two commits and an uncommitted change of a kernel tree, from the tree to verdicts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from harness import config
from harness.kernels.source import Tree, resolve
from harness.patches.git import git
from tests.guest.conftest import harness

pytestmark = [pytest.mark.guest, pytest.mark.deep]

SPINS = """\
	for (int spin = 0; spin < 400; spin++)
		asm volatile("" : "+r"(spin));

"""
BEFORE = "	/* When the interface is in promisc. mode, drop all the crap\n"


def test_a_planted_slowdown_is_found(tmp_path: Path) -> None:
    """First as a change that is not committed, then as a commit."""
    shipped = Tree.of(resolve(config.load(config.locate(None)).kernel.source))
    tree = tmp_path / "linux"
    with shipped.held():
        shipped.move_to([])
        subprocess.run(["cp", "--archive", str(shipped.directory), str(tree)], check=True)
    git(tree, "init", "--quiet")
    git(tree, "add", "--all", "--force")
    git(tree, "commit", "--quiet", "--message=base")
    path = tree / "net/ipv4/ip_input.c"
    text = path.read_text()
    assert text.count(BEFORE) == 1
    path.write_text(text.replace(BEFORE, SPINS + BEFORE))
    for variants in ("HEAD,worktree", "HEAD~1..HEAD"):
        out = tmp_path / variants
        if variants != "HEAD,worktree":
            git(tree, "commit", "--quiet", "--all", "--message=ip: spin for a while")
        asked = ["--tree", str(tree), "--variants", variants, "--out", str(out)]
        done = harness("run", *asked, "--seed", "1")
        assert done.returncode == 0, done.stderr
        told = json.loads(harness("report", str(out), "--format", "json").stdout)
        [verdict] = told["verdicts"]
        assert verdict["verdict"] == "slower"
        assert verdict["interval"][1] < 0.9
    assert [row["title"] for row in told["rows"]] == ["base", "ip: spin for a while"]
