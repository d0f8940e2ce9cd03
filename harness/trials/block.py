# SPDX-License-Identifier: MIT
"""The boots that a trial measures, side by side where they share a machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from harness.base.progress import Progress
    from harness.beds.access.channel import Pending
    from harness.beds.bed import RunningBed
    from harness.config import Bed, Load
    from harness.plan import PlannedTrial
    from harness.trials.readings import Trial


@dataclass(frozen=True)
class Taken:
    """The packets/s at IP that a receiver takes, and whether it was saturated at that rate."""

    pps: float
    saturated: bool

    def paced(self, share: float) -> int:
        """``share`` of that rate, in packets/s."""
        return max(1, round(share * self.pps))


class MeasuredBoot(Protocol):
    """A boot under way."""

    title: str
    trials: list[Trial]
    """What it has measured so far."""
    settings: dict[str, Any]

    @property
    def up(self) -> bool:
        """Is its bed up? After its kernel has died it is not."""

    @property
    def bed(self) -> RunningBed: ...


Blamed = Callable[[Any], AbstractContextManager[None]]
"""A context in which an error ends only that boot."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Boots that are up together, and the load on them."""

    boots: Sequence[MeasuredBoot]
    bed: Bed
    load: Load
    slice_s: float
    progress: Progress
    blamed: Blamed
    taken: Callable[[], Taken | None]
    """The rate that the receiver takes, the same for all boots; ``None``: not known."""

    @property
    def up(self) -> list[MeasuredBoot]:
        return [boot for boot in self.boots if boot.up]

    def side_by_side(
        self, trials: str, planned: Sequence[PlannedTrial]
    ) -> AbstractContextManager[object]:
        """Shows as progress that ``planned`` are measured in all boots."""
        return self.progress.task(f"{len(planned)} {trials} of {len(self.boots)} boots")

    def alone(
        self,
        name: str,
        planned: Sequence[PlannedTrial],
        measure: Callable[[MeasuredBoot, PlannedTrial], None],
    ) -> None:
        """Measure each trial in each boot while the others are frozen."""
        for trial in planned:
            number = f" {trial.index + 1}" * (len(planned) > 1)
            for boot in self.up:
                title = f"{boot.title}, {name}{number}"
                with self.blamed(boot), self._others_frozen(boot), self.progress.task(title):
                    measure(boot, trial)

    @contextlib.contextmanager
    def _others_frozen(self, boot: MeasuredBoot) -> Iterator[None]:
        others = [other for other in self.up if other is not boot]
        for other in others:
            other.bed.freeze()
        try:
            yield
        finally:
            for other in others:
                other.bed.thaw()

    def take_turns(self, pending: Mapping[MeasuredBoot, Pending[Any]]) -> None:
        """Run one boot at a time for a slice, in alternating order, until all have answered."""
        turn = list(pending)
        waiting = bool(turn)
        while waiting:
            for boot in turn:
                with self.blamed(boot):
                    boot.bed.thaw()
                    time.sleep(self.slice_s)
                    boot.bed.freeze()
            turn = [boot for boot in reversed(turn) if boot.up]
            waiting = False
            for boot in turn:
                with self.blamed(boot):
                    waiting |= not pending[boot].arrived()
