# SPDX-License-Identifier: MIT
"""Every setting of a host and an interface that is changed, and what is only read beside them."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.agent.cpus import parse_list
from harness.agent.foreign import read_text
from harness.agent.interface.ethtool import Ethtool
from harness.agent.interface.links import Links
from harness.agent.inventory import NET, governors, interface_irqs, irqbalance_running
from harness.agent.setting import Setting, number, numbered, write_each

from . import offloads, queues

_PROC_SYS = Path("/proc/sys")
_CPU = Path("/sys/devices/system/cpu")
_IRQ = Path("/proc/irq")
_SYSTEMCTL_S = 60
# Read and recorded, never changed: a rate means little without them.
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

UNSUPPORTED = (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)
ABSENT = {
    "governor": "the host has no cpufreq",
    "ipv6_off": "the kernel has no IPv6",
    "ipv6_addresses": "the kernel has no IPv6",
    "rx_queues": "the queue count is fixed and there is no indirection table",
    "ntuple": "the driver has no receive rules",
    "rings": "the driver's rings have one size",
    "offloads": "the driver cannot change it, or the kernel does not know it",
    "coalesce": "the driver has no interrupt moderation",
    "irq_affinity": "the interface has no interrupt of its own that could be moved",
    "rps": "the kernel has no RPS",
    "rfs": "the kernel has no RFS",
    "rps_sock_flow_entries": "the kernel has no RFS",
    "threaded": "the kernel has no threaded NAPI",
    "napi_defer_hard_irqs": "the kernel does not know it",
    "gro_flush_timeout_ns": "the kernel does not know it",
    "busy_read_us": "the kernel has no busy polling",
    "busy_poll_us": "the kernel has no busy polling",
}
"""What is said of a setting that reads as None or as nothing at all."""
HINTS = {
    "irqbalance": "stop irqbalance on the host, or ask for `irqbalance: null`",
    "rings": "`ethtool -g` shows the largest size; many NICs take powers of two alone",
    "governor": "see scaling_available_governors of /sys/devices/system/cpu/cpufreq/policy*",
    "irq_affinity": "an interrupt managed by its driver cannot be moved: choose another CPU",
    "addresses": "is the address used elsewhere on this host?",
    "threaded": "`echo 0 > /sys/class/net/INTERFACE/threaded` on the host",
    "pacing_bytes_per_s": "pacing needs the kernel's tbf (CONFIG_NET_SCH_TBF) on the generator, "
    "on an interface whose queueing nobody has set up",
}


def known(interface: str) -> dict[str, Setting]:
    """Every setting that can be changed, by name."""
    ethtool = Ethtool(interface)
    links = Links(interface)
    at, core = NET / interface, _PROC_SYS / "net/core"
    settings = [
        Setting("irqbalance", _irqbalance, _set_irqbalance),
        Setting("governor", governors, _set_governors, _governors_hold),
        Setting("ipv6_addresses", links.addresses_v6, links.set_addresses_v6),
        numbered("ipv6_off", _PROC_SYS / "net/ipv6/conf" / interface / "disable_ipv6"),
        Setting("addresses", links.addresses, links.set_addresses),
        Setting("up", links.up, links.set_up),
        Setting("neighbours", links.neighbours, links.set_neighbours),
        Setting(
            "coalesce",
            ethtool.coalesce,
            lambda value: ethtool.set_coalesce(**value),
            _coalesce_holds,
        ),
        Setting(
            "irq_affinity",
            # A kernel for one CPU knows of none.
            lambda: {
                str(irq): cpus
                for irq in interface_irqs(interface)
                if (cpus := _affinity(irq, "smp")) is not None
            },
            _set_affinity,
            _affinity_holds,
        ),
        numbered("threaded", at / "threaded"),
        numbered("napi_defer_hard_irqs", at / "napi_defer_hard_irqs"),
        numbered("gro_flush_timeout_ns", at / "gro_flush_timeout"),
        numbered("rps_sock_flow_entries", core / "rps_sock_flow_entries"),
        numbered("busy_read_us", core / "busy_read"),
        numbered("busy_poll_us", core / "busy_poll"),
        Setting("pacing_bytes_per_s", links.pacing, links.set_pacing),
        *offloads.settings(interface, ethtool),
        *queues.settings(interface, ethtool),
    ]
    return {setting.name: setting for setting in settings}


def readings(interface: str, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """All ``settings`` as they are, and what is only read, by name."""
    at = NET / interface
    ethtool = Ethtool(interface)
    return {
        "interface": interface,
        **{name: setting.read() for name, setting in settings.items()},
        "irq_effective_affinity": {
            str(irq): _affinity(irq, "effective") for irq in interface_irqs(interface)
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
            if (text := read_text(_PROC_SYS / name)) is not None
        },
        "cpu": {
            name: text
            for name, path in _SWITCHES.items()
            if (text := read_text(_CPU / path)) is not None
        },
    }


def _coalesce_holds(is_now: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    # A NIC's timer has steps of its own: drivers round, and `after` says to what.
    return (
        is_now is not None
        and is_now["adaptive_rx"] == wanted["adaptive_rx"]
        and abs(is_now["rx_usecs"] - wanted["rx_usecs"]) <= wanted["rx_usecs"] // 4
    )


def _affinity(irq: int, kind: str) -> str | None:
    file = "smp_affinity_list" if kind == "smp" else "effective_affinity_list"
    return read_text(_IRQ / str(irq) / file)


def _same_cpus(one: str | None, other: str | None) -> bool:
    return parse_list(one or "") == parse_list(other or "")


def _set_affinity(value: dict[str, str | None]) -> None:
    write_each(
        (
            (_IRQ / irq / "smp_affinity_list", cpus)
            for irq, cpus in value.items()
            if cpus is not None
        ),
        _same_cpus,
    )


def _affinity_holds(is_now: dict[str, str | None], wanted: dict[str, str | None]) -> bool:
    # A vector that went away with its queue has nothing to be put back.
    return all(_same_cpus(is_now[irq], cpus) for irq, cpus in wanted.items() if irq in is_now)


def _irqbalance() -> str:
    return "active" if irqbalance_running() else "inactive"


def _set_irqbalance(value: str) -> None:
    if shutil.which("systemctl") is None:
        raise OSError("irqbalance runs, and there is no systemctl to stop it with")
    verb = "start" if value == "active" else "stop"
    try:
        subprocess.run(
            ["systemctl", verb, "irqbalance"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SYSTEMCTL_S,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"systemctl {verb} irqbalance did not end in {_SYSTEMCTL_S} s") from error


def _set_governors(value: dict[str, str]) -> None:
    write_each(
        (
            (_CPU / f"cpu{cpu}" / "cpufreq" / "scaling_governor", governor)
            for cpu, governor in value.items()
        ),
        lambda one, other: one == other,
    )


def _governors_hold(is_now: dict[str, str] | None, wanted: dict[str, str]) -> bool:
    # A CPU that went offline meanwhile has none.
    return all((is_now or {}).get(cpu, one) == one for cpu, one in wanted.items())
