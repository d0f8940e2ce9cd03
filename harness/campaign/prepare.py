# SPDX-License-Identifier: MIT
"""Both hosts of a running bed: checked and set up before measuring, and restored after it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.agent.settings.registry import PLAIN
from harness.base.errors import InfrastructureError, KernelError
from harness.beds.bed import RunningBed, kernel_death
from harness.config import Bed, Load
from harness.kernels import Image
from harness.trials import loads

if TYPE_CHECKING:
    from harness.campaign.boots import BootUnderWay

_LINK_S, _LINK_POLL_S = 15.0, 0.5


def prepare(bed_config: Bed, load: Load, image: Image, boot: BootUnderWay) -> None:
    """Check that ``image`` is running, and set up both hosts for ``load``.

    Raises:
        KernelError: another kernel is running.
        InfrastructureError: the hosts cannot be measured in this state.
    """
    bed = boot.bed
    boot.release, boot.boot_id = bed.dut.ready["release"], bed.dut.ready["boot_id"]
    if boot.release != image.release:
        raise KernelError(f"the dut runs {boot.release}, not {image.release}")
    boot.settings = apply_settings(bed_config, bed, load)
    require_free_way(bed, boot.settings)
    boot.placement_host = bed.placed
    boot.inventory = {
        "dut": _with_link(bed.dut, bed.dut_interface),
        "generator": _with_link(bed.generator, bed.generator_interface),
    }
    boot.link_mbps = {role: of.get("speed_mbps") for role, of in boot.inventory.items()}
    _same_netperf(boot.inventory)
    _same_link(bed, boot.inventory)


def put_back(boot: BootUnderWay) -> None:
    """Restore both hosts' settings, and check the console for kernel errors.

    Raises:
        KernelError: the kernel reported one.
    """
    bed = boot.bed
    bed.dut.netserver_stop()
    boot.settings["restored"] = {
        role: agent.settings_restore() for role, agent in agents(bed).items()
    }
    boot.nic_model = bed.nic_counters()
    if death := kernel_death(bed.console()):
        raise KernelError(
            f"the dut's kernel reported an error: {death}",
            hint=f"console: {boot.directory / 'console.log'}",
        )


def apply_settings(bed_config: Bed, bed: RunningBed, load: Load | None = None) -> dict[str, Any]:
    """Set up both hosts as in hosts.yaml, for ``load``; None: the usual one.

    Returns by role the settings before and after.
    """
    kind = loads.named((load or Load()).kind)
    wanted = _settings(bed_config, bed)
    for role, addresses in kind.also(bed_config).items():
        wanted[role] |= kind.settings(bed_config)[role]
        if addresses:
            wanted[role]["peer"]["also"] = addresses
    return {role: agents(bed)[role].settings_apply(**wanted[role]) for role in wanted}


def require_free_way(bed: RunningBed, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise an :class:`InfrastructureError` if something intercepts packets below the stack.

    ``settings`` is the result of :func:`apply_settings`.
    """
    for role, done in settings.items():
        found = [
            *(tap for tap in done.get("packet_taps") or () if tap["in_path"]),
            *(one for one in done.get("in_the_way") or () if one["stops"]),
        ]
        if found:
            raise InfrastructureError(
                f"{agents(bed)[role].host}: packets reach the stack not in lists or not at all: "
                + "; ".join(str(one["detail"]) for one in found),
                hint="; ".join(str(one["remedy"]) for one in found),
            )


def agents(bed: RunningBed) -> dict[str, Any]:
    """The agents by role."""
    return {"dut": bed.dut, "generator": bed.generator}


def _settings(bed_config: Bed, bed: RunningBed) -> dict[str, dict[str, Any]]:
    """By role, the arguments of the agent's ``settings_apply``."""
    dut_address, generator_address = bed_config.dut.address, bed_config.generator.address
    return {
        "dut": {
            "interface": bed.dut_interface,
            "address": str(dut_address),
            "peer": {"address": str(generator_address.ip), "mac": bed.generator_mac},
            "rx_queues": bed_config.rx_queues if bed_config.steering else None,
            "steering": bed_config.steering,
            "irq_cpu": bed_config.placement.irq_cpu,
            "process_cpus": [bed_config.netserver_cpu],
            **{name: setting.plain for name, setting in PLAIN.items()},
            **bed_config.tuning(),
        },
        "generator": {
            "interface": bed.generator_interface,
            "address": str(generator_address),
            "peer": {"address": str(dut_address.ip), "mac": bed.dut_mac},
            "process_cpus": bed.netperf_cpus,
        },
    }


def _with_link(agent: Any, interface: str) -> Any:
    """The inventory of a host once its link is up: a NIC negotiates after it was set up."""
    until = time.monotonic() + _LINK_S
    while True:
        found = agent.inventory(interface=interface)
        if found.get("link", True) or time.monotonic() > until:
            return found
        time.sleep(_LINK_POLL_S)


def _same_link(bed: RunningBed, inventory: dict[str, Any]) -> None:
    """Raise if the link speed differs from earlier boots: rates would not be comparable."""
    for role, found in inventory.items():
        speed = found.get("speed_mbps")
        before = bed.speeds_mbps.setdefault(role, speed) if speed else speed
        if speed != before:
            raise InfrastructureError(
                f"the link of the {role} ({found.get('interface')}) came up with {speed} Mbit/s; "
                f"at an earlier boot it had {before}",
                hint="check cable, transceiver and the other end, set a fixed speed on both ends "
                "(ethtool -s … autoneg off speed …), and continue with --resume",
            )


def _same_netperf(inventory: dict[str, Any]) -> None:
    """Raise if netperf and netserver have different versions: they cannot work together."""
    netserver = inventory["dut"]["versions"].get("netserver")
    netperf = inventory["generator"]["versions"].get("netperf")
    if not netserver:
        raise InfrastructureError(
            "netserver is missing on the dut", hint="install the package netperf there"
        )
    if netperf and netperf != netserver:
        raise InfrastructureError(
            f"netperf {netperf} on the generator does not work with netserver {netserver} on the "
            "dut",
            hint="install the same version of netperf on both",
        )
