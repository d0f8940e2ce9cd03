# SPDX-License-Identifier: MIT
"""How long ``harness --help`` takes beside an interpreter that does nothing.

Both start in turn, so that a busy machine slows both. What the harness answers
for is the difference; the target is on the processor time, which a busy machine
changes least.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from tests.bench import Cost, command, ranged, show, spread, timed

TARGET_S = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.help_time", description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "harness --help": [sys.executable, "-m", "harness", "--help"],
    }
    for argv in commands.values():
        timed(argv)  # byte code and page cache
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for _ in range(chosen.runs):
        for name, argv in commands.items():
            costs[name].append(timed(argv))
    base = costs["python -c pass"]
    result = {}
    rows = []
    for name, measured in costs.items():
        wall = [cost.wall_s for cost in measured]
        cpu = [cost.cpu_s for cost in measured]
        ratio = [ours.wall_s / other.wall_s for ours, other in zip(measured, base, strict=True)]
        result[name] = {"wall_s": spread(wall), "cpu_s": spread(cpu), "wall_ratio": spread(ratio)}
        rows.append(
            {
                "command": name,
                "wall s": ranged(wall, ".3f"),
                "CPU s": ranged(cpu, ".3f"),
                "wall, relative": ranged(ratio),
            }
        )
    taken_s = statistics.median(cost.cpu_s for cost in costs["harness --help"])
    met = taken_s < TARGET_S
    show(
        {"bench": "help_time", "runs": chosen.runs, "target_s": TARGET_S, "met": met, **result},
        rows,
        as_json=chosen.json,
    )
    if not chosen.json:
        print(f"target: CPU time below {TARGET_S} s: {'met' if met else 'MISSED'}")


if __name__ == "__main__":
    command(main)
