# SPDX-License-Identifier: MIT
"""What the tests that boot kernels share: one campaign, and a bed to break."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import config, kernels
from harness.base.progress import Progress
from harness.beds.virtual import Equipment, VirtualBed, equipment, virtual_bed
from harness.selftest.rack import Rack

STEPS = ("0", "2", "8")


def harness(*arguments: str, timeout_s: float = 3000) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=timeout_s)


@dataclass(frozen=True)
class Campaign:
    """A campaign that was run: its bed, its directory, what it printed, its report."""

    bed: str
    directory: Path
    printed: str
    report: dict[str, Any]

    def row(self, step: str) -> dict[str, Any]:
        return next(row for row in self.report["rows"] if row["step"] == step)


BEDS = {"native": 2, "virtual": 1}
"""Beds of this machine, and how many blocks each measures."""


@pytest.fixture(scope="session", params=BEDS)
def campaign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """``harness run`` over steps 0, 2 and 8, as a user would start it."""
    directory = tmp_path_factory.mktemp("campaign") / "result"
    asked = ["--bed", request.param, "--steps", ",".join(STEPS), "--seed", "1"]
    done = harness("run", *asked, "--blocks", str(BEDS[request.param]), "--out", str(directory))
    assert done.returncode == 0
    report = harness("report", str(directory), "--format", "json")
    return Campaign(request.param, directory, done.stdout, json.loads(report.stdout))


@pytest.fixture(scope="session")
def built() -> dict[str, kernels.Image]:
    """The kernels of :data:`STEPS`, in their first layout."""
    hosts = config.load(config.locate(None))
    with Progress() as progress:
        made = kernels.Kernels(kernel=hosts.kernel, names=STEPS).build(progress)
    return {step: images[0] for step, images in made.items()}


@pytest.fixture(scope="session")
def rack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rack]:
    """Two machines; a test may find them on or off, and leave them so."""
    with Rack(tmp_path_factory.mktemp("rack") / "rack") as up:
        yield up


@dataclass(frozen=True)
class Beds:
    """Brings the shipped virtual bed up on a kernel."""

    built: dict[str, kernels.Image]
    equipment: Equipment
    directory: Path

    def up(self, step: str = "8") -> AbstractContextManager[VirtualBed]:
        bed = config.bed(config.load(config.locate(None)), "virtual")
        return virtual_bed(bed, self.built[step], self.equipment, self.directory)


def equipped(built: dict[str, kernels.Image], directory: Path) -> Beds:
    """Beds that keep what they say in ``directory``."""
    dut = config.bed(config.load(config.locate(None)), "virtual").dut
    assert isinstance(dut, config.QemuHost)
    with Progress() as progress:
        return Beds(built, equipment(dut, built["0"], progress), directory)


@pytest.fixture
def beds(built: dict[str, kernels.Image], tmp_path: Path) -> Beds:
    return equipped(built, tmp_path)
