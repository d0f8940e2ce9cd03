# SPDX-License-Identifier: MIT
"""``harness restore``: restore a machine, also after a harness that was killed."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import click

from harness import config
from harness.base.errors import InfrastructureError
from harness.beds.access.ssh import SshTarget
from harness.beds.machine import lease
from harness.commands import hosts_option


@click.command()
@click.argument("name", metavar="HOST")
@click.option("--end-others", is_flag=True, help="End an agent that is still running there.")
@click.option("--reboot", is_flag=True, help="Reboot into its own kernel if it runs one of ours.")
@hosts_option
def restore(name: str, end_others: bool, reboot: bool, hosts_path: Path | None) -> None:
    """Restore every setting of HOST from its journal, and cancel a prepared boot.

    HOST keeps running its present kernel unless --reboot is given; any reboot or power
    cycle returns to its own kernel. A host that somebody else holds is not touched.
    """
    host = config.machine(config.load(config.locate(hosts_path)), name)
    lease.asked(name, host).require_not_anothers()
    with tempfile.TemporaryDirectory(prefix="rb-restore-") as scratch:
        agent = SshTarget.of(host).start_agent(host=name, log=Path(scratch) / "agent.log")
        with contextlib.closing(agent):
            done = agent.settings_recover(end_others=end_others)
            was = agent.boot_cancel()["was"]
            state = agent.boot_state()
            if reboot and state["ours"]:
                agent.boot_go(method="known-good")
    restored = ", ".join(done["restored"]) or "nothing was changed"
    click.echo(f"{name}: settings restored: {restored}")
    click.echo(f"{name}: boot cancelled: {was['release'] if was else 'none was prepared'}")
    if state["ours"]:
        how = "reboots" if reboot else f"runs {state['release']}; a reboot returns"
        click.echo(f"{name}: {how} to {state['known_good']}")
    if done["failed"]:
        raise InfrastructureError(
            f"{name}: not restored: "
            + "; ".join(f"{row['setting']}: {row['why']}" for row in done["failed"]),
            hint="a reboot of the host undoes all settings",
        )
    if not state["default_untouched"]:
        raise InfrastructureError(
            f"{name}: its default boot entry has changed: it is {state['default']}, "
            f"was {state['default_recorded']}",
            hint="set it on the host: grub-set-default, or /etc/default/grub and update-grub",
        )
