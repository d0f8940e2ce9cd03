# SPDX-License-Identifier: MIT
"""``harness hosts lease`` and ``release``: show who holds a machine, and release it by hand."""

from __future__ import annotations

from pathlib import Path

import click

from harness import config
from harness.agent.protocol import Calls
from harness.beds.machine.lease import State, agent_of
from harness.commands import hosts_option


@click.command()
@click.argument("host")
@hosts_option
def lease(host: str, hosts_path: Path | None) -> None:
    """Show who holds the lease of HOST, and for how long."""
    click.echo(State.of(host, _agent(host, hosts_path).lease_state()))


@click.command()
@click.argument("host")
@click.option("--break", "by_force", is_flag=True, help="Even if somebody else holds it.")
@hosts_option
def release(host: str, by_force: bool, hosts_path: Path | None) -> None:
    """End your own lease of HOST. A campaign that uses it stops."""
    agent = _agent(host, hosts_path)
    was = State.of(host, agent.lease_break() if by_force else agent.lease_state())
    if not by_force:
        was.require_not_anothers()
    if not by_force and was.holder:
        agent.lease_free(holder=was.holder)
    click.echo(f"{host}: free" + (f"; was held by {was.owner}" if was.owner else ""))


def _agent(name: str, hosts_path: Path | None) -> Calls:
    return agent_of(name, config.machine(config.load(config.locate(hosts_path)), name))
