# SPDX-License-Identifier: MIT
"""Tests the path from the generator to the dut with packets: TCP and UDP, in both directions.

The dut listens and echoes messages with the right word; the generator reports the answers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import socket
import threading
import time
from typing import Any

from harness.agent.faults import AgentError

_LISTENS_S = 60.0
_TRIES, _ANSWER_S = 3, 0.7
_CONNECT_S = 3.0
_LONGEST = 64


class Way:
    """The calls ``way_*``; a host listens on one address at a time."""

    def __init__(self) -> None:
        self._heard: dict[str, int] = {}
        self._word = b""
        self._ending: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def listen(self, *, address: str, port: int) -> dict[str, Any]:
        """Echo on ``address`` for a minute, on TCP ``port`` and on an ephemeral UDP port as
        netserver uses. Returns both ports and the ``word`` to send.

        Raises:
            AgentError: the address is not this host's, or the port is in use.
        """
        self.end()
        tcp = udp = None
        try:
            tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((address, port))
            tcp.listen(4)
            udp.bind((address, 0))
        except (OSError, OverflowError) as error:
            for one in (tcp, udp):
                if one is not None:
                    one.close()
            taken = getattr(error, "errno", None) == errno.EADDRINUSE
            raise AgentError(
                f"cannot listen on {address} port {port}: {getattr(error, 'strerror', error)}",
                hint=f"stop what holds it: ss -ltnp sport = :{port}" if taken else None,
            ) from error
        self._word = secrets.token_hex(8).encode()
        self._heard = {"tcp": 0, "udp": 0}
        self._ending = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, args=(tcp, udp, self._ending), daemon=True
        )
        self._thread.start()
        return {"tcp": port, "udp": udp.getsockname()[1], "word": self._word.decode()}

    def _serve(self, tcp: socket.socket, udp: socket.socket, ending: threading.Event) -> None:
        until = time.monotonic() + _LISTENS_S
        with tcp, udp:
            while not ending.is_set() and time.monotonic() < until:
                for ready in select.select([tcp, udp], [], [], 0.1)[0]:
                    with contextlib.suppress(OSError):
                        if ready is udp:
                            said, sender = udp.recvfrom(_LONGEST)
                            if said == self._word:
                                self._heard["udp"] += 1
                                udp.sendto(said, sender)
                        else:
                            self._answer(tcp.accept()[0])

    def _answer(self, line: socket.socket) -> None:
        with line:
            line.settimeout(1)
            if line.recv(_LONGEST) == self._word:
                self._heard["tcp"] += 1
                line.sendall(self._word)

    def end(self) -> dict[str, int]:
        """Stop listening; returns how often the word was received, by protocol."""
        if self._ending is not None and self._thread is not None:
            self._ending.set()
            self._thread.join(5)
            self._ending = self._thread = None
        return dict(self._heard)

    def tried(self, *, target: str, source: str, tcp: int, udp: int, word: str) -> dict[str, Any]:
        """Send ``word`` to both ports of ``target`` from ``source``; returns, by protocol, None
        or why there was no answer.
        """
        return {
            "tcp": _said(_by_tcp, target, source, tcp, word),
            "udp": _said(_by_udp, target, source, udp, word),
        }


def _said(way: Any, target: str, source: str, port: int, word: str) -> str | None:
    try:
        way(target, source, port, word.encode())
    except socket.timeout:
        return "no answer"
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    except (OverflowError, UnicodeError) as error:
        return str(error)
    return None


def _by_tcp(target: str, source: str, port: int, word: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as line:
        line.settimeout(_CONNECT_S)
        line.bind((source, 0))
        line.connect((target, port))
        line.sendall(word)
        if line.recv(_LONGEST) != word:
            raise OSError("another program answers there")


def _by_udp(target: str, source: str, port: int, word: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
        line.settimeout(_ANSWER_S)
        line.bind((source, 0))
        line.connect((target, port))
        for left in range(_TRIES - 1, -1, -1):
            line.send(word)
            try:
                if line.recv(_LONGEST) == word:
                    return
            except socket.timeout:
                if not left:
                    raise
    raise OSError("another program answers there")
