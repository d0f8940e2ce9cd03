# SPDX-License-Identifier: MIT
"""``.ci/setup.sh``: what a system lacks is installed, or told in plain words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

CODE = Path(__file__).parents[2]
USUAL = ("sh", "cat", "grep", "sleep", "env", "dirname", "cksum", "rm", "ls")
NO_TERMINAL = subprocess.DEVNULL


@dataclass
class System:
    """A system of a few programs, whose packages are lines of files."""

    root: Path
    checkout: Path

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    def program(self, name: str, script: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def has(self, *packages: str) -> None:
        (self.root / "installed").write_text("".join(f"{name}\n" for name in packages))

    def could_have(self, *packages: str) -> None:
        (self.root / "sources").write_text("".join(f"{name}\n" for name in packages))

    @property
    def done(self) -> list[str]:
        """What apt-get was asked for, and what sudo."""
        log = self.root / "log"
        return log.read_text().splitlines() if log.exists() else []

    def setup(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        # The script completes the path by sbin, which has no dpkg-query.
        return subprocess.run(
            [shutil.which("sh") or "sh", str(self.checkout / ".ci/setup.sh"), *words],
            env={
                "PATH": str(self.bin), "LOCK_SLEEP_S": "0", "APT_LISTS": f"{self.root}/lists", **env
            },
            stdin=NO_TERMINAL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip


ALL = [
    "git",
    "python3-venv",
    "gcc",
    "make",
    "flex",
    "bison",
    "bc",
    "libelf-dev",
    "libssl-dev",
    "dwarves",
    "xz-utils",
    "kmod",
    "linux-source-6.12",
    "mmdebstrap",
    "uidmap",
    "genext2fs",
    "squashfs-tools",
    "debian-archive-keyring",
    "fdisk",
    "e2fsprogs",
    "openssh-client",
    "iproute2",
    "procps",
    "util-linux",
]
OF_TESTS = [
    "chromium",
    "linux-perf",
    "ipmitool",
    "openipmi",
    "openssl",
    "grub-common",
    "ccache",
    "distcc",
]


@pytest.fixture
def system(tmp_path: Path) -> System:
    """A Debian that lacks nothing, and whose user is root."""
    one = System(tmp_path, tmp_path / "check out")
    one.bin.mkdir()
    (tmp_path / "check out").mkdir()
    (tmp_path / "check out/.ci").mkdir()
    for name in (".ci/setup.sh", "pyproject.toml"):
        shutil.copy(CODE / name, tmp_path / "check out" / name)
    for name in USUAL:
        (one.bin / name).symlink_to(shutil.which(name) or name)
    (one.bin / "python3").symlink_to(sys.executable)
    one.program("id", "echo 0")
    one.program(
        "dpkg-query",
        f'for last; do :; done; grep -qx -e "$last" {tmp_path}/installed && echo installed',
    )
    one.program(
        "apt-cache",
        # A name with a dot is a pattern where no package has it.
        f'for last; do :; done; for found in $(grep -e "$last" {tmp_path}/sources)\n'
        "do echo Package: $found; done",
    )
    one.program("apt-get", f'echo "apt-get $*" >> {tmp_path}/log')
    one.has(*ALL)
    one.could_have(*ALL, *OF_TESTS)
    return one


def test_a_system_that_lacks_nothing_is_left_alone(system: System) -> None:
    done = system.setup("system")
    assert (done.returncode, done.stdout, done.stderr, system.done) == (0, "", "", [])


def test_what_lacks_is_installed_and_said_what_for(system: System) -> None:
    system.has(*(name for name in ALL if name not in ("flex", "uidmap")))
    done = system.setup("system")
    assert done.returncode == 0, done.stderr
    assert "System packages to install: flex uidmap" in done.stdout
    update, install = system.done
    assert update == "apt-get update -qq"
    assert install.endswith("flex uidmap")
    assert "--no-install-recommends" in install
    assert "DPkg::Lock::Timeout=" in install


def test_of_the_tests_packages_is_spoken_under_check_alone(system: System) -> None:
    assert system.setup("system").stdout == ""
    system.could_have(*ALL, *(name for name in OF_TESTS if name not in ("chromium", "linux-perf")))
    done = system.setup("system", "check")
    assert done.returncode == 0, done.stderr
    assert "chromium is in none of this system's package sources (Ubuntu" in done.stdout
    assert "linux-tools-generic" in done.stdout
    assert "chromium" not in system.done[-1]
    assert "ipmitool" in system.done[-1]


def test_a_release_without_the_kernels_source_says_what_to_name(system: System) -> None:
    system.has(*(name for name in ALL if name != "linux-source-6.12"))
    system.could_have(*(name for name in ALL if name != "linux-source-6.12"))
    done = system.setup("system")
    assert done.returncode == 0, done.stderr
    assert "--tree DIR" in done.stdout
    assert "tarball" in done.stdout
    assert [line for line in system.done if "install" in line] == []


def test_a_package_whose_name_goes_on_is_another(system: System) -> None:
    system.has(*(name for name in ALL if name != "linux-source-6.12"))
    system.could_have("linux-source-6.129")
    done = system.setup("system")
    assert "linux-source-6.12 is in none of this system's package sources" in done.stdout
    assert [line for line in system.done if "install" in line] == []


def test_what_no_list_has_is_not_asked_for_again(system: System) -> None:
    system.has(*(name for name in ALL if name != "linux-source-6.12"))
    system.could_have("gcc")
    system.program("id", "echo 1000")  # and has no sudo
    done = system.setup("system", "check")
    assert done.returncode == 3  # there are no lists yet
    (system.root / "lists").mkdir()
    (system.root / "lists/of_Packages.lz4").touch()
    done = system.setup("system", "check")
    assert (done.returncode, done.stderr, system.done) == (0, "", [])
    assert "--tree DIR" in done.stdout
    assert "ccache is in none of this system's package sources" in done.stdout
    system.could_have("linux-source-6.12")
    assert system.setup("system").returncode == 3


def test_a_needed_package_that_no_source_has_stops_it(system: System) -> None:
    system.has(*(name for name in ALL if name != "mmdebstrap"))
    system.could_have("gcc")
    done = system.setup("system")
    assert done.returncode == 3
    assert "mmdebstrap, needed to make guest images, is in none" in done.stderr
    assert "universe" in done.stderr


def test_apts_lock_is_waited_for_and_a_source_that_fails_is_no_end(system: System) -> None:
    system.has(*(name for name in ALL if name != "flex"))
    system.program(
        "apt-get",
        f"""echo "apt-get $*" >> {system.root}/log
        case $1 in
        install) ;;
        *) tried=$(grep -c update {system.root}/log)
           if [ "$tried" -gt 3 ]
           then echo 'E: Failed to fetch http://gone.example/'
           else echo 'E: Could not get lock /var/lib/apt/lists/lock.'
           fi
           exit 100 ;;
        esac""",
    )
    done = system.setup("system")
    assert done.returncode == 0, done.stderr
    assert "waiting for it" in done.stdout
    assert "gone.example" in done.stderr
    assert "going on with the lists there are" in done.stderr
    assert system.done[-1].endswith("flex")
    assert len(system.done) == 5


def test_an_ordinary_user_without_sudo_is_told_what_to_ask_for(system: System) -> None:
    system.has(*(name for name in ALL if name != "flex"))
    system.program("id", "echo 1000")
    done = system.setup("system")
    assert done.returncode == 3
    ask = "Ask your administrator to run: apt-get install --no-install-recommends flex"
    assert ask in done.stderr
    system.program("sudo", "exit 1")
    done = system.setup("system")
    assert done.returncode == 3
    assert "no terminal" in done.stderr
    assert ask in done.stderr
    assert system.done == []
    system.program("sudo", f'echo "sudo $*" >> {system.root}/log; [ "$1" = -n ] || "$@"')
    done = system.setup("system")
    assert done.returncode == 0, done.stderr
    assert "apt-get install" in system.done[-1]


def test_a_system_without_dpkg_is_told_programs_and_headers(system: System) -> None:
    (system.bin / "dpkg-query").unlink()
    done = system.setup("system")
    assert done.returncode == 3
    assert "command not found" not in done.stderr
    assert {"flex", "mmdebstrap", "gelf.h"} <= set(done.stdout.split())
    assert "dnf install" in done.stdout
    for name in [
        "gcc",
        "make",
        "flex",
        "bison",
        "bc",
        "xz",
        "pahole",
        "depmod",
        "mksquashfs",
        "mmdebstrap",
        "newuidmap",
        "genext2fs",
        "ssh",
        "ip",
        "sysctl",
        "unshare",
        "nsenter",
        "git",
    ]:
        system.program(name, "exit 0")
    assert system.setup("system").returncode == 0


def test_a_python_that_is_too_old_is_named(system: System) -> None:
    old = "case $1 in --version) echo Python 3.9.2 ;; *) exit 1 ;; esac"
    system.program("python3", old)
    for name in ("python3.11", "python3.12", "python3.13", "python3.14"):
        system.program(name, "exit 1")
    done = system.setup("system")
    assert done.returncode == 3
    assert "this system has Python 3.9.2" in done.stderr
    (system.bin / "python3.12").unlink()
    (system.bin / "python3.12").symlink_to(sys.executable)
    done = system.setup("system")
    assert done.returncode == 3
    assert "say make PYTHON=python3.12" in done.stderr
    assert system.setup("system", PYTHON="python3.12").returncode == 0


# ---------------------------------------------------------------- .venv

INSTALLS = """import sys
for word in sys.argv[1:]:
    if word.startswith("."):
        open(LOG, "a").write(f"pip {word}\\n")
"""


@pytest.fixture
def fresh(system: System) -> System:
    """The same with a Python whose environments have a pip that only takes note."""
    site = system.root / "site"
    (site / "pip").mkdir(parents=True)
    (site / "pip/__init__.py").write_text("")
    code = INSTALLS.replace("LOG", repr(str(system.root / "log")))
    (site / "pip/__main__.py").write_text(code)
    system.program(
        "python3",
        f"""case "$1 $2" in
        "-m venv") exec {sys.executable} -m venv --without-pip "$3" ;;
        *) exec {sys.executable} "$@" ;;
        esac""",
    )
    return system


def venv(system: System, *words: str) -> list[str]:
    """What pip was asked for by ``.ci/setup.sh venv``."""
    before = len(system.done)
    done = system.setup("venv", *words, PYTHONPATH=str(system.root / "site"))
    assert done.returncode == 0, done.stderr
    return system.done[before:]


def test_a_venv_is_made_once_and_again_where_it_has_to_be(fresh: System) -> None:
    checkout = fresh.root / "check out"
    assert venv(fresh) == ["pip ."]
    assert venv(fresh) == []
    assert venv(fresh, "dev") == ["pip .[dev]"]
    assert venv(fresh, "dev") == []
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# another\n")
    assert venv(fresh) == ["pip ."]
    (checkout / "harness/nic/datapath").mkdir(parents=True)
    (checkout / "harness/nic/datapath/guest.c").write_text("int compiled;\n")  # by the install
    assert venv(fresh) == ["pip ."]
    assert venv(fresh) == []
    (checkout / ".venv/bin/python").unlink()  # its Python is gone, or it was left half made
    assert venv(fresh) == ["pip ."]
    (checkout / ".venv/installed").unlink()  # pip was interrupted
    assert venv(fresh) == ["pip ."]
    moved = fresh.root / "moved"
    checkout.rename(moved)
    fresh.checkout = moved
    assert venv(fresh) == ["pip ."]
    assert venv(fresh) == []


def test_without_the_venv_module_the_package_is_named(fresh: System) -> None:
    fresh.program(
        "python3", f'[ "$1" != -m ] || {{ echo no ensurepip; exit 1; }}; exec {sys.executable} "$@"'
    )
    done = fresh.setup("venv")
    assert done.returncode == 3
    assert "python3-venv" in done.stderr


def test_make_sets_the_system_up_before_the_venv_however_many_jobs(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(CODE / name, tmp_path / name)
    log = tmp_path / "log"
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/setup.sh").write_text(f'sleep "0.$((4 - $#))"; echo "$*" >> {log}\n')
    (tmp_path / ".venv/bin").mkdir(parents=True)
    script = tmp_path / ".venv/bin/harness"
    script.write_text(f'#!/bin/sh\necho "harness $*" >> {log}\n')
    script.chmod(0o755)
    env = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(
        ["make", "-j4", "run", "ARGS=--steps 0,8"], cwd=tmp_path, env=env, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert log.read_text().splitlines() == ["system", "venv", "harness run --steps 0,8"]
