# SPDX-License-Identifier: MIT
"""Host keys of machines: fetched once through OpenSSH itself, pinned, and never changed silently.

A machine's keys are pinned in the ``known_hosts`` file of its entry in hosts.yaml, or
else in a file of its own under the user's configuration. Where there is such a file,
OpenSSH is told to believe nothing else.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from platformdirs import user_config_path

from harness.base import process
from harness.base.errors import HostLostError, InfrastructureError
from harness.config import SshHost

_HINT = "apt-get install openssh-client"

_FETCH_S = 40.0


def file_of(host: SshHost) -> Path:
    """Where the keys of ``host`` are pinned, whether they are yet or not."""
    if host.known_hosts is not None:
        return host.known_hosts
    name = re.sub(r"[^A-Za-z0-9._-]", "_", host.hostname)
    return user_config_path("receive-batching") / "known_hosts" / f"{name}_{host.port or 22}"


def pinned(host: SshHost) -> Path | None:
    """The file to believe alone; None leaves it to OpenSSH's configuration."""
    path = file_of(host)
    # A link to keys that are gone is no leave to believe others.
    return path if host.known_hosts is not None or os.path.lexists(path) else None


def fetched(host: SshHost, name: str) -> list[str]:
    """The lines of a known_hosts file that ``host`` is known by, as it says now.

    Jump hosts are known, or not, by the user's own configuration. Nobody is logged in.

    Raises:
        HostLostError: it cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="rb-keys-") as scratch:
        learnt = Path(scratch) / "known_hosts"
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": str(learnt),
            "GlobalKnownHostsFile": "none",
            "HashKnownHosts": "no",
            "UpdateHostKeys": "no",
            "PreferredAuthentications": "none",
            "ControlPath": "none",
            "ClearAllForwardings": "yes",
            "RemoteCommand": "none",
            "ConnectTimeout": "15",
        }
        command = [
            "ssh",
            *(word for key, value in options.items() for word in ("-o", f"{key}={value}")),
            *(["-l", host.user] if host.user else []),
            *(["-p", str(host.port)] if host.port else []),
            "--",
            host.hostname,
            "true",
        ]
        done = process.run(command, timeout_s=_FETCH_S, check=False, hint=_HINT)
        lines = (
            learnt.read_text(errors="replace", encoding="utf-8").splitlines()
            if learnt.is_file()
            else []
        )
    lines = [line for line in lines if len(line.split()) >= 3]
    if not lines:
        said = process.harmless(done.stderr).strip().splitlines()[-1:]
        raise HostLostError(
            f"{name}: no host key came from {host.hostname}" + "".join(f": {s}" for s in said),
            hint=f"try: ssh {host.hostname}",
        )
    return lines


def fingerprints(lines: list[str]) -> list[str]:
    """``SHA256:… (ED25519)`` of each line, as ssh-keygen prints it."""
    done = process.run(
        ["ssh-keygen", "-l", "-E", "sha256", "-f", "-"],
        stdin="\n".join(lines) + "\n",
        check=False,
        hint=_HINT,
    )
    found = re.findall(r"^\d+ (SHA256:\S+) .*(\(\S+\))$", done.stdout, re.MULTILINE)
    if len(found) != len(lines):
        raise InfrastructureError(
            f"ssh-keygen does not take the key for one: {process.harmless(done.stderr).strip()}"
        )
    return [f"{fingerprint} {kind}" for fingerprint, kind in found]


def known(host: SshHost) -> list[str]:
    """The lines pinned for ``host`` so far."""
    path = file_of(host)
    if not path.is_file():
        return []
    done = process.run(
        ["ssh-keygen", "-F", _looked_up(host), "-f", str(path)], check=False, hint=_HINT
    )
    return [line for line in done.stdout.splitlines() if line and not line.startswith("#")]


def pin(host: SshHost, lines: list[str]) -> Path:
    """Believe ``lines`` from now on, in place of what was pinned for this host."""
    path = file_of(host)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if known(host):
        process.run(["ssh-keygen", "-R", _looked_up(host), "-f", str(path)], hint=_HINT)
        path.with_name(path.name + ".old").unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            file.write("\n")
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(handle)
    return path


def _looked_up(host: SshHost) -> str:
    """The name OpenSSH looks the host up by, after its configuration (ssh -G)."""
    command = ["ssh", "-G", *(["-p", str(host.port)] if host.port else []), "--", host.hostname]
    text = process.run(command, timeout_s=10, hint="apt-get install openssh-client").stdout
    said = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    if alias := said.get("hostkeyalias"):
        return alias
    name, port = said.get("hostname", host.hostname), said.get("port", "22")
    return name if port == "22" else f"[{name}]:{port}"
