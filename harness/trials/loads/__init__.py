# SPDX-License-Identifier: MIT
"""What the generator can send: the registry of loads.

A new load is one module with a :class:`~harness.trials.loads.kind.LoadKind`, one line here,
and its name in ``Load.kind`` of ``harness/config/models.py``.
"""

from __future__ import annotations

from harness.trials.loads.forward import Forward
from harness.trials.loads.kind import LoadKind
from harness.trials.loads.tcp import Tcp
from harness.trials.loads.udp import Udp
from harness.trials.loads.udp6 import Udp6

LOADS: tuple[LoadKind, ...] = (Udp(), Udp6(), Forward(), Tcp())

__all__ = ["LOADS", "LoadKind", "named"]


def named(name: str) -> LoadKind:
    """The load ``name``, as ``Load.kind`` has it."""
    return next(load for load in LOADS if load.name == name)
