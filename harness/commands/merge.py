# SPDX-License-Identifier: MIT
"""``harness merge``: the shards of a campaign as one result directory."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands import PathOf, out_option
from harness.report import document, render
from harness.results import merge as shards
from harness.results.analysis import analyse
from harness.results.samples import ResultDirectory


@click.command()
@click.argument("directories", nargs=-1, required=True, type=PathOf(), metavar="DIR…")
@out_option("merged-")
@click.option(
    "--partial",
    is_flag=True,
    help="Accept missing and unfinished shards. The campaign is then incomplete and has no "
    "verdict.",
)
def merge(directories: tuple[Path, ...], directory: Path, partial: bool) -> None:
    """Join the shards in each DIR to one campaign in --out, and print its table.

    \b
    harness run --seed 13 --shard 1/3 --out s1      on one machine
    harness run --seed 13 --shard 2/3 --out s2      on another, or later
    harness run --seed 13 --shard 3/3 --out s3
    harness merge s1 s2 s3 --out DIR
    harness report DIR --expect 'step8 stack_rx_pps > step0'

    The shards of a campaign have the same seed, so the same plan; shard 2/3 measures blocks 2,
    5, 8 and so on, with probes in the first of its own. Each step is compared with the baseline
    within a block, so on one machine. If the machines differ, each is shown for itself like a
    bed of --beds, and a verdict over all needs them to agree. Refuses shards whose plan, options,
    hosts.yaml or kernels differ.
    """
    shards.merge(directories, directory, partial=partial)
    analysis = analyse(ResultDirectory.open(directory))
    click.echo(render(document(analysis), "table"))
    click.echo(f"results: {directory}", err=True)
