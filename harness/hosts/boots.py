# SPDX-License-Identifier: MIT
"""Where the boots of a campaign happen, by what its bed is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.config import Bed, QemuHost
from harness.hosts import machines, virtual
from harness.hosts.bed import Boots
from harness.kernels import Image
from harness.progress import Progress


@contextmanager
def opened(
    bed: Bed, image: Image, *, campaign: str, directory: Path, progress: Progress
) -> Iterator[Boots]:
    """Boots on ``bed`` for the campaign of that id, until the context ends.

    ``image`` is any of its kernels; ``directory`` takes what is kept beside the boots.

    Raises:
        InfrastructureError: what the bed needs cannot be had.
    """
    if isinstance(bed.dut, QemuHost):
        made_with = virtual.equipment(bed.dut, image, progress)
        yield virtual.VirtualBoots(bed=bed, equipment=made_with)
    else:
        with machines.opened(
            bed, campaign=campaign, directory=directory, progress=progress
        ) as boots:
            yield boots
