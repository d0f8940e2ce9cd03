# SPDX-License-Identifier: MIT
"""``harness hosts``: the hosts file as it is understood, and its machines by hand."""

from __future__ import annotations

import json
from pathlib import Path

import click

from harness import config
from harness.commands import hosts_option
from harness.errors import ConfigurationError


@click.group()
def hosts() -> None:
    """Show hosts.yaml as it is understood; switch and watch its machines."""


@hosts.command()
def schema() -> None:
    """Print the JSON Schema of a hosts file."""
    click.echo(json.dumps(config.json_schema(), indent=2))


@hosts.command()
@click.argument("bed", required=False)
@hosts_option
def show(bed: str | None, hosts_path: Path | None) -> None:
    """Check the hosts file; print BED (the default one) as JSON, all defaults filled in."""
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


@hosts.command()
@click.argument("host")
@click.argument("act", type=click.Choice(["status", "on", "off", "cycle"]))
@click.option("--yes", is_flag=True, help="Switch off or cycle without asking.")
@hosts_option
def power(host: str, act: str, yes: bool, hosts_path: Path | None) -> None:
    """Ask for or switch the power of HOST."""
    from harness.hosts import power

    machine = _machine(hosts_path, host)
    if machine.power is None:
        raise ConfigurationError(
            f"hosts.yaml says nothing of the power of {host}", hint=f"give hosts.{host}.power"
        )
    switch = power.connect(machine.power, host)
    if act in {"off", "cycle"} and not yes:
        click.confirm(f"{act} {host} by {switch.bmc}, whatever it is doing?", abort=True)
    if act != "status":
        getattr(switch, act)()
    click.echo("on" if switch.status() else "off")


@hosts.command()
@click.argument("host")
@click.option(
    "--log",
    "log_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also append it to FILE, byte for byte.",
)
@hosts_option
def console(host: str, log_path: Path | None, hosts_path: Path | None) -> None:
    """Print what HOST says on its console, until Ctrl-C."""
    import os
    import time

    from harness.hosts import console

    machine = _machine(hosts_path, host)
    if machine.console is None:
        raise ConfigurationError(
            f"hosts.yaml says nothing of the console of {host}", hint=f"give hosts.{host}.console"
        )
    with console.start(machine.console, host, log_path or Path(os.devnull)) as shown:
        seen = 0
        while True:
            position = shown.position
            if position > seen:
                click.echo(shown.text(seen, until=position), nl=False)
                seen = position
            else:
                shown.check()
            time.sleep(0.2)


def _machine(hosts_path: Path | None, name: str) -> config.SshHost:
    loaded = config.load(config.locate(hosts_path))
    machine = loaded.hosts.get(name)
    if not isinstance(machine, config.SshHost):
        known = [key for key, host in loaded.hosts.items() if isinstance(host, config.SshHost)]
        raise ConfigurationError(
            f"no host of kind ssh is called {config.shortened(name)}",
            hint=f"there are: {', '.join(known)}" if known else "hosts.yaml has none",
        )
    return machine
