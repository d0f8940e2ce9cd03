# SPDX-License-Identifier: MIT
"""The virtual bed needs no root: the same campaign as a user without any right."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import harness
from harness import cache

pytestmark = pytest.mark.guest

NOBODY = 65534
KEPT = ("kernels", "guests", "tools", "kvm")


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run as an ordinary user")
@pytest.mark.usefixtures("beds")
def test_an_ordinary_user_gets_the_same_bed() -> None:
    python = f"/usr/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    if not Path(python).exists():
        pytest.skip(f"{python} is missing: this interpreter lies where other users cannot read it")
    home = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        done = run_as_nobody(python, home)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(next(home.glob("out/boots/*/boot.json")).read_text())["outcome"] == "ok"
    finally:
        shutil.rmtree(home, ignore_errors=True)


def run_as_nobody(python: str, home: Path) -> subprocess.CompletedProcess[str]:
    """``harness run`` as a user who owns nothing but copies of what the cache holds."""
    for name in KEPT:
        if (cache.root() / name).exists():
            subprocess.run(["cp", "-a", str(cache.root() / name), str(home / name)], check=True)
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(home)], check=True)
    code = Path(harness.__file__).parents[1]
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    env = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(home),
        "RECEIVE_BATCHING_CACHE": str(home),
        "PYTHONPATH": f"{code}:{packages}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    hosts = (code / "hosts.yaml").read_text()
    named = hosts.replace("series: auto ", "series: linux-6.12 ")  # no need to unpack the source
    assert named != hosts
    (home / "hosts.yaml").write_text(named)
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    return subprocess.run(
        [*user, python, "-m", "harness", "run", "--steps", "0", "--blocks", "1", "--out", "out"],
        env=env, cwd=home, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
