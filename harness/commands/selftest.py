# SPDX-License-Identifier: MIT
"""``harness selftest``: what works with machines, proven on guests that stand for them."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import time
from pathlib import Path
from typing import TextIO

import click

from harness import process
from harness.progress import Progress


@click.group()
def selftest() -> None:
    """Prove what works with machines, on guests that stand for them."""


@selftest.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for disks, consoles and hosts.yaml; by default a new one, removed at the end.",
)
@click.option(
    "--sudoers",
    type=click.File(),
    help="What the user bench may do by sudo: content of a sudoers file; by default everything.",
)
def rack(out: Path | None, sudoers: TextIO | None) -> None:
    """Put up two machines with a cable between them, and keep them until Ctrl-C.

    They are guests with a disk, a boot loader, a power button and a console of their
    own; hosts.yaml, ~/.ssh and BMC are all that there is to reach them by.
    """
    from harness.selftest import rack as racks

    with tempfile.TemporaryDirectory(prefix="rack-", dir="/var/tmp") as temporary:
        began = time.monotonic()
        with (
            Progress() as progress,
            racks.Rack(
                out or Path(temporary),
                sudoers=sudoers.read() if sudoers else racks.SUDOERS,
                progress=progress,
            ) as up,
        ):
            with progress.task("machines"):
                up.switch_on()
            hosts = up.hosts_yaml(up.directory / "hosts.yaml")
            click.echo(f"up in {time.monotonic() - began:.0f} s; hosts file: {hosts}")
            for machine in up.machines:
                click.echo(f"{machine.name}:")
                click.echo(f"  login    {process.quoted(machine.ssh.argv(['uname', '-r']))}")
                click.echo(f"  power    {process.quoted(up.power_command(machine))} cycle")
                click.echo(f"  console  {machine.console_log}")
            with up.ssh_agent() as environment:
                click.echo(
                    f"harness finds the key with SSH_AUTH_SOCK={environment['SSH_AUTH_SOCK']}"
                )
                with contextlib.suppress(KeyboardInterrupt):  # SIGTERM is one too
                    while True:
                        signal.pause()
