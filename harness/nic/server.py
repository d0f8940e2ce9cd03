# SPDX-License-Identifier: MIT
"""The server: one client, one wire, one loop, and the pace of the receive path.

The loop blocks only in ``select``. A pass over the wire costs about the same for few
frames as for many, so useless passes may take at most a fifth of a CPU: after a pass of
duration t the next waits for 5 t, less a credit of :data:`_CREDIT_NS`, so that a lone frame
never waits. When a pass has left the guest less than half of its descriptors, the next
comes when half are posted again, or after ten milliseconds: until then the guest has
hundreds of frames to process. Doorbells are served in between as they come. In that last
case they only report posted descriptors, and are served once a millisecond.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import Protocol

from harness.nic.device import Nic
from harness.nic.journal import log
from harness.nic.stream import SessionEnd
from harness.nic.transport import Connection
from harness.nic.vhost import Backend
from harness.nic.wire import Wire

_PRICE = 5
_CREDIT_NS = 2_000_000
_STARVED_NS = 10_000_000
_MAX_WAIT_NS = 1_000_000_000
_PR_SET_TIMERSLACK = 29
_MAX_CONTROL_LINE = 4096
_MAX_CONTROL_CLIENTS = 16
_PAUSE_S = 0.01
MAX_TIMES = 1_000_000
"""The largest number of repetitions, and of frames in a burst."""


class Session(Protocol):
    """What the server needs of a transport: one client's session.

    Attributes:
        patience_ns: how long the guest's writes may wait when they only report posted
            descriptors.
        wants_to_write: file descriptors with unsent replies.
    """

    patience_ns: int

    @property
    def wants_to_write(self) -> list[int]: ...
    def filenos(self) -> list[int]:
        """File descriptors that become readable when the guest has sent something."""

    def due_ns(self, now_ns: int) -> int | None:
        """When to serve it even if none of them is readable."""

    def serve(self, ready: Collection[int]) -> None:
        """Process everything the guest has sent; raises :class:`SessionEnd`."""

    def flush(self) -> None: ...
    def close(self) -> None: ...


Transport = Callable[[socket.socket, Nic], Session]


def vfio_user(accepted: socket.socket, nic: Nic) -> Session:
    """A session of QEMU's ``vfio-user-pci``."""
    return Connection(accepted, nic, nic.journal)


def vhost_user(accepted: socket.socket, nic: Nic) -> Session:
    """A session of a user-mode kernel: ``virtio_uml`` with ``virt-pci``."""
    return Backend(accepted, nic, nic.journal, time.monotonic_ns)


class Server:
    """Serves one session of ``transport`` at ``path``, and counters at ``control``."""

    def __init__(
        self,
        nic: Nic,
        wire: Wire,
        *,
        path: Path,
        transport: Transport = vfio_user,
        control: Path | None = None,
    ) -> None:
        self._nic = nic
        self._transport = transport
        self._wire = wire
        self._path = path
        self._listener = _listen(path)
        self._control = _Control(control, nic) if control else None
        self._stopping = False
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._woken)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        # Timeouts of select() are late by the timer slack, 50 µs by default.
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)

    def run(self) -> None:
        """Accept one client and serve it until it leaves or a signal asks to stop."""
        try:
            session = self._accept()
            if session is not None:
                log.info("client connected")
                try:
                    self._serve(session)
                except SessionEnd as end:
                    log.info("session ended: %s", end)
                except Exception as error:  # noqa: BLE001 - the counters must still be printed
                    self._nic.journal.mistake(error)
                finally:
                    self._guard(session.close)
                    self._guard(self._nic.client_gone)
        finally:
            self.close()

    def close(self) -> None:
        """Close and unlink the sockets."""
        self._listener.close()
        self._path.unlink(missing_ok=True)
        if self._control:
            self._control.close()

    def _stop(self, number: int, _: FrameType | None) -> None:
        log.info("signal %d", number)
        self._stopping = True

    def _accept(self) -> Session | None:
        control = self._control
        while not self._stopping:
            readers = [self._listener.fileno(), self._wake, *(control.filenos if control else ())]
            ready, _, _ = select.select(readers, [], [], _MAX_WAIT_NS / 1e9)
            if control:
                control.serve(ready)
            if self._listener.fileno() in ready:
                accepted = _accepted(self._listener)
                if accepted is not None:
                    return self._transport(accepted, self._nic)
            self._guard(self._drain)
        return None

    def _drain(self) -> None:
        self._nic.receive()

    def _refuse(self) -> None:
        """Close the connection of a second client."""
        accepted = _accepted(self._listener)
        if accepted is not None:
            accepted.close()
            self._nic.journal.note("clients_refused", "another client is being served")

    def _serve(self, session: Session) -> None:
        nic, wire, control = self._nic, self._wire, self._control
        clock_ns = time.monotonic_ns
        pace = _Pace(nic)
        watch_wire = True
        served_ns = 0
        while not self._stopping:
            now_ns = clock_ns()
            due_ns = nic.next_due_ns()
            starved = pace.starved(now_ns)
            rest_ns = pace.resting_until_ns(now_ns, starved=starved)
            # A guest with few frames left must have its doorbells served at once.
            patience_ns = session.patience_ns if starved and not nic.blocked else 0
            serve_ns = session.due_ns(now_ns)
            if starved and not nic.blocked and nic.repeating:
                patience_ns = min(patience_ns, nic.patience_ns)
                if serve_ns is not None:
                    serve_ns = max(serve_ns, now_ns + nic.patience_ns)
            until_ns = now_ns + _MAX_WAIT_NS
            for other_ns in (due_ns, rest_ns, serve_ns):
                if other_ns is not None and other_ns < until_ns:
                    until_ns = other_ns
            if patience_ns:
                until_ns = min(until_ns, served_ns + patience_ns)
            at_once = nic.repeating and rest_ns is None
            if nic.wants_to_transmit or until_ns < now_ns or at_once:
                until_ns = now_ns
            readers = [self._wake, self._listener.fileno()]
            if control:
                readers += control.filenos
            clients = session.filenos() if not patience_ns else []
            readers += clients
            if rest_ns is None and watch_wire:
                readers.append(wire.fileno())
            writers = session.wants_to_write
            ready, writable, _ = select.select(readers, writers, [], (until_ns - now_ns) / 1e9)
            if writable:
                session.flush()
            if patience_ns or serve_ns is not None or not set(clients).isdisjoint(ready):
                session.serve(ready)
                served_ns = clock_ns()
            if control and ready:
                control.serve(ready)
            if self._listener.fileno() in ready:
                self._refuse()
            if nic.wants_to_transmit:
                self._guard(nic.transmit)
            now_ns = clock_ns()
            if due_ns is not None and due_ns <= now_ns:
                self._guard(nic.tick)
            if pace.resting_until_ns(now_ns, starved=pace.starved(now_ns)) is None:
                self._guard(pace.receive)
                if not pace.last and not nic.starved and wire.fileno() in ready:
                    watch_wire = wire.settle()
                    if not watch_wire:
                        log.error("the wire is gone")

    def _guard(self, step: Callable[[], None]) -> None:
        """Log and count a bug of the model; the guest keeps its device.

        Its cause may persist and wake the loop again at once, so there is a pause.
        """
        try:
            step()
        except Exception as error:  # noqa: BLE001
            self._nic.journal.mistake(error)
            time.sleep(_PAUSE_S)


class _Pace:
    """When the next pass over the wire is due."""

    def __init__(self, nic: Nic) -> None:
        self._nic = nic
        self._paid_until_ns = 0
        self._starved_until_ns = 0
        self.last = 0
        """Frames that the last pass found."""

    def starved(self, now_ns: int) -> bool:
        """The guest has more frames to process than it has posted descriptors."""
        return now_ns < self._starved_until_ns and self._nic.starved

    def resting_until_ns(self, now_ns: int, *, starved: bool) -> int | None:
        """When the next pass is due; None: now."""
        if now_ns < self._paid_until_ns - _CREDIT_NS:
            return self._paid_until_ns - _CREDIT_NS
        return self._starved_until_ns if starved else None

    def receive(self) -> None:
        started_ns = time.thread_time_ns()
        self.last = 0
        self.last = self._nic.receive()
        now_ns = time.monotonic_ns()
        self._starved_until_ns = now_ns + _STARVED_NS
        # A repeating wire always has frames: if the guest took none of them although it had
        # descriptors, further passes would be useless.
        useful = self.last > 0 if self._nic.repeats else self.last == 0
        if not useful:
            price_ns = _PRICE * (time.thread_time_ns() - started_ns)
            self._paid_until_ns = max(self._paid_until_ns, now_ns) + price_ns


class _Control:
    """JSON lines on a unix socket: ``counters``, ``link`` with ``up``, ``wire`` with ``repeat``
    and ``burst``."""

    def __init__(self, path: Path, nic: Nic) -> None:
        self._path = path
        self._nic = nic
        self._listener = _listen(path)
        self._clients: dict[int, tuple[socket.socket, bytearray]] = {}
        self.filenos = [self._listener.fileno()]

    def serve(self, ready: list[int]) -> None:
        if self._listener.fileno() in ready:
            accepted = _accepted(self._listener)
            if accepted is not None and len(self._clients) >= _MAX_CONTROL_CLIENTS:
                accepted.close()
            elif accepted is not None:
                accepted.setblocking(False)
                self._clients[accepted.fileno()] = (accepted, bytearray())
                self.filenos.append(accepted.fileno())
        for fd in [fd for fd in ready if fd in self._clients]:
            client, received = self._clients[fd]
            try:
                data = client.recv(_MAX_CONTROL_LINE)
                received += data
                while b"\n" in received:
                    line, _, rest = bytes(received).partition(b"\n")
                    received[:] = rest
                    client.send(json.dumps(self._answer(line)).encode() + b"\n")
                if not data or len(received) > _MAX_CONTROL_LINE:
                    raise ConnectionError("closed, or the line is too long")
            except BlockingIOError:
                continue
            except OSError:
                client.close()
                del self._clients[fd]
                self.filenos.remove(fd)

    def _answer(self, line: bytes) -> dict[str, object]:
        try:
            request = json.loads(line)
            call = request["call"]
            if call == "counters":
                return {"counters": self._nic.counters()}
            if call == "wire":
                repeat, burst = int(request["repeat"]), int(request["burst"])
                if not 0 <= repeat <= MAX_TIMES or not 0 <= burst <= MAX_TIMES:
                    return {"error": f"repeat and burst are 0 to {MAX_TIMES}"}
                self._nic.pace_wire(repeat=repeat, burst=burst)
                return {"wire": {"repeat": repeat, "burst": burst}}
            if call == "link":
                self._nic.set_link(bool(request["up"]))
                return {"link": {"up": self._nic.link_up}}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return {"error": f"not understood: {error!r}"}
        return {"error": f"no such call: {call!r}"}

    def close(self) -> None:
        for client, _ in self._clients.values():
            client.close()
        self._clients.clear()
        self._listener.close()
        self._path.unlink(missing_ok=True)


def _accepted(listener: socket.socket) -> socket.socket | None:
    """The next connection; None if it is gone already or no file descriptor is left."""
    try:
        return listener.accept()[0]
    except OSError as error:
        log.warning("cannot accept: %s", error)
        time.sleep(_PAUSE_S)
        return None


def _listen(path: Path) -> socket.socket:
    """A listening socket that only this user can connect to; replaces a stale one."""
    if path.is_socket():
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        old = os.umask(0o077)
        try:
            listener.bind(str(path))
        finally:
            os.umask(old)
        listener.listen(16)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
