# SPDX-License-Identifier: MIT
"""``harness hosts sudoers``, ``enroll`` and ``clean``: a machine's way in, and out again."""

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
# {user} may start one program as root: the agent of the receive-batching harness, of just
# this version, from a directory only root can write to. As root it changes settings of
# NICs and CPUs, attaches probes, installs kernels that {user} uploads, and boots them:
# who may start it rules the machine. It asks for no password and takes no arguments.
{user} ALL=(root) NOPASSWD: {path} ""
"""
_SCRIPT = """\
#!/bin/sh
# To be run by root on {host}: installs the agent of the receive-batching harness for
# {user}, and what sudo has to allow. Nothing is installed unless it is the agent
# with just this digest.
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
@click.option(
    "--script", is_flag=True, help="A script for root there that installs agent and sudoers file."
)
@hosts_option
def sudoers(name: str, script: bool, hosts_path: Path | None) -> None:
    """Print what an administrator of HOST has to allow: a file for /etc/sudoers.d.

    \b
    harness hosts sudoers rx --script > install-agent
    scp install-agent rx:; ssh -t rx sudo sh install-agent

    The agent has to lie where its user cannot write, so it is installed by root, once
    for each version of the harness; --script does that after comparing its digest. The
    agent is sent to the user's home first. A user with sudo rights for everything needs
    none of this.
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
@click.option("--yes", is_flag=True, help="Pin what is there now, unseen.")
@click.option("--replace", is_flag=True, help="Also in place of another key pinned before.")
@hosts_option
def enroll(
    name: str, fingerprint: str | None, yes: bool, replace: bool, hosts_path: Path | None
) -> None:
    """Fetch the host key of HOST, show its fingerprint, and pin it once you agree.

    From then on the harness reaches HOST only by that key; another one is an error.
    """
    host = config.machine(config.load(config.locate(hosts_path)), name)
    lines = hostkeys.fetched(host, name)
    prints = hostkeys.fingerprints(lines)
    known = hostkeys.fingerprints(hostkeys.known(host)) if hostkeys.known(host) else []
    for text in prints:
        click.echo(f"{name} ({host.hostname}): {text}")
    if known and set(prints) <= set(known):
        click.echo(f"pinned before, and the same: {hostkeys.file_of(host)}")
        return
    if known and not replace:
        raise HostRefusedError(
            f"{name}: another key was pinned: {', '.join(known)}",
            hint="if the machine was installed anew, and only then: harness hosts enroll "
            f"{name} --replace; else somebody may be between you and it",
        )
    if fingerprint is not None:
        if fingerprint not in {text.split()[0] for text in prints}:
            raise HostRefusedError(
                f"{name}: no key of it has the fingerprint {fingerprint}",
                hint="compare with ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub on its console",
            )
    elif not yes:
        click.confirm(
            "Is that what `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` says on its console?",
            abort=True,
        )
    click.echo(f"pinned: {hostkeys.pin(host, lines)}")


@click.command()
@click.argument("name", metavar="HOST")
@hosts_option
def clean(name: str, hosts_path: Path | None) -> None:
    """Remove from HOST all that the harness put there: kernels, boot entries, uploads, agents.

    What an administrator installed by `harness hosts sudoers` stays, and is named. A host
    that somebody else has is left alone.
    """
    host = config.machine(config.load(config.locate(hosts_path)), name)
    lease.asked(name, host).require_not_anothers()
    ssh = SshTarget.of(host)
    with tempfile.TemporaryDirectory(prefix="rb-clean-") as scratch:
        agent = ssh.start_agent(host=name, log=Path(scratch) / "agent.log")
        with contextlib.closing(agent):
            agent.boot_cancel()
            gone = agent.kernel_remove()["removed"]
    # Only what is ours: the directory may be the cache of a harness that runs there.
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
        click.echo(f"{name}: stays, root put it there: {left[:200]}")


def _named(user: str) -> str:
    """``user``, as sudoers takes it without quotes."""
    if not user.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ConfigurationError(f"{user!r:.60} is no user name that sudoers takes")
    return user
