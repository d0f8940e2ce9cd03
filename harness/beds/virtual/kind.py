# SPDX-License-Identifier: MIT
"""QEMU guests on this machine, with the NIC model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from harness.base.progress import Progress
from harness.beds.bed import Boots, Wanted
from harness.beds.labgrid import Place
from harness.beds.local.boots import LocalBoots, LocalKind, measuring
from harness.beds.virtual import equipment, virtual_bed
from harness.config import QemuHost
from harness.kernels import Image
from harness.plan import LOOKS, SMOKE, Profile

_SLICE_S = 0.3
_QUICK = Profile(
    name="quick",
    blocks=2,
    warmups=1,
    warmup_s=1.0,
    trials=3,
    window_s=3.0,
    trace_blocks=1,
    trace_s=2.0,
    slice_s=_SLICE_S,
    layouts=2,
)
_STANDARD = replace(
    _QUICK,
    name="standard",
    blocks=8,  # with seven, the two counts of --also icache cannot be decided
    warmup_s=2.0,
    trials=5,
    window_s=5.0,
    trace_blocks=2,
    trace_s=3.0,
    layouts=8,
)
_THOROUGH = replace(_STANDARD, name="thorough", blocks=18, layouts=18, looks=LOOKS)


class Virtual(LocalKind):
    """Boots of a block are up together."""

    boot_s = 28
    noise = (0.018, "one campaign without KVM of 2026-11-23")
    profiles = {
        "smoke": replace(SMOKE, slice_s=_SLICE_S),
        "quick": _QUICK,
        "standard": _STANDARD,
        "thorough": _THOROUGH,
    }

    def label(self, accelerator: str | None) -> str:
        return f"virtual bed, {(accelerator or 'emulated').upper()}: not a hardware figure"

    @contextmanager
    def opened(
        self, place: Place, image: Image, wanted: Wanted, progress: Progress
    ) -> Iterator[Boots]:
        """Guests end with the harness, and leave nothing behind."""
        assert isinstance(place.bed.dut, QemuHost)
        made_with = equipment(place.bed.dut, image, progress, counts=wanted.counting)
        with measuring(progress, alone=wanted.alone):
            yield LocalBoots(
                lambda kernel, directory: virtual_bed(place.bed, kernel, made_with, directory),
                accelerator=made_with.accelerator,
            )
