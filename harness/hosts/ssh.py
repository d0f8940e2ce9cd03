# SPDX-License-Identifier: MIT
"""Reaching a host by OpenSSH: the one place where a remote command is quoted.

Host keys are always checked. The user's own OpenSSH configuration applies
except on guests of the harness, which bring their own key and known_hosts.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from harness import process
from harness.config import SshHost
from harness.errors import HostLostError, InfrastructureError
from harness.hosts.channel import Agent, agent_archive, outcome

_AGENT_HOME = ".cache/receive-batching"
_OWN_STATUS = 255
_ANSWER_LIMIT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SshTarget:
    """Where and as whom to log in; what is None is left to OpenSSH's configuration."""

    hostname: str
    user: str | None = None
    port: int | None = None
    key: Path | None = None
    known_hosts: Path | None = None
    own_configuration: bool = True
    silence_s: int = 45
    """A host that answers nothing for so long is lost."""

    @classmethod
    def of(cls, host: SshHost) -> Self:
        """The machine that hosts.yaml calls a host of kind ssh."""
        return cls(
            hostname=host.hostname, user=host.user, port=host.port, known_hosts=host.known_hosts
        )

    def argv(self, command: Sequence[str]) -> list[str]:
        """The local command that runs ``command`` there, quoted once for its shell."""
        options = ["BatchMode=yes", "StrictHostKeyChecking=yes", "RequestTTY=no"]
        options += ["ConnectTimeout=10", "ServerAliveCountMax=3"]
        options += [f"ServerAliveInterval={max(1, self.silence_s // 3)}"]
        if self.known_hosts:
            options += [f"UserKnownHostsFile={self.known_hosts}", "GlobalKnownHostsFile=none"]
        if self.key:
            options += [f"IdentityFile={self.key}", "IdentitiesOnly=yes"]
        return [
            "ssh",
            *([] if self.own_configuration else ["-F", "none"]),
            *(word for option in options for word in ("-o", option)),
            *(["-l", self.user] if self.user else []),
            *(["-p", str(self.port)] if self.port else []),
            "--",
            self.hostname,
            process.quoted(command),
        ]

    def run(
        self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 30.0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ``command`` there to its end, whatever status it ends with.

        Raises:
            HostLostError: ssh itself failed (its status 255) or did not end in time.
        """
        try:
            done = subprocess.run(
                self.argv(command),
                input=stdin,
                capture_output=True,
                timeout=timeout_s,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise HostLostError(f"{self.hostname}: ssh did not end in {timeout_s:.0f} s") from error
        except FileNotFoundError as error:
            raise InfrastructureError(
                "ssh is not installed", hint="apt-get install openssh-client"
            ) from error
        if done.returncode == _OWN_STATUS:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise HostLostError(
                f"{self.hostname}: ssh failed" + (f": {said[-1]}" if said else ""),
                hint=f"try: {process.quoted(self.argv(['true']))}",
            )
        return done

    def start_agent(
        self, *, host: str, log: Path, watch: Callable[[], None] = lambda: None
    ) -> Agent:
        """Send the agent, if the host has not got this one yet, and start it as root by sudo."""
        command = _agent_command()
        if self.run(["test", "-s", command[-1]]).returncode != 0:
            self._send_agent(host)
        return Agent(self.argv(command), host=host, log=log, watch=watch)

    def ask(
        self, call: str, arguments: Mapping[str, object], *, host: str, within_s: float = 30.0
    ) -> Any:
        """The answer of an agent started for this one ``call``.

        Raises:
            HostLostError: there was none; an agent's refusal is of the class it names.
        """
        request = json.dumps({"id": 1, "call": call, "args": arguments}).encode() + b"\n"
        # It is there nearly always, and a login to look costs more than a start that fails.
        command = _agent_command()
        done = self.run(command, stdin=request, timeout_s=within_s)
        if not done.stdout and self.run(["test", "-s", command[-1]]).returncode != 0:
            self._send_agent(host)
            done = self.run(command, stdin=request, timeout_s=within_s)
        for line in done.stdout[:_ANSWER_LIMIT].splitlines():
            with contextlib.suppress(ValueError):
                answer = json.loads(line)
                if isinstance(answer, dict) and answer.get("id") == 1:
                    return outcome(host, answer)
        said = done.stderr.decode(errors="replace").strip().splitlines()[-5:]
        raise HostLostError(
            f"{host}: no answer to {call}" + "".join(f"\n  | {line}" for line in said),
            hint=f"try: {process.quoted(self.argv(['sudo', '-n', '-l']))}",
        )

    def _send_agent(self, host: str) -> None:
        name, content = agent_archive()
        path = f"{_AGENT_HOME}/{name}"
        script = 'umask 077 && mkdir -p "$1" && cat > "$2.part" && mv "$2.part" "$2"'
        sent = self.run(["sh", "-c", script, "sh", _AGENT_HOME, path], stdin=content)
        if sent.returncode != 0:
            raise InfrastructureError(
                f"{host}: cannot keep the agent in ~/{_AGENT_HOME}: {sent.stderr.decode()}"
            )


def _agent_command() -> list[str]:
    """What runs the agent as root, on a host that has got it; its file comes last."""
    return ["sudo", "-n", "/usr/bin/python3", f"{_AGENT_HOME}/{agent_archive()[0]}"]
