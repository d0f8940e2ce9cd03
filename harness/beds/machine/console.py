# SPDX-License-Identifier: MIT
"""A machine's console, recorded while it runs, boots and dies.

Hides its source: IPMI serial over LAN, a command of the user's, or netconsole.
The bytes are not trusted and may never end: the log has a maximum size, memory
holds only the end of it, and :meth:`Console.text` has no terminal control
sequences in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import select
import socket
import subprocess
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from harness import config
from harness.base import process
from harness.base.errors import InfrastructureError
from harness.beds.machine import power

LOG_BYTES = 64 << 20
TEXT_BYTES = 1 << 20
_CHUNK = 1 << 16
_BACK_OFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_POLL_MS = 200
_LIVES_S = 1.0
_SILENT_S = 4.0
_FAREWELL_S = 1.0
_SOL_WITHIN_S = 30.0
_HINT_TAKEN = "someone else holds this console: end their session"
_SOL_IS_UP = b"SOL Session operational"


def start(
    console: config.Console,
    host: str,
    log: Path,
    *,
    sender: str | None = None,
    log_bytes: int = LOG_BYTES,
) -> Console:
    """Start to append the console of ``host`` to ``log``.

    ``sender`` is the only address whose netconsole packets are accepted; without
    it, all packets to the port are. UDP does not prove its sender, so the port
    should be on a private network of the lab.

    Raises:
        ConfigurationError: the password is not where hosts.yaml says.
        InfrastructureError: the program is not installed, or the port is in use.
    """
    kept = _Log(log, log_bytes)
    try:
        if isinstance(console, config.SolConsole):
            return _Sol(console.sol, host, kept)
        if isinstance(console, config.CommandConsole):
            return _Program(list(console.command), host, kept)
        return _Netconsole(console.netconsole, host, kept, sender)
    except BaseException:
        kept.close()
        raise


class _Log:
    """The log file, limited in size, and the end of the output in memory."""

    def __init__(self, path: Path, limit: int) -> None:
        # Not buffered: the last output must be on disk when the harness is killed.
        self._file = path.open("ab", buffering=0)
        self._room = limit - self._file.tell()
        self._limit = limit
        self._tail = bytearray()
        self._lock = threading.Lock()
        self.seen = 0
        """Bytes received so far, logged or not."""
        self.last_s = time.monotonic()
        """When the last byte came, or the log was opened."""

    def add(self, chunk: bytes, *, said: bool = True) -> None:
        with self._lock:
            if said:
                self.last_s = time.monotonic()
            self.seen += len(chunk)
            self._tail += chunk
            if len(self._tail) > 2 * TEXT_BYTES:
                del self._tail[:-TEXT_BYTES]
            self._write(chunk)

    def note(self, text: str) -> None:
        """A line of the harness's own."""
        self.add(f"\n-- harness: {process.harmless(text)}\n".encode(), said=False)

    def tail(self, since: int, until: int | None) -> bytes:
        with self._lock:
            until = self.seen if until is None else min(until, self.seen)
            forgotten = self.seen - len(self._tail)
            begin = max(since, until - TEXT_BYTES, forgotten)
            return bytes(self._tail[begin - forgotten : max(begin, until) - forgotten])

    def close(self) -> None:
        with self._lock:
            self._room = 0
            self._file.close()

    def _write(self, chunk: bytes) -> None:
        if self._room <= 0:
            return
        end = b""
        if len(chunk) >= self._room:
            end = f"\n-- harness: {self._limit} bytes; the rest is not kept\n".encode()
        # A full disk must not end the run; the end of the output is still in memory.
        with contextlib.suppress(OSError):
            self._file.write(chunk[: self._room] + end)
        self._room -= len(chunk)


class Console:
    """A console being recorded, as a context manager."""

    def __init__(self, host: str, log: _Log) -> None:
        self.host = host
        self._log = log
        self._ending = threading.Event()
        self._decided = threading.Event()
        self._trouble: str | None = None
        self._hint: str | None = None
        self._threads: list[threading.Thread] = []

    def check(self) -> None:
        """Wait until it is known whether the console works; later calls return at once.

        Raises:
            InfrastructureError: every attempt so far has failed. A console that is
                lost after it worked is not an error; it is opened again.
        """
        if not self._decided.wait(_SOL_WITHIN_S):
            self._trouble = f"nothing after {_SOL_WITHIN_S:.0f} s"
        if self._trouble is not None:
            raise InfrastructureError(f"{self.host}: no console: {self._trouble}", hint=self._hint)

    def text(self, since: int = 0, *, until: int | None = None) -> str:
        """The output between the positions ``since`` and ``until``.

        At most the last :data:`TEXT_BYTES` of it. Escape sequences are removed, other
        control characters spelt out.
        """
        return process.harmless(self._log.tail(since, until).decode(errors="replace"))

    @property
    def position(self) -> int:
        """Bytes received so far, for :meth:`text`."""
        return self._log.seen

    @property
    def silence_s(self) -> float:
        """Seconds since its last output."""
        return time.monotonic() - self._log.last_s

    def close(self) -> None:
        """Stop recording; the log stays."""
        self._ending.set()
        self._stop()
        for thread in self._threads:
            thread.join(10)
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _stop(self) -> None:
        raise NotImplementedError

    def _begin(self, work: Callable[[], None]) -> None:
        self._threads.append(
            threading.Thread(target=work, name=f"console {self.host}", daemon=True)
        )
        self._threads[-1].start()

    def _had(self) -> None:
        self._trouble = None
        self._decided.set()

    def _not_had(self, trouble: str, *, hint: str | None = None) -> None:
        self._trouble, self._hint = trouble, hint
        self._decided.set()


class _Program(Console):
    """A console that a program prints; restarted with growing pauses when it ends."""

    _hint_missing = "hosts.yaml names it as the command of this console"
    _hint_refused = "run it by hand"
    _tries = 1
    """Failed attempts before :meth:`check` raises."""

    def __init__(
        self, command: list[str], host: str, log: _Log, env: dict[str, str] | None = None
    ) -> None:
        super().__init__(host, log)
        self._command = command
        self._env = env
        self._running: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._was_had = False
        self._failures = 0
        self._prepare()
        self._spawn()
        self._begin(self._work)

    def _prepare(self) -> None:
        """Called before each start."""

    def _is_up(self, said: bytes, lived_s: float) -> bool:
        """Whether a program that printed ``said`` and has run for ``lived_s`` since works."""
        return lived_s >= (_LIVES_S if said else _SILENT_S)

    def _pair(self) -> tuple[int, int]:
        """Read end and write end for its output."""
        return os.pipe()

    def _spawn(self) -> None:
        with self._lock:
            self._running = None
            if self._ending.is_set():
                return
            self._output, theirs = self._pair()
            try:
                self._running = process.start(
                    self._command,
                    env=os.environ if self._env is None else self._env,
                    # An open pipe: some programs end at the end of their input, and this one
                    # comes when the harness is killed.
                    stdin=subprocess.PIPE,
                    stdout=theirs,
                    stderr=subprocess.STDOUT,
                )
            except InfrastructureError as error:
                os.close(self._output)
                raise InfrastructureError(
                    f"{self.host}: no console: {error.message}",
                    hint=error.hint or self._hint_missing,
                ) from error
            finally:
                os.close(theirs)

    def _work(self) -> None:
        while not self._ending.is_set():
            self._failures = 0 if self._follow() else self._failures + 1
            if self._ending.is_set():
                return
            pause_s = _BACK_OFF_S[min(self._failures, len(_BACK_OFF_S) - 1)]
            self._log.note(f"the console ended ({self._ended()}); again in {pause_s:.0f} s")
            try:
                if not self._ending.wait(pause_s):
                    self._prepare()
                    self._spawn()
            except InfrastructureError as error:
                self._log.note(error.message)

    def _follow(self) -> bool:
        """Record the program's output until it ends; whether it ever worked."""
        running = self._running
        if running is None:
            return False
        up, said, began = False, b"", time.monotonic()
        ready = select.poll()
        ready.register(self._output, select.POLLIN)
        while True:
            if ready.poll(None if up else _POLL_MS):
                chunk = _read(self._output)
                if not chunk:
                    break
                self._log.add(chunk)
                if not said:
                    began = time.monotonic()
                said = said if up else (said + chunk)[-_CHUNK:]
            if not up:
                up = self._is_up(said, time.monotonic() - began)
                if up:
                    self._had()
        os.close(self._output)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(_FAREWELL_S)
        process.end(running)
        up = up or (running.returncode == 0 and said != b"")
        if up:
            self._had()
        elif not self._was_had and self._failures + 1 >= self._tries:
            shown = process.harmless(said.decode(errors="replace")).strip()
            self._not_had(
                f"{process.quoted(self._command)}: {shown[-500:] or self._ended()}",
                hint=self._hint_refused if "already active" not in shown else _HINT_TAKEN,
            )
        return up

    def _had(self) -> None:
        self._was_had = True
        super()._had()

    def _ended(self) -> str:
        return f"status {self._running.returncode}" if self._running else "not started"

    def _stop(self) -> None:
        with self._lock:
            running = self._running
        if running is None or running.poll() is not None:
            return
        assert running.stdin is not None
        # At the end of its input ipmitool closes the BMC's session.
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            running.stdin.close()
            running.wait(_FAREWELL_S)
        if running.returncode is None:
            process.end(running)


class _Sol(_Program):
    _hint_missing = power.IPMITOOL_HINT
    _hint_refused = power.IPMI_REFUSED_HINT
    _tries = 2  # some BMCs take a moment to forget the previous session

    def __init__(self, bmc: config.Ipmi, host: str, log: _Log) -> None:
        self._ipmitool = power.ipmi_command(bmc)
        super().__init__(
            [*self._ipmitool, "sol", "activate"], host, log, env=power.ipmi_environment(bmc)
        )

    def _prepare(self) -> None:
        # A stale session blocks every other. It is no error if there is none.
        with contextlib.suppress(InfrastructureError):
            process.run(
                [*self._ipmitool, "sol", "deactivate"],
                env=self._env,
                timeout_s=_SOL_WITHIN_S / 2,
                tail_bytes=_CHUNK,
                check=False,
            )

    def _is_up(self, said: bytes, lived_s: float) -> bool:  # noqa: ARG002
        return _SOL_IS_UP in said

    def _pair(self) -> tuple[int, int]:
        # Writing to a pipe, ipmitool buffers its first line until the machine prints something.
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        return ours, theirs


def _read(output: int) -> bytes:
    try:
        return os.read(output, _CHUNK)
    except OSError as error:
        if error.errno == errno.EIO:  # how a pty ends
            return b""
        raise


class _Netconsole(Console):
    def __init__(self, where: config.Netconsole, host: str, log: _Log, sender: str | None) -> None:
        super().__init__(host, log)
        self._sender = sender
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._bind(where)
        except BaseException:
            self._socket.close()
            raise
        self._socket.settimeout(0.5)
        self._had()
        self._begin(self._work)

    def _bind(self, where: config.Netconsole) -> None:
        try:
            try:
                self._socket.bind((str(where.address), where.port))
            except OSError as error:
                # The address is the one that the host sees; there may be NAT in between.
                if error.errno != errno.EADDRNOTAVAIL:
                    raise
                self._socket.bind(("", where.port))
        except OSError as error:
            raise InfrastructureError(
                f"{self.host}: UDP port {where.port} for netconsole: {error.strerror}",
                hint="give each host a port of its own in hosts.yaml",
            ) from error

    def _work(self) -> None:
        strangers = set[str]()
        while not self._ending.is_set():
            try:
                packet, (sender, _) = self._socket.recvfrom(_CHUNK)
            except TimeoutError:
                continue
            if self._sender in {None, sender}:
                self._log.add(packet)
            elif sender not in strangers and len(strangers) < 8:
                strangers.add(sender)
                self._log.note(f"packets from {sender} are not kept; expected {self._sender}")

    def _stop(self) -> None:
        for thread in self._threads:
            thread.join(2)
        self._socket.close()
