# SPDX-License-Identifier: MIT
"""Receive offloads of the NIC and of the kernel."""

from __future__ import annotations

from collections.abc import Mapping

from harness.agent.faults import AgentError
from harness.agent.interface import netlink
from harness.agent.setting import Declaration, Key, Part, Setting

_FEATURES = {
    "gro": ("rx-gro", "generic receive offload"),
    "gro_hw": ("rx-gro-hw", "GRO by the NIC"),
    "gro_list": ("rx-gro-list", "GRO into lists of whole packets"),
    "lro": ("rx-lro", "large receive offload"),
    "rx_checksum": ("rx-checksum", "checksums checked by the NIC"),
    "rx_hash": ("rx-hashing", "hashes computed by the NIC"),
    "udp_gro_forwarding": ("rx-udp-gro-forwarding", "GRO of UDP that no socket asked for"),
}
"""Offloads that can be set: the kernel's names, as ``ethtool -k`` shows them, and descriptions."""

Offloads = Mapping[str, Mapping[str, bool]]


def with_offload(now: Offloads, name: str, on: bool) -> Offloads | None:
    """``now`` with the offload ``name`` on or off; None if that is impossible."""
    feature = now.get(_FEATURES[name][0])
    if feature is None or (feature["fixed"] and feature["on"] != on):
        return None
    return {**now, _FEATURES[name][0]: {**feature, "on": on}}


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


def _known(asked: Mapping[str, bool]) -> None:
    if unknown := asked.keys() - _FEATURES.keys():
        raise AgentError(f"no offload {', '.join(sorted(unknown))}", kind="configuration")


def _on(interface: str) -> Setting:
    return Setting(
        "offloads", lambda: _read(interface), lambda value: _write(interface, value), _hold
    )


SETTINGS = (
    Declaration(
        "offloads",
        _on,
        wanted=lambda now, asked: with_offload(now, *asked["offloads"]),
        each=True,
        check=_known,
        absent="the driver cannot change it, or the kernel does not know it",
        title="offloads",
        shown=lambda value: ", ".join(f"{n} {'on' if on else 'off'}" for n, on in value.items()),
        key=Key(
            {name: Part(bool, words, required=False) for name, (_, words) in _FEATURES.items()},
            "offloads on the dut; null leaves all as they are",
        ),
        of_nic=True,
    ),
)
