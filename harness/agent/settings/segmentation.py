# SPDX-License-Identifier: MIT
"""Segmentation of TCP by the interface: the other end of a veth gets segments as they are sent."""

from __future__ import annotations

from harness.agent.interface import netlink
from harness.agent.setting import Declaration, Setting

_KIND, _WHICH = "tx-", "segmentation"


def _read(interface: str) -> dict[str, bool] | None:
    try:
        found = netlink.offloads(interface, _KIND) or {}
    except OSError:
        return None
    return {
        name: feature["on"]
        for name, feature in found.items()
        if name.endswith(_WHICH) and not feature["fixed"]
    }


def _write(interface: str, value: dict[str, bool]) -> None:
    now = _read(interface) or {}
    if wanted := {name: on for name, on in value.items() if now.get(name) != on}:
        netlink.set_offloads(interface, wanted)


SETTINGS = (
    Declaration(
        "segmentation",
        lambda at: Setting("segmentation", lambda: _read(at), lambda value: _write(at, value)),
        wanted=lambda now, asked: dict.fromkeys(now, bool(asked["segmentation"])),
        absent="the driver cannot change it",
    ),
)
