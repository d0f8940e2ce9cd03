# SPDX-License-Identifier: MIT
"""A native bed: the kernel under test is a process of this machine, at native speed.

Hides the order in which namespace, NIC model and kernel start and end, and the CPU of each.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import images
from harness.base.errors import ConfigurationError
from harness.base.progress import Progress
from harness.beds.access.channel import Pending
from harness.beds.local.boots import named_cpus
from harness.beds.local.nic_model import (
    NETPERF_NICE,
    ModelledBed,
    SendingSide,
    load_nice,
    sending_side,
)
from harness.beds.native import sampling
from harness.beds.native.counting import OutsideProbes
from harness.beds.native.elf import Elf
from harness.beds.native.sender import SendingKernel, sending_kernel
from harness.beds.native.uml import UserModeKernel
from harness.config import Bed, MachineCpus, UmlHost
from harness.images import GuestImage, Tools
from harness.kernels import Image


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """What all boots of a campaign on a native bed use."""

    disk: GuestImage
    sender: Tools | Image
    """The netperf of a generator in a namespace, or the kernel of one that is a kernel itself:
    the guest image has a netperf."""


def equipment(progress: Progress, sender: Image | None = None) -> Equipment:
    """What a native bed needs in addition to kernels, from the cache or made now.

    ``sender`` is the kernel of its generator, if that is no namespace.
    """
    return Equipment(
        sender=sender or images.tools(progress), disk=images.guest_image(progress, by_ssh=False)
    )


@dataclass(kw_only=True)
class NativeBed(ModelledBed):
    """A user-mode kernel and its load."""

    kernel: UserModeKernel
    outside: OutsideProbes
    image: Image

    def freeze(self) -> None:
        self.kernel.freeze()
        if isinstance(self.generator, SendingKernel):
            self.generator.freeze()  # before the model, which it may be waiting for
            self.nic.freeze()
        else:
            self.nic.freeze()
            self.generator.netperf_pause()

    def thaw(self) -> None:
        """The load comes first, so that the kernel finds packets at once."""
        if isinstance(self.generator, SendingKernel):
            self.generator.thaw()
        else:
            self.generator.netperf_resume()
        self.nic.thaw()
        self.kernel.thaw()

    @property
    def probes(self) -> OutsideProbes:
        return self.outside

    def trace(self, duration_s: float, within_s: float) -> Pending[dict[str, Any]]:
        return self.outside.begin(self.dut_interface, duration_s, within_s)

    def sampled(self, duration_s: float, cpu: int) -> Counter[str]:  # noqa: ARG002 (it has one)
        return sampling.sampled(self.kernel, self._program, duration_s)

    @cached_property
    def _program(self) -> Elf:
        return Elf(self.image.kernel)

    def console(self) -> str:
        return self.kernel.console()


@contextmanager
def native_bed(
    bed: Bed, image: Image, equipment: Equipment, directory: Path, *, program: str | None = None
) -> Iterator[NativeBed]:
    """Start ``bed`` with the dut on ``image``; everything of it ends with the context.

    ``directory`` keeps the console and the logs. For ``program`` see :class:`UserModeKernel`.
    """
    assert isinstance(bed.dut, UmlHost)
    cpus = machine_cpus(bed)
    directory.mkdir(parents=True, exist_ok=True)
    sender = equipment.sender
    with contextlib.ExitStack() as up:
        side = up.enter_context(_sending_side(bed, equipment, directory, cpus=cpus))
        kernel = UserModeKernel(
            image,
            equipment.disk,
            host=bed.dut_name,
            memory_mib=bed.dut.memory_mib,
            nic_socket=side.nic_socket,
            cpu=cpus.vcpus[0],
            directory=directory,
            runtime=side.runtime,
            watch=side.model.check,
            program=program,
        )
        up.callback(kernel.stop)
        outside = OutsideProbes(kernel, image.kernel)
        yield NativeBed(
            dut=kernel,
            generator=side.agent,
            dut_interface=kernel.inventory(mac=bed.dut.nic.mac)["interface"],
            dut_mac=bed.dut.nic.mac,
            generator_interface=side.interface,
            generator_mac=side.mac,
            netperf_prefix=[] if isinstance(sender, Image) else sender.netperf_prefix(),
            netperf_cpus=[0] if isinstance(sender, Image) else list(cpus.netperf),
            netperf_nice=NETPERF_NICE,
            placed={
                "kernel": [cpus.vcpus[0]],
                "nic_model": [cpus.model],
                "netperf": [cpus.netperf[0]] if isinstance(sender, Image) else list(cpus.netperf),
                "netperf_nice": NETPERF_NICE,
                "load_nice": load_nice(bed.dut.wire),
                "generator_kernel": sender.release if isinstance(sender, Image) else None,
            },
            nic=side.model,
            kernel=kernel,
            outside=outside,
            image=image,
        )


def _sending_side(
    bed: Bed, equipment: Equipment, directory: Path, *, cpus: MachineCpus
) -> AbstractContextManager[SendingSide]:
    """The generator of ``bed`` and the NIC model, each on its CPU."""
    assert isinstance(bed.dut, UmlHost)
    if not isinstance(bed.generator, UmlHost):
        return sending_side(bed.dut, directory, cpu=cpus.model, vhost_user=True)
    assert isinstance(equipment.sender, Image)
    return sending_kernel(
        bed.generator,
        equipment.sender,
        equipment.disk,
        directory,
        name=bed.generator_name,
        dut_mac=bed.dut.nic.mac,
        cpus=(cpus.model, cpus.netperf[0]),
        nice=load_nice(bed.dut.wire),
        delivery=bed.dut.wire,
    )


def machine_cpus(bed: Bed) -> MachineCpus:
    """The CPUs for kernel, NIC model and netperf; the kernel has one for itself.

    Raises:
        ConfigurationError: there is only one CPU, or hosts.yaml names one that this
            process may not use or gives the kernel's to another process.
    """
    mine = sorted(os.sched_getaffinity(0))
    if not isinstance(bed.cpus, MachineCpus):
        if len(mine) < 2:
            raise ConfigurationError(
                f"bed {bed.name} needs two CPUs, but this process may use only CPU {mine[0]}",
                hint="the kernel under test has one for itself, NIC model and netperf the other; "
                "check taskset, or the cpus of your container; --bed virtual needs only one",
            )
        return MachineCpus(vcpus=(mine[0],), model=mine[1], netperf=tuple(mine[2:] or mine[1:2]))
    cpus = named_cpus(bed, bed.cpus, mine)
    if cpus.vcpus[0] in (cpus.model, *cpus.netperf):
        raise ConfigurationError(
            f"beds.{bed.name}.cpus gives CPU {cpus.vcpus[0]} to the kernel and to another process",
            hint="give NIC model and netperf other CPUs than vcpus, or set cpus: auto",
        )
    return cpus
