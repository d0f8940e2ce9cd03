# SPDX-License-Identifier: MIT
"""How long the firmware of machines takes before a kernel starts, measured at earlier boots."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

from harness.base import cache

MARGIN = 1.5
"""Factor on the measured time: memory training takes longer now and then."""
_LEAST_S = 30.0


def measured(name: str) -> float | None:
    """The firmware time of the host ``name`` in seconds; None before its first measured boot."""
    try:
        said = json.loads(_kept(name).read_text(encoding="utf-8"))["firmware_s"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    known = isinstance(said, (int, float)) and math.isfinite(said) and 0 < said < 86400
    return max(_LEAST_S, float(said)) if known else None


def keep(name: str, firmware_s: float) -> None:
    """Keep the longest time. A failure to write is ignored."""
    longest_s = max(firmware_s, measured(name) or 0.0)
    path = _kept(name)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text(json.dumps({"firmware_s": longest_s}), encoding="utf-8")
        new.replace(path)


def _kept(name: str) -> Path:
    return cache.root() / "hosts" / f"{name}.boot.json"
