# SPDX-License-Identifier: MIT
"""The functions in which a user-mode kernel is found when it is stopped at many moments.

A stop takes effect wherever the process is, so the samples are not biased, and it needs no right
and no counter of the CPU. ``/proc/PID/syscall`` tells the program counter of a stopped process.
If a signal for the kernel came at the same moment, that is the start of its handler, and the
sample is left out.
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
_HANDLER = "hard_handler"
"""Of all signals (arch/um/os-Linux/signal.c)."""


def sampled(kernel: UserModeKernel, program: Elf, duration_s: float) -> Counter[str]:
    """How often ``kernel``, which is ``program``, is in each function during ``duration_s``."""
    found: Counter[str] = Counter()
    handler = program.symbols.get(_HANDLER)
    draw = random.Random(0).random  # noqa: S311 (moments, no secret)
    deadline = time.monotonic() + duration_s
    while time.monotonic() < deadline:
        time.sleep(2 * _PAUSE_S * draw())
        kernel.freeze()
        try:
            told = Path(f"/proc/{kernel.pid_here}/syscall").read_bytes()
        finally:
            kernel.thaw()
        at = int(told.split()[-1], 16)
        if handler and at == handler.address:
            continue
        found[program.function_at(at) if program.bytes_at(at, 1) else OUTSIDE] += 1
    return found
