# SPDX-License-Identifier: MIT
"""Two machines: leased, and booted in turn."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from harness.base.progress import Progress
from harness.beds.bed import BedKind, Boots, Wanted
from harness.beds.labgrid import Place
from harness.beds.machine import machines
from harness.config import Bed, Kernel, SshHost
from harness.kernels import HostConfig, Image, of_host
from harness.plan import LOOKS, SMOKE, Profile

_QUICK = Profile(
    name="quick",
    blocks=2,
    warmups=1,
    warmup_s=2.0,
    trials=3,
    window_s=5.0,
    trace_blocks=1,
    trace_s=3.0,
    layouts=2,
)
_STANDARD = Profile(
    name="standard",
    blocks=10,
    warmups=2,
    warmup_s=5.0,
    trials=5,
    window_s=10.0,
    trace_blocks=2,
    trace_s=5.0,
    layouts=10,
)
_THOROUGH = replace(_STANDARD, name="thorough", blocks=18, layouts=18, looks=LOOKS)


class Hardware(BedKind):
    """One boot at a time, from the machine's own disk."""

    here = False
    boot_s = 240
    profiles = {
        "smoke": SMOKE,
        "quick": _QUICK,
        "standard": _STANDARD,
        "thorough": _THOROUGH,
    }

    def opened(
        self,
        place: Place,
        image: Image,  # noqa: ARG002
        wanted: Wanted,
        progress: Progress,
    ) -> AbstractContextManager[Boots]:
        """When the context ends, the machines are left as they were found."""
        return machines.opened(
            place, campaign=wanted.campaign, directory=wanted.directory, progress=progress
        )

    def made_meanwhile(self, bed: Bed) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    def look_at(self, bed: Bed, kernel: Kernel, *, resumed: bool) -> None:
        machines.looked_at(bed, kernel, resumed=resumed)

    def host_config(self, bed: Bed, kernel: Kernel, *, resumed: bool) -> HostConfig | None:
        if not of_host(kernel, virtual=False):
            return None
        assert isinstance(bed.dut, SshHost)
        return machines.host_config(bed.dut_name, bed.dut, resumed=resumed)

    def changes(self) -> tuple[str, str]:
        return "kernels", "one per step is installed next to its own, and booted once a block"
