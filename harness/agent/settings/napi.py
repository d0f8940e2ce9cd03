# SPDX-License-Identifier: MIT
"""How NAPI polls: in softirq or in a thread, and how long it defers interrupts and packets."""

from __future__ import annotations

from harness.agent.inventory import NET
from harness.agent.setting import Key, Whole, numbered, only_off

SETTINGS = (
    numbered(
        "threaded",
        lambda interface: NET / interface / "threaded",
        wanted=lambda _now, _asked: 0,
        check=only_off,
        absent="the kernel has no threaded NAPI",
        off_if_absent=True,
        hint="`echo 0 > /sys/class/net/INTERFACE/threaded` on the host",
        title="threaded NAPI",
        plain=False,
    ),
    numbered(
        "napi_defer_hard_irqs",
        lambda interface: NET / interface / "napi_defer_hard_irqs",
        absent="the kernel does not know it",
        off_if_absent=True,
        title="polls before the interrupt is on again",
        key=Key(
            Whole(0, 1000),
            "polls without packets after which the dut's interrupt is on again; "
            "null leaves it as it is",
            default=0,
        ),
        compared=True,
    ),
    numbered(
        "gro_flush_timeout_ns",
        lambda interface: NET / interface / "gro_flush_timeout",
        absent="the kernel does not know it",
        off_if_absent=True,
        title="packets and interrupts held back by NAPI",
        shown=lambda value: f"{value} ns",
        key=Key(
            Whole(0, 1_000_000_000),
            "how long the dut's NAPI may hold packets and interrupts back, in ns; "
            "null leaves it as it is",
            default=0,
        ),
        compared=True,
    ),
)
