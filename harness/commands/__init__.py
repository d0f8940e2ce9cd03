# SPDX-License-Identifier: MIT
"""The subcommands, a module each; they print, and leave the work to the other modules.

Here are the options that several of them have.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from harness.plan import EXTRAS, PROFILE_NAMES

hosts_option = click.option(
    "--hosts",
    "hosts_path",
    type=click.Path(path_type=Path, dir_okay=False),
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
    type=click.Path(path_type=Path),
    help="Git tree to build instead of the source in hosts.yaml.",
)
blocks_option = click.option(
    "--blocks",
    type=int,
    help="Blocks instead of the profile's; a block boots each step once.",
)
also_option = click.option(
    "--also",
    type=click.Choice(EXTRAS),
    multiple=True,
    help="Measure also CPU time per packet at a paced load, instructions and icache misses per "
    "packet (of an emulated guest), latency, or the highest rate without loss; may be given "
    "again.",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
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
        return (given or Path("results") / name).absolute()

    return click.option(
        "--out",
        "directory",
        type=click.Path(path_type=Path),
        callback=directory,
        help=f"Result directory; results/{prefix}DATE when not given.",
    )
