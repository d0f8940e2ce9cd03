# SPDX-License-Identifier: MIT
"""What ``harness trend --format html`` costs as nights pass.

Each size is shown in turn, run after run, from synthetic campaigns of two kernels, eight blocks
and five trials a boot; or from copies of a campaign of your own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.bench import command, ranged, show, spread
from tests.bench.report_cost import measured
from tests.unit.synthetic import make_campaign

NIGHTS = (25, 100, 200)
TARGET_S = 10.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.trend_cost", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--campaign", type=Path, help="a result directory to copy")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    walls, cpu, memory = ({nights: list[float]() for nights in NIGHTS} for _ in range(3))
    with tempfile.TemporaryDirectory(prefix="rb-bench-") as scratch:
        roots = [made(Path(scratch), number, chosen.campaign) for number in range(NIGHTS[-1])]
        for _ in range(chosen.runs):
            for nights in NIGHTS:
                shown = [str(root) for root in roots[:nights]]
                wall_s, cpu_s, mib = measured(["trend", *shown, "--format", "html"])
                walls[nights].append(wall_s)
                cpu[nights].append(cpu_s)
                memory[nights].append(mib)
    met = statistics.median(walls[NIGHTS[-1]]) < TARGET_S
    rows = [
        {
            "campaigns": nights,
            "wall s": ranged(walls[nights]),
            "CPU s of all processes": ranged(cpu[nights]),
            "MiB of the main process": ranged(memory[nights], ".0f"),
        }
        for nights in NIGHTS
    ]
    sizes = {
        nights: {
            "wall_s": spread(walls[nights]),
            "cpu_s": spread(cpu[nights]),
            "mib": spread(memory[nights]),
        }
        for nights in NIGHTS
    }
    show({"bench": "trend_cost", "sizes": sizes, "met": met}, rows, as_json=chosen.json)
    if not chosen.json:
        print(f"target: {NIGHTS[-1]} campaigns in {TARGET_S:g} s: {'met' if met else 'MISSED'}")


def made(scratch: Path, number: int, source: Path | None) -> Path:
    """The campaign of one night; the files of a copy are the source's own."""
    root = scratch / f"night{number:03d}"
    created = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)).isoformat()
    about = {"id": str(number), "created": created}
    if source is None:
        effects = {"0": 1.0, "8": 1.2 if number < 150 else 1.1}
        return make_campaign(root, effects=effects, blocks=8, trials=5, seed=number, about=about)
    root.mkdir()
    (root / "boots").symlink_to((source / "boots").resolve())
    campaign = json.loads((source / "campaign.json").read_text(encoding="utf-8"))
    (root / "campaign.json").write_text(json.dumps(campaign | about), encoding="utf-8")
    return root


if __name__ == "__main__":
    command(main)
