# SPDX-License-Identifier: MIT
"""What a run needs of a machine, checked from the outside in; each lack with its remedy.

From reaching it by ssh to what the agent's own doctor sees, then its power and its
console. Nothing is changed, and a check that hangs ends.
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
    """One check; without what is ``needed`` there is no run."""

    check: str
    ok: bool
    detail: str
    remedy: str | None = None
    needed: bool = True


def examine(
    name: str, host: SshHost, *, role: Literal["dut", "generator"], irq_cpu: int | None = None
) -> Iterator[Finding]:
    """Every check of ``host``, as far as the ones before allow."""
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
        yield _without("power", "none in hosts.yaml: a kernel that hangs stays so", name)
    if host.console is not None:
        yield _tried("console", lambda: _console(name, host))
    elif role == "dut":
        yield _without("console", "none in hosts.yaml: a kernel that dies says nothing", name)


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
        detail=f"pinned in {where}" if known else "not pinned: left to your OpenSSH configuration",
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
    return "can be had"


def _tried(check: str, act: Callable[[], str]) -> Finding:
    try:
        return Finding(check=check, ok=True, detail=act())
    except HarnessError as error:
        return Finding(check=check, ok=False, detail=error.message, remedy=error.hint)


def _without(check: str, detail: str, name: str) -> Finding:
    remedy = f"say hosts.{name}.{check} in hosts.yaml"
    return Finding(check=check, ok=False, detail=detail, remedy=remedy, needed=False)
