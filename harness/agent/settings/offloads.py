# SPDX-License-Identifier: MIT
"""What the NIC and the kernel do to packets and rings before the stack sees them."""

from __future__ import annotations

from collections.abc import Mapping

from harness.agent.interface import netlink
from harness.agent.interface.ethtool import Ethtool
from harness.agent.setting import Setting

FEATURES: Mapping[str, str] = {
    "gro": "rx-gro",
    "gro_hw": "rx-gro-hw",
    "gro_list": "rx-gro-list",
    "lro": "rx-lro",
    "rx_checksum": "rx-checksum",
    "rx_hash": "rx-hashing",
    "udp_gro_forwarding": "rx-udp-gro-forwarding",
}
"""Offloads that can be asked for, by the kernel's names, as ``ethtool -k`` shows them."""

Offloads = Mapping[str, Mapping[str, bool]]


def settings(interface: str, ethtool: Ethtool) -> list[Setting]:
    """The ring's size, and every feature of receive."""
    return [
        Setting(
            "rings",
            ethtool.rings,
            lambda value: ethtool.set_rx_ring(value["rx"]),
            lambda is_now, wanted: bool(is_now["rx"] == wanted["rx"]),
        ),
        Setting(
            "offloads",
            lambda: _read(interface),
            lambda value: _write(interface, value),
            _hold,
        ),
    ]


def with_offload(now: Offloads, name: str, on: bool) -> Offloads | None:
    """``now`` with the offload ``name`` on or off; None where that cannot be had."""
    feature = now.get(FEATURES[name])
    if feature is None or (feature["fixed"] and feature["on"] != on):
        return None
    return {**now, FEATURES[name]: {**feature, "on": on}}


def _read(interface: str) -> Offloads | None:
    try:
        return netlink.offloads(interface)
    except OSError:
        return None


def _write(interface: str, value: Offloads) -> None:
    now = netlink.offloads(interface) or {}
    wanted = {
        name: feature["on"]
        for name, feature in value.items()
        if name in now and not now[name]["fixed"] and now[name]["on"] != feature["on"]
    }
    if wanted:
        netlink.set_offloads(interface, wanted)


def _hold(is_now: Offloads | None, wanted: Offloads) -> bool:
    return is_now is not None and all(
        is_now[name]["on"] == feature["on"] for name, feature in wanted.items() if name in is_now
    )
