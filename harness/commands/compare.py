# SPDX-License-Identifier: MIT
"""``harness compare``: do two campaigns agree?"""

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
    help="Output format.",
)
def compare(first: Path, second: Path, form: str) -> None:
    """Compare the campaign in SECOND with the one in FIRST.

    Compares each step's change over step 0, and on hardware also the rates. Refuses
    campaigns that differ in bed, load, settings or machines, and incomplete ones.
    """
    one, other = (analyse(ResultDirectory.open(where)) for where in (first, second))
    found = campaigns.compare(one, other)
    click.echo(comparison.table(found) if form == "table" else json.dumps(found, indent=1))
