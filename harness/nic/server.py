# SPDX-License-Identifier: MIT
"""The server: devices with one client each, one loop, and the pace of the receive path.

The loop blocks only in ``select``. A pass over the wire costs about the same for few
frames as for many, so useless passes may take at most a fifth of a CPU: after a pass of
duration t the next waits for 5 t, less a credit of :data:`_CREDIT_NS`, so that a lone frame
never waits. When a pass has left the guest less than half of its descriptors, the next
comes when half are posted again, or after ten milliseconds: until then the guest has
hundreds of frames to process. Doorbells are served in between as they come. In that last
case they only report posted descriptors, and are served once a millisecond.

While the wire of one device repeats streams, the other device of a cable, which sends them,
is served once in :data:`_TURN_NS`, and a few of its frames are sent: they cost fifty times
as much as those that are repeated.
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
from typing import Any, Protocol

from harness.nic.device import TX_BUDGET, Nic
from harness.nic.injection import FAULTS, Request
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
_TURN_NS = 1_000_000
_YIELDING_TX = 16
MAX_TIMES = 1_000_000
"""The largest number of repetitions, and of frames in a burst."""
MAX_PPS = 1_000_000_000


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


class Port:
    """A device on its wire, and the socket ``path`` where its only client connects."""

    def __init__(self, nic: Nic, wire: Wire, path: Path, transport: Transport) -> None:
        self.nic = nic
        self.session: Session | None = None
        self.left = False
        """Its client has left."""
        self._wire = wire
        self._transport = transport
        self._path = path
        self._listener = _listen(path)
        self._pace = _Pace(nic)
        self._watch_wire = True
        self._rests = False
        self._served_ns = 0
        self._serve_anyway = False
        self._clients: list[int] = []
        self._due_ns: int | None = None

    def wait_for(
        self, now_ns: int, readers: list[int], writers: list[int], *, yields: bool
    ) -> int | None:
        """Add the file descriptors to wait for; returns when to go on without them.

        With ``yields`` the time is needed for another port, which repeats streams.
        """
        session, nic = self.session, self.nic
        readers.append(self._listener.fileno())
        self._rests = session is None or (yields and now_ns < self._served_ns + _TURN_NS)
        if session is None:
            return None
        self._due_ns = nic.next_due_ns()
        if self._rests:
            return _first(self._due_ns, self._served_ns + _TURN_NS)
        starved = self._pace.starved(now_ns)
        rest_ns = self._pace.resting_until_ns(now_ns, starved=starved)
        # A guest with few frames left must have its doorbells served at once.
        patience_ns = session.patience_ns if starved and not nic.blocked else 0
        serve_ns = session.due_ns(now_ns)
        if starved and not nic.blocked and nic.repeating:
            patience_ns = min(patience_ns, nic.patience_ns)
            if serve_ns is not None:
                serve_ns = max(serve_ns, now_ns + nic.patience_ns)
        self._serve_anyway = patience_ns > 0 or serve_ns is not None
        self._clients = session.filenos() if not patience_ns else []
        readers += self._clients
        writers += session.wants_to_write
        if nic.wants_to_transmit or (rest_ns is None and self._frames_wait(readers)):
            return now_ns
        turn_ns = self._served_ns + patience_ns if patience_ns else None
        return _first(self._due_ns, rest_ns, serve_ns, turn_ns)

    def _frames_wait(self, readers: list[int]) -> bool:
        """Whether there are frames already; else adds what shows the next ones."""
        if self.nic.repeating:
            return True
        wire = self._wire.fileno()
        if wire is None:
            return self._wire.waiting() > 0
        if self._watch_wire:
            readers.append(wire)
        return False

    def serve(self, ready: Collection[int], writable: Collection[int]) -> None:
        """Process what the client has sent."""
        session = self.session
        if session is None or self._rests:
            return
        try:
            if not set(session.wants_to_write).isdisjoint(writable):
                session.flush()
            if self._serve_anyway or not set(self._clients).isdisjoint(ready):
                session.serve(ready)
                self._served_ns = time.monotonic_ns()
        except SessionEnd as end:
            log.info("session ended: %s", end)
            self.leave()
        except Exception as error:  # noqa: BLE001 - the counters must still be printed
            self.nic.journal.mistake(error)
            self.leave()

    def accept(self, ready: Collection[int]) -> None:
        """Begin the session of the first client, and close the connection of any other."""
        if self._listener.fileno() not in ready:
            return
        accepted = _accepted(self._listener)
        if accepted is None:
            return
        if self.session is None and not self.left:
            log.info("client connected at %s", self._path)
            self.session = self._transport(accepted, self.nic)
        else:
            accepted.close()
            self.nic.journal.note("clients_refused", "another client is being served")

    def transmit(self, *, yields: bool) -> None:
        if self.nic.wants_to_transmit and not self._rests:
            limit = _YIELDING_TX if yields else TX_BUDGET
            _guard(self.nic, lambda: self.nic.transmit(limit))

    def receive(self, ready: Collection[int]) -> None:
        """Send the interrupts that are due, and make a pass over the wire."""
        nic, pace, now_ns = self.nic, self._pace, time.monotonic_ns()
        if self.session is None:
            _guard(nic, lambda: _drain(nic))
            return
        if self._due_ns is not None and self._due_ns <= now_ns:
            _guard(nic, nic.tick)
        if self._rests:
            return
        if pace.resting_until_ns(now_ns, starved=pace.starved(now_ns)) is None:
            _guard(nic, pace.receive)
            if not pace.last and not nic.starved and self._wire.fileno() in ready:
                self._watch_wire = self._wire.settle()
                if not self._watch_wire:
                    log.error("the wire is gone")

    def leave(self) -> None:
        """End the session, if there is one."""
        if self.session is not None:
            _guard(self.nic, self.session.close)
            _guard(self.nic, self.nic.client_gone)
            self.session, self.left = None, True

    def close(self) -> None:
        """Also unlink the socket."""
        self.leave()
        self._listener.close()
        self._path.unlink(missing_ok=True)


class Server:
    """Serves the clients of ``ports``, and counters of the first at ``control``."""

    def __init__(self, *ports: Port, control: Path | None = None) -> None:
        self._ports = ports
        self._control = _Control(control, ports[0].nic) if control else None
        self._stopping = False
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._woken)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        # Timeouts of select() are late by the timer slack, 50 µs by default.
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)

    def run(self) -> None:
        """Serve until the last client has left, or a signal asks to stop."""
        try:
            while not self._stopping and not self._all_left():
                self._turn()
        finally:
            self.close()

    def close(self) -> None:
        """Close and unlink the sockets."""
        for port in self._ports:
            port.close()
        if self._control:
            self._control.close()

    def _stop(self, number: int, _: FrameType | None) -> None:
        log.info("signal %d", number)
        self._stopping = True

    def _all_left(self) -> bool:
        return any(port.left for port in self._ports) and not any(
            port.session for port in self._ports
        )

    def _turn(self) -> None:
        """Wait until there is something to do, and do it."""
        control = self._control
        now_ns = time.monotonic_ns()
        readers, writers = [self._wake, *(control.filenos if control else ())], list[int]()
        until_ns = now_ns + _MAX_WAIT_NS
        busy = [port for port in self._ports if port.nic.repeating] if self._ports[1:] else []
        yielding = [port for port in self._ports if busy and port not in busy]
        for port in self._ports:
            due_ns = port.wait_for(now_ns, readers, writers, yields=port in yielding)
            until_ns = until_ns if due_ns is None else min(until_ns, due_ns)
        wait_s = max(0, until_ns - now_ns) / 1e9
        ready, writable, _ = select.select(readers, writers, [], wait_s)
        for port in self._ports:
            port.serve(ready, writable)
        if control and ready:
            control.serve(ready)
        for port in self._ports:
            port.accept(ready)
        # All of them transmit before any receives what another has sent.
        for port in self._ports:
            port.transmit(yields=port in yielding)
        for port in self._ports:
            port.receive(ready)


def _drain(nic: Nic) -> None:
    nic.receive()


def _first(*times_ns: int | None) -> int | None:
    return min((ns for ns in times_ns if ns is not None), default=None)


def _guard(nic: Nic, step: Callable[[], None]) -> None:
    """Log and count a bug of the model; the guest keeps its device.

    Its cause may persist and wake the loop again at once, so there is a pause.
    """
    try:
        step()
    except Exception as error:  # noqa: BLE001
        nic.journal.mistake(error)
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
    and ``burst``, ``pace`` with ``pps``, ``fault`` with ``name``, ``number``, ``ms`` and
    ``command``."""

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
            if call == "pace":
                pps = None if request["pps"] is None else float(request["pps"])
                if pps is not None and not 0 <= pps <= MAX_PPS:
                    return {"error": f"pps is 0 to {MAX_PPS}, or null"}
                self._nic.pace_repetition(pps)
                return {"pace": {"pps": pps}}
            if call == "link":
                self._nic.set_link(bool(request["up"]))
                return {"link": {"up": self._nic.link_up}}
            if call == "fault":
                return self._fault(dict(request))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return {"error": f"not understood: {error!r}"}
        return {"error": f"no such call: {call!r}"}

    def _fault(self, asked: dict[str, Any]) -> dict[str, object]:
        name = asked.get("name")
        if name not in FAULTS:
            return {"error": f"no such fault: {name!r}; there are: {', '.join(FAULTS)}"}
        del asked["call"], asked["name"]
        wrong = [key for key in asked if key not in ("number", "ms", "command")]
        if wrong or not all(type(value) is int for value in asked.values()):
            return {"error": "a fault takes the whole numbers number, ms and command"}
        self._nic.injector.inject(name, Request(**asked))
        return {"fault": {"name": name, **asked}}

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
