# SPDX-License-Identifier: MIT
"""The native bed beside the virtual one: packets/s, boots a minute, minutes to a verdict.

Both measure step 0 against itself, one block each in turn, with kernels that are built before.
The spread of the blocks' ratios tells how many blocks find a change of 5 % with 80 % power.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.base.process import failed
from harness.plan import MIN_BLOCKS_FOR_VERDICT
from harness.results.expect import ExpectationOpenError
from harness.results.power import detectable
from tests.bench import command, ranged, show, spread

BEDS = ("native", "virtual")
CHANGE = 0.05
_MOST_BLOCKS = 200
_HARNESS = [sys.executable, "-m", "harness"]


@dataclass
class Measured:
    """What the blocks of one bed have shown."""

    took_s: list[float] = field(default_factory=list)
    boot_s: list[float] = field(default_factory=list)
    pps: list[float] = field(default_factory=list)
    logs: list[float] = field(default_factory=list)

    def add(self, took_s: float, report: dict[str, Any], boots: list[dict[str, Any]]) -> None:
        base, again = report["rows"]
        self.took_s.append(took_s)
        self.boot_s += [boot["times_s"]["up"] for boot in boots]
        if base["stack_rx_pps"]:
            self.pps.append(base["stack_rx_pps"])
        self.logs += [math.log(ratio) for ratio in again["ratio_by_block"].values()]

    def blocks(self) -> int | None:
        """How many blocks find :data:`CHANGE`; ``None``: too few were measured, or too many."""
        if len(self.logs) < 2:
            return None
        sd = statistics.stdev(self.logs)
        counts = range(MIN_BLOCKS_FOR_VERDICT, _MOST_BLOCKS)
        return next((n for n in counts if (detectable(n, sd) or math.inf) <= CHANGE), None)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.beds", description=__doc__)
    parser.add_argument("--blocks", type=int, default=6, help="blocks of each bed (default: 6)")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    for bed in BEDS:
        subprocess.run([*_HARNESS, "build", "--bed", bed, "--steps", "0"], check=True, stdout=2)
    found = {bed: Measured() for bed in BEDS}
    for block in range(chosen.blocks):
        for bed, measured in found.items():
            with tempfile.TemporaryDirectory(prefix="rb-bench-") as home:
                out = Path(home) / "result"
                asked = ["--aa", "--bed", bed, "--blocks", "1", "--seed", str(block)]
                started_s = time.perf_counter()
                run = [*_HARNESS, "run", *asked, "--out", str(out)]
                done = subprocess.run(run, capture_output=True, text=True)
                took_s = time.perf_counter() - started_s
                if done.returncode not in (0, ExpectationOpenError.exit_code):
                    raise failed(run, done.returncode, done.stderr)
                report = [*_HARNESS, "report", str(out), "--format", "json"]
                shown = subprocess.run(report, check=True, stdout=subprocess.PIPE)
                boots = [json.loads(path.read_text()) for path in out.glob("boots/*/boot.json")]
                measured.add(took_s, json.loads(shown.stdout), boots)
    rows = []
    result: dict[str, Any] = {}
    for bed, measured in found.items():
        needed = measured.blocks()
        minutes = needed and needed * statistics.median(measured.took_s) / 60
        result[bed] = {
            "pps": spread(measured.pps) if measured.pps else None,
            "boot_s": spread(measured.boot_s),
            "block_s": spread(measured.took_s),
            "blocks_for_verdict": needed,
            "minutes_to_verdict": minutes,
        }
        rows.append(
            {
                "bed": bed,
                "packets/s": ranged(measured.pps, ",.0f") if measured.pps else "void",
                "boot s": ranged(measured.boot_s, ".1f"),
                "block s": ranged(measured.took_s, ".0f"),
                f"blocks for {CHANGE:.0%}": needed or "unknown",
                "minutes": f"{minutes:.0f}" if minutes else "unknown",
            }
        )
    show({"bench": "beds", "change": CHANGE, **result}, rows, as_json=chosen.json)


if __name__ == "__main__":
    command(main)
