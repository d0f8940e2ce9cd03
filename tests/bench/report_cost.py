# SPDX-License-Identifier: MIT
"""What analysis and HTML page of a campaign cost as the campaign grows.

Each size is reported in turn, run after run, from synthetic campaigns of ten trials a
boot. Growth is the time of the largest beside that of a quarter of it, both without
what an empty campaign costs: 4 is linear.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harness.base.process import failed
from tests.bench import command, ranged, show, spread
from tests.unit.synthetic import make_campaign

EFFECTS = {"0": 1.0, "2": 1.1, "5": 1.15, "8": 1.27}
BLOCKS = (1, 12, 25, 50)
TRIALS = 10
TARGET_S, TARGET_MIB = 5.0, 300


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.report_cost", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    walls: dict[int, list[float]] = {blocks: [] for blocks in BLOCKS}
    memory: dict[int, list[float]] = {blocks: [] for blocks in BLOCKS}
    with tempfile.TemporaryDirectory(prefix="rb-bench-") as scratch:
        roots = {blocks: Path(scratch, str(blocks)) for blocks in BLOCKS}
        for blocks, root in roots.items():
            make_campaign(root, effects=EFFECTS, blocks=blocks, trials=TRIALS)
        for _ in range(chosen.runs):
            for blocks, root in roots.items():
                wall_s, _, mib = measured(["report", str(root), "--format", "html"])
                walls[blocks].append(wall_s)
                memory[blocks].append(mib)
    least, quarter, _, most = (statistics.median(walls[blocks]) for blocks in BLOCKS)
    growth = (most - least) / (quarter - least)
    met = most < TARGET_S and max(memory[BLOCKS[-1]]) < TARGET_MIB
    rows = [
        {
            "boots": blocks * len(EFFECTS),
            "wall s": ranged(walls[blocks]),
            "MiB": ranged(memory[blocks], ".0f"),
        }
        for blocks in BLOCKS
    ]
    sizes = {
        blocks * len(EFFECTS): {"wall_s": spread(walls[blocks]), "mib": spread(memory[blocks])}
        for blocks in BLOCKS
    }
    show(
        {"bench": "report_cost", "sizes": sizes, "growth": growth, "met": met},
        rows,
        as_json=chosen.json,
    )
    if not chosen.json:
        print(f"growth over four times the boots: {growth:.1f}")
        print(f"target: {TARGET_S:g} s and {TARGET_MIB} MiB: {'met' if met else 'MISSED'}")


def measured(arguments: Sequence[str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds, and MiB of memory at most of one call of the harness."""
    argv = [sys.executable, "-m", "harness", *arguments]
    started_s = time.perf_counter()
    report = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(report.pid, 0)
    report.returncode = os.waitstatus_to_exitcode(status)
    if report.returncode != 0:
        raise failed(argv, report.returncode, "")
    wall_s = time.perf_counter() - started_s
    return wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


if __name__ == "__main__":
    command(main)
