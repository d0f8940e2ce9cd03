# SPDX-License-Identifier: MIT
"""What a run needs of a machine, checked from the outside in; each failure has a remedy.

First ssh, then the checks of the agent's own doctor, then power and console. Nothing is
changed, and every check ends in bounded time.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.base.errors import HarnessError
from harness.beds.access import hostkeys
from harness.beds.access.channel import RemoteAgent
from harness.beds.access.ssh import SshTarget
from harness.beds.machine import console, power
from harness.config import SshHost

_WITHIN_S = 90.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check; a run is impossible if a ``needed`` one fails."""

    check: str
    ok: bool
    detail: str
    remedy: str | None = None
    needed: bool = True


def examine(
    name: str, host: SshHost, *, role: Literal["dut", "generator"], irq_cpu: int | None = None
) -> Iterator[Finding]:
    """All checks of ``host`` that the results of earlier ones allow."""
    yield _pinned(name, host)
    ssh = SshTarget.of(host)
    reached = _tried("ssh", lambda: _reached(ssh))
    yield reached
    if reached.ok:
        yield from _from_inside(name, host, ssh, role, irq_cpu)
    if host.power is not None:
        settings = host.power
        yield _tried(
            "power", lambda: f"is {'on' if power.connect(settings, name).status() else 'off'}"
        )
    elif role == "dut":
        yield _without("power", "none in hosts.yaml: a hanging kernel cannot be reset", name)
    if host.console is not None:
        yield _tried("console", lambda: _console(name, host))
    elif role == "dut":
        yield _without("console", "none in hosts.yaml: messages of a dying kernel are lost", name)


def _from_inside(
    name: str, host: SshHost, ssh: SshTarget, role: str, irq_cpu: int | None
) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="rb-doctor-") as scratch:
        agents: list[RemoteAgent] = []
        started = _tried("agent", lambda: _started(ssh, name, Path(scratch) / "log", agents))
        yield started
        for agent in agents:
            with contextlib.closing(agent):
                try:
                    found = agent.doctor(
                        interface=host.interface,
                        role=role,
                        irq_cpu=irq_cpu,
                        now_s=time.time(),
                    )
                except HarnessError as error:
                    yield Finding(check="doctor", ok=False, detail=error.message, remedy=error.hint)
                else:
                    yield from (Finding(**row) for row in found)


def _pinned(name: str, host: SshHost) -> Finding:
    known = hostkeys.known(host)
    where = hostkeys.file_of(host)
    return Finding(
        check="host key",
        ok=bool(known),
        detail=f"pinned in {where}" if known else "not pinned: your OpenSSH configuration decides",
        remedy=None if known else f"harness hosts enroll {name}",
        needed=host.known_hosts is not None,
    )


def _reached(ssh: SshTarget) -> str:
    began_s = time.monotonic()
    done = ssh.run(["uname", "-sr"])
    took_s = time.monotonic() - began_s
    return f"{done.stdout.decode(errors='replace').strip()[:60]}, in {took_s:.1f} s"


def _started(ssh: SshTarget, name: str, log: Path, agents: list[RemoteAgent]) -> str:
    agents.append(ssh.start_agent(host=name, log=log))
    return f"runs as root, python {agents[0].ready['python']}"


def _console(name: str, host: SshHost) -> str:
    assert host.console is not None
    with (
        tempfile.TemporaryDirectory(prefix="rb-doctor-") as scratch,
        console.start(host.console, name, Path(scratch) / "console.log") as had,
    ):
        had.check()
    return "works"


def _tried(check: str, act: Callable[[], str]) -> Finding:
    try:
        return Finding(check=check, ok=True, detail=act())
    except HarnessError as error:
        return Finding(check=check, ok=False, detail=error.message, remedy=error.hint)


def _without(check: str, detail: str, name: str) -> Finding:
    remedy = f"set hosts.{name}.{check} in hosts.yaml"
    return Finding(check=check, ok=False, detail=detail, remedy=remedy, needed=False)
