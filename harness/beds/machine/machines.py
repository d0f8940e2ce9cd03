# SPDX-License-Identifier: MIT
"""A bed of two machines: leased, watched, booted in turn, and left as it was found."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import (
    DiedLeavingError,
    HarnessError,
    HostLostError,
    InfrastructureError,
    LeaseLostError,
)
from harness.base.progress import Progress
from harness.base.write_ahead import WriteAheadLog
from harness.beds.access.channel import RemoteAgent
from harness.beds.access.ssh import SshTarget
from harness.beds.bed import Boots, RunningBed
from harness.beds.labgrid import Place
from harness.beds.machine.lease import Leases, agent_of
from harness.beds.machine.machine import Machine
from harness.config import Bed, Kernel, SshHost
from harness.kernels import HostConfig, Image, bootable, of_host

_LEAST_KERNELS = 2
"""The one that runs, and the one that is booted next: all others can make room."""


@dataclass(kw_only=True)
class MachineBed(RunningBed):
    """Two machines, up and reached."""

    machine: Machine

    def console(self) -> str:
        """What the dut wrote to its console since its kernel began."""
        return self.machine.said_since_start()


class MachineBoots(Boots):
    """Boots the dut of two machines, one kernel after the other."""

    def __init__(self, place: Place, dut: Machine, generator: Machine, leases: Leases) -> None:
        self._bed, self._dut, self._generator = place.bed, dut, generator
        self._place, self._leases = place, leases
        self._sending: RemoteAgent | None = None
        self._speeds_mbps: dict[str, int] = {}

    @contextmanager
    def boot(
        self, image: Image, directory: Path, note: Callable[..., None]
    ) -> Iterator[RunningBed]:
        """The two machines with the dut on ``image``; it runs on when the context ends."""
        assert isinstance(self._bed.dut, SshHost)
        assert isinstance(self._bed.generator, SshHost)
        directory.mkdir(parents=True, exist_ok=True)
        self._still_mine()
        sending = self._sending = self._sending or self._generator.reached()
        agent = self._dut.reached()
        with contextlib.ExitStack() as up:
            up.callback(
                lambda: (directory / "console.log").write_text(self._dut.said(), encoding="utf-8")
            )
            with self._leases.rebooting(self._dut.name, within_s=self._dut.longest_boot_s):
                dut = self._dut.boot(agent, image, note).watched_by(self._check)
            up.callback(_end, dut)
            self._still_mine()
            dut_interface, dut_mac = self._dut.interface(dut)
            generator_interface, generator_mac = self._generator.interface(sending)
            cpus = self._bed.placement.netperf_cpus
            yield MachineBed(
                dut=dut,
                generator=sending,
                dut_interface=dut_interface,
                dut_mac=dut_mac,
                generator_interface=generator_interface,
                generator_mac=generator_mac,
                netperf_prefix=[],
                netperf_cpus=[] if cpus == "auto" else list(cpus),
                netperf_nice=0,
                placed={},
                speeds_mbps=self._speeds_mbps,
                machine=self._dut,
            )

    def lost(self, error: HostLostError) -> None:
        """Return once both machines answer again, if the dut's kernel did not die."""
        if isinstance(error, LeaseLostError):
            raise error
        self._still_mine()
        if self._sending is not None:
            _end(self._sending)
            self._sending = None
        self._sending = self._generator.reached()
        if isinstance(error, DiedLeavingError):
            return
        if death := self._dut.became():
            raise death

    def crashed(self, notes: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Told from the boot the dut is in now: the same as then, or another."""
        if "leaving" not in notes:
            return None
        release = notes["leaving"]["release"]
        with contextlib.closing(self._dut.reached()) as agent:
            now, running = agent.ready["boot_id"], agent.ready["release"]
            left = agent.boot_state()["left"] or {}
        if "up" in notes:
            went_well = notes["up"]["boot_id"] in (now, left.get("boot_id"))
        else:
            went_well = now == notes["leaving"]["boot_id"] or release in (
                running,
                left.get("release"),
            )
        if went_well:
            return None
        return f"{release} was up when the harness was ended, and the host has booted since"

    def _still_mine(self) -> None:
        """Raise a :class:`LeaseLostError` if the machines may be somebody else's."""
        self._place.still_mine()
        self._leases.still_mine()

    def _check(self) -> None:
        """What can be told without asking: is the kernel alive, are the machines ours?"""
        self._dut.check()
        self._place.check()
        self._leases.check()

    def close(self) -> None:
        """Leave both machines as they were met."""
        if self._sending is not None:
            _end(self._sending)
        self._still_mine()
        agent = self._dut.reached()
        if self._dut.runs_its_own(agent):
            _end(agent)
            return
        with self._leases.rebooting(self._dut.name, within_s=self._dut.longest_boot_s):
            self._dut.back_to_known_good(agent)


@contextmanager
def opened(
    place: Place, *, campaign: str, directory: Path, progress: Progress
) -> Iterator[MachineBoots]:
    """Lease both machines of the bed at ``place`` for ``campaign`` and watch the dut's console.

    ``directory`` takes consoles and logs. Whoever goes on with a campaign gets its leases,
    and power-cycles what was left in a hang, while the lease that was noted lasts.

    Raises:
        InfrastructureError: a machine cannot be had, or somebody else has it.
    """
    bed = place.bed
    assert isinstance(bed.dut, SshHost)
    assert isinstance(bed.generator, SshHost)
    dut = Machine(bed.dut_name, bed.dut, directory, progress)
    generator = Machine(bed.generator_name, bed.generator, directory, progress)
    with contextlib.ExitStack() as up:
        machines = {one.name: one for one in (dut, generator)}
        leases = up.enter_context(
            Leases(
                {name: agent_of(name, one.config) for name, one in machines.items()},
                campaign=campaign,
                holder=campaign,
                # A harness that was killed may have left one of them rebooting, or in a hang.
                wait_s=max(one.patience_s for one in machines.values()),
                say=progress.say,
                journal=WriteAheadLog(directory),
                revive=lambda name, lost: machines[name].cycle(lost),
            )
        )
        up.enter_context(dut.watched())
        dut.meet()
        generator.meet()
        boots = MachineBoots(place, dut, generator, leases)
        try:
            yield boots
        except BaseException:
            # What ended the campaign is told, and this beside it.
            with _told(progress):
                boots.close()
            raise
        boots.close()


def looked_at(bed: Bed, kernel: Kernel, *, resumed: bool = False) -> None:
    """What is known of both machines of ``bed`` before anything is built for them.

    Of a campaign that is ``resumed`` one may have been left in a hang.

    Raises:
        ConfigurationError: a host has no such interface as hosts.yaml says, or would not come
            up with the configuration it says.
        InfrastructureError: one cannot be reached, or there is no room for kernels.
    """
    for name, host in ((bed.dut_name, bed.dut), (bed.generator_name, bed.generator)):
        assert isinstance(host, SshHost)
        with tempfile.TemporaryDirectory(prefix="rb-") as scratch:
            try:
                agent = SshTarget.of(host).start_agent(host=name, log=Path(scratch) / "agent.log")
            except HostLostError:
                # Whoever has a power button is brought up when its turn comes.
                if resumed or host.power is not None:
                    continue
                raise
            with contextlib.closing(agent):
                agent.inventory(interface=host.interface)
                _require_alone(agent, name, host, serves=name == bed.dut_name)
                if name == bed.dut_name:
                    _require_bootable(agent, name, host, kernel)


def _require_alone(agent: RemoteAgent, name: str, host: SshHost, *, serves: bool) -> None:
    """Refuse what would undo a run at each boot, with the command that ends it for good."""
    found = agent.others(interface=host.interface)
    if found["dhcp"]:
        raise InfrastructureError(
            f"{name}: {found['manager']} asks for an address on {host.interface} by DHCP, and "
            "takes the test address away",
            hint=f"as root there: {found['remedy']}",
        )
    if serves and found["service"]:
        raise InfrastructureError(
            f"{name}: {found['service']} holds TCP port {found['port']}, which is netserver's, and "
            "comes back at each boot",
            hint=f"there: sudo systemctl disable --now {found['service']}",
        )


def _require_bootable(agent: RemoteAgent, name: str, host: SshHost, kernel: Kernel) -> None:
    if not of_host(kernel, virtual=False):
        bootable.require(kernel, name, agent.drivers(interface=host.interface))
    room = agent.kernel_room()
    if room["fit"] + room["ours"] < _LEAST_KERNELS:
        raise InfrastructureError(
            f"{name}: no room: /boot takes {room['fit'] + room['ours']} kernels of some "
            f"{room['each_mib']} MiB, {room['free_mib']} MiB are free; one has to fit beside the "
            "one that runs",
            hint="remove old kernels of the distribution there (apt-get autoremove --purge, dnf "
            f"remove --oldinstallonly); harness hosts clean {name} removes those of the harness",
        )


def host_config(name: str, host: SshHost, *, resumed: bool = False) -> HostConfig:
    """The configuration of the kernel that ``name`` runs, or ran when it was last asked.

    Of a campaign that is ``resumed`` it may have been left in a hang.

    Raises:
        InfrastructureError: it cannot be asked, and was not before.
    """
    with tempfile.TemporaryDirectory(prefix="rb-") as scratch:
        log = Path(scratch) / "agent.log"
        try:
            agent = SshTarget.of(host).start_agent(host=name, log=log)
        except HostLostError:
            if resumed and (kept := HostConfig.kept(name)):
                return kept
            raise
        with contextlib.closing(agent):
            ours = {one["release"] for one in agent.kernel_list()}
            if agent.ready["release"] not in ours:
                said = agent.kernel_config()
                return HostConfig(said["config"], tuple(said["modules"])).settled(name)
    if kept := HostConfig.kept(name):
        return kept
    raise InfrastructureError(
        f"{name} runs {agent.ready['release']}, a kernel under test, not its own",
        hint=f"harness restore {name}",
    )


@contextmanager
def _told(progress: Progress) -> Iterator[None]:
    try:
        yield
    except HarnessError as error:
        progress.say(f"not left as it was met: {error}")


def _end(agent: RemoteAgent) -> None:
    """Let it put its settings back; a host that is gone has none."""
    with contextlib.suppress(HarnessError, OSError):
        agent.close()
