# SPDX-License-Identifier: MIT
"""An agent that answers as a test says. The calls it is asked are held to the protocol."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from harness.agent import protocol
from harness.base.errors import HostLostError
from harness.beds.access.channel import Asked, Pending


class FakeAgent(Asked):
    """``answer(name, **arguments)`` gives each answer, ``opens`` the calls that are begun.

    ``closes`` is told that the line to it is closed.
    """

    def __init__(
        self,
        answer: Callable[..., Any],
        *,
        opens: Callable[..., Pending[Any]] | None = None,
        ready: Mapping[str, Any] | None = None,
        closes: Callable[[], None] = lambda: None,
        host: str = "a host",
    ) -> None:
        self.host = host
        self._answer, self._opens = answer, opens
        self.ready = ready or {}
        self.close = closes

    def call(self, name: str, arguments: Mapping[str, Any], within_s: float) -> Any:
        _held_to_protocol(name, arguments)
        return self._answer(name, **arguments)

    def begin(self, call: Callable[..., Any], within_s: float, **arguments: Any) -> Pending[Any]:
        assert self._opens is not None
        _held_to_protocol(call.__name__, arguments)
        opened = self._opens(call.__name__, **arguments)
        until_s = time.monotonic() + within_s

        def arrived() -> bool:
            there = opened.arrived()
            if not there and time.monotonic() > until_s:
                raise HostLostError(f"no answer to {call.__name__} for {within_s:.0f} s")
            return there

        return Pending(arrived, opened.result)

    def watched_by(self, watch: Callable[[], None]) -> Self:
        return self


def _held_to_protocol(name: str, arguments: Mapping[str, Any]) -> None:
    """The call takes these arguments, and they can be written on a line."""
    protocol.bound(name, arguments)
    json.dumps(arguments)
