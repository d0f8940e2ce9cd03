# SPDX-License-Identifier: MIT
"""One ssh connection per host, shared by all ssh commands of this process until it ends."""

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
"""An unused connection ends after this time, also if this process was killed."""

_NAME_BYTES = 40 + 17
"""%C has 40 characters; OpenSSH temporarily appends 17."""
_END_S = 5.0
_lock = threading.Lock()
_made: dict[int, Path] = {}


def options() -> list[str]:
    """OpenSSH's options that share the connection, for any host."""
    path = f"{_directory()}/%C"
    return ["ControlMaster=auto", f"ControlPath={path}", f"ControlPersist={PERSIST_S}"]


def _directory() -> Path:
    """Private to this process."""
    with _lock:
        pid = os.getpid()
        if pid not in _made:
            _made[pid] = runtime.made(name_bytes=_NAME_BYTES)
            atexit.register(_close, pid)
        return _made[pid]


def _close(pid: int) -> None:
    """End the shared connections."""
    if pid != os.getpid():  # a fork inherits the handler
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
