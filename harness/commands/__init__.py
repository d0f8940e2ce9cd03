# SPDX-License-Identifier: MIT
"""The subcommands, one module each; they parse and print, other rooms do the work.

This file has the options that several of them share.
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
from harness.plan import DEFAULT_STEPS, MAX_BLOCKS, PROFILE_NAMES, SHIPPED, Shard


class PathOf(click.Path):
    """A path. Expands ~, which shells leave alone in ``--out=~/x``; an empty path is an error."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = os.fspath(value)
        if not text:
            self.fail("a path is empty", param, ctx)
        try:
            return super().convert(str(Path(text).expanduser()), param, ctx)
        except RuntimeError as error:  # ~USER of an unknown user
            self.fail(f"{text}: {error}", param, ctx)


class Seconds(click.FloatRange):
    """A number of seconds, which has to be finite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return seconds


hosts_option = click.option(
    "--hosts",
    "hosts_path",
    type=PathOf(dir_okay=False),
    metavar="FILE",
    help="Hosts file. Default: hosts.yaml in this directory, else the one that ships.",
)
bed_option = click.option("--bed", "bed_name", help="Bed in hosts.yaml. Default: its default_bed.")


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
    help="Several beds of machines that work at the same time; blocks are spread over them.",
)
steps_option = click.option(
    "--steps",
    default=DEFAULT_STEPS,
    show_default=True,
    help="Steps of the series to measure, such as 0,2,8 or 0-8 or 0,2,2m,8,9; 8+11 is step 8 "
    f"and optional patch 11 alone; {SHIPPED} is the tree without any patch.",
)
tree_option = click.option(
    "--tree",
    type=PathOf(),
    help="Git tree to build instead of the kernel source in hosts.yaml.",
)
blocks_option = click.option(
    "--blocks",
    type=int,
    help="Number of blocks; a block boots each step once. Default: the profile's. "
    f"At most {MAX_BLOCKS}.",
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**63 - 1),
    help="Seed for the order of boots. Default: a random one, which is stored.",
)


def _shard(_context: click.Context, _option: click.Parameter, given: str | None) -> Shard | None:
    return None if given is None else Shard.parse(given)


shard_option = click.option(
    "--shard",
    metavar="I/N",
    callback=_shard,
    help="Measure every N-th block from block I on; other shards of the campaign run elsewhere "
    "with the same --seed and options, and `harness merge` joins them.",
)

_FOREVER_S = "315360000"  # ten years
wait_option = click.option(
    "--wait",
    "wait_s",
    type=Seconds(min=0),
    is_flag=False,
    flag_value=_FOREVER_S,
    metavar="[SECONDS]",
    help="Wait until nobody else uses the bed or measures on this machine, for so many seconds "
    "at most; then start.",
)


def require_seed(shard: Shard | None, seed: int | None) -> None:
    """Raise a :class:`ConfigurationError` if shards would get plans of their own."""
    if shard is not None and seed is None:
        raise ConfigurationError(
            f"--shard {shard} needs --seed: without it each shard draws a plan of its own",
            hint="give all shards the same number, such as --seed 13",
        )


def profile_option(default: str, *, looks: bool = True) -> Callable[[Any], Any]:
    """``--profile``; its default depends on the command. Without ``looks``: no thorough."""
    names = [name for name in PROFILE_NAMES if looks or name != "thorough"]
    ends = "; thorough ends after 7, 10, 14 or 18 blocks, when the last step is decided" * looks
    return click.option(
        "--profile",
        "profile_name",
        default=default,
        show_default=True,
        type=click.Choice(names),
        help=f"How long to measure{ends}.",
    )


def out_option(prefix: str = "") -> Callable[[Any], Any]:
    """``--out``: a result directory, by default ``results/PREFIXDATE``."""

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
        help=f"Result directory. Default: results/{prefix}DATE.",
    )


def _require_place(directory: Path) -> None:
    """Raise before hours of work unless results can be written to ``directory``."""
    there = next(up for up in (directory, *directory.parents) if os.path.lexists(up))
    if not there.is_dir():
        what = "a dangling link" if there.is_symlink() else "not a directory"
        raise ConfigurationError(
            f"{directory} cannot hold results: {there} is {what}",
            hint="name another directory with --out",
        )
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InfrastructureError(
            f"{directory} cannot hold results: {there} is not writable: {error.strerror}",
            hint="name a directory that you may write to with --out",
        ) from error


def require_apart(directory: Path, tree: Path | None) -> None:
    """Raise a :class:`ConfigurationError` if results would go into the kernel tree itself."""
    if tree is not None and directory.resolve() == tree.resolve():
        raise ConfigurationError(
            f"{directory} is the kernel tree, which the harness only reads",
            hint="name another directory with --out",
        )
