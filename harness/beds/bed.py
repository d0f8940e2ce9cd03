# SPDX-License-Identifier: MIT
"""The interface of all beds: a running bed, what boots kernels on one, and a kind of bed."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from harness.agent.protocol import Calls
from harness.base.errors import HostLostError
from harness.beds.access.channel import Pending, RemoteAgent
from harness.config import Bed, Kernel, Wire
from harness.kernels import HostConfig, Image, of_host
from harness.plan import Profile

if TYPE_CHECKING:
    from harness.base.progress import Progress
    from harness.beds.labgrid import Place

_DEATH = re.compile(r"(?:Kernel panic - not syncing|BUG: |Oops: |watchdog: BUG: soft lockup).*")


def kernel_death(console: str) -> str | None:
    """The line of ``console`` that reports a kernel's death, if there is one."""
    found = _DEATH.search(console)
    return found.group(0).strip() if found else None


OUTSIDE = "(not in the kernel)"
"""What the kernel makes the machine's kernel do, and its libraries."""


@dataclass(frozen=True)
class Block:
    """A basic block of the guest's code that was executed while counting was on."""

    address: int
    runs: int
    instructions: int
    """In all runs together."""
    misses: int


class Probes(Protocol):
    """What counts packet lists in the dut; the calls of its agent, or of a program outside."""

    def trace_attach(self, *, interface: str) -> dict[str, Any]: ...
    def trace_detach(self) -> dict[str, Any]: ...
    def trace_watch(self, *, interface: str) -> dict[str, Any]: ...
    def trace_read(self) -> dict[str, Any]: ...


@dataclass(kw_only=True)
class RunningBed:
    """Both hosts, up and reached."""

    dut: RemoteAgent
    generator: RemoteAgent
    dut_interface: str
    dut_mac: str
    generator_interface: str
    generator_mac: str
    netperf_prefix: list[str]
    netperf_cpus: list[int]
    netperf_nice: int
    placed: dict[str, Any]
    """CPUs of this machine, by the part of the bed that runs on them."""
    speeds_mbps: dict[str, int] = field(default_factory=dict)
    """Link speed by role, as first seen; all boots of a bed of machines share it."""

    def freeze(self) -> None:
        """Stop dut and load where they are; only for beds on this machine."""
        raise NotImplementedError

    def thaw(self) -> None:
        """Continue what :meth:`freeze` stopped."""
        raise NotImplementedError

    def nic_counters(self) -> dict[str, Any] | None:
        """The NIC model's own counters; None for a real NIC."""
        return None

    @property
    def repeats(self) -> bool:
        """Does its wire deliver a frame more than once?"""
        return False

    def pace_repetition(self, pps: float | None) -> None:
        """Have a wire that :attr:`repeats` carry ``pps`` packets/s; None: as many as it can."""
        raise NotImplementedError

    def set_wire(self, wire: Wire) -> None:
        """Have the wire deliver frames like that; only of a bed with the NIC model."""
        raise NotImplementedError

    def sent(self) -> int:
        """The packets that were sent to the dut so far."""
        found = self.generator.counters(interface=self.generator_interface)
        return int(found["link"]["tx_packets"])

    def executed(self) -> list[Block]:
        """What an emulated dut executed in the last counted window; only if the bed counts."""
        raise NotImplementedError

    @property
    def probes(self) -> Probes:
        return self.dut

    def trace(self, duration_s: float, within_s: float) -> Pending[dict[str, Any]]:
        """Begin to count lists for ``duration_s``; the answer is that of the agent's ``trace``."""
        return self.dut.begin(
            Calls.trace, within_s, interface=self.dut_interface, duration_s=duration_s
        )

    def sampled(self, duration_s: float, cpu: int) -> Counter[str]:
        """How often ``cpu`` of the dut is found in each function of its kernel.

        :data:`OUTSIDE` counts what is in none.
        """
        told = self.dut.sample(cpu=cpu, duration_s=duration_s)["functions"]
        return Counter({name or OUTSIDE: count for name, count in told.items()})

    def console(self) -> str:
        """What the dut has written to its console since it booted; empty without one."""
        return ""


class Boots(Protocol):
    """Boots kernels on the dut of one bed."""

    @property
    def accelerator(self) -> str | None:
        """``kvm`` or ``tcg`` on a virtual bed."""
        return None

    def boot(
        self, image: Image, directory: Path, note: Callable[..., None]
    ) -> AbstractContextManager[RunningBed]:
        """The bed with its dut on ``image``, for as long as the context lasts.

        ``directory`` keeps consoles and logs. ``note(event, **what)`` writes to the
        campaign's write-ahead log before an act that outlives the harness.

        Raises:
            KernelError: the kernel did not come up, or another did.
            InfrastructureError: a host cannot be reached or used.
        """
        ...

    def lost(self, error: HostLostError) -> None:
        """Return when a lost bed can boot again.

        Raises:
            KernelError: its kernel had died.
            HarnessError: ``error`` itself, or a worse one: the bed cannot boot again.
        """
        raise error

    def crashed(self, notes: Mapping[str, Mapping[str, Any]]) -> str | None:  # noqa: ARG002
        """How a boot that was interrupted with the harness took its host down.

        ``notes`` holds its entries of the write-ahead log, by event. ``None``: the host did not
        go down, and the boot may be repeated.
        """
        return None


@dataclass(frozen=True)
class Wanted:
    """What a bed is opened for."""

    campaign: str
    """The campaign's id."""
    directory: Path
    """For logs and consoles that belong to no single boot."""
    counting: bool = False
    """Whether an emulator counts the instructions that the kernel executes."""
    alone: bool = False
    """Refuse, as busy, to share this machine with another harness that measures."""


class BedKind(ABC):
    """A kind of bed: what it can do, and how it boots kernels.

    Each is one folder of this room and one line in :mod:`harness.beds.registry`; the models of
    its hosts in ``harness.config`` name it.
    """

    profiles: ClassVar[Mapping[str, Profile]]
    """How long to measure, by name."""
    boot_s: ClassVar[float]
    """Approximate duration of a boot without its windows."""
    noise: ClassVar[tuple[float, str] | None] = None
    """The standard deviation of the log-ratio of two steps' rates in a block, as campaigns on
    such beds showed it, and which campaigns; ``None``: unknown."""
    here: ClassVar[bool]
    """Whether kernels are booted on this machine, so that figures are not hardware figures."""

    def label(self, accelerator: str | None) -> str:  # noqa: ARG002
        """What its figures are worth, in a few words."""
        return "hardware bed"

    @abstractmethod
    def opened(
        self, place: Place, image: Image, wanted: Wanted, progress: Progress
    ) -> AbstractContextManager[Boots]:
        """Boots on the bed of ``place`` until the context ends; ``image`` is any of its kernels.

        Raises:
            InfrastructureError: something the bed needs is missing or in use.
        """

    @abstractmethod
    def made_meanwhile(self, bed: Bed) -> AbstractContextManager[None]:
        """Make everything else it needs (images, tools) while the kernels are built."""

    def possible(self, bed: Bed) -> Bed:
        """``bed``, as far as this machine allows what hosts.yaml says."""
        return bed

    def require_free(self, bed: Bed) -> None:  # noqa: B027
        """Raise a :class:`BusyError` if another harness measures where ``bed`` boots.

        Machines have leases, which :meth:`look_at` checks.
        """

    def look_at(self, bed: Bed, kernel: Kernel, *, resumed: bool) -> None:  # noqa: B027
        """Check its hosts before anything is built.

        Raises:
            InfrastructureError: a machine does not answer, or has no room.
            ConfigurationError: a machine is not as hosts.yaml says.
        """

    def host_config(
        self,
        bed: Bed,  # noqa: ARG002
        kernel: Kernel,
        *,
        resumed: bool,  # noqa: ARG002
    ) -> HostConfig | None:
        """The dut's own .config, if kernels are configured from it.

        Raises:
            ConfigurationError: hosts.yaml asks for it, and the dut is not a machine.
        """
        of_host(kernel, virtual=True)
        return None

    def changes(self) -> tuple[str, str] | None:
        """What a run changes on the dut in addition to settings, for ``harness plan``."""
        return None
