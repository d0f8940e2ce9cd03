# SPDX-License-Identifier: MIT
"""The command ``harness``: its subcommands, and how an error becomes an exit status.

Imports the module of a subcommand only when that runs, so that ``harness --help`` and tab
completion stay fast. A module under ``harness/commands/`` may import anything; nothing
imports it.
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
    # name: its text in --help. Module and click command have the same name.
    "run": "Build the kernels, boot and measure them, and print the table.",
    "plan": "Show what a run would do; change nothing.",
    "build": "Build and keep the kernels of some steps.",
    "merge": "Join the shards of a campaign that several machines measured.",
    "report": "Print the report of a result directory.",
    "profile": "Show where the time of a packet goes, function by function.",
    "trace": "Watch list lengths on a live host.",
    "compare": "Compare two result directories.",
    "trend": "Follow many campaigns over time and date the changes.",
    "bisect": "Find the step or commit at which a metric changes.",
    "hosts": "Show hosts.yaml; enroll, lease, switch, watch and clean its machines.",
    "doctor": "Check that a machine has everything a run needs.",
    "restore": "Restore every setting of a machine.",
    "selftest": "Test the support for machines on guests that act as lab machines.",
    "patches": "List, check and apply the kernel series.",
    "completion": "Print the tab completion for a shell.",
}

_NO_ROOM = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the file size limit: ulimit -f",
}
_ELSEWHERE = "name another place"
_HINTS = {
    **_NO_ROOM,
    errno.EROFS: "name a writable directory",
    errno.EACCES: "name a directory that you may write to",
    errno.EPERM: "name a directory that you may write to",
    errno.ENOTDIR: _ELSEWHERE,
    errno.EISDIR: _ELSEWHERE,
    errno.EEXIST: _ELSEWHERE,
    errno.ELOOP: _ELSEWHERE,
    errno.ENAMETOOLONG: "name a shorter one",
    errno.EIO: "check the disk, or name another place",
    errno.ESTALE: "check the file server, or name another place",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENFILE: "too many files are open on this machine",
    errno.EAGAIN: "raise the limit of processes and threads: ulimit -u",
    errno.ENOMEM: "free some memory",
}
"""Errors of the machine and their remedies; any other OSError is a bug of the harness."""


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"harness.commands.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([*COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [
            CompletionItem(name, help=text)
            for name, text in COMMANDS.items()
            if name.startswith(incomplete)
        ] + click.Command.shell_complete(self, ctx, incomplete)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="receive-batching-harness", prog_name="harness")
@click.option("-v", "--verbose", count=True, help="Say more; twice for every detail.")
def cli(verbose: int) -> None:
    """Measure what listified packet receive does to the receive rate of a kernel.

    On two machines with Solarflare NICs, or on this machine without such hardware.
    """
    if verbose:
        import logging

        logging.basicConfig(
            level=logging.DEBUG if verbose > 1 else logging.INFO,
            format="%(relativeCreated)7.0f ms %(name)s: %(message)s",
        )


def main() -> NoReturn:
    """Run the command line; the class of an error determines the exit status."""
    # SIGTERM unwinds like Ctrl-C, so that everything that was changed is restored.
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
    """Raise unless all arguments are text and the current directory exists."""
    for word in sys.argv[1:]:
        if not word or re.fullmatch(r"--[a-z][a-z-]*=", word):
            # From an unset variable, as in --bed "$BED": the user did not mean the default.
            raise ConfigurationError(
                f"{word or 'an argument'} is empty",
                hint="give it a value, or leave the whole option out",
            )
        if any(0xD800 <= ord(character) < 0xE000 for character in word):
            raise ConfigurationError(f"an argument is not text: {os.fsencode(word)!r}")
    try:
        Path.cwd()
    except OSError as error:
        raise InfrastructureError(
            f"the current directory cannot be used: {error.strerror}",
            hint="cd to an existing directory",
        ) from error


def _ended_by(error: BaseException) -> int:
    """Print what ended a command, and return the exit status for it."""
    if "_HARNESS_COMPLETE" in os.environ and not isinstance(error, click.exceptions.Exit):
        return 1  # nothing to complete; the shell would take a message for words
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
        # The reader of our output has closed it.
        terminal.give_up()
        return 1  # as click does for its own output
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        hint = "free some space, or set TMPDIR"
        return _show(InfrastructureError(str(error.strerror), hint=hint))
    if isinstance(error, OSError) and error.errno in _HINTS:
        where = f": {error.filename}" if error.filename else ""
        if not where and error.errno in _NO_ROOM:  # only errors of open() name the file
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
