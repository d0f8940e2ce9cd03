# SPDX-License-Identifier: MIT
"""Every step on the real kernel source: it applies, is in good form, compiles, adds no warning."""

from __future__ import annotations

import pytest

from harness import config, patches
from harness.base.errors import InfrastructureError
from harness.base.progress import Progress
from harness.kernels.deep import check_deep
from harness.kernels.source import Source, Tree, from_package, resolve

pytestmark = [pytest.mark.guest, pytest.mark.others]

*OLDER, LAST = patches.list_series()


def source_of(base: str) -> Source:
    """The source in hosts.yaml if it is of ``base``, or Debian's package of it."""
    named = resolve(config.load(config.locate(None)).kernel.source)
    if patches.base_of(Tree.of(named).directory)[0] == base:
        return named
    try:
        return from_package(f"linux-source-{base.removeprefix('linux-')}")
    except InfrastructureError as error:
        pytest.skip(error.message)


@pytest.mark.parametrize(
    "series",
    [
        pytest.param(series, id=series.base, marks=[pytest.mark.deep] * (series is not LAST))
        for series in (*OLDER, LAST)
    ],
)
def test_every_step(series: patches.Series) -> None:
    source = source_of(series.base)
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
