# SPDX-License-Identifier: MIT
"""The cpufreq governor of every CPU."""

from __future__ import annotations

from typing import Any

from harness.agent import setting
from harness.agent.inventory import governors
from harness.agent.setting import Asked, Declaration, Key, Setting, Word, write_each


def _write(value: dict[str, str]) -> None:
    write_each(
        (
            (setting.CPU / f"cpu{cpu}" / "cpufreq" / "scaling_governor", governor)
            for cpu, governor in value.items()
        ),
        lambda one, other: one == other,
    )


def _holds(is_now: dict[str, str] | None, wanted: dict[str, str]) -> bool:
    # A CPU that went offline has none.
    return all((is_now or {}).get(cpu, one) == one for cpu, one in wanted.items())


def _wanted(now: dict[str, str], asked: Asked) -> dict[str, Any]:
    return dict.fromkeys(now, asked["governor"])


SETTINGS = (
    Declaration(
        "governor",
        lambda _: Setting("governor", governors, _write, _holds),
        wanted=_wanted,
        absent="the host has no cpufreq",
        hint="see scaling_available_governors of /sys/devices/system/cpu/cpufreq/policy*",
        title="cpufreq governor",
        key=Key(
            Word("^[a-z][a-z_]{0,15}$", "a cpufreq governor such as performance, or null"),
            "cpufreq governor, where there is one; null leaves it as it is",
            default="performance",
        ),
        compared=True,
    ),
)
