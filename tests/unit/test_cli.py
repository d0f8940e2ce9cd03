# SPDX-License-Identifier: MIT
"""The command line: fast help, exit codes by class, subcommands on real trees and files."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from harness import cli
from harness.base import errors

pytestmark = pytest.mark.unit


def harness(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def ending(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], raised: BaseException
) -> tuple[int, str]:
    """Exit code and stderr of a command that raises."""

    @click.command()
    def failing() -> None:
        raise raised

    monkeypatch.setattr(cli, "cli", failing)
    monkeypatch.setattr(sys, "argv", ["harness"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capfd.readouterr().err  # type: ignore[return-value]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom harness.cli import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'pydantic', 'numpy', 'ruamel', 'rich', 'psutil', 'pyroute2'} "
        "& {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_is_fast_and_names_every_command() -> None:
    costs_s = []
    for _ in range(3):
        # Processor time: on an idle machine it is the time to wait, on a busy one it stays.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = harness("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in cli.COMMANDS)
    assert min(costs_s) < 0.3


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = harness(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: harness {name}" in done.stdout


def test_version() -> None:
    assert harness("--version").stdout.startswith("harness, version ")


def test_a_wrong_option_is_a_configuration_error() -> None:
    done = harness("patches", "chekc")
    assert done.returncode == errors.ConfigurationError.exit_code
    assert "No such command 'chekc'" in done.stderr


@pytest.mark.parametrize(
    ("raised", "status", "told"),
    [
        (errors.ConfigurationError("wrong", hint="do right"), 2, "error: wrong\nhint: do right\n"),
        (errors.InfrastructureError("gone"), 3, "error: gone\n"),
        (errors.HostLostError("lost"), 3, "error: lost\n"),
        (errors.KernelError("panic"), 4, "error: panic\n"),
        (errors.TrialVoidError("void"), 5, "error: void\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 3, "No space left on device: /x"),
        (OSError(errno.EFBIG, "File too large"), 3, "File too large: a file cannot be written"),
        (OSError(errno.EPERM, "Not permitted"), 3, "error: Not permitted\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("oops"), 70, "this is a bug"),
        (OSError(errno.ENOENT, "oops"), 70, "this is a bug"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_errors_end_with_the_code_of_their_class(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    raised: BaseException,
    status: int,
    told: str,
) -> None:
    code, text = ending(monkeypatch, capfd, raised)
    assert code == status
    assert told in text
    assert ("Traceback" in text) == (status == errors.EXIT_BUG)


def test_a_reader_that_had_enough_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "harness", "hosts", "schema"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed(shell: str) -> None:
    assert "_HARNESS_COMPLETE" in harness("completion", shell).stdout


def test_completion_completes_without_importing_commands() -> None:
    words = {"_HARNESS_COMPLETE": "bash_complete", "COMP_WORDS": "harness pat", "COMP_CWORD": "1"}
    assert harness(env=os.environ | words).stdout.strip() == "plain,patches"


def test_hosts_schema_and_show(tmp_path: Path) -> None:
    assert json.loads(harness("hosts", "schema").stdout)["type"] == "object"
    shown = json.loads(harness("hosts", "show", cwd=tmp_path).stdout)
    assert shown["bed"]["kind"] == "native"
    assert shown["bed"]["dut"]["nic"]["model"] == "ef10"
    (tmp_path / "hosts.yaml").write_text("version: 1\n")
    refused = harness("hosts", "show", cwd=tmp_path)
    assert refused.returncode == 2
    assert "error: hosts.yaml:1: beds: missing" in refused.stderr


def test_patches_of_a_tree_of_no_known_base(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("VERSION = 5\nPATCHLEVEL = 3\n")
    refused = harness("patches", "check", str(tmp_path))
    assert refused.returncode == errors.ConfigurationError.exit_code
    assert "is Linux 5.3.0, for which no series ships" in refused.stderr
    both = harness(
        "patches", "apply", str(tmp_path), "--step", "1", "--in-place", "--worktree", "x"
    )
    assert "exclude each other" in both.stderr


def test_machines_that_cannot_be_reached_are_told_before_anything_is_built(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts.yaml"
    hosts.write_text("""\
version: 1
default_bed: rack
beds: {rack: {dut: rx, generator: tx}}
hosts:
  rx: {kind: ssh, hostname: rx.invalid, interface: eth0, address: 198.18.1.2/24}
  tx: {kind: ssh, hostname: tx, interface: eth0, address: 198.18.1.1/24}
""")
    out = tmp_path / "result"
    done = harness("run", "--hosts", str(hosts), "--out", str(out))
    assert done.returncode == errors.InfrastructureError.exit_code
    assert "rx.invalid: ssh failed" in done.stderr
    assert not out.exists()


QEMU = ("--bed", "virtual")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--good", "0", "--bad", "8", "--metric", "joy"), "'joy' is not one of"),
        (("--good", "8", "--bad", "8"), "does not come before the bad end"),
        (("--good", "8", "--bad", "0"), "does not come before the bad end"),
        (("--good", "0", "--bad", "9"), "step 9 is not among the steps to search"),
        (("--good", "0", "--bad", "8", "--steps", "0,2"), "steps to search: 0, 2"),
        (("--good", "0", "--bad", "8", "--by", "0.02"), "write --by 2%"),
        (("--good", "0", "--bad", "8", "--by", "0%"), "is not a percentage"),
        (("--good", "0", "--bad", "8", "--resume"), "holds no bisection to resume"),
        (("--good", "0"), "Missing option '--bad'"),
        ((*QEMU, "--good", "0", "--bad", "8", "--tree", "no"), "no kernel tree at no"),
        ((*QEMU, "--good", "0", "--bad", "8", "--tree", "."), "has no commit '0'"),
        (("--good", "a", "--bad", "b", "--tree", ".", "--steps", "0-8"), "exclude each other"),
    ],
)
def test_a_bisection_that_cannot_be_is_refused_at_once(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    out = tmp_path / "result"
    refused = harness("bisect", *arguments, "--out", str(out))
    assert refused.returncode == errors.ConfigurationError.exit_code
    assert told in refused.stderr
    assert not out.exists()
