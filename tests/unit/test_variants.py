# SPDX-License-Identifier: MIT
"""Campaigns of commits instead of steps, from the command line to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.base.errors import HarnessError
from harness.cli import cli
from tests.unit.test_bisect import Booting, repository

__all__ = ["repository"]
pytestmark = pytest.mark.unit


def commanded(*arguments: str) -> tuple[int | str, str]:
    done = CliRunner().invoke(cli, [*arguments])
    if isinstance(done.exception, HarnessError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, done.output


def test_two_commits_are_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repository: tuple[Path, list[str]]
) -> None:
    tree, names = repository
    base, topic = names[1], names[4]
    booting = Booting(monkeypatch, {base: 1.0, topic: 1.2})
    out = tmp_path / "out"
    options = ["--tree", str(tree), "--variants", "HEAD~3,HEAD"]
    options += ["--bed", "virtual", "--profile", "standard"]
    expected = ("--expect", f"{topic} stack_rx_pps > 1.05x {base}")
    status, said = commanded("run", *options, "--out", str(out), *expected)
    assert status == 0, said
    assert f"variant {topic} against variant {base}: faster" in said
    assert len(booting.booted) == 2 * 8
    again = commanded("run", "--resume", "--out", str(out))
    assert again[0] == 0, again[1]
    assert len(booting.booted) == 2 * 8
    status, told = commanded("report", str(out), "--format", "json")
    report = json.loads(told)
    assert report["baseline"] == base
    assert [one["baseline"] for one in report["verdicts"]] == [base]
    for form in ("html", "markdown", "csv", "junit", "ktap", "kcidb", "google-benchmark"):
        status, told = commanded("report", str(out), "--format", form)
        assert status == 0, told
        assert topic in told


def test_a_plan_of_commits(repository: tuple[Path, list[str]]) -> None:
    tree, names = repository
    options = ["--tree", str(tree), "--variants", "HEAD~4..HEAD", "--bed", "native"]
    status, said = commanded("plan", *options, "--blocks", "7")
    assert status == 0, said
    assert "no verdict: 7 of the 8 blocks it needs" in said
    status, said = commanded("plan", *options)
    others = " · ".join(f"variant {name}" for name in names[1:])
    assert f"compared with variant {names[0]}, each group for itself: {others}" in said


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--variants", "HEAD~1,HEAD"], "of which tree?"),
        (["--tree", "TREE", "--variants", "HEAD~1,HEAD", "--aa"], "exclude each other"),
        (["--tree", "TREE", "--variants", "HEAD"], "nothing to compare"),
        (["--tree", "TREE", "--variants", "HEAD~1,HEAD", "--steps", "0,8"], "exclude each other"),
    ],
)
def test_what_makes_no_sense(
    options: list[str], told: str, tmp_path: Path, repository: tuple[Path, list[str]]
) -> None:
    given = [str(repository[0]) if one == "TREE" else one for one in options]
    status, said = commanded("run", *given, "--out", str(tmp_path / "out"))
    assert (status, told in said) == (2, True), said
    assert not (tmp_path / "out").exists()
