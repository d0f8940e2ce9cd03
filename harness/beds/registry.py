# SPDX-License-Identifier: MIT
"""Where the boots of a campaign happen, by what its bed is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from harness import images
from harness.base.errors import ConfigurationError
from harness.base.progress import Progress
from harness.beds import native, virtual
from harness.beds.bed import Boots
from harness.beds.labgrid import Place, acquired
from harness.beds.machine import machines
from harness.config import Bed, Kernel, QemuHost, SshHost, UmlHost
from harness.kernels import HostConfig, Image, of_host

__all__ = ["acquired", "kernel_config", "made_meanwhile", "opened"]


@contextmanager
def opened(
    place: Place,
    image: Image,
    *,
    campaign: str,
    directory: Path,
    progress: Progress,
    counting: bool = False,
) -> Iterator[Boots]:
    """Boots on the bed of ``place`` for the campaign of that id, until the context ends.

    ``image`` is any of its kernels; ``directory`` takes what is kept beside the boots;
    ``counting``: an emulator is to count what the kernel executes.

    Raises:
        InfrastructureError: what the bed needs cannot be had.
    """
    bed = place.bed
    if isinstance(bed.dut, QemuHost):
        made_with = virtual.equipment(bed.dut, image, progress, counts=counting)
        yield virtual.VirtualBoots(bed=bed, equipment=made_with)
    elif isinstance(bed.dut, UmlHost):
        yield native.NativeBoots(bed=bed, equipment=native.equipment(progress))
    else:
        with machines.opened(
            place, campaign=campaign, directory=directory, progress=progress
        ) as boots:
            yield boots


def made_meanwhile(bed: Bed) -> AbstractContextManager[None]:
    """Make what ``bed`` needs beside kernels, if it is not kept yet, while these are built."""
    return nullcontext() if bed.kind == "hardware" else images.made_meanwhile()


def kernel_config(kernel: Kernel, *beds: Bed, resumed: bool = False) -> HostConfig | None:
    """What the kernels for all of ``beds`` are configured after, if it is the duts' own kernel.

    Machines are looked at first, whatever it is: what is wrong with one is told before building.

    Raises:
        InfrastructureError: a machine cannot be asked, or has no room.
        ConfigurationError: their kernels are not configured alike, or a machine is not as
            hosts.yaml says.
    """
    for bed in beds:
        if bed.kind == "hardware":
            machines.looked_at(bed, kernel, resumed=resumed)
    found: HostConfig | None = None
    for bed in beds:
        if not of_host(kernel, virtual=bed.kind != "hardware"):
            return None
        assert isinstance(bed.dut, SshHost)
        own = machines.host_config(bed.dut_name, bed.dut, resumed=resumed)
        if found not in (None, own):
            raise ConfigurationError(
                f"the kernels of {beds[0].dut_name} and {bed.dut_name} are not configured alike",
                hint="name a .config that both boot with as kernel.config in hosts.yaml",
            )
        found = own
    return found
