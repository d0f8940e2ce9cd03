# SPDX-License-Identifier: MIT
"""The command ``harness``: which subcommands there are, and how errors end.

Hides that a subcommand's module is imported only when it runs, so that
``harness --help`` and tab completion stay fast. A module under
``harness/commands/`` may import anything; nothing imports it.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
from click.shell_completion import CompletionItem

from harness.base import terminal
from harness.base.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    ConfigurationError,
    HarnessError,
    InfrastructureError,
)

COMMANDS = {
    # name: (module under harness.commands, what --help says of it). The module's
    # attribute of the same name is the click command.
    "run": ("run", "Measure: from patches to a table."),
    "plan": ("plan", "Show what a run would do, and touch nothing."),
    "build": ("build", "Build and keep the kernels of some steps."),
    "report": ("report", "Rebuild the table of a result directory."),
    "trace": ("trace", "Watch list lengths on a live host."),
    "compare": ("compare", "Hold two result directories against each other."),
    "bisect": ("bisect", "Find the step or commit where a metric moves."),
    "hosts": ("hosts", "Show hosts.yaml; enroll, lease, switch, watch and clean its machines."),
    "doctor": ("doctor", "Check everything a run needs of a machine."),
    "restore": ("restore", "Put every setting of a machine back."),
    "selftest": ("selftest", "Prove what works with machines, on guests that stand for them."),
    "patches": ("patches", "List, check and apply the kernel series."),
    "completion": ("completion", "Print the tab completion for a shell."),
}

_NO_ROOM = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "ulimit -f bounds the size of files here",
}
_ELSEWHERE = "name another place"
_HINTS = {
    **_NO_ROOM,
    errno.EROFS: "name a directory that can be written",
    errno.EACCES: "name a directory that is yours",
    errno.EPERM: "name a directory that is yours",
    errno.ENOTDIR: _ELSEWHERE,
    errno.EISDIR: _ELSEWHERE,
    errno.EEXIST: _ELSEWHERE,
    errno.ELOOP: _ELSEWHERE,
    errno.ENAMETOOLONG: "name a shorter one",
    errno.EIO: "look at the disk, or name another place",
    errno.ESTALE: "look at the file server, or name another place",
    errno.EMFILE: "ulimit -n bounds the open files of a process",
    errno.ENFILE: "too many files are open on this machine",
    errno.EAGAIN: "ulimit -u bounds the processes and threads of a user",
    errno.ENOMEM: "free some memory",
}
"""What the machine does not give, by the remedy; any other OSError is a bug of ours."""


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"harness.commands.{COMMANDS[cmd_name][0]}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [
            CompletionItem(name, help=text)
            for name, (_, text) in COMMANDS.items()
            if name.startswith(incomplete)
        ] + click.Command.shell_complete(self, ctx, incomplete)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="receive-batching-harness", prog_name="harness")
@click.option("-v", "--verbose", count=True, help="Say more; twice for every detail.")
def cli(verbose: int) -> None:
    """Measure what listified packet receive does to a kernel.

    On two machines with Solarflare NICs, or with no hardware at all on a
    virtual one.
    """
    if verbose:
        import logging

        logging.basicConfig(
            level=logging.DEBUG if verbose > 1 else logging.INFO,
            format="%(relativeCreated)7.0f ms %(name)s: %(message)s",
        )


def main() -> NoReturn:
    """Run the command line; the exit status is that of the error's class."""
    # A SIGTERM unwinds like Ctrl-C, so that whatever was begun is put back.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        terminal.prepare()
        _require_usable()
        status = cli.main(prog_name="harness", standalone_mode=False)
        terminal.finish()
    except BaseException as error:  # noqa: BLE001
        status = _ended_by(error)
    try:
        terminal.finish()
    except OSError as error:
        status = _ended_by(error)
    if status != 0:
        terminal.give_up()
    sys.exit(status if isinstance(status, int) else 0)


def _require_usable() -> None:
    """Of what any command stands on: words that are text, and a directory to stand in."""
    for word in sys.argv[1:]:
        if not word or re.fullmatch(r"--[a-z][a-z-]*=", word):
            # Of an unset variable, as in --bed "$BED"; a default is not what was meant.
            raise ConfigurationError(
                f"{word or 'an argument'} is empty",
                hint="give it a value, or leave the whole option out",
            )
        if any(0xD800 <= ord(character) < 0xE000 for character in word):
            raise ConfigurationError(f"an argument is no text: {os.fsencode(word)!r}")
    try:
        Path.cwd()
    except OSError as error:
        raise InfrastructureError(
            f"the current directory cannot be used: {error.strerror}",
            hint="cd to one that is there",
        ) from error


def _ended_by(error: BaseException) -> int:
    """Say what ended a command; the exit status of its class."""
    if "_HARNESS_COMPLETE" in os.environ and not isinstance(error, click.exceptions.Exit):
        return 1  # nothing to complete; what is said now would be taken for words
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, click.Abort | KeyboardInterrupt):
        click.secho("interrupted", err=True, fg="yellow")
        return EXIT_INTERRUPTED
    if isinstance(error, HarnessError):
        return _show(error)
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has had enough.
        terminal.give_up()
        return 1  # as click does it for what it writes itself
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        told = InfrastructureError(str(error.strerror), hint="free some space, or set TMPDIR")
        return _show(told)
    if isinstance(error, OSError) and error.errno in _HINTS:
        where = f": {error.filename}" if error.filename else ""
        if not where and error.errno in _NO_ROOM:  # only what opens a file names it
            where = ": a file cannot be written"
        return _show(InfrastructureError(f"{error.strerror}{where}", hint=_HINTS[error.errno]))
    return _bug(error)


def _terminated(_signal: int, _frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _show(error: HarnessError) -> int:
    click.echo(f"{click.style('error:', fg='red', bold=True)} {error.message}", err=True)
    if error.hint:
        click.echo(f"{click.style('hint:', fg='cyan', bold=True)} {error.hint}", err=True)
    return error.exit_code


def _bug(error: BaseException) -> int:
    import traceback

    traceback.print_exception(error)
    click.secho("this is a bug in the harness; please report it with the lines above", err=True)
    return EXIT_BUG
