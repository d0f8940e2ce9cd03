# SPDX-License-Identifier: MIT
"""Every command, whatever its streams are connected to: no traceback, no exit code 70."""

from __future__ import annotations

import ast
import io
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import harness
from harness import cli
from harness.base import terminal
from harness.base.errors import EXIT_BUG

pytestmark = pytest.mark.unit

HOSTS = """\
version: 1
default_bed: virtual
kernel: {source: {package: linux-source-0.0}}
beds:
  rack: {dut: rx, generator: tx}
  virtual: {dut: guest, generator: wire}
hosts:
  rx: {kind: ssh, hostname: rx.invalid, interface: eth0, address: 198.18.1.2/24,
       power: {command: [./power]}, console: {command: [./power]}}
  tx: {kind: ssh, hostname: tx.invalid, interface: eth0, address: 198.18.1.1/24}
  guest: {kind: qemu, address: 198.18.0.2/24}
  wire: {kind: netns, address: 198.18.0.1/24}
"""
HUGE = "9" * 5000


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, ...]]:
    """Every command of the tree, as it is typed."""
    context = click.Context(group)
    for name in group.list_commands(context):
        yield (*path, name)
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


COMMANDS = [(), *commands(cli.cli)]

LINES = [
    # what is typed, and how it ends
    ("plan", 0),
    ("plan --beds rack --seed 3 --also cpu", 0),
    ("-vv plan", 0),
    ("hosts show", 0),
    ("hosts schema", 0),
    ("patches list", 0),
    ("report --schema report", 0),
    ("completion zsh", 0),
    ("--version", 0),
    ("nope", 2),
    ("--nope", 2),
    ("trace guest --step 0,2", 2),
    ("trace --duration nan", 2),
    ("trace --duration inf", 2),
    ("trace --interval nan", 2),
    ("trace --interval -1", 2),
    ("trace wire", 2),
    ("trace nobody", 2),
    ("trace guest", 3),
    ("hosts power tx status", 2),
    ("hosts power rx status", 3),
    ("hosts console tx", 2),
    ("hosts console rx", 3),
    ("hosts console rx --log nowhere/x", 2),
    ("hosts console rx --log .", 2),
    ("patches check --package ../x", 2),
    ("hosts lease guest", 2),
    ("hosts show nobody", 2),
    ("doctor nobody", 2),
    ("doctor --bed nowhere", 2),
    (f"plan --steps {HUGE}", 2),
    (f"plan --steps 0-{HUGE}", 2),
    ("plan --steps ٣", 2),
    ("plan --steps 0,,2", 2),
    ("plan --blocks 100000", 2),
    ("plan --blocks 0", 2),
    (f"plan --blocks {HUGE}", 2),
    (f"plan --seed {HUGE}", 2),
    ("plan --seed -1", 2),
    ("plan --bed=", 2),
    ("plan --bed —", 2),
    ("plan --beds rack,rack", 2),
    ("plan --hosts nowhere", 2),
    ("plan --hosts dangling", 2),
    ("plan --hosts loop", 2),
    ("plan --hosts fifo", 2),
    ("plan --hosts .", 2),
    ("plan --hosts /dev/zero", 2),
    ("plan --hosts ~nobody99/hosts.yaml", 2),
    ("build", 3),
    ("build --tree .", 2),
    ("build --tree nowhere", 2),
    ("build --tree hosts.yaml", 2),
    (f"build --layouts {HUGE}", 2),
    ("run", 3),
    ("run --out hosts.yaml", 2),
    ("run --out hosts.yaml/x", 2),
    ("run --out dangling", 2),
    ("run --out /proc/nowhere", 3),
    ("run --out . --tree .", 2),
    ("run --resume", 2),
    ("run --resume --out .", 2),
    ("run --resume --out foreign", 3),
    ("run --expect x", 2),
    ("bisect --good 0 --bad 8 --resume --out foreign", 3),
    (f"bisect --good 0 --bad 8 --by {HUGE}%", 2),
    ("bisect --good 0 --bad 8 --by nan%", 2),
    (f"bisect --good 0 --bad 8 --max-blocks {HUGE}", 2),
    ("report foreign", 3),
    ("report hosts.yaml", 2),
    ("compare foreign foreign", 3),
    ("patches check .", 2),
    ("patches check . --series ../x", 2),
    ("patches apply . --step 1", 2),
    ("patches rebase --onto .", 2),
    ("selftest faults nope", 2),
    ("selftest rack --sudoers nowhere", 2),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what other people's have."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hosts.yaml").write_text(HOSTS, encoding="utf-8")
    (tmp_path / "power").write_text("echo on\n")  # no interpreter
    (tmp_path / "power").chmod(0o755)
    (tmp_path / "dangling").symlink_to("unmounted/hosts.yaml")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "foreign").mkdir()
    for name in ("campaign.json", "bisect.json"):
        (tmp_path / "foreign" / name).write_bytes(b"\xff[[[")
    return tmp_path


class Typed:
    """Runs what is typed in this process, on streams of ``encoding``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, words: list[str], encoding: str = "ascii") -> tuple[int, bytes, str]:
        out = io.BytesIO()
        with self._monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["harness", *words])
            patched.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
            patched.setattr(sys, "stderr", sys.stderr)  # main puts its own there
            with pytest.raises(SystemExit) as ended:
                cli.main()
            sys.stdout.flush()
            written = out.getvalue()
        assert isinstance(ended.value.code, int)
        return ended.value.code, written, self._capfd.readouterr().err


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Typed:
    # Ours does no more than end the status; the stream it would silence is pytest's.
    monkeypatch.setattr(terminal, "give_up", lambda: None)
    return Typed(monkeypatch, capfd)


def test_help_of_every_command(here: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "LANG", "LC_ALL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    for command, columns in itertools.product(COMMANDS, ("20", "1", "x")):
        monkeypatch.setenv("COLUMNS", columns)
        status, out, err = typed([*command, "--help"])
        assert (status, err) == (0, ""), command
        assert out.isascii()
        assert out.startswith(b"Usage: harness")
    assert len(COMMANDS) > 25


@pytest.mark.parametrize("encoding", ["ascii", "iso8859-1", "cp037", "utf-16-le", "utf-8"])
def test_every_line_on_every_terminal(here: Path, typed: Typed, encoding: str) -> None:
    told = {}
    for line, wanted in LINES if encoding == "ascii" else LINES[:14]:
        status, out, err = typed(line.split(), encoding)
        assert status != EXIT_BUG, (line, err)
        assert "Traceback" not in err
        assert (status, line) == (wanted, line), err
        told[line] = out.decode(encoding) + err
        if status:
            assert err.startswith(("error: ", "Usage: ")), line
    assert "unmounted/hosts.yaml" in told.get("plan --hosts dangling", "unmounted/hosts.yaml")
    if encoding == "ascii":
        assert "2 blocks x 4 steps" in told["plan"]


def test_every_command_without_arguments(here: Path, typed: Typed) -> None:
    starts_work = {("selftest", "rack"), ("selftest", "faults"), ("doctor",)}
    for command in COMMANDS:
        if command not in starts_work:
            status, _, err = typed([*command])
            assert status in {0, 2, 3}, (command, err)
            assert "Traceback" not in err


def run_in_shell(script: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """``script``, in which ``$H`` is the harness."""
    command = f"H='{sys.executable} -m harness'; {script}"
    root = str(Path(harness.__file__).parent.parent)
    env = {**os.environ, "PYTHONPATH": root, **environment}
    return subprocess.run(["sh", "-c", command], capture_output=True, env=env, timeout=60)


@pytest.mark.parametrize(
    ("script", "status", "told"),
    [
        ("$H plan >&-", 3, b"error: standard output is closed"),
        ("$H plan >/dev/full", 3, b"error: No space left on device"),
        ("$H plan >/dev/full 2>/dev/full", 3, b""),
        ("$H plan 2>&- >/dev/null", 0, b""),
        ("$H nope 2>/dev/full", 2, b""),
        ("$H plan <&- >/dev/null", 0, b""),
        ("$H hosts enroll rx >&- 2>&- <&-", 3, b""),
        ("{ $H hosts schema; echo $? >&2; } | true", 0, b"1\n"),
        ("$H plan >/dev/null 2>&1 | true", 0, b""),
        ("cd gone && rmdir ../gone && $H plan", 3, b"error: the current directory cannot be used"),
        ("$H plan --hosts \"$(printf 'h\\377')\"", 2, b"error: an argument is not text"),
        ('$H plan --bed "$NO_SUCH_VARIABLE"', 2, b"error: an argument is empty"),
        ("$H plan --hosts /dev/stdin < hosts.yaml", 0, b""),
        ("cat hosts.yaml | $H plan --hosts /dev/stdin", 0, b""),
    ],
)
def test_streams_that_are_odd(here: Path, script: str, status: int, told: bytes) -> None:
    (here / "gone").mkdir()
    done = run_in_shell(script)
    assert done.returncode == status, done.stderr
    assert told in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("words", [None, "", "'", "harness run --bed "])
def test_a_completion_says_nothing_but_words(here: Path, words: str | None) -> None:
    given = {} if words is None else {"COMP_WORDS": words, "COMP_CWORD": "x" if words else "0"}
    done = run_in_shell("$H", _HARNESS_COMPLETE="bash_complete", **given)
    assert done.returncode in {0, 1}
    assert done.stderr == b""


def test_a_latin_1_terminal_without_a_home(here: Path) -> None:
    done = run_in_shell(
        "env -u HOME $H plan", PYTHONIOENCODING="iso8859-1", LC_ALL="C", TERM="dumb", COLUMNS="20"
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert "2 blocks × 4 steps" in done.stdout.decode("iso8859-1")


def test_what_goes_to_stderr_never_ends_what_is_done() -> None:
    script = (
        "import os, sys\nfrom harness.base import terminal\n"
        "from harness.base.progress import Progress\n"
        "terminal.prepare()\nread, write = os.pipe()\nos.close(read)\nos.dup2(write, 2)\n"
        "with Progress(bars=False) as progress, progress.task('…'):\n    pass\nprint('through')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"through\n")


def test_a_closed_stdout_takes_no_file(tmp_path: Path) -> None:
    script = (
        "import harness.base.terminal as t\ntry: t.prepare()\nexcept Exception: pass\n"
        f"file = open({str(tmp_path / 'x')!r}, 'w')\nassert file.fileno() > 2, file.fileno()\n"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -c "$0" >&- 2>{tmp_path}/err', script]
    )
    assert (done.returncode, (tmp_path / "err").read_text()) == (0, "")


def test_documents_are_utf_8_whatever_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="iso8859-1"))
    terminal.write_document("± — µ")
    assert out.getvalue() == "± — µ\n".encode()


def without_encoding(source: str) -> Iterator[int]:
    """Lines of ``source`` that read or write text in the encoding of the locale."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        given = {word.arg: word.value for word in node.keywords}
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        text = given.get("text") or given.get("universal_newlines")
        bare = name in {"read_text", "write_text"} or isinstance(text, ast.Constant)
        if bare and "encoding" not in given and None not in given:
            yield node.lineno


def test_files_and_pipes_have_an_encoding() -> None:
    root = Path(harness.__file__).parent
    # What runs on a lab host reads what the kernel writes; a kernel's linker runs under make.
    others = {root / "kernels" / "layout.py", *(root / "agent").rglob("*.py")}
    found = [
        f"{path.relative_to(root)}:{line}"
        for path in sorted({*root.rglob("*.py")} - others)
        for line in without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert found == []
    assert list(without_encoding("p.read_text()\nrun(x, text=True)")) == [1, 2]
