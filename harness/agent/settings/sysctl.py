# SPDX-License-Identifier: MIT
"""Sysctls of packet receive that are numbers, each by its own name."""

from __future__ import annotations

from collections.abc import Mapping

from harness.agent import setting
from harness.agent.foreign import read_text
from harness.agent.setting import Declaration, Key, Part, Setting, Whole, number, write_each

_SYSCTLS = {
    "net.core.dev_weight": (Whole(1, 65536), "packets in one poll of a backlog"),
    "net.core.gro_normal_batch": (Whole(1, 65536), "packets in a list that GRO passes on"),
    "net.core.netdev_budget": (Whole(1, 1_000_000), "packets in one softirq"),
    "net.core.netdev_budget_usecs": (Whole(0, 1_000_000), "length of one softirq in µs"),
    "net.core.netdev_max_backlog": (Whole(1, 10_000_000), "packets in a CPU's backlog"),
    "net.core.rmem_default": (Whole(2304, 2**31 - 1), "receive buffer of a socket in bytes"),
    "net.core.rmem_max": (Whole(2304, 2**31 - 1), "largest receive buffer in bytes"),
    "net.ipv4.ip_early_demux": (Whole(0, 1), "whether sockets are looked up before routing"),
    "net.ipv4.udp_early_demux": (Whole(0, 1), "the same for UDP"),
}
_FILES = {name: name.replace(".", "/") for name in _SYSCTLS}


def _read() -> dict[str, int]:
    """Those that the kernel has."""
    found = {name: number(read_text(setting.PROC_SYS / file)) for name, file in _FILES.items()}
    return {name: value for name, value in found.items() if value is not None}


def _write(value: Mapping[str, int]) -> None:
    write_each(
        ((setting.PROC_SYS / _FILES[name], str(wanted)) for name, wanted in value.items()),
        lambda one, other: one == other,
    )


def _wanted(now: Mapping[str, int], asked: Mapping[str, tuple[str, int]]) -> dict[str, int] | None:
    name, value = asked["sysctl"]
    return {**now, name: value} if name in now else None


SETTINGS = (
    Declaration(
        "sysctls",
        lambda _: Setting("sysctls", _read, _write),
        wanted=_wanted,
        by="sysctl",
        each=True,
        absent="the kernel does not have it",
        title="sysctls",
        shown=lambda value: ", ".join(f"{name} {wanted}" for name, wanted in value.items()),
        key=Key(
            {name: Part(value, words, required=False) for name, (value, words) in _SYSCTLS.items()},
            "sysctls of the dut; null leaves all as they are",
        ),
    ),
)
