# SPDX-License-Identifier: MIT
"""``harness hosts``: show the hosts file, and manage its machines by hand."""

from __future__ import annotations

import json
from pathlib import Path

import click

from harness import config
from harness.commands import hosts_option
from harness.commands.lease import lease, release
from harness.commands.machines import clean, enroll, sudoers
from harness.commands.power import console, power


@click.group()
def hosts() -> None:
    """Show hosts.yaml; enroll, lease, switch, watch and clean its machines."""


@hosts.command()
def schema() -> None:
    """Print the JSON Schema of a hosts file."""
    click.echo(json.dumps(config.json_schema(), indent=2))


@hosts.command()
@click.argument("bed", required=False)
@hosts_option
def show(bed: str | None, hosts_path: Path | None) -> None:
    """Check the hosts file, and print BED as JSON with all defaults filled in.

    Without BED it prints the default bed.
    """
    path = config.locate(hosts_path)
    loaded = config.load(path)
    shown = config.bed(loaded, bed)
    click.echo(
        json.dumps(
            {
                "file": str(path),
                "kernel": loaded.kernel.model_dump(mode="json"),
                "load": loaded.load.model_dump(mode="json"),
                "bed": {"kind": shown.kind, **shown.model_dump(mode="json")},
            },
            indent=2,
        )
    )


for command in (sudoers, enroll, lease, release, power, console, clean):
    hosts.add_command(command)
