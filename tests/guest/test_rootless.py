# SPDX-License-Identifier: MIT
"""The virtual bed needs no root: a campaign by a user without any right, from a login shell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

import harness
from harness import cache
from harness.kernels import Image
from tests.guest.conftest import Beds

pytestmark = pytest.mark.guest

NOBODY = 65534
LOGIN = "/usr/local/bin:/usr/bin:/bin"
CODE = Path(harness.__file__).parents[1]
SHIPPED = ("harness", "kernel-patches", "probes", "hosts.yaml", "pyproject.toml")
UNREAD = ("test", "tests", "idlelib", "site-packages", "__pycache__", "config-*")


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run as an ordinary user")
def test_an_ordinary_user_gets_the_same_bed(beds: Beds, built: dict[str, Image]) -> None:
    home = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        python = interpreter(home / "python")
        keep(home / ".cache/receive-batching", beds, [built["0"], built["8"]])
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(home)], check=True)
        done = as_user(home, [str(python), "-m", "harness", "doctor"])
        assert done.returncode == 0, done.stdout + done.stderr
        run = ["run", "--steps", "0,8", "--profile", "smoke", "--out", "out"]
        done = as_user(home, [str(python), "-m", "harness", *run])
        assert done.returncode == 0, done.stderr[-3000:]
        assert {line.split()[0] for line in done.stdout.splitlines() if line} >= {"0", "8"}
        boots = [json.loads(path.read_text()) for path in home.glob("out/boots/*/boot.json")]
        assert [boot["outcome"] for boot in boots] == ["ok", "ok"]
    finally:
        shutil.rmtree(home, ignore_errors=True)


def interpreter(home: Path) -> Path:
    """This Python with its packages and the checkout, where any user can read all of them."""
    base = Path(sys.base_prefix)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if base in (Path("/usr"), Path("/usr/local")):
        base_python = Path(os.path.realpath(sys.executable))
    else:
        leave = shutil.ignore_patterns(*UNREAD)
        shutil.copytree(base / "lib", home / "base/lib", symlinks=True, ignore=leave)
        base_python = home / "base/bin" / version
        base_python.parent.mkdir()
        shutil.copy(os.path.realpath(sys.executable), base_python)
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and base_python.is_relative_to(home):
        # Its library is beside it, and it looks for that where it was installed.
        real = base_python.rename(base_python.with_name(f"{version}.real"))
        base_python.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={home}/base/lib exec {real} "$@"\n')
        base_python.chmod(0o755)
    environment = home / "venv"
    subprocess.run([base_python, "-m", "venv", "--without-pip", environment], check=True)
    packages = environment / "lib" / version / "site-packages"
    ours = home / "packages"
    # What is installed as editable would lead back to where it lies.
    leave = shutil.ignore_patterns("__pycache__", "*.pth", "__editable__*")
    shutil.copytree(sysconfig.get_paths()["purelib"], ours, symlinks=True, ignore=leave)
    checkout = home / "checkout"
    for name in SHIPPED:
        copy = shutil.copytree if (CODE / name).is_dir() else shutil.copy
        checkout.mkdir(exist_ok=True)
        copy(CODE / name, checkout / name)
    (packages / "ours.pth").write_text(f"{checkout}\n{ours}\n")
    return environment / "bin/python"


def keep(root: Path, beds: Beds, images: list[Image]) -> None:
    """In the cache ``root`` what the test's own has by now, so that nothing is made anew."""
    tools = beds.equipment.tools.root
    entries = [image.directory for image in images] + [beds.equipment.disk.directory]
    entries += [tools.parent] if tools else []
    entries += [path for path in (cache.root() / "kvm").glob("*") if path.is_dir()]
    # The tree by which the series is chosen; of that its Makefile is enough.
    entries += [path for path in (cache.root() / "sources").glob("*") if path.is_dir()]
    for entry in entries:
        copy = root / entry.relative_to(cache.root())
        copy.parent.mkdir(parents=True, exist_ok=True)
        if copy.parent.name == "sources":
            (copy / "linux").mkdir(parents=True)
            shutil.copy(entry / "linux/Makefile", copy / "linux")
        else:
            command = ["cp", "-a", "--reflink=auto", str(entry), str(copy)]
            subprocess.run(command, check=True)


def as_user(home: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """``command`` as a user who owns nothing but ``home``, with what ``su -`` leaves of us."""
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    shell = ["sh", "-c", 'umask 077; exec "$@"', "sh"]
    return subprocess.run(
        [*user, *shell, *command],
        env={"HOME": str(home), "PATH": LOGIN},
        cwd=home, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
