# SPDX-License-Identifier: MIT
"""What the kernels of several steps cost beside the first alone, from an empty cache.

The steps are built by ``harness build`` one after the other in a cache of their
own, as one call would: the first unpacks the source and compiles all of it, each
further one what its patches changed. Takes as long as building a kernel does.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from pathlib import Path

from harness import plan
from tests.bench import Cost, command, show, timed


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.build_cost", description=__doc__)
    parser.add_argument("--steps", type=plan.parse_steps, default=("0", "2", "8"))
    parser.add_argument("--tree", help="git tree to build instead of the source in hosts.yaml")
    parser.add_argument(
        "--scratch", type=Path, help="directory for the cache; it needs 8 GiB (default: TMPDIR)"
    )
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rb-bench-", dir=chosen.scratch) as cache:
        env = {**os.environ, "RECEIVE_BATCHING_CACHE": cache}
        costs: list[Cost] = []
        for step in chosen.steps:
            print(f"step {step} …", file=sys.stderr, flush=True)
            argv = [sys.executable, "-m", "harness", "build", "--steps", step]
            costs.append(timed([*argv, *(["--tree", chosen.tree] if chosen.tree else [])], env=env))
    kernels = []
    for step, cost, wall_s, cpu_s in zip(
        chosen.steps,
        costs,
        itertools.accumulate(cost.wall_s for cost in costs),
        itertools.accumulate(cost.cpu_s for cost in costs),
        strict=True,
    ):
        kernels.append(
            {
                "step": step,
                "wall_s": cost.wall_s,
                "cpu_s": cost.cpu_s,
                "wall_ratio_so_far": wall_s / costs[0].wall_s,
                "cpu_ratio_so_far": cpu_s / costs[0].cpu_s,
            }
        )
    show(
        {"bench": "build_cost", "cpus": os.cpu_count(), "kernels": kernels},
        [
            {
                "kernels": f"+ step {kernel['step']}" if place else f"step {kernel['step']}",
                "wall s": f"{kernel['wall_s']:.0f}",
                "CPU s": f"{kernel['cpu_s']:.0f}",
                "wall so far, relative": f"{kernel['wall_ratio_so_far']:.2f}",
                "CPU so far, relative": f"{kernel['cpu_ratio_so_far']:.2f}",
            }
            for place, kernel in enumerate(kernels)
        ],
        as_json=chosen.json,
    )


if __name__ == "__main__":
    command(main)
