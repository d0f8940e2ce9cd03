# SPDX-License-Identifier: MIT
"""What the harness costs and what its NIC model is worth, as ratios within one run.

Each module is a command, ``python -m tests.bench.NAME``. Here is what they share:
how a command is timed, how samples are condensed, and how a result is shown.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tabulate import tabulate

from harness.base.errors import EXIT_INTERRUPTED, HarnessError
from harness.base.process import failed


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a command and all it waited for took, in seconds."""

    wall_s: float
    cpu_s: float


def timed(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> Cost:
    """Run ``command``, whose standard output is not wanted, to its end.

    Raises:
        InfrastructureError: it ended with a status other than 0.
    """
    before, started_s = _children_s(), time.perf_counter()
    done = subprocess.run(
        list(command),
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    cost = Cost(wall_s=time.perf_counter() - started_s, cpu_s=_children_s() - before)
    if done.returncode != 0:
        raise failed(command, done.returncode, done.stderr)
    return cost


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range of ``values``."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ranged(values: Sequence[float], form: str = ".2f") -> str:
    """``values`` as text: their median, and their range where there are several."""
    middle, low, high = spread(values).values()
    return f"{middle:{form}}" + (f" ({low:{form}}–{high:{form}})" if len(values) > 1 else "")


def show(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print ``result`` as JSON, or ``rows`` (texts by column) as a table."""
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        print(tabulate(rows, headers="keys", disable_numparse=True))


def command(main: Callable[[], None]) -> NoReturn:
    """Run ``main`` as a program: its errors end it as those of ``harness`` do."""
    try:
        main()
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
