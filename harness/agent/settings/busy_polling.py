# SPDX-License-Identifier: MIT
"""Busy polling of the receive queue by sockets: off, except in latency trials that ask for it."""

from __future__ import annotations

from harness.agent import setting
from harness.agent.setting import Declaration, numbered


def _of_core(name: str, file: str, title: str) -> Declaration:
    return numbered(
        name,
        lambda _: setting.PROC_SYS / "net/core" / file,
        absent="the kernel has no busy polling",
        off_if_absent=True,
        title=title,
        shown=lambda value: f"{value} µs",
        plain=0,
    )


SETTINGS = (
    _of_core("busy_read_us", "busy_read", "busy polling in recv()"),
    _of_core("busy_poll_us", "busy_poll", "busy polling in poll()"),
)
