# SPDX-License-Identifier: MIT
"""Waits for a bed or a machine that somebody else uses, if the user asked for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from harness.base.errors import BusyError
from harness.base.progress import Progress

_ASK_EVERY_S = 5.0
_SAY_EVERY_S = 60.0

_T = TypeVar("_T")


def until_free(act: Callable[[], _T], *, wait_s: float | None, progress: Progress) -> _T:
    """What ``act`` returns, which is called again while it is refused as busy.

    For ``wait_s`` seconds at most; with ``None`` it is called once.

    Raises:
        BusyError: it is still busy.
    """
    if wait_s is None:
        return act()
    try:
        return act()
    except BusyError as error:
        busy = error
    until_s = time.monotonic() + wait_s
    said_s = time.monotonic()
    with progress.task(f"waiting: {busy.message}"):
        while (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(_ASK_EVERY_S, left_s))
            try:
                return act()
            except BusyError as error:
                busy = error
            if time.monotonic() - said_s > _SAY_EVERY_S:
                said_s = time.monotonic()
                progress.say(f"still waiting: {busy.message}")
        raise BusyError(f"{busy.message}; waited {wait_s:.0f} s", hint=busy.hint) from busy


def entered(
    up: contextlib.ExitStack,
    make: Callable[[], AbstractContextManager[_T]],
    *,
    wait_s: float | None,
    progress: Progress,
) -> _T:
    """What ``make`` makes, entered until ``up`` ends; waits as :func:`until_free`."""
    return until_free(lambda: up.enter_context(make()), wait_s=wait_s, progress=progress)
