# SPDX-License-Identifier: MIT
"""Every prefix of the series on the real kernel source: it applies, it compiles, no new warning."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import cache, config, patches, process
from harness.kernels.configuration import FRAGMENT
from harness.kernels.source import Tree, resolve

pytestmark = pytest.mark.guest

MORE_OPTIONS = "CONFIG_MODULES=y\nCONFIG_SFC_SIENA=m\n"
"""Options that bring in what the prelude touches and the benchmark leaves out."""


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree.of(resolve(config.load(config.locate(None)).kernel.source))


@pytest.fixture(scope="module")
def linked(tree: Tree) -> Iterator[Tree]:
    """The tree once more, made of links, so that the objects of the kernels stay fresh."""
    home = cache.root() / "checks" / "series"
    process.run(["rm", "-rf", str(home)])
    home.parent.mkdir(parents=True, exist_ok=True)
    yield tree.linked(home)
    process.run(["rm", "-rf", str(home)])


def test_the_whole_series_applies(linked: Tree) -> None:
    linked.move_to([])
    report = patches.check(linked.directory)
    report.require()
    assert len(report.outcomes) == 9


def test_every_prefix_compiles_without_a_new_warning(linked: Tree, tmp_path: Path) -> None:
    series = patches.series_for(linked.directory)
    fragment = tmp_path / "fragment"
    fragment.write_text(FRAGMENT.read_text() + MORE_OPTIONS)
    touched = {name for patch in (*series.patches, *series.optional) for name in patch.files}
    objects = sorted(name.removesuffix(".c") + ".o" for name in touched if name.endswith(".c"))
    linked.move_to([])
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    make = ["make", "-C", str(linked.directory), f"O={tmp_path / 'objects'}", f"-j{os.cpu_count()}"]
    if shutil.which("ccache"):  # it repeats the warnings, too
        make.append("CC=ccache gcc")
        env |= {"CCACHE_DIR": str(cache.root() / "ccache"), "CCACHE_NOHASHDIR": "1"}

    def compiled(*goals: str) -> set[str]:
        """The warnings of building ``goals``, without their line numbers."""
        done = subprocess.run(
            [*make, *goals], env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return {
            re.sub(r":\d+", "", line) for line in done.stderr.splitlines() if "warning:" in line
        }

    compiled(f"KCONFIG_ALLCONFIG={fragment}", "allnoconfig")
    known = compiled("W=1", *objects)
    for step in (*series.steps, *series.optional_steps):
        linked.move_to(series.patches_for(step))
        assert compiled("W=1", *objects) - known == set(), f"step {step}"
