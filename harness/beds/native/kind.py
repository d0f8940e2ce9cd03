# SPDX-License-Identifier: MIT
"""User-mode kernels: processes of this machine, with the NIC model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from harness import images
from harness.base import namespaces
from harness.base.progress import Progress
from harness.beds.bed import Boots, Wanted
from harness.beds.labgrid import Place
from harness.beds.local.boots import LocalBoots, LocalKind, measuring
from harness.beds.native import equipment, native_bed
from harness.config import Bed, NetnsHost, Nic, UmlHost
from harness.config.addresses import GENERATOR_MAC
from harness.kernels import Image
from harness.plan import LOOKS, SMOKE, Profile

_SLICE_S = 0.03
"""Short, because other load on this machine changes a process's rate within seconds."""
_QUICK = Profile(
    name="quick",
    blocks=8,
    warmups=0,  # before the first trial, the load has become steady
    warmup_s=0.0,
    trials=3,
    window_s=0.7,
    trace_blocks=1,
    trace_s=1.0,
    slice_s=_SLICE_S,
    layouts=8,
)
"""Eight blocks, each in a layout of its own: one more than the fewest that decide both families
of the default steps, the series and the tree as it ships."""

_STANDARD = replace(_QUICK, name="standard", blocks=12, trials=5, window_s=2.0, layouts=12)


class Native(LocalKind):
    """Boots of a block are up together. um has no kprobes, so lists are counted from outside."""

    boot_s = 5
    noise = (0.036, "the median of 15 comparisons in five campaigns of 2026-11-30: 2.2 to 5.3 %")
    profiles = {
        "smoke": replace(SMOKE, slice_s=_SLICE_S),
        "quick": _QUICK,
        "standard": _STANDARD,
        "thorough": replace(_STANDARD, name="thorough", blocks=18, layouts=18, looks=LOOKS),
    }

    def possible(self, bed: Bed) -> Bed:
        """With a kernel as generator where a namespace with netperf cannot be made."""
        if not isinstance(bed.generator, NetnsHost) or not _no_namespace():
            return bed
        assert isinstance(bed.dut, UmlHost)
        kernel = UmlHost(
            kind="uml",
            address=bed.generator.address,
            memory_mib=bed.dut.memory_mib,
            nic=Nic(mac=GENERATOR_MAC),
        )
        return bed.model_copy(update={"generator": kernel})

    def label(self, accelerator: str | None) -> str:  # noqa: ARG002
        return "native, user-mode kernel: not a hardware figure"

    @contextmanager
    def opened(
        self,
        place: Place,
        image: Image,
        wanted: Wanted,
        progress: Progress,
    ) -> Iterator[Boots]:
        """Kernels end with the harness, and leave nothing behind."""
        sends = isinstance(place.bed.generator, UmlHost)
        if sends:
            why = f", because {refused}" if (refused := _no_namespace()) else ""
            progress.say(
                f"{place.bed.generator_name}: netperf runs in a second user-mode kernel "
                f"({image.release}){why}"
            )
        made_with = equipment(progress, image if sends else None)
        with measuring(progress, alone=wanted.alone):
            yield LocalBoots(
                lambda kernel, directory: native_bed(place.bed, kernel, made_with, directory)
            )


def _no_namespace() -> str | None:
    """Why netperf cannot be run in a network namespace here; None: it can."""
    if why := namespaces.refused():
        return why
    if images.kept_tools() is None and (why := images.refused()):
        return f"the tools root with netperf cannot be made: {why}"
    return None
