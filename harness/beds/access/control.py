# SPDX-License-Identifier: MIT
"""One connection a host that all ssh commands of this process share, gone when it ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import subprocess
import threading
from pathlib import Path

from harness.base import runtime

PERSIST_S = 60
"""A connection nobody uses ends after so long, should this process be killed."""

_NAME_BYTES = 40 + 17
"""%C is 40 characters, and OpenSSH adds 17 for a while."""
_END_S = 5.0
_lock = threading.Lock()
_made: dict[int, Path] = {}


def options() -> list[str]:
    """OpenSSH's options that share the connection, for any host."""
    return [
        "ControlMaster=auto",
        f"ControlPath={_directory()}/%C",
        f"ControlPersist={PERSIST_S}",
    ]


def _directory() -> Path:
    """Private to this process."""
    with _lock:
        pid = os.getpid()
        if pid not in _made:
            _made[pid] = runtime.made(name_bytes=_NAME_BYTES)
            atexit.register(_close, pid)
        return _made[pid]


def _close(pid: int) -> None:
    """End what is still shared; in the process that began it alone."""
    if pid != os.getpid():
        return
    directory = _made.pop(pid)
    for socket in directory.glob("*"):
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "-F", "none", "any"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_END_S,
            )
    shutil.rmtree(directory, ignore_errors=True)
