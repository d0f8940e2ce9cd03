# SPDX-License-Identifier: MIT
"""``harness trend``: many campaigns of one bed over time."""

from __future__ import annotations

from pathlib import Path

import click

from harness.base import terminal
from harness.commands import PathOf
from harness.report.trend import FORMATS, document, render
from harness.results import trend as campaigns
from harness.results.expect import require


@click.command()
@click.argument("directories", metavar="DIR…", nargs=-1, required=True, type=PathOf(exists=True))
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="Output format; html is one page that needs no network.",
)
@click.option(
    "--metric",
    "metrics",
    type=click.Choice([*campaigns.METRICS]),
    metavar="NAME",
    multiple=True,
    help="Follow only this metric, such as stack_rx_pps. Can be repeated.",
)
@click.option(
    "--expect-steady",
    is_flag=True,
    help="For CI: exit code 6 if a metric has moved with the newest campaign, 7 if that "
    "cannot be told.",
)
def trend(
    directories: tuple[Path, ...], form: str, metrics: tuple[str, ...], expect_steady: bool
) -> None:
    """Follow the campaigns in DIR… over time, and date the changes.

    \b
    harness trend results                             all campaigns under results/
    harness trend results --format html > trend.html  a page with a figure for each metric
    harness trend results --expect-steady             has a metric moved last night?

    What is followed is the ratio to the control: the baseline, which every campaign boots. So
    measure each night with the same control: step 0 of one kernel source, or the first name of
    --variants:

    \b
    harness run --tree LINUX --variants v6.12.90,HEAD --profile standard --out results/DATE

    The newest complete campaign decides what the others are compared with. Campaigns of another
    bed, host, load, setting or control, and incomplete ones, are listed with the reason. Their
    order is that of the times at which they began.
    """
    found = campaigns.trend(directories, metrics)
    shown = render(document(found), form)
    if form == "table":
        click.echo(shown)
    else:
        terminal.write_document(shown)
    if expect_steady:
        require(found.findings())
