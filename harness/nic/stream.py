# SPDX-License-Identifier: MIT
"""A client's byte stream: what has arrived, the descriptors with it, and what waits to be sent.

Hides partial reads and writes, and which message a descriptor came with: the kernel
hands it over with the octets it was sent with, which need not be the first of a
message. Where a message ends is the protocol's business.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable
from pathlib import Path

_MAX_FDS = 32
_RECEIVE = 16 << 10
_ANCILLARY = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
_MAX_FDS_WAITING = 4 * _MAX_FDS
_MAX_UNSENT = 4 << 20


class SessionEnd(Exception):  # noqa: N818
    """The client is gone, or what it sends cannot be understood."""


class Stream:
    """One client's connection over ``connected`` (owned from now on)."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._socket.setblocking(False)
        self._buffer = bytearray(_RECEIVE)
        self._view = memoryview(self._buffer)
        self.received = bytearray()
        """What has arrived and is not consumed."""
        self.consumed = 0
        """Octets of the stream in front of ``received``."""
        self.fds: list[tuple[int, list[int]]] = []
        """Descriptors, and the place in the stream of the last octet that came with them."""
        self.unsent = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        for _, fds in self.fds:
            close_all(fds)
        self.fds.clear()
        self._socket.close()

    def take(self, split: Callable[[], None], reads: int = 4) -> None:
        """Read what has arrived, in at most ``reads`` pieces, and ``split`` it after each.

        Raises:
            SessionEnd: the client has left, or sends descriptors and no whole message.
        """
        for _ in range(reads):
            more = self._read()
            split()
            if sum(len(waiting) for _, waiting in self.fds) > _MAX_FDS_WAITING:
                raise SessionEnd("descriptors without a whole message to go with them")
            if not more:
                break

    def _read(self) -> bool:
        """Take one piece; False: there is nothing more for now."""
        try:
            size, ancillary, _flags, _address = self._socket.recvmsg_into(
                [self._buffer], _ANCILLARY, socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise SessionEnd(f"the connection failed: {error}") from error
        fds = _fds_of(ancillary) if ancillary else []
        if not size:
            close_all(fds)
            raise SessionEnd("the client has left")
        self.received += self._view[:size]
        if fds:
            self.fds.append((self.consumed + len(self.received) - 1, fds))
        return size == _RECEIVE or bool(fds)

    def fds_until(self, at: int) -> list[int]:
        """The descriptors (the caller's from now on) of the message that ends at ``at``."""
        found: list[int] = []
        while self.fds and self.fds[0][0] < self.consumed + at:
            found += self.fds.pop(0)[1]
        return found

    def consume(self, octets: int) -> None:
        """Forget the first ``octets`` of what was received."""
        del self.received[:octets]
        self.consumed += octets

    def send(self, data: bytes) -> None:
        """Send after what waits already, as soon as the socket takes it.

        Raises:
            SessionEnd: see :meth:`flush`.
        """
        self.unsent += data
        if len(self.unsent) > _MAX_UNSENT:
            # One read may hold hundreds of requests for a megabyte each.
            self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it.

        Raises:
            SessionEnd: the client has left, or reads nothing.
        """
        while self.unsent:
            try:
                sent = self._socket.send(self.unsent)
            except (BlockingIOError, InterruptedError):
                if len(self.unsent) > _MAX_UNSENT:
                    raise SessionEnd("the client does not read its replies") from None
                return
            except OSError as error:
                raise SessionEnd(f"the connection failed: {error}") from error
            del self.unsent[:sent]


def _fds_of(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()


def close_all(fds: list[int]) -> None:
    """Close all descriptors of the list and empty it."""
    while fds:
        os.close(fds.pop())


def is_eventfd(fd: int) -> bool:
    """Whether a write of 8 octets is what it seems, and cannot block for long."""
    return str(Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:[eventfd]"
