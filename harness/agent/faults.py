# SPDX-License-Identifier: MIT
"""Errors of the agent's calls; the controller maps the kind to its own error classes."""

from __future__ import annotations

import contextlib
import importlib
import struct
from collections.abc import Iterator
from types import ModuleType
from typing import Literal

from . import packages

Kind = Literal["infrastructure", "busy", "configuration", "void"]


class AgentError(Exception):
    """A failed call; ``hint`` says how to fix the cause, if known."""

    def __init__(self, message: str, *, kind: Kind = "infrastructure", hint: str | None = None):
        super().__init__(message)
        self.kind: Kind = kind
        self.hint = hint


class ControllerGone(BaseException):
    """The normal end of an agent: stdin ended, or a signal asked it to stop.

    Like KeyboardInterrupt, it is not a failure of the call that it ends.
    """


@contextlib.contextmanager
def parsing(what: str) -> Iterator[None]:
    """Turn a parser's exceptions into an AgentError that names ``what``; also a decorator."""
    try:
        yield
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError, struct.error) as e:
        raise AgentError(f"cannot parse {what}: {type(e).__name__}: {e!s:.200}") from e


def need(module: str) -> ModuleType:
    """The third-party ``module``, imported when first used.

    Raises:
        AgentError: it is not installed; the hint names the package.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise AgentError(
            f"this host's python3 cannot import {module}: {error}",
            hint=packages.hint(module),
        ) from error
