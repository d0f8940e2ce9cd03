# SPDX-License-Identifier: MIT
"""``harness report``: a result directory in any of the formats a report has."""

from __future__ import annotations

from pathlib import Path

import click

from harness.analysis import analyse
from harness.report import FORMATS, document, render
from harness.report.expect import hold, parse, require
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
@click.option(
    "--expect",
    multiple=True,
    help="What has to hold, as for harness run; the exit codes are the same.",
)
def report(directory: Path, form: str, expect: tuple[str, ...]) -> None:
    """Show the campaign in DIRECTORY, from its files alone.

    A campaign that was cut short is shown as incomplete and without a verdict.
    junit, ktap, kcidb and google-benchmark are for CI and have a case for each
    step and each --expect.
    """
    result = ResultDirectory.open(directory)
    expected = [parse(text, result.campaign.steps) for text in expect]
    shown = document(analyse(result))
    findings = hold(shown, expected)
    click.echo(render(shown, form))
    if expected:
        require(findings)
