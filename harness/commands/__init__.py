# SPDX-License-Identifier: MIT
"""The subcommands, a module each; they print, and leave the work to the other modules.

Here are the options that several of them have.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from harness.base.errors import ConfigurationError, InfrastructureError
from harness.plan import MAX_BLOCKS, PROFILE_NAMES
from harness.trials import EXTRAS, KINDS


class PathOf(click.Path):
    """A path; shells leave the ~ of ``--out=~/x`` to us, and an empty one is no path."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fspath(value)
        if not text:
            self.fail("a path is empty", param, ctx)
        try:
            return super().convert(str(Path(text).expanduser()), param, ctx)
        except RuntimeError as error:  # ~ of a user who is not there
            self.fail(f"{text}: {error}", param, ctx)


class Seconds(click.FloatRange):
    """So many seconds; no number that is none, such as nan."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds", param, ctx)
        return seconds


hosts_option = click.option(
    "--hosts",
    "hosts_path",
    type=PathOf(dir_okay=False),
    metavar="FILE",
    help="Hosts file; hosts.yaml here or the one that ships when not given.",
)
bed_option = click.option(
    "--bed", "bed_name", help="Bed of hosts.yaml; its default_bed when not given."
)


def _names(_context: click.Context, _option: click.Parameter, given: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in given.split(",")) if given is not None else ()
    if not all(names):
        raise click.BadParameter("a name is empty")
    return names


beds_option = click.option(
    "--beds",
    "bed_names",
    metavar="A,B,…",
    callback=_names,
    help="Several beds of machines, over which blocks are spread, all at work at once.",
)
steps_option = click.option(
    "--steps",
    default="0,2,8",
    show_default=True,
    help="Steps of the series, and optional ones: 0,2,8 or 0-8 or 0,2,2m,8,9.",
)
tree_option = click.option(
    "--tree",
    type=PathOf(),
    help="Git tree to build instead of the source in hosts.yaml.",
)
blocks_option = click.option(
    "--blocks",
    type=int,
    help=f"Blocks instead of the profile's; a block boots each step once. At most {MAX_BLOCKS}.",
)
also_option = click.option(
    "--also",
    type=click.Choice(EXTRAS),
    multiple=True,
    help="Measure also "
    + ", ".join(f"{kind.summary} ({kind.also})" for kind in KINDS if kind.also)
    + "; may be given again.",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**63 - 1),
    help="Seed of the order of boots; drawn and stored when not given.",
)


def profile_option(default: str) -> Callable[[Any], Any]:
    """``--profile``, whose default depends on the command."""
    return click.option(
        "--profile",
        "profile_name",
        default=default,
        show_default=True,
        type=click.Choice(PROFILE_NAMES),
        help="How long to measure.",
    )


def out_option(prefix: str = "") -> Callable[[Any], Any]:
    """``--out``: a result directory, ``results/PREFIXDATE`` when not given."""

    def directory(_context: click.Context, _option: click.Parameter, given: Path | None) -> Path:
        name = f"{prefix}{datetime.now().astimezone():%Y-%m-%dT%H-%M-%S}"
        chosen = (given or Path("results") / name).absolute()
        _require_place(chosen)
        return chosen

    return click.option(
        "--out",
        "directory",
        type=PathOf(),
        callback=directory,
        help=f"Result directory; results/{prefix}DATE when not given.",
    )


def _require_place(directory: Path) -> None:
    """See before hours of work that results can be written to ``directory``."""
    there = next(up for up in (directory, *directory.parents) if os.path.lexists(up))
    if not there.is_dir():
        what = "a link that leads nowhere" if there.is_symlink() else "no directory"
        raise ConfigurationError(
            f"{directory} cannot hold results: {there} is {what}",
            hint="name another directory with --out",
        )
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InfrastructureError(
            f"{directory} cannot hold results: nothing can be written to {there}: {error.strerror}",
            hint="name a directory that is yours with --out",
        ) from error


def require_apart(directory: Path, tree: Path | None) -> None:
    """Raise a :class:`ConfigurationError` if results would go into the kernel tree itself."""
    if tree is not None and directory.resolve() == tree.resolve():
        raise ConfigurationError(
            f"{directory} is the kernel tree, which is only read",
            hint="name another directory with --out",
        )
