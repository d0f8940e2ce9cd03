# SPDX-License-Identifier: MIT
"""``harness compare``: whether two campaigns found the same."""

from __future__ import annotations

import json
from pathlib import Path

import click

from harness.commands import PathOf
from harness.report import comparison
from harness.results import compare as campaigns
from harness.results.analysis import analyse
from harness.results.samples import ResultDirectory


@click.command()
@click.argument("first", type=PathOf())
@click.argument("second", type=PathOf())
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "json")),
    default="table",
    show_default=True,
    help="How to show it.",
)
def compare(first: Path, second: Path, form: str) -> None:
    """Hold the campaign in SECOND against the one in FIRST.

    Each step's change over step 0 is compared, and rates too on hardware. Campaigns
    of other beds, loads, settings or machines are refused, and so are incomplete ones.
    """
    one, other = (analyse(ResultDirectory.open(where)) for where in (first, second))
    found = campaigns.compare(one, other)
    click.echo(comparison.table(found) if form == "table" else json.dumps(found, indent=1))
