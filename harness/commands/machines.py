# SPDX-License-Identifier: MIT
"""``harness hosts sudoers``, ``enroll`` and ``clean``: prepare a machine, and clean it up."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from pathlib import Path

import click

from harness import config
from harness.base.errors import ConfigurationError, HostRefusedError, InfrastructureError
from harness.beds.access import hostkeys
from harness.beds.access.channel import agent_archive
from harness.beds.access.ssh import AGENT_HOME, AGENT_INSTALLED, UPLOADS, SshTarget
from harness.beds.machine import lease
from harness.commands import hosts_option

_SUDOERS = """\
# /etc/sudoers.d/receive-batching on {host}
#
# {user} may start one program as root: the agent of the receive-batching harness, in exactly
# this version, from a directory that only root can write to. As root it changes settings of
# NICs and CPUs, attaches probes, installs kernels that {user} uploads, and boots them:
# whoever may start it controls the machine. It asks for no password and takes no arguments.
{user} ALL=(root) NOPASSWD: {path} ""
"""
_SCRIPT = """\
#!/bin/sh
# Run this as root on {host}. It installs the agent of the receive-batching harness for
# {user}, and the sudoers file. It installs nothing unless the agent has exactly this digest.
set -eu
from=$(getent passwd {user} | cut -d: -f6)/{home}/{name}
install -d -o root -g root -m 0755 {directory}
install -o root -g root -m 0600 "$from" {path}.new
echo '{digest}  {path}.new' | sha256sum --check --strict --quiet || {{ rm -f {path}.new; exit 1; }}
chmod 0755 {path}.new
mv {path}.new {path}
find {directory} -name 'receive-batching-agent-*.pyz' ! -name {name} -delete
umask 077
cat > /etc/sudoers.d/.receive-batching.new <<'END'
{sudoers}END
chmod 0440 /etc/sudoers.d/.receive-batching.new
visudo --check --quiet --file=/etc/sudoers.d/.receive-batching.new
mv /etc/sudoers.d/.receive-batching.new /etc/sudoers.d/receive-batching
echo 'done: {user} may start {path}'
"""


@click.command()
@click.argument("name", metavar="HOST")
@click.option("--script", is_flag=True, help="Print a script for root that installs both on HOST.")
@hosts_option
def sudoers(name: str, script: bool, hosts_path: Path | None) -> None:
    """Print the sudoers file that an administrator of HOST has to install.

    \b
    harness hosts sudoers rx --script > install-agent
    scp install-agent rx:; ssh -t rx sudo sh install-agent

    The agent must be in a directory that its user cannot write to. So root installs it
    once for each version of the harness. --script sends the agent to the user's home and
    prints a script that checks its digest and installs it with the sudoers file. A user
    with unlimited sudo rights needs none of this.
    """
    host = config.machine(config.load(config.locate(hosts_path)), name)
    agent, content = agent_archive()
    user = host.user
    if script or user is None:
        target = SshTarget.of(host)
        user = user or target.run(["id", "-un"]).stdout.decode(errors="replace").strip()
        if script:
            target.send_agent(host=name)
    path = f"{AGENT_INSTALLED}/{agent}"
    text = _SUDOERS.format(host=name, user=_named(user), path=path)
    if script:
        text = _SCRIPT.format(
            host=name,
            user=user,
            home=AGENT_HOME,
            name=agent,
            directory=AGENT_INSTALLED,
            path=path,
            digest=hashlib.sha256(content).hexdigest(),
            sudoers=text,
        )
    click.echo(text, nl=False)


@click.command()
@click.argument("name", metavar="HOST")
@click.option("--fingerprint", help="Pin only a key with this fingerprint: SHA256:…")
@click.option("--yes", is_flag=True, help="Pin the present key without asking.")
@click.option("--replace", is_flag=True, help="Replace a different key that was pinned before.")
@hosts_option
def enroll(
    name: str, fingerprint: str | None, yes: bool, replace: bool, hosts_path: Path | None
) -> None:
    """Fetch the host key of HOST, show its fingerprint, and pin it after you confirm.

    From then on the harness accepts only that key from HOST; any other key is an error.
    """
    host = config.machine(config.load(config.locate(hosts_path)), name)
    lines = hostkeys.fetched(host, name)
    prints = hostkeys.fingerprints(lines)
    known = hostkeys.fingerprints(hostkeys.known(host)) if hostkeys.known(host) else []
    for text in prints:
        click.echo(f"{name} ({host.hostname}): {text}")
    if known and set(prints) <= set(known):
        click.echo(f"already pinned: {hostkeys.file_of(host)}")
        return
    if known and not replace:
        raise HostRefusedError(
            f"{name}: a different key was pinned: {', '.join(known)}",
            hint="only if the machine was reinstalled: harness hosts enroll "
            f"{name} --replace; otherwise somebody may intercept the connection",
        )
    if fingerprint is not None:
        if fingerprint not in {text.split()[0] for text in prints}:
            raise HostRefusedError(
                f"{name}: none of its keys has the fingerprint {fingerprint}",
                hint="compare with ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub on its console",
            )
    elif not yes:
        click.confirm(
            "Does `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on its console agree?",
            abort=True,
        )
    click.echo(f"pinned: {hostkeys.pin(host, lines)}")


@click.command()
@click.argument("name", metavar="HOST")
@hosts_option
def clean(name: str, hosts_path: Path | None) -> None:
    """Remove everything the harness put on HOST: kernels, boot entries, uploads, agents.

    Files that an administrator installed with `harness hosts sudoers` stay and are listed.
    A host that somebody else holds is not touched.
    """
    host = config.machine(config.load(config.locate(hosts_path)), name)
    lease.asked(name, host).require_not_anothers()
    ssh = SshTarget.of(host)
    with tempfile.TemporaryDirectory(prefix="rb-clean-") as scratch:
        agent = ssh.start_agent(host=name, log=Path(scratch) / "agent.log")
        with contextlib.closing(agent):
            agent.boot_cancel()
            gone = agent.kernel_remove()["removed"]
    # Only files of ours: the directory may be the cache of a harness that runs there.
    script = (
        'rm -rf -- "$2" "$1"/receive-batching-agent-*.pyz "$1"/*.part; '
        'rmdir -- "$1" "${1%/*}" 2>/dev/null; '
        'ls -d -- "$3"/* /etc/sudoers.d/receive-batching 2>/dev/null; true'
    )
    done = ssh.run(["sh", "-c", script, "sh", AGENT_HOME, UPLOADS, AGENT_INSTALLED])
    if done.returncode != 0:
        raise InfrastructureError(
            f"{name}: ~/{AGENT_HOME}: {done.stderr.decode(errors='replace').strip()}"
        )
    click.echo(f"{name}: removed: {', '.join(gone) or 'no kernels'}, uploads, agents")
    for left in done.stdout.decode(errors="replace").splitlines():
        click.echo(f"{name}: kept, installed by root: {left[:200]}")


def _named(user: str) -> str:
    """``user``, if sudoers accepts it without quotes."""
    if not user.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ConfigurationError(f"{user!r:.60} is not a user name that sudoers accepts")
    return user
