# SPDX-License-Identifier: MIT
"""``labgrid-client`` for one place, and what makes sure that the place is released.

Its command line is what labgrid keeps stable, and in processes of its own its event
loop and gRPC threads stay out of this one.

labgrid's lock has no end, so a guard, which outlives a killed harness, releases what a
harness acquired.
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
"""What in the environment of a labgrid user would have ``labgrid-client`` do something else."""
# Reads until the harness is gone or says that there is nothing to do, and then tries for
# ten minutes, because a coordinator may be on its way up.
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
        # As labgrid itself tells who holds a place.
        host = os.environ.get("LG_HOSTNAME", socket.gethostname())
        self.me = f"{host}/{os.environ.get('LG_USERNAME') or getpass.getuser()}"

    def command(self, *words: str) -> list[str]:
        return [*client_command(), *self.options, *words]

    def run(self, *words: str) -> str:
        """What it prints.

        Raises:
            ConfigurationError: there is no such place.
            InfrastructureError: it failed; the message is what it said last.
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
        """Who has the place, as HOST/USER."""
        shown = self.run("show")
        name = re.search(r"^Place '(.*)':$", shown, re.MULTILINE)
        holder = re.search(r"^  acquired: (.*)\n  acquired resources:", shown, re.MULTILINE)
        if not name or not holder:
            raise InfrastructureError(f"labgrid-client shows no place: {shown[:200]!r}")
        if name[1] != self.place:  # labgrid goes by parts of names and by aliases
            raise self._no_such_place()
        return holder[1] if "/" in holder[1] else None

    def resources(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Name, class and parameters of each, with the names that the place gives them."""
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
    """What this user's harnesses on this machine acquired of a place, and who will release it.

    The file is locked by the harness that uses the place, or by its guard, and says whether
    a harness acquired it: only then is it a harness's to release.
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
                    hint="wait for its end; one that was killed has its place released soon",
                )
            time.sleep(0.2)

    def left_by_a_killed_harness(self) -> bool:
        self._file.seek(0)
        return bool(self._file.read())

    def acquire(self) -> str:
        """Acquire the place if it can be had; says who has it.

        Raises:
            InfrastructureError: it is free and cannot be had.
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
        """Have a process release the place when this one is gone."""
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
        """Release what a harness acquired. Where that fails the guard goes on trying."""
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
    """``labgrid-client`` of this Python.

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
