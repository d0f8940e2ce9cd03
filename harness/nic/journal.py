# SPDX-License-Identifier: MIT
"""The model's event counts and its log.

Every error of an access is counted under a name; only the first few of a kind are
logged, because a guest can repeat them forever.
"""

from __future__ import annotations

import logging
from collections import Counter

_LOGGED_PER_KIND = 20

log = logging.getLogger("harness.nic")


class Journal:
    """Named event counts with a bounded log. Shared by all parts of one model."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._mistakes: set[tuple[str, str]] = set()

    def count(self, name: str, number: int = 1) -> None:
        self.counts[name] += number

    def note(self, name: str, message: str, *values: object) -> None:
        """Count ``name`` once and log ``message`` for the first few of its kind."""
        self._log(logging.WARNING, name, message, *values)

    def tell(self, name: str, message: str, *values: object) -> None:
        """The same for events that are not errors, which a guest can also repeat forever."""
        self._log(logging.INFO, name, message, *values)

    def _log(self, level: int, name: str, message: str, *values: object) -> None:
        self.counts[name] += 1
        seen = self.counts[name]
        if seen <= _LOGGED_PER_KIND:
            log.log(level, "%s: " + message, name, *values)  # noqa: G003
            if seen == _LOGGED_PER_KIND:
                log.log(level, "%s: no more of these are logged", name)

    def mistake(self, error: Exception) -> None:
        """Count an exception that only a bug of the model can raise.

        Logged once per type and place, because a guest or a sender can repeat it forever.
        """
        self.counts["internal_errors"] += 1
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
        kind = (type(error).__name__, where)
        if kind not in self._mistakes and len(self._mistakes) < _LOGGED_PER_KIND:
            self._mistakes.add(kind)
            log.error("internal error (counted from now on)", exc_info=error)
