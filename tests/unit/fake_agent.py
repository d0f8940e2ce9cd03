# SPDX-License-Identifier: MIT
"""An agent that answers as a test says. The calls it is asked are held to the protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from harness.agent import protocol
from harness.beds.access.channel import Asked, Pending


class FakeAgent(Asked):
    """``answer(name, **arguments)`` gives each answer, ``opens`` the calls that are begun."""

    def __init__(
        self,
        answer: Callable[..., Any],
        *,
        opens: Callable[..., Pending[Any]] | None = None,
        ready: Mapping[str, Any] | None = None,
    ) -> None:
        self._answer, self._opens = answer, opens
        self.ready = ready or {}

    def call(self, name: str, arguments: Mapping[str, Any], within_s: float) -> Any:
        protocol.bound(name, arguments)
        return self._answer(name, **arguments)

    def begin(self, call: Callable[..., Any], within_s: float, **arguments: Any) -> Pending[Any]:
        assert self._opens is not None
        protocol.bound(call.__name__, arguments)
        return self._opens(call.__name__, **arguments)

    def watched_by(self, watch: Callable[[], None]) -> Self:
        return self

    def close(self) -> None:
        pass
