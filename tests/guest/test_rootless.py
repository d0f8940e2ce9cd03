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
from harness.base import cache
from harness.kernels import Image
from tests.guest.conftest import Beds

pytestmark = pytest.mark.guest

NOBODY = 65534
LOGIN = "/usr/local/bin:/usr/bin:/bin"
CODE = Path(harness.__file__).parents[1]
SHIPPED = ("harness", "kernel-patches", "probes", "hosts.yaml", "pyproject.toml")
OF_TESTS = ("playwright", "scipy", "scipy.libs", "mypy", "scapy", "hypothesis", "*__mypyc*")
UNREAD = ("test", "tests", "idlelib", "site-packages", "__pycache__", "config-*")


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests already run as an ordinary user")
def test_an_ordinary_user_gets_the_same_bed(beds: Beds, built: dict[str, Image]) -> None:
    home = Path(tempfile.mkdtemp(prefix="r-", dir="/var/tmp"))
    try:
        python = interpreter(home / "p")
        kept = [built[step].directory for step in ("0", "8")] + [beds.equipment.disk.directory]
        kept += [tools.parent] if (tools := beds.equipment.tools.root) else []
        keep(home / ".cache/receive-batching", kept)
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(home)], check=True)
        done = as_user(home, [str(python), "-m", "harness", "doctor", "--bed", "virtual"])
        assert done.returncode == 0, done.stdout + done.stderr
        run = ["run", "--bed", "virtual", "--steps", "0,8", "--profile", "smoke", "--out", "out"]
        done = as_user(home, [str(python), "-m", "harness", *run])
        assert done.returncode == 0, done.stderr[-3000:]
        assert {line.split()[0] for line in done.stdout.splitlines() if line} >= {"0", "8"}
        boots = [json.loads(path.read_text()) for path in home.glob("out/boots/*/boot.json")]
        assert [boot["outcome"] for boot in boots] == ["ok", "ok"]
    finally:
        shutil.rmtree(home, ignore_errors=True)


def interpreter(home: Path) -> Path:
    """This Python with its packages and the checkout, where any user can read all of them."""
    home.mkdir()
    environment, ours, checkout = (home / name for name in ("venv", "packages", "checkout"))
    subprocess.run([readable(home), "-m", "venv", "--without-pip", environment], check=True)
    # What is installed as editable would lead back to where it lies.
    leave = shutil.ignore_patterns("__pycache__", "*.pth", "__editable__*", *OF_TESTS)
    shutil.copytree(sysconfig.get_paths()["purelib"], ours, symlinks=True, ignore=leave)
    checkout.mkdir()
    for name in SHIPPED:
        copy = shutil.copytree if (CODE / name).is_dir() else shutil.copy
        copy(CODE / name, checkout / name)
    [packages] = environment.glob("lib/python3*/site-packages")
    (packages / "ours.pth").write_text(f"{checkout}\n{ours}\n")
    return environment / "bin/python"


def readable(home: Path) -> Path:
    """A Python of this version that others can start: this one, the system's, or a copy."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    real = Path(os.path.realpath(sys.executable))
    for known in (real, Path("/usr/bin") / version):
        if known.exists() and as_user(Path("/"), [str(known), "-c", "import venv"]).returncode == 0:
            return known
    return copied(home, real, version)


def copied(home: Path, real: Path, version: str) -> Path:
    """A copy of the interpreter ``real`` in ``home``, with its standard library."""
    base = Path(sys.base_prefix)
    leave = shutil.ignore_patterns(*UNREAD)
    shutil.copytree(base / "lib", home / "lib", symlinks=True, ignore=leave)
    program = home / "bin" / version
    program.parent.mkdir()
    # Where it looks for a library of its own is written in it, and may be no longer.
    was, now = (os.fsencode(path / "lib") for path in (base, home))
    assert len(now) <= len(was) or not sysconfig.get_config_var("Py_ENABLE_SHARED")
    program.write_bytes(real.read_bytes().replace(was + b"\0", now.ljust(len(was), b"\0") + b"\0"))
    program.chmod(0o755)
    return program


def keep(root: Path, entries: list[Path]) -> None:
    """In the cache ``root`` these ``entries`` of the test's own, so that nothing is made anew."""
    entries = entries + [path for path in (cache.root() / "kvm").glob("*") if path.is_dir()]
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


def as_user(home: Path, command: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    """``command`` as a user who owns nothing but ``home``, with what ``su -`` leaves of us.

    ``options`` are further ones of setpriv.
    """
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *options, "--"]
    shell = ["sh", "-c", 'umask 077; exec "$@"', "sh"]
    return subprocess.run(
        [*user, *shell, *command],
        env={"HOME": str(home), "PATH": LOGIN},
        cwd=home, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
