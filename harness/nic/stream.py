# SPDX-License-Identifier: MIT
"""A client's byte stream: received octets, their file descriptors, and unsent replies.

Hides partial reads and writes, and which message a file descriptor belongs to: the
kernel delivers it with the octets it was sent with, which need not be the first of a
message. The protocol decides where a message ends.
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
    """The client is gone, or its messages cannot be parsed."""


class Stream:
    """One client's connection over ``connected`` (owned from now on)."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._socket.setblocking(False)
        self._buffer = bytearray(_RECEIVE)
        self._view = memoryview(self._buffer)
        self.received = bytearray()
        """Received octets that are not consumed yet."""
        self.consumed = 0
        """Octets of the stream before ``received``."""
        self.fds: list[tuple[int, list[int]]] = []
        """File descriptors, by the position in the stream of the last octet with them."""
        self.unsent = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        for _, fds in self.fds:
            close_all(fds)
        self.fds.clear()
        self._socket.close()

    def take(self, split: Callable[[], None], reads: int = 4) -> None:
        """Read at most ``reads`` pieces of what has arrived, and call ``split`` after each.

        Raises:
            SessionEnd: the client has left, or sends file descriptors without a whole message.
        """
        for _ in range(reads):
            more = self._read()
            split()
            if sum(len(waiting) for _, waiting in self.fds) > _MAX_FDS_WAITING:
                raise SessionEnd("descriptors without a whole message to go with them")
            if not more:
                break

    def _read(self) -> bool:
        """Read one piece; False: nothing more has arrived."""
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
        """The file descriptors (now the caller's) of the message that ends at ``at``."""
        found: list[int] = []
        while self.fds and self.fds[0][0] < self.consumed + at:
            found += self.fds.pop(0)[1]
        return found

    def consume(self, octets: int) -> None:
        """Discard the first ``octets`` of ``received``."""
        del self.received[:octets]
        self.consumed += octets

    def send(self, data: bytes) -> None:
        """Send after earlier replies, as soon as the socket accepts it.

        Raises:
            SessionEnd: see :meth:`flush`.
        """
        self.unsent += data
        if len(self.unsent) > _MAX_UNSENT:
            # One read may hold hundreds of requests for a megabyte each.
            self.flush()

    def flush(self) -> None:
        """Send as much as the socket accepts.

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
    """Whether it is an eventfd: a write of 8 octets has no side effects and cannot block long."""
    return str(Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:[eventfd]"
