# SPDX-License-Identifier: MIT
"""How a call of the agent fails: a kind the controller maps to its own error classes."""

from __future__ import annotations

import contextlib
import importlib
import struct
from collections.abc import Iterator
from types import ModuleType
from typing import Literal

from . import packages

Kind = Literal["infrastructure", "configuration", "void"]


class AgentError(Exception):
    """A call that could not be done; ``hint`` is the way out where one is known."""

    def __init__(self, message: str, *, kind: Kind = "infrastructure", hint: str | None = None):
        super().__init__(message)
        self.kind: Kind = kind
        self.hint = hint


class ControllerGone(BaseException):
    """Nobody is left to answer: stdin ended, or a signal asked the agent to stop.

    The normal end of an agent and no failure of the call it ends, as KeyboardInterrupt is none.
    """


@contextlib.contextmanager
def parsing(what: str) -> Iterator[None]:
    """Whatever a parser stumbles over is an AgentError that names ``what``; also a decorator."""
    try:
        yield
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError, struct.error) as e:
        raise AgentError(f"{what} is not as expected: {type(e).__name__}: {e!s:.200}") from e


def need(module: str) -> ModuleType:
    """The third-party ``module``, imported when first used.

    Raises:
        AgentError: it is not installed; the hint names this distribution's package.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise AgentError(
            f"this host's python3 cannot import {module}: {error}",
            hint=packages.hint(module),
        ) from error
