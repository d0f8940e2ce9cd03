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

from harness import needs
from harness.base import process
from harness.base.progress import Progress
from harness.commands import PathOf
from harness.results.expect import ExpectationMissedError


@click.group()
def selftest() -> None:
    """Prove what works with machines, on guests that stand for them."""


@selftest.command()
@click.option(
    "--out",
    type=PathOf(file_okay=False),
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

    needs.require(racks.needed())
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


@selftest.command()
@click.argument("names", nargs=-1)
@click.option("--fast", is_flag=True, help="Only those that every check of the harness tries.")
@click.option(
    "--out",
    type=PathOf(file_okay=False),
    help="Directory for the rack, logs and results; by default a new one, removed at the end.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "markdown", "json")),
    default="table",
    show_default=True,
)
def faults(names: tuple[str, ...], fast: bool, out: Path | None, form: str) -> None:
    """Strike campaigns on two guests that stand for machines, with all or the named faults.

    Each is to end with the exit code of its class and leave the machines as they were:
    leases free, settings back, the known-good kernel running. The exit code is 6 if one
    does not. All of them take about two hours without KVM.
    """
    from harness.selftest import faults as suite
    from harness.selftest import rack as racks
    from harness.selftest import strikes

    known = {fault.name: fault for fault in strikes.FAULTS}
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"no fault is called {unknown[0]!r}; {', '.join(known)}")
    chosen = [known[name] for name in names or known if known[name].fast or not fast]
    needs.require(racks.needed())
    found: list[suite.Outcome] = []
    with contextlib.ExitStack() as up:
        # Also if it is interrupted.
        up.callback(lambda: click.echo(suite.shown(found, form)))
        temporary = up.enter_context(tempfile.TemporaryDirectory(prefix="rack-", dir="/var/tmp"))
        where = out or Path(temporary)
        with Progress() as progress, racks.Rack(where / "rack", progress=progress) as rack:
            with progress.task("machines"):
                rack.switch_on()
            with rack.ssh_agent() as environment:
                scene = suite.Scene(rack, where, environment)
                for outcome in suite.run(scene, chosen):
                    found.append(outcome)
                    progress.say(
                        f"{outcome.fault}: {'; '.join(outcome.wrong) or 'as it has to be'} "
                        f"({outcome.took_s:.0f} s)"
                    )
    if wrong := [outcome.fault for outcome in found if outcome.wrong]:
        raise ExpectationMissedError(f"not as it has to be: {', '.join(wrong)}")
