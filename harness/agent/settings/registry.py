# SPDX-License-Identifier: MIT
"""The list of all settings that are changed, and the values that are only read and recorded."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from harness.agent import setting
from harness.agent.foreign import read_text
from harness.agent.interface.ethtool import Ethtool
from harness.agent.inventory import NET, interface_irqs
from harness.agent.setting import Declaration, Setting, number

from .irq_affinity import affinity

DECLARED: dict[str, Declaration] = {
    declaration.name: declaration
    for module in (
        # In the order in which they are set: some depend on others.
        "irqbalance",
        "governor",
        "ipv6",
        "sysctl",
        "rings",
        "offloads",
        "segmentation",
        "queues",
        "addresses",
        "forwarding",
        "coalesce",
        "irq_affinity",
        "spreading",
        "napi",
        "busy_polling",
        "pacing",
        "rules",
    )
    for declaration in importlib.import_module(f"{__package__}.{module}").SETTINGS
}
"""By name; each module of this folder declares one setting, or a few that belong together."""

KEYED = {one.argument: one for one in DECLARED.values() if one.key}
"""Settings with a key in hosts.yaml, by that key."""
PLAIN = {one.argument: one for one in DECLARED.values() if one.plain is not None}
"""Settings without a key that a run asks of the dut, by argument."""
ARGUMENTS = {one.argument for one in DECLARED.values()}
"""The arguments of ``settings_apply``."""

# Only read and recorded: they are needed to interpret a rate.
_SYSCTLS = (
    "net/core/rmem_default",
    "net/core/rmem_max",
    "net/core/netdev_max_backlog",
    "net/core/netdev_budget",
    "net/core/netdev_budget_usecs",
    "net/core/dev_weight",
    "net/core/gro_normal_batch",
    "net/core/busy_read",
    "net/core/busy_poll",
    "net/core/rps_sock_flow_entries",
    "net/core/default_qdisc",
    "net/ipv4/ip_early_demux",
    "net/ipv4/udp_early_demux",
    "net/ipv4/conf/all/rp_filter",
)
_SWITCHES = {
    "turbo_intel_off": "intel_pstate/no_turbo",
    "turbo": "cpufreq/boost",
    "smt": "smt/control",
}


def known(interface: str) -> dict[str, Setting]:
    """Every setting that can be changed, by name."""
    return {name: one.on(interface) for name, one in DECLARED.items()}


def readings(interface: str, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The current values of all ``settings``, and those that are only read, by name."""
    at = NET / interface
    ethtool = Ethtool(interface)
    return {
        "interface": interface,
        **{name: one.read() for name, one in settings.items()},
        "irq_effective_affinity": {
            str(irq): affinity(irq, "effective") for irq in interface_irqs(interface)
        },
        "xps": {
            path.parent.name: read_text(path)
            for path in sorted((at / "queues").glob("tx-*/xps_cpus"))
        },
        "through": ethtool.through(),
        "gro": ethtool.gro(),
        "mtu": number(read_text(at / "mtu")),
        "sysctl": {
            name.replace("/", "."): text
            for name in _SYSCTLS
            if (text := read_text(setting.PROC_SYS / name)) is not None
        },
        "cpu": {
            name: text
            for name, path in _SWITCHES.items()
            if (text := read_text(setting.CPU / path)) is not None
        },
    }
