# SPDX-License-Identifier: MIT
"""A virtual bed: a guest with a NIC model, a namespace that sends to it, the wire between them.

Hides the order in which namespace, NIC model and guest start and end, and how they share
this machine's CPUs so that none starves.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import images
from harness.base.errors import ConfigurationError
from harness.base.progress import Progress
from harness.beds.bed import Block
from harness.beds.bed import RunningBed as RunningBed
from harness.beds.local.boots import named_cpus
from harness.beds.local.nic_model import NETPERF_NICE, ModelledBed, sending_side
from harness.beds.virtual import icache, qemu
from harness.beds.virtual.qemu import Equipment as Equipment
from harness.config import Bed, MachineCpus, NetnsHost, QemuHost
from harness.kernels.build import Image


def equipment(
    host: QemuHost, image: Image, progress: Progress, *, counts: bool = False
) -> Equipment:
    """What a virtual bed of ``host`` needs, from the cache or made now.

    ``image`` is any kernel, to prove the accelerator by a boot. With ``counts`` the
    emulator counts instructions.

    Raises:
        ConfigurationError: ``counts`` is set and the guest runs without an emulator.
    """
    tools = images.tools(progress)
    accelerator = qemu.accelerator_that_works(host.accelerator, image=image, tools=tools)
    if counts and accelerator != "tcg":
        raise ConfigurationError(
            f"only an emulator counts instructions, and the guest runs on {accelerator.upper()}",
            hint="set accelerator: tcg for the dut in hosts.yaml, or omit --also icache",
        )
    return Equipment(
        disk=images.guest_image(progress),
        tools=tools,
        accelerator=accelerator,
        icache=icache.plugin() if counts else None,
    )


@dataclass(kw_only=True)
class VirtualBed(ModelledBed):
    """A guest and its load."""

    guest: qemu.Guest

    def freeze(self) -> None:
        """The model stops, too: it would go on to repeat frames, and count them as lost."""
        self.guest.freeze()
        self.nic.freeze()
        self.generator.netperf_pause()

    def thaw(self) -> None:
        self.nic.thaw()
        self.guest.thaw()
        self.generator.netperf_resume()

    def executed(self) -> list[Block]:
        return icache.blocks(self.guest.runtime)

    def console(self) -> str:
        return self.guest.console()


@contextmanager
def virtual_bed(
    bed: Bed, image: Image, equipment: Equipment, directory: Path
) -> Iterator[VirtualBed]:
    """Start ``bed`` with the dut on ``image``; everything of it ends with the context.

    ``directory`` keeps the console and the logs.
    """
    assert isinstance(bed.dut, QemuHost)
    assert isinstance(bed.generator, NetnsHost)
    cpus = machine_cpus(bed)
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as up:
        side = up.enter_context(sending_side(bed.dut, directory, cpu=cpus.model))
        guest = qemu.start(
            bed.dut,
            equipment,
            image=image,
            nic_socket=side.nic_socket,
            directory=directory,
            runtime=side.runtime,
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
            generator=side.agent,
            dut_interface=dut.inventory(mac=bed.dut.nic.mac)["interface"],
            dut_mac=bed.dut.nic.mac,
            generator_interface=side.interface,
            generator_mac=side.mac,
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
    """The CPUs for vCPU threads, NIC model and netperf.

    With three CPUs the receiving vCPU has one for itself. With two, the model and
    netperf share the second; one stream of ten runs on the first and takes at most
    two fifths of it. So the load always exceeds what the guest can take. Otherwise
    the measured rate of a fast kernel would be the generator's.

    Raises:
        ConfigurationError: hosts.yaml names a CPU that this process may not use.
    """
    mine = sorted(os.sched_getaffinity(0))
    if isinstance(bed.cpus, MachineCpus):
        return named_cpus(bed, bed.cpus, mine)
    first, second, third = mine[0], mine[min(1, len(mine) - 1)], mine[min(2, len(mine) - 1)]
    netperf = mine[3:] or [third] * 9 + [first] * (third != first and len(mine) == 2)
    return MachineCpus(vcpus=(first, second), model=third, netperf=tuple(netperf))
