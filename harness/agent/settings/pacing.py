# SPDX-License-Identifier: MIT
"""A token bucket on the generator's interface while a load is paced."""

from __future__ import annotations

from harness.agent.interface.links import Links
from harness.agent.setting import Declaration, Setting

SETTINGS = (
    Declaration(
        "pacing_bytes_per_s",
        lambda at: Setting("pacing_bytes_per_s", Links(at).pacing, Links(at).set_pacing),
        hint="pacing needs the kernel's tbf (CONFIG_NET_SCH_TBF) on the generator, and an "
        "interface that still has its default qdisc",
    ),
)
