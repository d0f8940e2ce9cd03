# SPDX-License-Identifier: MIT
"""The agent on a host whose Python is too old, elsewhere, or not there: one line says so."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from harness.base.errors import HostRefusedError
from harness.beds.access.channel import REFUSAL, agent_archive
from harness.beds.access.ssh import SshTarget

pytestmark = pytest.mark.unit

OLD = """#!/bin/sh
case "$*" in -V) echo 'Python 3.6.8';; *) echo 'SyntaxError: bare' >&2; exit 1;; esac
"""


def _archive(at: Path, *candidates: Path) -> Path:
    """The agent as it is sent, that looks for Python in ``candidates`` alone."""
    content = agent_archive()[1]
    listed = " ".join(map(str, candidates)).encode()
    wanted = b"for python in " + listed + b"; do"
    changed = re.sub(rb"(?s)for python in .*?; do", wanted, content, count=1)
    path = at / "agent.pyz"
    path.write_bytes(changed)
    path.chmod(0o755)
    return path


def _program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("shell", [[], ["sh"], ["bash"]], ids=["by itself", "sh", "bash"])
def test_a_python_beside_the_old_one_is_found(tmp_path: Path, shell: list[str]) -> None:
    old = _program(tmp_path / "python3", OLD)
    new = tmp_path / "python3.11"
    new.symlink_to(sys.executable)
    request = '{"id": 1, "call": "nonsense"}\n'
    done = subprocess.run(
        [*shell, str(_archive(tmp_path, tmp_path / "gone3", old, new))],
        input=request,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no call 'nonsense'" in done.stdout.splitlines()[1]


def test_what_is_needed_is_one_line(tmp_path: Path) -> None:
    old = _program(tmp_path / "python3", OLD)
    for candidates, told in (
        ([old], f"this host has  {old}: Python 3.6.8,"),
        ([tmp_path / "gone3"], "this host has no python3"),
    ):
        done = subprocess.run(
            ["sh", str(_archive(tmp_path, *candidates))],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, len(done.stderr.splitlines())) == ("", 1)
        assert done.returncode != 0
        assert done.stderr.startswith(f"{REFUSAL}needs Python 3.9 or later")
        assert " ".join(told.split()) in " ".join(done.stderr.split())


def test_it_is_said_before_anything_newer_is_read(tmp_path: Path) -> None:
    path = tmp_path / "agent.pyz"
    path.write_bytes(agent_archive()[1])
    source = ZipFile(path).read("__main__.py").decode()
    ast.parse(source, feature_version=(3, 4))
    script = (
        "import runpy, sys; sys.version_info = (3, 6, 8, 'final', 0); sys.version = '3.6.8 (x)'; "
        f"runpy.run_path({str(path)!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 69
    assert done.stderr == f"{REFUSAL}needs Python 3.9 or later; {sys.executable} is 3.6.8\n"


def test_the_controller_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"{REFUSAL}needs Python 3.9 or later; this host has /usr/bin/python3: Python 3.6.8,"
    monkeypatch.setattr(SshTarget, "_agent", lambda *_, **__: ["agent"])
    monkeypatch.setattr(
        SshTarget, "argv", lambda *_: ["sh", "-c", 'echo "$1" >&2; exit 69', "sh", said]
    )
    target = SshTarget(hostname="rx.lab.example")
    for start in (
        lambda: target.start_agent(host="rx", log=tmp_path / "log"),
        lambda: target.ask("inventory", {}, host="rx"),
    ):
        with pytest.raises(HostRefusedError, match=r"rx: the agent needs Python 3\.9") as caught:
            start()
        assert "3.6.8" in caught.value.message
        assert "Python 3.9" in (caught.value.hint or "")
