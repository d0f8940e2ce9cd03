# SPDX-License-Identifier: MIT
"""Host keys of machines: fetched once by OpenSSH, pinned, and never changed silently.

A machine's keys are pinned in the ``known_hosts`` file that hosts.yaml names for it, else
in a file of its own in the user's configuration directory. If such a file exists,
OpenSSH uses only that file.
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
    """The file for the pinned keys of ``host``, which may not exist yet."""
    if host.known_hosts is not None:
        return host.known_hosts
    name = re.sub(r"[^A-Za-z0-9._-]", "_", host.hostname)
    return user_config_path("receive-batching") / "known_hosts" / f"{name}_{host.port or 22}"


def pinned(host: SshHost) -> Path | None:
    """The only known_hosts file to use; None leaves it to OpenSSH's configuration."""
    path = file_of(host)
    # lexists: a dangling link must not make OpenSSH use other keys.
    return path if host.known_hosts is not None or os.path.lexists(path) else None


def fetched(host: SshHost, name: str) -> list[str]:
    """The host keys that ``host`` presents now, as lines of a known_hosts file.

    Does not log in. Keys of jump hosts are checked by the user's own configuration.

    Raises:
        HostLostError: the host cannot be reached.
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
            f"{name}: {host.hostname} sent no host key" + "".join(f": {s}" for s in said),
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
            f"ssh-keygen cannot read the host key: {process.harmless(done.stderr).strip()}"
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
    """Pin ``lines`` for this host, and remove what was pinned before."""
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
    """The name that OpenSSH looks up in known_hosts, after its configuration (ssh -G)."""
    command = ["ssh", "-G", *(["-p", str(host.port)] if host.port else []), "--", host.hostname]
    text = process.run(command, timeout_s=10, hint=_HINT).stdout
    said = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    if alias := said.get("hostkeyalias"):
        return alias
    name, port = said.get("hostname", host.hostname), said.get("port", "22")
    return name if port == "22" else f"[{name}]:{port}"
