# SPDX-License-Identifier: MIT
"""That the tests which boot nothing catch the mistakes of mutations.py, each by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.unit.mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[2]
_FAILED = 1
"""Of pytest's exit codes: tests were run and some failed."""


@cache
def _sources() -> dict[Path, str]:
    return {
        path.relative_to(ROOT): path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "harness").rglob("*.py"))
    }


def _holders(mutation: Mutation) -> list[Path]:
    """The files in which its line stands, each as often as it does."""
    return [path for path, text in _sources().items() for _ in range(text.count(mutation.old))]


def _ran(tests: list[str], root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
         *(f"tests/unit/{test}" for test in tests)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The tree, to be changed."""
    root = tmp_path / "tree"
    root.mkdir()
    for name in ("harness", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("kernel-patches", "probes", "hosts.yaml", "pyproject.toml"):
        (root / name).symlink_to(ROOT / name)
    return root


@pytest.mark.unit
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.what)
def test_the_line_is_there_once(mutation: Mutation) -> None:
    assert len(_holders(mutation)) == 1, (
        f"{mutation.old!r} stands in {_holders(mutation) or 'no file of harness/'}: "
        "write it in mutations.py as it is now"
    )


@pytest.mark.deep
def test_without_a_mistake_nothing_fails(copy: Path) -> None:
    done = _ran(sorted({mutation.caught_by for mutation in MUTATIONS}), copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.deep
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.what)
def test_a_mistake_is_caught(mutation: Mutation, copy: Path) -> None:
    [path] = _holders(mutation)
    changed = copy / path
    changed.write_text(changed.read_text(encoding="utf-8").replace(mutation.old, mutation.new))
    done = _ran([mutation.caught_by], copy)
    assert done.returncode == _FAILED, f"{mutation.caught_by} saw nothing:\n{done.stdout[-3000:]}"
