# SPDX-License-Identifier: MIT
"""Waits for a bed or a machine that somebody else uses, if the user asked for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

from harness.base.errors import BusyError
from harness.base.progress import Progress

_ASK_EVERY_S = 5.0
_SAY_EVERY_S = 60.0

_T = TypeVar("_T")


@dataclass(frozen=True)
class Waiting:
    """How long a user waits for what is busy."""

    progress: Progress
    wait_s: float | None = None
    """``None``: not at all."""

    @property
    def alone(self) -> bool:
        """Does he want to have this machine for himself?"""
        return self.wait_s is not None

    def until_free(self, act: Callable[[], _T]) -> _T:
        """What ``act`` returns, which is called again while it is refused as busy.

        Raises:
            BusyError: it is still busy.
        """
        try:
            return act()
        except BusyError as error:
            if self.wait_s is None:
                raise
            busy = error
        said_s = time.monotonic()
        until_s = said_s + self.wait_s
        with self.progress.task(f"waiting: {busy.message}"):
            while (left_s := until_s - time.monotonic()) > 0:
                time.sleep(min(_ASK_EVERY_S, left_s))
                try:
                    return act()
                except BusyError as error:
                    busy = error
                if time.monotonic() - said_s > _SAY_EVERY_S:
                    said_s = time.monotonic()
                    self.progress.say(f"still waiting: {busy.message}")
            waited = f"{busy.message}; waited {self.wait_s:.0f} s"
            raise BusyError(waited, hint=busy.hint) from busy

    def entered(
        self, up: contextlib.ExitStack, make: Callable[[], AbstractContextManager[_T]]
    ) -> _T:
        """What ``make`` makes, entered until ``up`` ends."""
        return self.until_free(lambda: up.enter_context(make()))
