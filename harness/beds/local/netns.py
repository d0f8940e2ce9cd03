# SPDX-License-Identifier: MIT
"""The generator of a local bed: a network namespace on this machine, and its wire.

The namespace lives as long as the agent in it, and the agent as long as the
harness. The namespace has no name, so nothing can be left behind. A veth pair
joins the generator's interface to the end on which the NIC model listens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.base import namespaces, process
from harness.base.errors import InfrastructureError
from harness.beds.access.channel import RemoteAgent
from harness.config.addresses import GENERATOR_MAC

INTERFACE = "gen0"
WIRE = "wire0"


@dataclass(frozen=True, kw_only=True)
class Namespace:
    """The network namespace of a running agent."""

    agent: RemoteAgent
    mac: str

    def command(self, argv: list[str]) -> list[str]:
        """The command that runs ``argv`` inside the namespace and dies with the harness."""
        user = ["--user", "--preserve-credentials"] if namespaces.of_users_first() else []
        return [
            "nsenter", f"--target={self.agent.pid}", "--net", *user, "--",
            "setpriv", "--pdeathsig=KILL", "--", *argv,
        ]  # fmt: skip


def start(*, log: Path, watch: Callable[[], None] = lambda: None) -> Namespace:
    """A new namespace with an agent in it, and both ends of the wire up.

    Raises:
        InfrastructureError: the system does not allow it; the hint says what to allow.
    """
    if why := namespaces.refused():
        raise InfrastructureError(why, hint=namespaces.remedy())
    user = ["--user", "--map-root-user"] if namespaces.of_users_first() else []
    command = ["unshare", *user, "--net", "--kill-child=KILL", "--fork"]
    agent = RemoteAgent(
        [*command, sys.executable, "-m", "harness.agent"], host="generator", log=log, watch=watch
    )
    namespace = Namespace(agent=agent, mac=GENERATOR_MAC)
    try:
        for words in (
            "link set lo up",
            f"link add {INTERFACE} address {namespace.mac} type veth peer name {WIRE}",
            f"link set {WIRE} arp off promisc on up",
            f"link set {INTERFACE} up",
        ):
            process.run(namespace.command(["ip", *words.split()]))
        for interface in (INTERFACE, WIRE):
            no_ipv6 = ["sysctl", "-q", "-w", f"net.ipv6.conf.{interface}.disable_ipv6=1"]
            process.run(namespace.command(no_ipv6), check=False)
    except BaseException:
        agent.kill()
        raise
    return namespace
