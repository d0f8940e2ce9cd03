# SPDX-License-Identifier: MIT
"""A virtual bed: a guest with a NIC model, a namespace that loads it, the wire between them.

Hides the order in which namespace, NIC model and guest come up and go down, and
how they share this machine's CPUs so that none starves another.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import images
from harness.base import process as process
from harness.base import runtime as runtime
from harness.base.errors import ConfigurationError
from harness.base.errors import InfrastructureError as InfrastructureError
from harness.base.progress import Progress
from harness.beds.bed import Block, RunningBed
from harness.beds.bed import Boots as Boots
from harness.beds.local import netns
from harness.beds.local.nic_model import NETPERF_NICE, NicModel, sending_side
from harness.beds.virtual import icache, qemu
from harness.config import Bed, MachineCpus, NetnsHost, QemuHost
from harness.images import GuestImage, Tools
from harness.kernels.build import Image


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """What a virtual bed is made with; the same for every boot of a campaign."""

    disk: GuestImage
    tools: Tools
    accelerator: str
    icache: Path | None = None
    """A plugin of the emulator, if that is to count instructions."""


def equipment(
    host: QemuHost, image: Image, progress: Progress, *, counts: bool = False
) -> Equipment:
    """What a virtual bed of ``host`` needs, made if it is not kept yet.

    ``image`` is any kernel: the accelerator is proven by booting it. A bed that ``counts``
    has an emulator that can count instructions.

    Raises:
        ConfigurationError: it is to count, and there is no emulator.
    """
    tools = images.tools(progress)
    accelerator = qemu.accelerator_that_works(host.accelerator, image=image, tools=tools)
    if counts and accelerator != "tcg":
        raise ConfigurationError(
            f"instructions are counted by an emulator, and the guest runs by {accelerator.upper()}",
            hint="say accelerator: tcg for the dut in hosts.yaml, or leave --also icache out",
        )
    return Equipment(
        disk=images.guest_image(progress),
        tools=tools,
        accelerator=accelerator,
        icache=icache.plugin() if counts else None,
    )


@dataclass(kw_only=True)
class VirtualBed(RunningBed):
    """A guest and its load, up and reached."""

    nic: NicModel
    guest: qemu.Guest

    def freeze(self) -> None:
        """Stop guest and load where they are, so that another bed has the machine."""
        self.guest.freeze()
        self.generator.netperf_pause()

    def thaw(self) -> None:
        """Let both go on."""
        self.guest.thaw()
        self.generator.netperf_resume()

    def nic_counters(self) -> dict[str, Any]:
        """The model's own."""
        return self.nic.counters()

    def executed(self) -> list[Block]:
        """What the guest did while it was counted last."""
        return icache.blocks(self.guest.runtime)

    def console(self) -> str:
        """All that the guest wrote so far."""
        return self.guest.console()


@contextmanager
def virtual_bed(
    bed: Bed, image: Image, equipment: Equipment, directory: Path
) -> Iterator[VirtualBed]:
    """Bring up ``bed`` with the dut on ``image``; on leaving nothing of it remains.

    ``directory`` keeps console, logs and what the model said.
    """
    assert isinstance(bed.dut, QemuHost)
    assert isinstance(bed.generator, NetnsHost)
    cpus = machine_cpus(bed)
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as up:
        side = up.enter_context(sending_side(bed.dut.nic.mac, directory, cpu=cpus.model))
        guest = qemu.start(
            bed.dut,
            image=image,
            disk=equipment.disk,
            tools=equipment.tools,
            accelerator=equipment.accelerator,
            nic_socket=side.nic_socket,
            directory=directory,
            runtime=side.runtime,
            icache_plugin=equipment.icache,
        )
        up.callback(guest.stop)

        def watch() -> None:
            guest.check()
            side.model.check()

        guest.wait_for_ssh()
        others = sorted({cpus.model, *cpus.netperf} - {cpus.vcpus[0]}) or [cpus.model]
        guest.pin(cpus.vcpus, others)
        dut = guest.ssh.start_agent(host=bed.dut_name, log=directory / "dut-agent.log", watch=watch)
        up.callback(dut.kill)
        yield VirtualBed(
            dut=dut,
            generator=side.namespace.agent,
            dut_interface=dut.inventory(mac=bed.dut.nic.mac)["interface"],
            dut_mac=bed.dut.nic.mac,
            generator_interface=netns.INTERFACE,
            generator_mac=side.namespace.mac,
            netperf_prefix=equipment.tools.netperf_prefix(),
            netperf_cpus=list(cpus.netperf),
            netperf_nice=NETPERF_NICE,
            placed={
                "vcpu_threads": [cpus.vcpus[i % len(cpus.vcpus)] for i in range(bed.dut.vcpus)],
                "qemu_other_threads": others,
                "nic_model": [cpus.model],
                "netperf": list(cpus.netperf),
                "netperf_nice": NETPERF_NICE,
            },
            nic=side.model,
            guest=guest,
        )


def machine_cpus(bed: Bed) -> MachineCpus:
    """Where vCPU threads, NIC model and netperf go on this machine.

    The vCPU that receives gets a CPU for itself where there are three. With two, the
    model and netperf share the second, and one stream of ten the first: it takes at
    most two fifths of it. So the load is always more than the guest can take, or
    the rate of a faster kernel would be the generator's.

    Raises:
        ConfigurationError: hosts.yaml names a CPU this process may not use.
    """
    mine = sorted(os.sched_getaffinity(0))
    if not isinstance(bed.cpus, MachineCpus):
        first, second, third = mine[0], mine[min(1, len(mine) - 1)], mine[min(2, len(mine) - 1)]
        netperf = mine[3:] or [third] * 9 + [first] * (third != first and len(mine) == 2)
        return MachineCpus(vcpus=(first, second), model=third, netperf=tuple(netperf))
    if missing := {*bed.cpus.vcpus, bed.cpus.model, *bed.cpus.netperf} - set(mine):
        raise ConfigurationError(
            f"beds.{bed.name}.cpus names {sorted(missing)}, which this process may not use",
            hint=f"it may use {mine}; or say cpus: auto",
        )
    return bed.cpus
