# SPDX-License-Identifier: MIT
"""irqbalance: stopped, because it would move interrupts, and started again."""

from __future__ import annotations

import shutil
import subprocess

from harness.agent.inventory import irqbalance_running
from harness.agent.setting import Declaration, Key, Setting, Word

_SYSTEMCTL_S = 60


def _read() -> str:
    return "active" if irqbalance_running() else "inactive"


def _write(value: str) -> None:
    if shutil.which("systemctl") is None:
        raise OSError("irqbalance runs, and this host has no systemctl to stop it")
    verb = "start" if value == "active" else "stop"
    try:
        subprocess.run(
            ["systemctl", verb, "irqbalance"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SYSTEMCTL_S,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"systemctl {verb} irqbalance did not end in {_SYSTEMCTL_S} s") from error


SETTINGS = (
    Declaration(
        "irqbalance",
        lambda _: Setting("irqbalance", _read, _write),
        wanted=lambda _now, _asked: "inactive",
        hint="stop irqbalance on the host, or set `irqbalance: null`",
        title="irqbalance",
        key=Key(
            Word("^off$", "'off' or null"),
            "irqbalance during a trial; null leaves it as it is",
            default="off",
        ),
    ),
)
