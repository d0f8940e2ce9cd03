# SPDX-License-Identifier: MIT
"""Progress of long work: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_LINE_EVERY_S = 30.0
_counting = threading.Lock()


class Task:
    """One task, counted in steps."""

    def __init__(self, title: str, total: int | None, bars: RichProgress | None) -> None:
        self.title, self.total, self.done = title, total, 0
        self._bars = bars
        self.id: TaskID | None = bars.add_task(title, total=total) if bars is not None else None
        self._said = time.monotonic()

    def advance(self, steps: int = 1) -> None:
        """Count ``steps`` more steps as done."""
        with _counting:
            self.done += steps
        if self._bars is not None and self.id is not None:
            self._bars.advance(self.id, steps)
        elif time.monotonic() - self._said >= _LINE_EVERY_S:
            self._said = time.monotonic()
            of = f" of {self.total}" if self.total else ""
            _line(f"{self.title}: {self.done}{of}")


class Progress:
    """Shows tasks; use it as a context manager around the whole work."""

    def __init__(self, *, bars: bool | None = None) -> None:
        self._want_bars = sys.stderr.isatty() if bars is None else bars
        self._bars: RichProgress | None = None
        self._of = ""

    def of(self, name: str) -> Progress:
        """The same, with ``name`` in front of all lines; for one of several threads."""
        named = copy.copy(self)
        named._of = f"{self._of}{name}: "
        return named

    def __enter__(self) -> Self:
        if self._want_bars:
            from rich import progress
            from rich.console import Console

            self._bars = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def say(self, text: str) -> None:
        """Print one line that stays."""
        text = self._of + text
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False)
        else:
            _line(text)

    @contextmanager
    def task(self, title: str, *, total: int | None = None) -> Iterator[Task]:
        """Show ``title`` as running; if it succeeds, a line with its duration stays."""
        started = time.monotonic()
        if self._bars is None:
            _line(f"{self._of}{title} …")
        task = Task(self._of + title, total, self._bars)
        try:
            yield task
            self.say(f"{title}: {time.monotonic() - started:.0f} s")
        finally:
            if self._bars is not None and task.id is not None:
                self._bars.remove_task(task.id)


def _line(text: str) -> None:
    print(f"{text}\n", end="", file=sys.stderr, flush=True)  # in one piece
