# SPDX-License-Identifier: MIT
"""The subcommands, a module each; they print, and leave the work to the other modules."""

from __future__ import annotations

from pathlib import Path

import click

hosts_option = click.option(
    "--hosts",
    "hosts_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Hosts file; hosts.yaml here or the one that ships when not given.",
)
