# SPDX-License-Identifier: MIT
"""Every step on the real kernel source: it applies, is in good form, compiles, adds no warning."""

from __future__ import annotations

import pytest

from harness import config, patches
from harness.kernels.deep import check_deep
from harness.kernels.source import Tree, resolve
from harness.progress import Progress

pytestmark = pytest.mark.guest


def test_every_step() -> None:
    source = resolve(config.load(config.locate(None)).kernel.source)
    series = patches.series_for(Tree.of(source).directory)
    with Progress(bars=False) as progress:
        found = list(
            check_deep(source, series, ["applies", "checkpatch", "benchmark"], progress=progress)
        )
    assert [finding for finding in found if not finding.ok] == []
    steps = [*series.steps, *series.optional_steps]
    assert [finding.step for finding in found if finding.check == "benchmark"] == steps


def test_a_series_that_does_not_fit() -> None:
    source = resolve(config.load(config.locate(None)).kernel.source)
    fits = patches.series_for(Tree.of(source).directory)
    cut = patches.Series("cut", fits.directory, fits.patches[:2] + fits.patches[4:5])
    with Progress(bars=False) as progress:
        found = list(check_deep(source, cut, ["applies"], progress=progress))
    assert [(finding.step, finding.ok) for finding in found] == [
        ("0", True),
        ("1", True),
        ("4", False),
    ]
