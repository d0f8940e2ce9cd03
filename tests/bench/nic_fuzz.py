# SPDX-License-Identifier: MIT
"""The compiled data path of the NIC model under ASan and UBSan, with random guests."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from harness.base.errors import InfrastructureError
from tests.bench import command
from tests.nic import sanitized

_PART_S = 60


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.nic_fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=3600, help="how long (default 3600)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rb-fuzz-") as kept:
        try:
            program = sanitized.compile_fuzzer(Path(kept) / "fuzz")
        except sanitized.NoSanitizersError as error:
            raise InfrastructureError(str(error), hint="apt-get install gcc") from error
        end_s, rounds = time.monotonic() + chosen.seconds, 0
        while (left_s := int(end_s - time.monotonic())) > 0:
            seed = random.randrange(1 << 30)
            try:
                rounds += sanitized.fuzz(program, seed=seed, seconds=min(left_s, _PART_S))
            except AssertionError as error:
                sys.exit(f"found: {error}")
    print(f"{rounds} rounds in {chosen.seconds} s: nothing found")


if __name__ == "__main__":
    command(main)
