# SPDX-License-Identifier: MIT
"""Interrupt moderation of receive."""

from __future__ import annotations

from typing import Any

from harness.agent.interface.ethtool import Ethtool
from harness.agent.setting import Declaration, Key, Part, Setting, Whole


def _on(interface: str) -> Setting:
    ethtool = Ethtool(interface)
    return Setting(
        "coalesce", ethtool.coalesce, lambda value: ethtool.set_coalesce(**value), _holds
    )


def _holds(is_now: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    # Drivers round to the steps of the NIC's timer; `after` has the real value.
    return (
        is_now is not None
        and is_now["adaptive_rx"] == wanted["adaptive_rx"]
        and abs(is_now["rx_usecs"] - wanted["rx_usecs"]) <= wanted["rx_usecs"] // 4
    )


def _shown(value: dict[str, Any]) -> str:
    return f"{value['rx_usecs']} µs, adaptive {'on' if value['adaptive_rx'] else 'off'}"


SETTINGS = (
    Declaration(
        "coalesce",
        _on,
        wanted=lambda now, asked: {**now, **asked["coalesce"]},
        absent="the driver has no interrupt moderation",
        title="moderation",
        shown=_shown,
        key=Key(
            {
                "adaptive_rx": Part(bool, "whether the driver adapts it to the load"),
                "rx_usecs": Part(Whole(0, 65535), "hold-off in µs"),
            },
            "interrupt moderation on the dut; null leaves it as it is",
        ),
        compared=True,
        of_nic=True,
    ),
)
