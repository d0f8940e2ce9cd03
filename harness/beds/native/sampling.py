# SPDX-License-Identifier: MIT
"""The functions in which a user-mode kernel is found when it is stopped at many moments.

A stop takes effect wherever the process is, so the samples are not biased, and it needs no right
and no counter of the CPU. ``/proc/PID/syscall`` tells the program counter of a stopped process.
A sample counts only if the process has run for a moment since the one before, so shares are those
of CPU time. If a signal for the kernel came at the same moment, the counter is at the start of its
handler, and the sample is left out.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

from harness.beds.bed import OUTSIDE
from harness.beds.native.elf import Elf
from harness.beds.native.uml import UserModeKernel

_PAUSE_S = 0.001
_RAN_NS = 100_000
_HANDLER = "hard_handler"
"""Of all signals (arch/um/os-Linux/signal.c)."""


def sampled(kernel: UserModeKernel, program: Elf, duration_s: float) -> Counter[str]:
    """How often ``kernel``, which is ``program``, is in each function during ``duration_s``."""
    found: Counter[str] = Counter()
    handler = program.symbols.get(_HANDLER)
    home = Path(f"/proc/{kernel.pid_here}")
    ran_ns = 0
    draw = random.Random(0).random  # noqa: S311 (moments, no secret)
    deadline = time.monotonic() + duration_s
    while time.monotonic() < deadline:
        time.sleep(2 * _PAUSE_S * draw())
        kernel.freeze()
        try:
            told = (home / "syscall").read_bytes()
            now_ns = int((home / "schedstat").read_bytes().split()[0])
        finally:
            kernel.thaw()
        at = int(told.split()[-1], 16)
        if now_ns - ran_ns < _RAN_NS or (handler and at == handler.address):
            continue
        ran_ns = now_ns
        found[program.function_at(at) if program.bytes_at(at, 1) else OUTSIDE] += 1
    return found
