# SPDX-License-Identifier: MIT
"""``harness report``: show a result directory in any report format."""

from __future__ import annotations

import json
from pathlib import Path

import click

from harness.base import terminal
from harness.commands import PathOf
from harness.report import FORMATS, document, render, schema
from harness.results import samples
from harness.results.analysis import analyse
from harness.results.expect import hold, parse, require
from harness.results.samples import ResultDirectory


def _print_schema(context: click.Context, _: click.Parameter, name: str | None) -> None:
    if name is None or context.resilient_parsing:
        return
    shown = schema() if name == "report" else samples.schema(name)
    click.echo(json.dumps(shown, indent=1))
    context.exit()


@click.command()
@click.argument("directory", type=PathOf())
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="Output format.",
)
@click.option(
    "--expect",
    multiple=True,
    help="A condition that must hold, with the same exit codes as harness run.",
)
@click.option(
    "--schema",
    type=click.Choice(("report", *samples.SCHEMAS)),
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON Schema of --format json, or of a file in DIRECTORY, and exit.",
)
def report(directory: Path, form: str, expect: tuple[str, ...]) -> None:
    """Show the campaign in DIRECTORY, using only its files.

    An interrupted campaign is shown as incomplete and without a verdict. The formats
    junit, ktap, kcidb and google-benchmark are for CI; they have one case for each step
    and each --expect.
    """
    result = ResultDirectory.open(directory)
    expected = [parse(text, result.campaign.steps) for text in expect]
    analysis = analyse(result)
    findings = hold(analysis, expected)
    shown = document(analysis, findings)
    if form == "table":
        click.echo(render(shown, form))
    else:
        terminal.write_document(render(shown, form))
    if expected:
        require(findings)
