# SPDX-License-Identifier: MIT
"""Boots under way: brought up, measured (side by side if they share a machine), and written.

A boot ends normally, or with an error that its file keeps.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import plan, trials
from harness.base.errors import HarnessError, HostLostError, KernelError
from harness.base.progress import Progress
from harness.base.write_ahead import BEGIN, END, WriteAheadLog
from harness.beds.bed import Boots, RunningBed
from harness.campaign import pacing
from harness.campaign.prepare import prepare, put_back
from harness.config import Bed, Load
from harness.kernels import Image
from harness.results import samples
from harness.trials.block import Block, Taken
from harness.trials.load import end_load
from harness.trials.readings import Trial
from harness.vary import Varied


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything a campaign needs, resolved."""

    bed: Bed
    load: Load
    plan: plan.Plan
    images: Mapping[str, Sequence[Image]]
    """By step, its layouts; blocks use them in turn."""
    boots: Boots
    others: Sequence[tuple[Bed, Boots]] = ()
    """Further beds, if there are several."""
    varied: Varied = field(default_factory=Varied)
    """What is varied besides code."""

    def by_bed(self) -> list[Setup]:
        """One setup for each bed."""
        beds = [(self.bed, self.boots), *self.others]
        return [replace(self, bed=bed, boots=boots, others=()) for bed, boots in beds]


def image_of(setup: Setup, boot: plan.PlannedBoot) -> Image:
    """The kernel of ``boot``; all boots of a block have the same layout."""
    layouts = setup.images[boot.step]
    return setup.varied.image(layouts[(boot.block - 1) % len(layouts)], boot.step)


class BootUnderWay:
    """One boot under way: its bed while it is up, and what it has measured."""

    def __init__(
        self,
        planned: plan.PlannedBoot,
        *,
        root: Path,
        title: str,
        journal: WriteAheadLog,
        bed: str | None = None,
    ) -> None:
        self.planned = planned
        self._note = functools.partial(journal.note, planned.directory)
        self.title = title
        self.directory = samples.boot_directory(root, planned)
        self.root = root
        self.bed_name = bed
        self.release: str | None = None
        self.boot_id: str | None = None
        self.turns: str | None = None
        self.settings: dict[str, Any] = {}
        self.inventory: dict[str, Any] = {}
        self.link_mbps: dict[str, int | None] = {}
        self.placement_host: dict[str, Any] | None = None
        self.nic_model: dict[str, Any] | None = None
        self.trials: list[Trial] = []
        self._times_s: dict[str, float | None] = {}
        self._up = contextlib.ExitStack()
        self._bed: RunningBed | None = None
        self._started_s = time.monotonic()

    @property
    def bed(self) -> RunningBed:
        assert self._bed is not None
        return self._bed

    @property
    def up(self) -> bool:
        """Is its bed up?"""
        return self._bed is not None

    def bring_up(self, setup: Setup) -> None:
        """Boot its kernel, and set up its hosts."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self._started_s = time.monotonic()
        image = image_of(setup, self.planned)
        self._note(BEGIN)
        self._bed = self._up.enter_context(setup.boots.boot(image, self.directory, self._note))
        self._took("up")
        bed = setup.varied.bed(setup.bed, self.planned.step)
        wire = getattr(bed.dut, "wire", None)
        if wire and wire != getattr(setup.bed.dut, "wire", None):
            self.bed.set_wire(wire)
        prepare(bed, setup.load, image, self)
        setup.varied.require_made(self.planned.step, self.settings["dut"].get("skipped", ()))

    def finish(self, error: HarnessError | None = None) -> None:
        """Take the bed down and write the boot, as failed if there is an ``error``."""
        if isinstance(error, KernelError) and self._bed is not None:
            end_load(self._bed)
        self.close()
        self._took("all")
        boot = samples.Boot(
            block=self.planned.block,
            position=self.planned.position,
            step=self.planned.step,
            release=self.release,
            boot_id=self.boot_id,
            bed=self.bed_name,
            turns=self.turns,
            outcome="ok",
            inventory=self.inventory,
            settings=self.settings,
            placement_host=self.placement_host,
            trials=self.trials,
            nic_model=self.nic_model,
            link_mbps=self.link_mbps,
            times_s=self._times_s,
        )
        samples.write_boot(self.root, boot.failed(error) if error else boot)
        if not isinstance(error, HostLostError):  # its outcome is not known yet
            self._note(END)

    def close(self) -> None:
        self._bed = None
        self._up.close()

    def _took(self, what: str) -> None:
        self._times_s[what] = time.monotonic() - self._started_s


def measure_together(
    setup: Setup,
    boots: Sequence[BootUnderWay],
    failed: dict[str, KernelError],
    *,
    progress: Progress,
) -> None:
    """Bring up all ``boots``, measure them side by side, and write each.

    If a kernel dies, its boot ends and its step is added to ``failed``; the other boots
    continue. Any other error ends all boots.
    """

    @contextlib.contextmanager
    def blamed(boot: BootUnderWay) -> Iterator[None]:
        try:
            yield
        except HarnessError as error:
            boot.finish(error)
            if not isinstance(error, KernelError):
                raise
            failed[boot.planned.step] = error
            progress.say(f"{boot.title}: {error.message}")

    with contextlib.ExitStack() as up:
        for boot in boots:
            up.callback(boot.close)
            with blamed(boot), progress.task(boot.title):
                boot.bring_up(setup)
        block = Block(
            boots=boots,
            bed=setup.bed,
            load=setup.load,
            slice_s=setup.plan.profile.slice_s,
            progress=progress,
            blamed=blamed,
            taken=functools.cache(lambda: _taken(setup, boots)),
        )
        ordinal = setup.plan.ordinal(boots[0].planned.block)
        for kind, planned in trials.planned(setup.plan.profile, ordinal):
            kind.measure(block, planned)
        for boot in boots:
            if boot.up:
                with blamed(boot):
                    put_back(boot)
                    boot.finish()


def _taken(setup: Setup, boots: Sequence[BootUnderWay]) -> Taken | None:
    """The rate that the receiver takes, the same for all boots of a block."""
    cpu, up = setup.bed.placement.irq_cpu, [boot for boot in boots if boot.up]
    if up and not setup.plan.profile.slice_s:
        planned = [boot.planned for boot in boots]
        if kept := pacing.kept(up[0].root, setup.plan, planned[0].block, cpu, planned):
            return kept
    return pacing.slowest(
        pacing.taken(boot.trials, cpu, holdoff_us=samples.holdoff_us(boot.settings)) for boot in up
    )
