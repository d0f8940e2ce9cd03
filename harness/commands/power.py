# SPDX-License-Identifier: MIT
"""``harness hosts power`` and ``harness hosts console``: operate one machine by hand."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from harness import config
from harness.base.errors import ConfigurationError, HarnessError
from harness.beds.machine import lease
from harness.commands import PathOf, hosts_option

_POLL_S = 0.2


@click.command()
@click.argument("host")
@click.argument("act", type=click.Choice(["status", "on", "off", "cycle"]))
@click.option("--yes", is_flag=True, help="Switch off or power-cycle without asking.")
@hosts_option
def power(host: str, act: str, yes: bool, hosts_path: Path | None) -> None:
    """Show or switch the power of HOST.

    Refuses to switch off a host that somebody else holds, if the host can be asked.
    """
    from harness.beds.machine import power

    machine = config.machine(config.load(config.locate(hosts_path)), host)
    if machine.power is None:
        raise ConfigurationError(
            f"hosts.yaml has no power control for {host}", hint=f"add hosts.{host}.power"
        )
    switch = power.connect(machine.power, host)
    if act in {"off", "cycle"}:
        _require_not_anothers(host, machine)
        if not yes:
            click.confirm(f"{act} {host} by {switch.bmc}, whatever it is doing?", abort=True)
    if act != "status":
        getattr(switch, act)()
    click.echo("on" if switch.status() else "off")


@click.command()
@click.argument("host")
@click.option(
    "--log",
    "log_path",
    type=PathOf(dir_okay=False),
    metavar="FILE",
    help="Also append the raw output to FILE.",
)
@hosts_option
def console(host: str, log_path: Path | None, hosts_path: Path | None) -> None:
    """Print the console output of HOST until Ctrl-C."""
    from harness.beds.machine import console

    if log_path is not None and not log_path.absolute().parent.is_dir():
        raise ConfigurationError(f"{log_path.parent} is not a directory: it cannot hold the log")
    machine = config.machine(config.load(config.locate(hosts_path)), host)
    if machine.console is None:
        raise ConfigurationError(
            f"hosts.yaml has no console for {host}",
            hint=f"add hosts.{host}.console",
        )
    with console.start(machine.console, host, log_path or Path(os.devnull)) as shown:
        seen = 0
        while True:
            now = shown.position
            if now > seen:
                click.echo(shown.text(seen, until=now), nl=False)
                seen = now
            else:
                shown.check()
            time.sleep(_POLL_S)


def _require_not_anothers(name: str, host: config.SshHost) -> None:
    try:
        state = lease.asked(name, host)
    except HarnessError:
        return  # a host that needs a power cycle seldom answers
    state.require_not_anothers()
