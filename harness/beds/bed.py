# SPDX-License-Identifier: MIT
"""A bed that is up, and where beds come from, whatever they are made of."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from harness.base.errors import HostLostError
from harness.beds.access.channel import RemoteAgent
from harness.config import Bed, Kernel
from harness.kernels import HostConfig, Image, of_host
from harness.plan import Profile

if TYPE_CHECKING:
    from harness.base.progress import Progress
    from harness.beds.labgrid import Place

_DEATH = re.compile(r"(?:Kernel panic - not syncing|BUG: |Oops: |watchdog: BUG: soft lockup).*")


def kernel_death(console: str) -> str | None:
    """The line of ``console`` in which a kernel says that it died, if there is one."""
    found = _DEATH.search(console)
    return found.group(0).strip() if found else None


@dataclass(frozen=True)
class Block:
    """Code that was executed without a jump, while it was counted."""

    address: int
    runs: int
    instructions: int
    """Of all runs."""
    misses: int


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
    """Where what it is made of runs on this machine."""
    speeds_mbps: dict[str, int] = field(default_factory=dict)
    """Of each host's link, by role, as met first; the boots of a bed of machines share it."""

    def freeze(self) -> None:
        """Stop dut and load where they are; only of beds that share a machine."""
        raise NotImplementedError

    def thaw(self) -> None:
        """Let both go on."""
        raise NotImplementedError

    def nic_counters(self) -> dict[str, Any] | None:
        """What the NIC itself counted, where it is a model."""
        return None

    def executed(self) -> list[Block]:
        """What an emulated dut did while it was counted last; only where one counts."""
        raise NotImplementedError

    def console(self) -> str:
        """What the dut has written to its console since it booted; empty without one."""
        return ""


class Boots(Protocol):
    """Boots kernels on the dut of one bed."""

    @property
    def accelerator(self) -> str | None:
        """What runs the guests of a virtual bed."""
        return None

    def boot(
        self, image: Image, directory: Path, note: Callable[..., None]
    ) -> AbstractContextManager[RunningBed]:
        """The bed with its dut on ``image``, for as long as the context lasts.

        ``directory`` keeps consoles and logs; ``note(event, **what)`` writes to the
        campaign's journal before an act that outlives the harness.

        Raises:
            KernelError: the kernel did not come up, or another did.
            InfrastructureError: the hosts cannot be had.
        """
        ...

    def lost(self, error: HostLostError) -> None:
        """Return once a bed that was lost can be booted again.

        Raises:
            KernelError: its kernel had died.
            HarnessError: ``error`` itself or what is worse: it cannot be booted again.
        """
        raise error

    def crashed(self, notes: Mapping[str, Mapping[str, Any]]) -> str | None:  # noqa: ARG002
        """What a boot did to its host that a harness began and did not live to finish.

        ``notes`` are what was noted of it, by event. ``None``: nothing, it may be repeated.
        """
        return None


@dataclass(frozen=True)
class Wanted:
    """For what a bed is opened."""

    campaign: str
    """Its id."""
    directory: Path
    """Takes what is kept beside the boots."""
    counting: bool = False
    """Is an emulator to count what the kernel executes?"""


class BedKind(ABC):
    """A kind of bed: what it can do, and where its boots come from.

    Each is one folder of this room and one line in :mod:`harness.beds.registry`; the models of
    its hosts in ``harness.config`` name it.
    """

    profiles: ClassVar[Mapping[str, Profile]]
    """How long to measure, by name."""
    boot_s: ClassVar[float]
    """About what a boot takes beside its windows."""
    here: ClassVar[bool]
    """Are its kernels booted on this machine? Then its figures are no hardware figures."""
    no_probes: ClassVar[str | None] = None
    """Why no probes can be attached there, if so."""
    no_commits: ClassVar[str | None] = None
    """Why commits of a tree cannot be built for it, if so."""

    def label(self, accelerator: str | None) -> str:  # noqa: ARG002
        """How far its figures may be trusted, in a few words."""
        return "hardware bed"

    @abstractmethod
    def opened(
        self, place: Place, image: Image, wanted: Wanted, progress: Progress
    ) -> AbstractContextManager[Boots]:
        """Boots on the bed of ``place`` until the context ends; ``image`` is any of its kernels.

        Raises:
            InfrastructureError: what the bed needs cannot be had.
        """

    @abstractmethod
    def made_meanwhile(self) -> AbstractContextManager[None]:
        """Make what it needs beside kernels, if it is not kept yet, while these are built."""

    def look_at(self, bed: Bed, kernel: Kernel, *, resumed: bool) -> None:  # noqa: B027
        """Tell what is wrong with its hosts before anything is built.

        Raises:
            InfrastructureError: a machine cannot be asked, or has no room.
            ConfigurationError: a machine is not as hosts.yaml says.
        """

    def host_config(
        self,
        bed: Bed,  # noqa: ARG002
        kernel: Kernel,
        *,
        resumed: bool,  # noqa: ARG002
    ) -> HostConfig | None:
        """The dut's own configuration, if kernels are configured after it.

        Raises:
            ConfigurationError: they are to be, and there is no machine to ask.
        """
        of_host(kernel, virtual=True)
        return None

    def changes(self) -> tuple[str, str] | None:
        """What is changed on the dut beside settings, for ``harness plan``."""
        return None
