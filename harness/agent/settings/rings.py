# SPDX-License-Identifier: MIT
"""The number of descriptors in the receive rings."""

from __future__ import annotations

from harness.agent.interface.ethtool import Ethtool
from harness.agent.setting import Declaration, Key, Setting, Whole


def _on(interface: str) -> Setting:
    ethtool = Ethtool(interface)
    return Setting(
        "rings",
        ethtool.rings,
        lambda value: ethtool.set_rx_ring(value["rx"]),
        lambda is_now, wanted: bool(is_now["rx"] == wanted["rx"]),
    )


SETTINGS = (
    Declaration(
        "rings",
        _on,
        wanted=lambda now, asked: {**now, "rx": asked["rx_ring"]},
        by="rx_ring",
        absent="the driver's rings have a fixed size",
        hint="`ethtool -g` shows the largest size; many NICs take only powers of two",
        title="descriptors in a receive ring",
        key=Key(
            Whole(64, 65536),
            "descriptors in each receive ring of the dut; null leaves them as they are",
        ),
        compared=True,
        of_nic=True,
    ),
)
