# SPDX-License-Identifier: MIT
"""The generator of a native bed where network namespaces are forbidden: a second kernel.

Hides that netperf and its agent are in a user-mode kernel, whose EF10 is in the NIC model's
process and joined there to the dut's. That needs no right at all: no namespace, no interface,
no packet socket.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.base import runtime
from harness.base.errors import InfrastructureError, KernelError
from harness.beds.local.nic_model import CONTROL, NicModel, Peer, SendingSide, set_nice
from harness.beds.native.uml import UserModeKernel
from harness.config import UmlHost, Wire
from harness.images import GuestImage
from harness.kernels import Image


class SendingKernel(UserModeKernel):
    """A user-mode kernel that sends. Its death is no fault of the kernel under test."""

    # netperf allocates as many buffers as messages fit into the send buffer of its socket:
    # 20 MiB for each stream of short messages if that has the usual size.
    parameters = ("sysctl.net.core.wmem_default=16384",)

    def check(self) -> None:
        try:
            super().check()
        except KernelError as error:
            raise InfrastructureError(
                f"{self.host}, which sends: {error.message}", hint=error.hint
            ) from error


@contextmanager
def sending_kernel(
    host: UmlHost,
    image: Image,
    disk: GuestImage,
    directory: Path,
    *,
    name: str,
    dut_mac: str,
    cpus: tuple[int, int],
    nice: int,
    delivery: Wire,
) -> Iterator[SendingSide]:
    """Start the NIC model, and ``image`` as the generator ``host`` called ``name``.

    ``cpus`` are those of the model and of the kernel, which gets the ``nice`` value. Both end
    with the context. ``directory`` keeps their logs and the kernel's console. ``delivery`` is
    how the model delivers to the dut.
    """
    with contextlib.ExitStack() as up:
        own = up.enter_context(runtime.directory(name_bytes=len(CONTROL)))
        peer = Peer(socket=own / "nic-peer", mac=host.nic.mac)
        model = NicModel(
            None,
            wire=peer,
            mac=dut_mac,
            socket=own / "nic",
            control=own / CONTROL,
            log=directory / "nic.log",
            cpu=cpus[0],
            vhost_user=True,
            delivery=delivery,
        )
        up.callback(model.stop)
        for made in (own / "peer", directory / "generator"):
            made.mkdir()
        kernel = SendingKernel(
            image,
            disk,
            host=name,
            memory_mib=host.memory_mib,
            nic_socket=peer.socket,
            cpu=cpus[1],
            directory=directory / "generator",
            runtime=own / "peer",
            watch=model.check,
        )
        up.callback(kernel.stop)
        set_nice(kernel.pid_here, nice)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PGRP, kernel.pid_here, nice)
        yield SendingSide(
            agent=kernel,
            interface=kernel.inventory(mac=host.nic.mac)["interface"],
            mac=host.nic.mac,
            model=model,
            nic_socket=own / "nic",
            runtime=own,
        )
