# SPDX-License-Identifier: MIT
"""Kept things are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base import cache
from harness.base.errors import InfrastructureError

pytestmark = pytest.mark.unit


def test_made_once(tmp_path: Path) -> None:
    made = []

    def make(directory: Path) -> None:
        made.append(directory)
        (directory / "part").write_text("whole")

    for _ in range(2):
        entry = cache.entry(tmp_path / "x", make, what="x")
        assert (entry / "part").read_text() == "whole"
    assert len(made) == 1


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_what_is_interrupted_leaves_nothing(tmp_path: Path, raised: type[BaseException]) -> None:
    def make(directory: Path) -> None:
        (directory / "part").write_text("half")
        raise raised

    with pytest.raises(raised):
        cache.entry(tmp_path / "x", make, what="x")
    assert [path.name for path in tmp_path.iterdir()] == ["x.lock"]


def test_a_full_disk_says_where_else_to_go(tmp_path: Path) -> None:
    def make(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(InfrastructureError, match="cannot keep the image") as caught:
        cache.entry(tmp_path / "x", make, what="the image")
    assert "RECEIVE_BATCHING_CACHE" in (caught.value.hint or "")


def test_digest_tells_values_apart() -> None:
    assert cache.digest("a", "b") != cache.digest("ab") != cache.digest(["a", "b"])
    assert cache.digest({"x": 1, "y": 2}) == cache.digest({"y": 2, "x": 1})
