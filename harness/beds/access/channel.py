# SPDX-License-Identifier: MIT
"""The connection to the agent on a host: calls as JSON lines over its standard streams.

Hides how the agent is packed and named by its content, and how failures are classified:
a call that the agent refuses raises the class that the agent names; an agent that ends
or falls silent raises :class:`HostLostError`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import queue
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from harness.agent import protocol
from harness.agent.protocol import Calls
from harness.base import process, resources
from harness.base.errors import (
    BusyError,
    ConfigurationError,
    HarnessError,
    HostLostError,
    InfrastructureError,
    TrialVoidError,
)

_KINDS: dict[str, type[HarnessError]] = {
    "configuration": ConfigurationError,
    "infrastructure": InfrastructureError,
    "busy": BusyError,
    "void": TrialVoidError,
}
_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")
REFUSAL = "receive-batching-agent: "
"""Starts the line that a host prints on which the agent cannot run; the rest says why."""
# Any shell and any Python 3 can parse these two scripts, which check the Python version first.
# Only root's directories are searched, not PATH: it may be the caller's.
_LAUNCHER = f"""\
#!/bin/sh
# The agent of the receive-batching harness: this script, followed by a zip archive.
found= new_enough='import sys; sys.exit(sys.version_info < (3, 9))'
for python in /usr/bin/python3 /usr/local/bin/python3 /usr/bin/python3.[0-9]* \\
    /usr/local/bin/python3.[0-9]* /opt/python3*/bin/python3 /usr/libexec/platform-python; do
    case "$python" in *-config | *[!0-9n]) continue ;; esac
    [ -x "$python" ] || continue
    if "$python" -I -c "$new_enough" </dev/null 2>/dev/null; then
        exec "$python" -I "$0" "$@"
    fi
    found="$found $python: $("$python" -V 2>&1),"
done
echo "{REFUSAL}needs Python 3.9 or later; this host has ${{found:-no python3 in /usr/bin}}" >&2
exit 69
"""
_MAIN = f"""\
import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "{REFUSAL}needs Python 3.9 or later; %s is %s\\n"
        % (sys.executable, sys.version.split()[0])
    )
    sys.exit(69)
from harness.agent.__main__ import main

sys.exit(main())
"""
_LINE_LIMIT = 32 << 20
_LINES_WAITING = 4
_LOG_LIMIT = 4 << 20
_POLL_S = 0.5


def agent_archive() -> tuple[str, bytes]:
    """The agent as a zip application: its name, which contains a digest, and its content."""
    package = Path(__file__).parents[2] / "agent"
    members = {"harness/__init__.py": b"", "__main__.py": _MAIN.encode()}
    members |= {
        f"harness/agent/{path.relative_to(package)}": path.read_bytes()
        for path in sorted(package.rglob("*.py"))
    }
    members |= {
        f"probes/{path.name}": path.read_bytes()
        for path in sorted(resources.shipped("probes").glob("*.[ch]"))
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), content)
    # The launcher isolates Python (-I): the caller's environment and directory import nothing.
    content = _LAUNCHER.encode() + packed.getvalue()
    return f"receive-batching-agent-{hashlib.sha256(content).hexdigest()[:16]}.pyz", content


def outcome(host: str, answer: Mapping[str, Any]) -> Any:
    """The result in an ``answer`` of the agent on ``host``; a refusal raises the class it names."""
    if refused := answer.get("error"):
        if not isinstance(refused, dict):
            raise HostLostError(f"{host}: not an answer: {str(answer)[:200]!r}")
        kind = _KINDS.get(str(refused.get("kind")), InfrastructureError)
        raise kind(f"{host}: {refused.get('message')}", hint=refused.get("hint"))
    return answer.get("result")


def parsed(line: str | bytes) -> Any:
    """The answer in ``line``, with control sequences removed from every text.

    Raises:
        ValueError: ``line`` is not JSON.
    """
    try:
        return _harmless(json.loads(line))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _harmless(value: Any) -> Any:
    if isinstance(value, str):
        return process.harmless(value)
    if isinstance(value, dict):
        return {process.harmless(name): _harmless(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_harmless(one) for one in value]
    return value


class Pending(Generic[_Result]):
    """A call in progress. Take its result before the next call to the same agent."""

    def __init__(self, arrived: Callable[[], bool], result: Callable[[], _Result]) -> None:
        self.arrived = arrived
        """Whether the answer has come; raises what :meth:`RemoteAgent.call` raises."""
        self.result = result
        """Wait for the answer; raises what :meth:`RemoteAgent.call` raises."""


class Asked(Calls):
    """An agent whose methods all go through :meth:`call`."""

    def call(self, name: str, arguments: Mapping[str, Any], within_s: float) -> Any:
        """The answer to the call ``name``.

        Raises:
            HostLostError: no answer came within ``within_s`` seconds, or the agent ended.
            HarnessError: the agent refused, with the class it named.
        """
        raise NotImplementedError


def _asking(name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(Calls, name))
    def ask(self: Asked, **arguments: Any) -> Any:
        return self.call(name, arguments, protocol.limit_s(name, arguments))

    return ask


for _name in protocol.NAMES:
    setattr(Asked, _name, _asking(_name))


class RemoteAgent(Asked):
    """A running agent. When closed, it stops what it started and restores what it set."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        host: str,
        log: Path,
        watch: Callable[[], None] = lambda: None,
        start_timeout_s: float = 60.0,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start ``command``, with the files ``pass_fds``, and wait for its agent to be ready.

        ``watch`` is called while waiting for answers; it raises if something that the host
        depends on has died. ``log`` receives the command's stderr, up to 4 MiB.
        """
        self.host = host
        self._watch = watch
        self._log = log
        self._lines: queue.Queue[str | None] = queue.Queue(_LINES_WAITING)
        self._number = 0
        self._process = process.start(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            pass_fds=pass_fds,
        )
        log.touch()
        for reader in (self._read, self._keep_log):
            threading.Thread(target=reader, daemon=True).start()
        try:
            self.ready = self._greeting(start_timeout_s)
        except BaseException:
            process.end(self._process)
            raise

    def _greeting(self, within_s: float) -> dict[str, Any]:
        ready = self._answer("start", within_s).get("ready")
        if not isinstance(ready, dict) or not {"release", "boot_id"} <= ready.keys():
            raise HostLostError(f"{self.host}: not the greeting of an agent: {str(ready)[:200]!r}")
        return ready

    @property
    def pid(self) -> int:
        """The agent's process id on its host."""
        return int(self.ready["pid"])

    def call(self, name: str, arguments: Mapping[str, Any], within_s: float) -> Any:
        return self._begin(name, arguments, within_s).result()

    def begin(
        self,
        call: Callable[Concatenate[RemoteAgent, _Args], _Result],
        within_s: float,
        *args: _Args.args,
        **arguments: _Args.kwargs,
    ) -> Pending[_Result]:
        """Start ``call``, a method of this class, without waiting for its answer."""
        assert not args
        return self._begin(call.__name__, arguments, within_s)

    def _begin(self, name: str, arguments: Mapping[str, Any], within_s: float) -> Pending[Any]:
        deadline = time.monotonic() + within_s
        self._number += 1
        request = json.dumps({"id": self._number, "call": name, "args": arguments})
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
        except OSError as error:
            self._watch()
            raise self._lost(f"the agent was gone before {name}") from error

        def arrived() -> bool:
            if self._lines.empty():
                self._watch()
                if time.monotonic() > deadline:
                    raise self._no_answer(name, within_s)
            return not self._lines.empty()

        return Pending(arrived, lambda: self._result(name, deadline - time.monotonic()))

    def _result(self, name: str, within_s: float) -> Any:
        deadline = time.monotonic() + within_s
        answer = self._answer(name, within_s)
        while isinstance(answer.get("id"), int) and answer["id"] < self._number:
            # It answers an interrupted call.
            if time.monotonic() > deadline:
                raise self._no_answer(name, within_s)
            answer = self._answer(name, deadline - time.monotonic())
        if answer.get("id") != self._number:
            raise HostLostError(f"{self.host}: the agent answered out of turn to {name}")
        return outcome(self.host, answer)

    def close(self, *, timeout_s: float = 30.0) -> None:
        """Let the agent restore everything and end; kill it if it does not."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.end(self._process)

    def watched_by(self, watch: Callable[[], None]) -> Self:
        """This agent, with another ``watch``."""
        self._watch = watch
        return self

    def kill(self) -> None:
        """End the connection at once, for a host that is thrown away."""
        process.end(self._process, grace_s=0.5)

    def _read(self) -> None:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline(_LINE_LIMIT):
            self._lines.put(line)
        self._lines.put(None)

    def _keep_log(self) -> None:
        assert self._process.stderr is not None
        left = _LOG_LIMIT
        with self._log.open("a", buffering=1, encoding="utf-8") as log:
            while text := self._process.stderr.readline(65536):
                log.write(text[:left])
                left -= min(left, len(text))

    def _answer(self, name: str, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=_POLL_S)
            except queue.Empty:
                self._watch()
                if time.monotonic() > deadline:
                    raise self._no_answer(name, timeout_s) from None
                continue
            if line is None:
                self._lines.put(None)
                time.sleep(_POLL_S)
                self._watch()
                raise self._lost(f"the agent ended during {name}")
            try:
                answer = parsed(line)
            except ValueError as error:
                raise HostLostError(f"{self.host}: not an answer: {line[:200]!r}") from error
            if isinstance(answer, dict):
                return answer
            if time.monotonic() > deadline:
                raise self._no_answer(name, timeout_s)

    def _no_answer(self, name: str, within_s: float) -> HostLostError:
        return self._lost(f"no answer to {name} for {within_s:.0f} s")

    def _lost(self, what: str) -> HostLostError:
        log = process.harmless(self._log.read_text(errors="replace", encoding="utf-8"))
        said = log.strip().splitlines()[-5:]
        told = "".join(f"\n  | {line}" for line in said)
        return HostLostError(f"{self.host}: {what}{told}")
