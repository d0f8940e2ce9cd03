# SPDX-License-Identifier: MIT
"""What of each room of ``harness/`` the last tests ran, by what ``pytest --cov`` kept of them.

Counts the processes of the tests alone: agents, NIC models and commands that a test starts
are processes of their own, and what runs in guests is never seen here. The model of the NIC
is left out (pyproject.toml). So a low figure is a
place to look at, and no verdict.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from coverage import Coverage

HARNESS = Path(__file__).parents[1] / "harness"
LEAST = 10
"""So many files are named: those with the smallest share."""


def told(kept: Coverage, harness: Path) -> str:
    """The share of each room, of all, and of the files that have the smallest."""
    files: dict[Path, tuple[int, int]] = {}
    for name in kept.get_data().measured_files():
        if not name.endswith(".py"):  # a template of a page is measured, too
            continue
        _, lines, _, missed, _ = kept.analysis2(name)
        if lines:
            files[Path(name).relative_to(harness)] = (len(lines) - len(missed), len(lines))
    rooms: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for path, counted in files.items():
        rooms[path.parts[0] if len(path.parts) > 1 else "*.py"].append(counted)
    shown = [f"{_share(rooms[room]):4}%  {room}" for room in sorted(rooms)]
    shown.append(f"{_share(list(files.values())):4}%  of all, in the tests' own processes")
    least = sorted(files, key=lambda path: (_share([files[path]]), path))[:LEAST]
    shown += ["Least:", *(f"{_share([files[path]]):4}%  {path}" for path in least)]
    return "\n".join(shown)


def _share(counted: list[tuple[int, int]]) -> int:
    """Rounded down: 100 is all of it."""
    return 100 * sum(ran for ran, _ in counted) // max(1, sum(lines for _, lines in counted))


if __name__ == "__main__":
    kept = Coverage()
    kept.load()
    print(told(kept, HARNESS))
