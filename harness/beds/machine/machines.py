# SPDX-License-Identifier: MIT
"""A bed of two machines: leased, watched, booted, and left as it was found."""

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
"""The running kernel and the next one; all others can be removed to make room."""


@dataclass(kw_only=True)
class MachineBed(RunningBed):
    """Two machines that are up."""

    machine: Machine

    def console(self) -> str:
        """The dut's console since its kernel started."""
        return self.machine.said_since_start()


class MachineBoots(Boots):
    """Boots the dut of two machines, one kernel after another."""

    def __init__(self, place: Place, dut: Machine, generator: Machine, leases: Leases) -> None:
        self._bed, self._dut, self._generator = place.bed, dut, generator
        self._place, self._leases = place, leases
        self._sending: RemoteAgent | None = None
        self._speeds_mbps: dict[str, int] = {}

    @contextmanager
    def boot(
        self, image: Image, directory: Path, note: Callable[..., None]
    ) -> Iterator[RunningBed]:
        """The two machines with the dut on ``image``, which keeps running after the context."""
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
        """Return when both machines answer again, if the dut's kernel did not die."""
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
        """Compares the dut's present boot id with the noted one."""
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
        return f"{release} was up when the harness ended, and the host has rebooted since"

    def _still_mine(self) -> None:
        """Raise a :class:`LeaseLostError` if somebody else may have the machines."""
        self._place.still_mine()
        self._leases.still_mine()

    def _check(self) -> None:
        """Raise if the kernel is known to be dead or a machine known to be lost; asks nobody."""
        self._dut.check()
        self._place.check()
        self._leases.check()

    def close(self) -> None:
        """Leave both machines as they were found."""
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

    ``directory`` receives consoles and logs. A resumed campaign gets its leases back. It
    power-cycles a machine that hangs, while the lease in the write-ahead log is valid.

    Raises:
        InfrastructureError: a machine does not answer, or somebody else has it.
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
                # A killed harness may have left one of them rebooting or hanging.
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
            # Report a failure here in addition to the error that ended the campaign.
            try:
                boots.close()
            except HarnessError as error:
                progress.say(f"not left as it was found: {error}")
            raise
        boots.close()


def looked_at(bed: Bed, kernel: Kernel, *, resumed: bool = False) -> None:
    """Check both machines of ``bed`` before anything is built for them.

    With ``resumed``, a machine may not answer because it was left hanging.

    Raises:
        ConfigurationError: a host lacks the interface that hosts.yaml names, or would not boot
            with the .config that it names.
        InfrastructureError: one cannot be reached, or there is no room for kernels.
    """
    for name, host in ((bed.dut_name, bed.dut), (bed.generator_name, bed.generator)):
        assert isinstance(host, SshHost)
        with tempfile.TemporaryDirectory(prefix="rb-") as scratch:
            try:
                agent = SshTarget.of(host).start_agent(host=name, log=Path(scratch) / "agent.log")
            except HostLostError:
                # A machine with a power button is power-cycled later.
                if resumed or host.power is not None:
                    continue
                raise
            with contextlib.closing(agent):
                agent.inventory(interface=host.interface)
                _require_alone(agent, name, host, serves=name == bed.dut_name)
                if name == bed.dut_name:
                    _require_bootable(agent, name, host, kernel)


def _require_alone(agent: RemoteAgent, name: str, host: SshHost, *, serves: bool) -> None:
    """Refuse services that would disturb every boot; the hint is the command that ends them."""
    found = agent.others(interface=host.interface)
    if found["dhcp"]:
        raise InfrastructureError(
            f"{name}: {found['manager']} requests an address on {host.interface} by DHCP and "
            "removes the test address",
            hint=f"as root on {name}: {found['remedy']}",
        )
    if serves and found["service"]:
        raise InfrastructureError(
            f"{name}: {found['service']} occupies TCP port {found['port']}, which netserver needs, "
            "and starts at every boot",
            hint=f"on {name}: sudo systemctl disable --now {found['service']}",
        )


def _require_bootable(agent: RemoteAgent, name: str, host: SshHost, kernel: Kernel) -> None:
    if not of_host(kernel, virtual=False):
        bootable.require(kernel, name, agent.drivers(interface=host.interface))
    room = agent.kernel_room()
    if room["fit"] + room["ours"] < _LEAST_KERNELS:
        raise InfrastructureError(
            f"{name}: no room: /boot holds at most {room['fit'] + room['ours']} kernels of about "
            f"{room['each_mib']} MiB ({room['free_mib']} MiB are free); {_LEAST_KERNELS} are "
            "needed, the running one and the next",
            hint="remove old kernels of the distribution there (apt-get autoremove --purge, dnf "
            f"remove --oldinstallonly); harness hosts clean {name} removes those of the harness",
        )


def host_config(name: str, host: SshHost, *, resumed: bool = False) -> HostConfig:
    """The .config of the kernel that ``name`` runs, or ran when it was last asked.

    With ``resumed``, it may not answer because it was left hanging.

    Raises:
        InfrastructureError: it does not answer, and no earlier .config is kept.
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


def _end(agent: RemoteAgent) -> None:
    """Let it restore its settings; a host that is gone has none."""
    with contextlib.suppress(HarnessError, OSError):
        agent.close()
