# SPDX-License-Identifier: MIT
"""A native bed: the kernel under test is a process of this machine, and receives at its speed.

Hides the order in which namespace, NIC model and kernel come up and go down, and which
CPU each of them has.
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
from harness.base.errors import ConfigurationError
from harness.base.progress import Progress
from harness.beds.bed import Boots as Boots
from harness.beds.bed import RunningBed
from harness.beds.local import netns
from harness.beds.local.nic_model import NETPERF_NICE, NicModel, sending_side
from harness.beds.native.uml import UserModeKernel
from harness.config import Bed, MachineCpus, NetnsHost, UmlHost
from harness.images import GuestImage, Tools
from harness.kernels import Image

_REPEATED_NICE = 10
"""Of the load where the wire repeats it: netperf says what is delivered, not how fast."""


@dataclass(frozen=True, kw_only=True)
class Equipment:
    """What a native bed is made with; the same for every boot of a campaign."""

    disk: GuestImage
    tools: Tools


def equipment(progress: Progress) -> Equipment:
    """What a native bed needs beside kernels, made if it is not kept yet."""
    return Equipment(tools=images.tools(progress), disk=images.guest_image(progress))


@dataclass(kw_only=True)
class NativeBed(RunningBed):
    """A user-mode kernel and its load, up and reached."""

    nic: NicModel
    kernel: UserModeKernel

    def freeze(self) -> None:
        """Stop kernel, NIC and load where they are, so that another bed has the machine."""
        self.kernel.freeze()
        self.nic.freeze()
        self.generator.netperf_pause()

    def thaw(self) -> None:
        """Let all of them go on, the load first: the kernel finds packets at once."""
        self.generator.netperf_resume()
        self.nic.thaw()
        self.kernel.thaw()

    def nic_counters(self) -> dict[str, Any]:
        """The model's own."""
        return self.nic.counters()

    def console(self) -> str:
        """All that the kernel printed so far."""
        return self.kernel.console()


@contextmanager
def native_bed(
    bed: Bed, image: Image, equipment: Equipment, directory: Path
) -> Iterator[NativeBed]:
    """Bring up ``bed`` with the dut on ``image``; on leaving nothing of it remains.

    ``directory`` keeps console, logs and what the model said.
    """
    assert isinstance(bed.dut, UmlHost)
    assert isinstance(bed.generator, NetnsHost)
    cpus = machine_cpus(bed)
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as up:
        nice = NETPERF_NICE if bed.dut.wire.repeat == 1 else _REPEATED_NICE
        side = up.enter_context(
            sending_side(
                bed.dut.nic.mac,
                directory,
                cpu=cpus.model,
                nice=nice,
                vhost_user=True,
                options=wire_options(bed.dut),
            )
        )
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
        )
        up.callback(kernel.stop)
        yield NativeBed(
            dut=kernel,
            generator=side.namespace.agent,
            dut_interface=kernel.inventory(mac=bed.dut.nic.mac)["interface"],
            dut_mac=bed.dut.nic.mac,
            generator_interface=netns.INTERFACE,
            generator_mac=side.namespace.mac,
            netperf_prefix=equipment.tools.netperf_prefix(),
            netperf_cpus=list(cpus.netperf),
            netperf_nice=NETPERF_NICE,
            placed={
                "kernel": [cpus.vcpus[0]],
                "nic_model": [cpus.model],
                "netperf": list(cpus.netperf),
                "netperf_nice": NETPERF_NICE,
                "load_nice": nice,
            },
            nic=side.model,
            kernel=kernel,
        )


def wire_options(host: UmlHost) -> list[str]:
    """What the NIC model of ``host`` is told of its wire."""
    wire = host.wire
    told = ["--repeat", "0" if wire.repeat == "auto" else str(wire.repeat)]
    return told if wire.burst is None else [*told, "--burst", str(wire.burst)]


def machine_cpus(bed: Bed) -> MachineCpus:
    """Where kernel, NIC model and netperf go: the kernel has a CPU that it shares with none.

    Raises:
        ConfigurationError: there is one CPU only, or hosts.yaml names one that this
            process may not use or gives the kernel's to another.
    """
    mine = sorted(os.sched_getaffinity(0))
    if not isinstance(bed.cpus, MachineCpus):
        if len(mine) < 2:
            raise ConfigurationError(
                f"bed {bed.name} needs two CPUs, and this process may use CPU {mine[0]} alone",
                hint="the kernel under test has one for itself, NIC model and netperf the other; "
                "see taskset, or the cpus of your container",
            )
        return MachineCpus(vcpus=(mine[0],), model=mine[1], netperf=tuple(mine[2:] or mine[1:2]))
    if missing := {*bed.cpus.vcpus, bed.cpus.model, *bed.cpus.netperf} - set(mine):
        raise ConfigurationError(
            f"beds.{bed.name}.cpus names {sorted(missing)}, which this process may not use",
            hint=f"it may use {mine}; or say cpus: auto",
        )
    if bed.cpus.vcpus[0] in (bed.cpus.model, *bed.cpus.netperf):
        raise ConfigurationError(
            f"beds.{bed.name}.cpus gives CPU {bed.cpus.vcpus[0]} to the kernel and to another",
            hint="give NIC model and netperf other CPUs than vcpus, or say cpus: auto",
        )
    return bed.cpus
