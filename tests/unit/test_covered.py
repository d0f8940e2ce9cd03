# SPDX-License-Identifier: MIT
"""What ``make check`` tells of the rooms that the tests ran."""

from __future__ import annotations

from pathlib import Path

import pytest
from coverage import Coverage, CoverageData

from tests.covered import told

pytestmark = pytest.mark.unit


def test_each_room_has_its_share(tmp_path: Path) -> None:
    ran = {"base/a.py": 4, "base/b.py": 1, "nic/c.py": 0, "plan.py": 2, "nic/__init__.py": 0}
    data = CoverageData(str(tmp_path / "kept"))
    for name, lines in ran.items():
        path = tmp_path / "harness" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name.endswith("__init__.py") else "a = 1\n" * 4)
        data.add_lines({str(path): range(1, lines + 1)})
    data.add_lines({str(tmp_path / "harness/page.html.j2"): [1]})
    data.write()
    kept = Coverage(data_file=str(tmp_path / "kept"), config_file=False)
    kept.load()
    assert [line.split()[:2] for line in told(kept, tmp_path / "harness").splitlines()] == [
        ["50%", "*.py"],
        ["62%", "base"],
        ["0%", "nic"],
        ["43%", "of"],
        ["Least:"],
        ["0%", "nic/c.py"],
        ["25%", "base/b.py"],
        ["50%", "plan.py"],
        ["100%", "base/a.py"],
    ]
