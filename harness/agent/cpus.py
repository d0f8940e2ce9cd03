# SPDX-License-Identifier: MIT
"""CPUs by number, as the kernel lists them; a count would not say which ones there are.

Offline CPUs leave gaps, and a cpuset allows a process only some of those online.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from .faults import AgentError

_CPU = Path("/sys/devices/system/cpu")
_LIST = re.compile(r"\d+(?:-\d+(?::\d+/\d+)?)?")
_MASK = re.compile(r"[0-9a-fA-F]+(?:,[0-9a-fA-F]+)*")
_MOST = 1 << 16
"""More CPUs than any kernel supports."""


def parse_list(text: str) -> list[int]:
    """The CPUs of a list such as ``0-3,8,10-14:1/2`` (Documentation/admin-guide/cputopology.rst).

    Raises:
        AgentError: the text has another form.
    """
    found: set[int] = set()
    for part in filter(None, (word.strip() for word in text.strip().split(","))):
        if not part.isascii() or not _LIST.fullmatch(part):
            raise _no_list(text)
        whole, _, groups = part.partition(":")
        first, _, last = whole.partition("-")
        used, _, size = groups.partition("/")
        begin, end = int(first), int(last or first)
        of, each = int(used or 1), int(size or 1)
        if end < begin or end >= _MOST or not 0 < of <= each:
            raise _no_list(text)
        found |= {cpu for cpu in range(begin, end + 1) if (cpu - begin) % each < of}
    return sorted(found)


def parse_mask(text: str) -> list[int]:
    """The CPUs of a mask such as ``00000001,0000000f``, 32 in each word.

    Raises:
        AgentError: the text has another form.
    """
    text = text.strip()
    if not text.isascii() or not _MASK.fullmatch(text) or len(text) > _MOST // 2:
        raise AgentError(f"not a mask of CPUs: {text!r:.80}")
    # Every word but the first stands for eight digits, also if printed without leading zeros.
    first, *rest = text.split(",")
    if any(len(word) > 8 for word in rest):
        raise AgentError(f"not a mask of CPUs: {text!r:.80}")
    bits = int(first + "".join(word.zfill(8) for word in rest), 16)
    return [cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1]


def as_list(cpus: Iterable[int]) -> str:
    """``cpus`` as the kernel writes them: ``0-3,8``."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def online() -> list[int]:
    """The CPUs that are online."""
    return _listed("online") or sorted(os.sched_getaffinity(0))


def possible() -> list[int]:
    """The CPUs that can ever be online."""
    return _listed("possible") or online()


def allowed() -> list[int]:
    """The online CPUs that this process's cpuset allows.

    Found by setting the affinity to all CPUs, which the kernel reduces, and restoring it.
    """
    own = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, online())
        return sorted(os.sched_getaffinity(0))
    except OSError:
        return sorted(own)
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, own)


def require(cpu: int, what: str, *, processes: bool = False) -> None:
    """Check that ``cpu`` is online, and with ``processes`` that this agent's may run there.

    Raises:
        AgentError: it is not, or they may not; ``what`` names its purpose.
    """
    there = online()
    if cpu not in there:
        how = "is offline" if cpu in possible() else "does not exist on this host"
        raise AgentError(
            f"{what}: CPU {cpu} {how}",
            kind="configuration",
            hint=f"CPUs online here: {as_list(there)}",
        )
    if processes and cpu not in (may := allowed()):
        raise AgentError(
            f"{what}: CPU {cpu} is not allowed to the agent's processes (a cpuset)",
            kind="configuration",
            hint=f"CPUs allowed here: {as_list(may)}",
        )


def apart_from(*taken: int) -> list[int]:
    """The allowed CPUs other than ``taken``."""
    return [cpu for cpu in allowed() if cpu not in taken]


def _listed(name: str) -> list[int]:
    try:
        return parse_list((_CPU / name).read_text(encoding="ascii", errors="replace"))
    except (OSError, AgentError):
        return []


def _no_list(text: str) -> AgentError:
    return AgentError(f"not a list of CPUs: {text.strip()!r:.80}")
