# SPDX-License-Identifier: MIT
"""``harness profile``: where the time of a packet goes, function by function."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from harness import config, plan, profiling
from harness.base.progress import Progress
from harness.beds import registry
from harness.campaign.session import opened
from harness.commands import Seconds, bed_option, hosts_option, tree_option, wait_option
from harness.commands.load import beds_for, load_option
from harness.commands.variants import compared, variants_options

_CERTAIN = 2.0
"""A difference of so many standard errors is marked."""


@click.command()
@click.argument("steps", default="0,8")
@click.option(
    "--duration",
    "duration_s",
    type=Seconds(min=0.5, max=3600),
    default=20.0,
    show_default=True,
    help="Seconds to profile each step.",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=30, show_default=True, help="Functions to show."
)
@click.option("--json", "as_json", is_flag=True, help="Print all functions as JSON.")
@load_option
@bed_option
@hosts_option
@tree_option
@variants_options
@wait_option
def profile(
    steps: str,
    duration_s: float,
    top: int,
    as_json: bool,
    load: str | None,
    bed_name: str | None,
    hosts_path: Path | None,
    tree: Path | None,
    variants: str | None,
    mbox: str | None,
    base: str | None,
    wait_s: float | None,
) -> None:
    """Show where the kernels of STEPS spend the time of a packet, side by side.

    \b
    harness profile                      steps 0 and 8
    harness profile 8,shipped --top 50   step 8 and the tree without any patch
    harness profile --tree . --variants HEAD,worktree
    harness profile --tree . --mbox series.mbox

    The kernels run under the load of hosts.yaml, or --load. On this machine they take turns; a
    machine of kind ssh boots one after the other. A time marked with * differs from the first
    step's by more than two standard errors.
    """
    hosts = config.with_load(config.load(config.locate(hosts_path)), load)
    [bed] = beds_for(hosts.load, [config.bed(hosts, bed_name)])
    among = compared(tree, variants, mbox, base)
    wanted = among.names or plan.parse_steps(steps)
    found: dict[str, profiling.Profile] = {}
    with opened(hosts, bed, wanted, tree=tree, commits=among.commits, wait_s=wait_s) as session:
        for group in session.groups:
            with session.up(group) as beds, Progress() as progress:
                turns = profiling.turns(duration_s)
                with progress.task(f"profile {', '.join(group)}", total=turns) as task:
                    found |= profiling.measure(
                        beds, duration_s, bed.placement.irq_cpu, task.advance
                    )
    if as_json:
        click.echo(json.dumps(_record(found), indent=1))
    else:
        click.echo(f"{registry.of(bed).label(None)}\n")
        click.echo(_table(found, top))


def _record(found: Mapping[str, profiling.Profile]) -> dict[str, Any]:
    return {
        "steps": {
            step: {
                "ns_per_packet": one.ns_per_packet,
                "packets": one.packets,
                "cpu_ns": one.cpu_ns,
                "samples": one.samples.total(),
            }
            for step, one in found.items()
        },
        "functions": profiling.rows(found),
    }


def _table(found: Mapping[str, profiling.Profile], top: int) -> str:
    rows = profiling.rows(found)
    compared = len(found) > 1
    shown = [
        [
            row["function"],
            *(f"{ns:.1f}" for ns in row["ns"].values()),
            *([f"{row['more']:+.1f} ± {row['error']:.1f}", _mark(row)] if compared else []),
        ]
        for row in rows[:top]
    ]
    whole = ["all", *(f"{one.ns_per_packet:.1f}" for one in found.values())]
    if compared:
        first, *_, last = found.values()
        whole += [f"{last.ns_per_packet - first.ns_per_packet:+.1f}", ""]
    heads = ["ns per packet in", *(f"step {step}" for step in found)]
    heads += ["difference", ""] if compared else []
    right = ["left", *["right"] * (len(heads) - 1)]
    samples = ", ".join(f"step {step} {one.samples.total():,}" for step, one in found.items())
    return (
        tabulate([whole, *shown], headers=heads, colalign=right, disable_numparse=True)
        + f"\n\nsamples: {samples}"
    )


def _mark(row: Mapping[str, Any]) -> str:
    return "*" if abs(row["more"]) > _CERTAIN * row["error"] else ""
