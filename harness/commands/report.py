# SPDX-License-Identifier: MIT
"""``harness report``: a result directory as a table, JSON, CSV or markdown."""

from __future__ import annotations

from pathlib import Path

import click

from harness.analysis import analyse
from harness.report import FORMATS, document, render
from harness.samples import ResultDirectory


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="How to show it.",
)
def report(directory: Path, form: str) -> None:
    """Show the campaign in DIRECTORY, from its files alone.

    A campaign that was cut short is shown as incomplete and without a verdict.
    """
    click.echo(render(document(analyse(ResultDirectory.open(directory))), form))
