# SPDX-License-Identifier: MIT
"""What a setting is: a way to read it, and a way to write what was read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Setting:
    """``write`` takes any value ``read`` gives; ``holds`` compares what is with what is wanted."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]
    holds: Callable[[Any, Any], bool] = lambda is_now, wanted: bool(is_now == wanted)


def write_text(path: Path, text: str) -> None:
    """``text`` into a file of /proc or /sys."""
    path.write_text(text + "\n", encoding="ascii")
