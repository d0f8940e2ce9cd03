# SPDX-License-Identifier: MIT
"""Reaching a host by OpenSSH; the only place that quotes remote commands.

Host keys are always checked. The user's OpenSSH configuration applies,
except to guests of the harness, which bring their own key and known_hosts.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from harness.base import process
from harness.base.errors import HostLostError, HostRefusedError, InfrastructureError
from harness.beds.access import control, hostkeys
from harness.beds.access.channel import REFUSAL, Asked, RemoteAgent, agent_archive, outcome, parsed
from harness.config import SshHost

AGENT_HOME = ".cache/receive-batching"
"""The user's copies of the agent, relative to the remote home."""
UPLOADS = f"{AGENT_HOME}/uploads"
"""Files for root to install, relative to the remote home."""
AGENT_INSTALLED = "/usr/local/lib/receive-batching"
"""Root's copy of the agent, if an administrator installed one."""
_OWN_STATUS = 255
_ANSWER_LIMIT = 1 << 20
_SAID_LIMIT = 8 << 20
"""Bytes kept from the end of a command's output."""


@dataclass(frozen=True, kw_only=True)
class SshTarget:
    """Where and as whom to log in; OpenSSH's configuration decides what is None."""

    hostname: str
    user: str | None = None
    port: int | None = None
    key: Path | None = None
    known_hosts: Path | None = None
    own_configuration: bool = True
    silence_s: int = 45
    """A host that is silent for this long is lost."""
    shared: bool = False
    """Whether all commands of this process share one connection."""

    @classmethod
    def of(cls, host: SshHost) -> Self:
        """The machine of a host of kind ssh in hosts.yaml."""
        return cls(
            hostname=host.hostname,
            user=host.user,
            port=host.port,
            known_hosts=hostkeys.pinned(host),
            shared=True,
        )

    def argv(self, command: Sequence[str]) -> list[str]:
        """The local command that runs ``command`` remotely, quoted once for the remote shell."""
        options = ["BatchMode=yes", "StrictHostKeyChecking=yes", "RequestTTY=no"]
        options += ["ConnectTimeout=10", "ServerAliveCountMax=3"]
        options += [f"ServerAliveInterval={max(1, self.silence_s // 4)}"]
        # Forward nothing of the user's to a host under test, whatever the configuration says.
        options += ["ForwardAgent=no", "ForwardX11=no", "ClearAllForwardings=yes"]
        options += ["RemoteCommand=none", "UpdateHostKeys=no"]
        options += control.options() if self.shared else ["ControlPath=none"]
        if self.known_hosts:
            path = str(self.known_hosts).replace("%", "%%")
            options += [f'UserKnownHostsFile="{path}"', "GlobalKnownHostsFile=none"]
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
        """Run ``command`` remotely to its end, whatever its status; keeps 8 MiB of output.

        Raises:
            HostLostError: ssh itself failed (status 255) or did not end in time.
            HostRefusedError: the host key is not the pinned one, or the login was refused.
        """
        argv = self.argv(command)
        started = process.start(
            argv,
            hint="apt-get install openssh-client",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            out, err = process.tails(started, stdin, timeout_s=timeout_s, tail_bytes=_SAID_LIMIT)
        except subprocess.TimeoutExpired as error:
            process.end(started)
            self.forget()
            raise HostLostError(f"{self.hostname}: ssh did not end in {timeout_s:.0f} s") from error
        except BaseException:
            process.end(started)
            raise
        if started.returncode == _OWN_STATUS:
            raise self._failed(process.harmless(err.decode(errors="replace")))
        return subprocess.CompletedProcess(argv, started.returncode, out, err)

    def forget(self) -> None:
        """Open nothing new on the shared connection; running commands continue.

        For a host that reboots: its old connection would only time out.
        """
        if not self.shared:
            return
        command = self.argv(["true"])
        at = command.index("--")
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            subprocess.run(
                [*command[:at], "-O", "stop", *command[at : at + 2]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=10,
            )

    def _failed(self, said: str) -> InfrastructureError:
        """The error for an ssh that failed with ``said`` on its stderr."""
        last = "".join(f": {line}" for line in said.strip().splitlines()[-1:])
        message = f"{self.hostname}: ssh failed{last}"
        if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said or "Host key verif" in said:
            return HostRefusedError(
                f"{self.hostname}: its host key is not the pinned one",
                hint="was it reinstalled? Ask its administrator. `harness hosts enroll --replace` "
                "pins the new key, after you have compared the fingerprints",
            )
        hint = f"try: {process.quoted(self.argv(['true']))}"
        if "Permission denied" in said or "Too many authentication failures" in said:
            return HostRefusedError(message, hint=hint)
        return HostLostError(message, hint=hint)

    def send(self, directory: Path, to: str, *, timeout_s: float = 900.0) -> str:
        """Copy the files of ``directory`` into ``to`` in the remote home; returns its full path.

        Raises:
            HostLostError: as :meth:`run`.
            InfrastructureError: they cannot be written.
        """
        script = 'umask 077 && rm -rf "$1" && mkdir -p "$1" && cd "$1" && tar -x && pwd'
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for path in sorted(directory.iterdir()):
                archive.add(path, arcname=path.name, filter=_nobody)
        sent = self.run(
            ["sh", "-c", script, "sh", to], stdin=packed.getvalue(), timeout_s=timeout_s
        )
        if sent.returncode != 0:
            said = process.harmless(sent.stderr.decode(errors="replace")).strip()
            raise InfrastructureError(
                f"{self.hostname}: cannot write files to ~/{to}: {said}", hint="free space there"
            )
        return sent.stdout.decode(errors="replace").removesuffix("\n")

    def start_agent(
        self, *, host: str, log: Path, watch: Callable[[], None] = lambda: None
    ) -> RemoteAgent:
        """Send the agent, if the host does not have this version, and start it as root by sudo.

        Raises:
            HostLostError: it did not start.
            HostRefusedError: sudo does not allow it.
        """
        try:
            return RemoteAgent(self.argv(self._agent(host)), host=host, log=log, watch=watch)
        except HostLostError as error:
            said = error.message.rpartition("\n")[2].lstrip(" |")
            if said.startswith(("sudo:", REFUSAL)):
                raise _not_allowed(host, said) from error
            raise

    def ask(
        self, call: str, arguments: Mapping[str, object], *, host: str, within_s: float = 30.0
    ) -> Any:
        """The answer of an agent that is started for this one ``call``.

        Raises:
            HostLostError: there was no answer. A refusal raises the class the agent names.
        """
        request = json.dumps({"id": 1, "call": call, "args": arguments}).encode() + b"\n"
        done = self.run(self._agent(host), stdin=request, timeout_s=within_s)
        for line in done.stdout[:_ANSWER_LIMIT].splitlines():
            with contextlib.suppress(ValueError):
                answer = parsed(line)
                if isinstance(answer, dict) and answer.get("id") == 1:
                    return outcome(host, answer)
        said = process.harmless(done.stderr.decode(errors="replace")).strip().splitlines()[-5:]
        if said and said[-1].startswith(("sudo:", REFUSAL)):
            raise _not_allowed(host, said[-1])
        raise HostLostError(
            f"{host}: no answer to {call}" + "".join(f"\n  | {line}" for line in said),
            hint=f"try: {process.quoted(self.argv(['sudo', '-n', '-l']))}",
        )

    def send_agent(self, *, host: str) -> str:
        """Send the agent, if it is not there yet; returns its path, relative to the remote home.

        Raises:
            HostLostError: as :meth:`run`.
            InfrastructureError: it cannot be written.
        """
        name, content = agent_archive()
        path = f"{AGENT_HOME}/{name}"
        script = 'umask 077 && mkdir -p "$1" && cat > "$2.part" && mv "$2.part" "$2"'
        if self.run(["test", "-s", path]).returncode != 0:
            sent = self.run(["sh", "-c", script, "sh", AGENT_HOME, path], stdin=content)
            if sent.returncode != 0:
                said = process.harmless(sent.stderr.decode(errors="replace")).strip()
                raise InfrastructureError(
                    f"{host}: cannot write the agent to ~/{AGENT_HOME}: {said}",
                    hint="free space there",
                )
        return path

    def _agent(self, host: str) -> list[str]:
        """The remote command that runs the agent; sends the agent if it is missing."""
        # sudoers allows root's copy; to run the user's own copy needs unrestricted sudo.
        installed = f"{AGENT_INSTALLED}/{agent_archive()[0]}"
        look = (
            'test "$(id -u)" = 0 && ! command -v sudo >&2 && echo root; test -x "$1" && echo here'
        )
        said = self.run(["sh", "-c", look, "sh", installed]).stdout.decode(errors="replace")
        as_root = [] if "root" in said.splitlines() else ["sudo", "-n"]
        if "here" in said.splitlines():
            return [*as_root, installed]
        return [*as_root, "/bin/sh", self.send_agent(host=host)]


def _not_allowed(host: str, said: str) -> HostRefusedError:
    if said.startswith(REFUSAL):
        return HostRefusedError(
            f"{host}: the agent {process.harmless(said[len(REFUSAL) :])}",
            hint=f"install Python 3.9 or later on {host} (for example /usr/bin/python3.9), "
            "with psutil and pyroute2",
        )
    return HostRefusedError(
        f"{host}: the agent was not started: {process.harmless(said)}",
        hint=f"`harness hosts sudoers {host}` prints the rule that an administrator has to add",
    )


def _nobody(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


class AgentBySsh(Asked):
    """The agent on a host, with one ssh command per call."""

    def __init__(self, target: SshTarget, *, host: str) -> None:
        self._target, self._host = target, host

    def call(self, name: str, arguments: Mapping[str, object], within_s: float) -> Any:
        """As :meth:`SshTarget.ask`."""
        return self._target.ask(name, arguments, host=self._host, within_s=within_s)
