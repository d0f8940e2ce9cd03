# SPDX-License-Identifier: MIT
"""``harness selftest``: test the support for machines on guests that act as lab machines."""

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
    """Test the support for machines on guests that act as lab machines."""


@selftest.command()
@click.option(
    "--out",
    type=PathOf(file_okay=False),
    help="Directory for disks, consoles and hosts.yaml. Default: a temporary one.",
)
@click.option(
    "--sudoers",
    type=click.File(),
    help="A sudoers file for the user bench. Default: sudo allows everything.",
)
def rack(out: Path | None, sudoers: TextIO | None) -> None:
    """Start two machines with a cable between them, and keep them running until Ctrl-C.

    They are guests, each with its own disk, boot loader, power button and console. They
    are reached only through hosts.yaml, ssh and a BMC, as lab machines are.
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
@click.option("--fast", is_flag=True, help="Only the faults that `make check` injects.")
@click.option(
    "--out",
    type=PathOf(file_okay=False),
    help="Directory for the rack, logs and results. Default: a temporary one.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "markdown", "json")),
    default="table",
    show_default=True,
)
def faults(names: tuple[str, ...], fast: bool, out: Path | None, form: str) -> None:
    """Inject all or the named faults into campaigns on two guests that act as lab machines.

    Each campaign must end with the exit code of its error class and leave the machines as
    they were: leases free, settings restored, the known-good kernel running. The exit code
    is 6 if one does not. All faults together take about two hours without KVM.
    """
    from harness.selftest import faults as suite
    from harness.selftest import rack as racks
    from harness.selftest import strikes

    known = {fault.name: fault for fault in strikes.FAULTS}
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"no fault is named {unknown[0]!r}; known: {', '.join(known)}")
    chosen = [known[name] for name in names or known if known[name].fast or not fast]
    needs.require(racks.needed())
    found: list[suite.Outcome] = []
    with contextlib.ExitStack() as up:
        # Printed also after an interruption.
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
                        f"{outcome.fault}: {'; '.join(outcome.wrong) or 'as expected'} "
                        f"({outcome.took_s:.0f} s)"
                    )
    if wrong := [outcome.fault for outcome in found if outcome.wrong]:
        raise ExpectationMissedError(f"did not end as expected: {', '.join(wrong)}")
