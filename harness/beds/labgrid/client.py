# SPDX-License-Identifier: MIT
"""``labgrid-client`` for one place, and a guard that releases the place.

labgrid keeps the client's command line stable. A process of its own keeps its event
loop and its gRPC threads out of this one.

labgrid's lock does not expire. So a guard process, which outlives a killed harness,
releases what a harness acquired.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from io import StringIO, TextIOWrapper
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from harness.base import cache, process
from harness.base.errors import ConfigurationError, HarnessError, InfrastructureError
from harness.config import Labgrid

_CALL_S = 30.0
_OWN_HARNESS_S = 15.0
_NOT_OURS = ("LG_ENV", "LG_PLACE", "LG_STATE", "LG_INITIAL_STATE", "LG_TOKEN", "PLACE", "STATE")
"""Variables in a labgrid user's environment that would redirect ``labgrid-client``."""
# Reads until the harness is gone or says "released"; in the first case it tries for ten
# minutes, because the coordinator may be starting.
_GUARD = """
read -r word && [ "$word" = released ] && exit 0
for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    said=$("$@" 2>&1) && exit 0
    case "$said" in *"is not acquired"*) exit 0 ;; esac
    sleep 30
done
"""


class Client:
    """``labgrid-client`` for one place."""

    def __init__(self, where: Labgrid) -> None:
        self.place = where.place
        self.options = ["--place", where.place]
        if where.coordinator:
            self.options += ["--coordinator", where.coordinator]
        self.coordinator = where.coordinator or os.environ.get("LG_COORDINATOR", "this machine")
        # labgrid names the holder of a place in this form.
        host = os.environ.get("LG_HOSTNAME", socket.gethostname())
        self.me = f"{host}/{os.environ.get('LG_USERNAME') or getpass.getuser()}"

    def command(self, *words: str) -> list[str]:
        return [*client_command(), *self.options, *words]

    def run(self, *words: str) -> str:
        """The client's output.

        Raises:
            ConfigurationError: there is no such place.
            InfrastructureError: it failed; the message is the last line it printed.
        """
        done = process.run(self.command(*words), env=environment(), timeout_s=_CALL_S, check=False)
        if done.returncode == 0:
            return done.stdout
        said = done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}"
        if "matches nothing" in said or "matches multiple places" in said:
            raise self._no_such_place()
        last = said.splitlines()[-1].partition("rror: ")
        raise InfrastructureError(
            f"labgrid place {self.place} at {self.coordinator}: {last[2] or last[0]}",
            hint=f"try: {process.quoted(['labgrid-client', *self.options, *words])}",
        )

    def acquired_by(self) -> str | None:
        """The holder of the place, as HOST/USER."""
        shown = self.run("show")
        name = re.search(r"^Place '(.*)':$", shown, re.MULTILINE)
        holder = re.search(r"^  acquired: (.*)\n  acquired resources:", shown, re.MULTILINE)
        if not name or not holder:
            raise InfrastructureError(f"labgrid-client shows no place: {shown[:200]!r}")
        if name[1] != self.place:  # labgrid also matches parts of names and aliases
            raise self._no_such_place()
        return holder[1] if "/" in holder[1] else None

    def resources(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Name (as the place calls it), class and parameters of each resource."""
        try:
            told = YAML(typ="safe", pure=True).load(StringIO(self.run("env")))
            entries = told["targets"][self.place]["resources"]
            return [
                (str((parameters or {}).get("name", kind)), str(kind), dict(parameters or {}))
                for entry in entries
                for kind, parameters in entry.items()
            ]
        except (YAMLError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise InfrastructureError(
                f"labgrid place {self.place}: its resources cannot be read: {error}"
            ) from error

    def _no_such_place(self) -> ConfigurationError:
        known = [line.split()[0] for line in self.run("places").splitlines() if line.strip()]
        return ConfigurationError(
            f"labgrid at {self.coordinator} has no place {self.place}",
            hint=f"its places: {', '.join(sorted(known)) or 'none'}",
        )


class Ours:
    """Whether a harness of this user on this machine acquired the place, and must release it.

    A file records it. The harness that uses the place, or its guard, holds the file's lock.
    A place that was acquired by hand is not released.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._guard: subprocess.Popen[str] | None = None
        where = cache.root() / "labgrid" / cache.digest(client.coordinator, client.place)
        where.parent.mkdir(parents=True, exist_ok=True)
        self._file = where.open("a+", encoding="utf-8")
        end_s = time.monotonic() + _OWN_HARNESS_S
        while not _locked(self._file):
            if time.monotonic() > end_s:
                self._file.close()
                raise InfrastructureError(
                    f"labgrid place {client.place} is used by another harness of yours",
                    hint="wait for it to end; if it was killed, its guard releases the place soon",
                )
            time.sleep(0.2)

    def left_by_a_killed_harness(self) -> bool:
        self._file.seek(0)
        return bool(self._file.read())

    def acquire(self) -> str:
        """Try to acquire the place; returns its holder.

        Raises:
            InfrastructureError: it is free and cannot be acquired.
        """
        self.guard()
        try:
            self._client.run("acquire")
        except InfrastructureError:
            by = self._client.acquired_by()
            if by != self._client.me:
                self._released()
            if by is None:
                raise
            return by
        return self._client.me

    def guard(self) -> None:
        """Start a process that releases the place when this one is gone."""
        if self._guard is not None:
            return
        self._file.write("acquired")
        self._file.flush()
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, "sh", *self._client.command("release-from", self._client.me)],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            pass_fds=[self._file.fileno()],
            start_new_session=True,
        )

    def release(self) -> None:
        """Release what a harness acquired. If that fails, the guard keeps trying."""
        if self._guard is not None:
            with contextlib.suppress(HarnessError):
                if self._client.acquired_by() == self._client.me:
                    self._client.run("release-from", self._client.me)
                self._released()
        if self._guard is not None and self._guard.stdin:
            self._guard.stdin.close()
        self._file.close()

    def _released(self) -> None:
        self._file.truncate(0)
        if self._guard is not None and self._guard.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write("released\n")
                self._guard.stdin.close()
            self._guard.wait()
            self._guard = None


def client_command() -> list[str]:
    """The command ``labgrid-client`` of this Python.

    Raises:
        ConfigurationError: labgrid is not installed.
    """
    if importlib.util.find_spec("labgrid") is None:
        raise ConfigurationError(
            "a bed of a labgrid place needs labgrid",
            hint="pip install 'receive-batching-harness[labgrid]'",
        )
    return [sys.executable, "-m", "labgrid.remote.client"]


def environment() -> Mapping[str, str]:
    """The environment for ``labgrid-client``."""
    return {name: value for name, value in process.environment().items() if name not in _NOT_OURS}


def _locked(file: TextIOWrapper) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
