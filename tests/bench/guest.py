# SPDX-License-Identifier: MIT
"""What the benches that boot a guest share: their options, and bed and kernel made ready."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import config, kernels, plan
from harness.base.progress import Progress
from harness.beds.virtual import Equipment, equipment, machine_cpus


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is the same for every window."""

    window_s: float
    irq_cpu: int
    sender_cpu: int


def options(name: str, about: str, *, rounds: int, window_s: float) -> argparse.Namespace:
    """The command line of ``python -m tests.bench.NAME``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.bench.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--step", default="8", help="kernel: a step of the series (default: 8)")
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"windows of each (default: {rounds})"
    )
    parser.add_argument("--window-s", type=float, default=window_s, help=f"default: {window_s:g}")
    parser.add_argument("--hosts", type=Path, help="hosts.yaml to use")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(bench=name)
    return parser.parse_args()


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A virtual bed's kernel and equipment, and what was asked for."""

    chosen: argparse.Namespace
    bed: config.Bed
    image: kernels.Image
    equipment: Equipment

    @property
    def setup(self) -> Setup:
        """For every window."""
        return Setup(
            window_s=self.chosen.window_s,
            irq_cpu=self.bed.placement.irq_cpu,
            sender_cpu=machine_cpus(self.bed).netperf[0],
        )

    def about(self) -> dict[str, Any]:
        """The head of a result."""
        return {
            "bench": self.chosen.bench,
            "release": self.image.release,
            "accelerator": self.equipment.accelerator,
            "window_s": self.chosen.window_s,
            "rounds": self.chosen.rounds,
        }

    def footnote(self) -> str:
        """What to know of the figures in a table."""
        return (
            f"{self.image.release}, {self.equipment.accelerator.upper()}, {self.chosen.rounds} "
            f"windows of {self.chosen.window_s:g} s each, interleaved; not hardware figures"
        )


def ready(chosen: argparse.Namespace, progress: Progress) -> Ready:
    """Make what the virtual bed needs, if it is not kept."""
    hosts = config.load(config.locate(chosen.hosts))
    bed = config.bed(hosts, "virtual")
    assert isinstance(bed.dut, config.QemuHost)
    [step] = plan.parse_steps(chosen.step)
    image = kernels.Kernels(kernel=hosts.kernel, names=[step]).build(progress)[step][0]
    return Ready(
        chosen=chosen,
        bed=bed,
        image=image,
        equipment=equipment(bed.dut, image, progress),
    )
