# SPDX-License-Identifier: MIT
"""The stages of the receive path, as the bcc program in probes/ names them.

That program is the only list of them. Agents probe these functions from inside a kernel, and a
native bed from outside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

SOURCE = "receive_lists.bpf.c"
TRACEPOINT = "netif_receive_skb"
DROP = "kfree_skb"
TRUTH = f"tracepoint_{TRACEPOINT}"
"""Counts every packet once, whatever its way up."""
TOLD_ORIG_DEV = ("__netif_receive_skb_list_ptype", "ip_list_rcv")
"""Functions whose third argument is the device of the list."""
_STAGE = re.compile(r"^(SESSION_)?STAGE\((count_\w+), (\d+), (\w+)\)$", re.MULTILINE)


@dataclass
class Stage:
    """One function of the receive path: how it is probed, or why it cannot be."""

    name: str
    handler: str
    index: int
    function: str | None = None
    attach: str | None = None
    why: str | None = None

    def shown(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "function": self.function,
            "attach": self.attach,
            "why": self.why,
        }


def of_program(source: str, probeable: Iterable[str], *, session: bool) -> list[Stage]:
    """The stages of the program ``source``, each with its function among ``probeable``."""
    names = [*probeable]
    return [
        located(Stage(name, handler, int(index)), names)
        for only_session, handler, index, name in _STAGE.findall(source)
        if session or not only_session
    ]


def located(stage: Stage, probeable: list[str]) -> Stage:
    names = clones(stage.name, probeable)
    stage.function = names[0] if names else None
    if not names:
        stage.why = f"this kernel has no traceable function {stage.name}"
        if any(name.startswith(f"{stage.name}.") for name in probeable):
            stage.why += ", only parts of it (.part, .cold), which not every call enters"
    return stage


def clones(function: str, probeable: list[str]) -> list[str]:
    """``function`` itself, and its clones by gcc and clang, the best first.

    The list head is the first argument and never a constant, so a clone keeps it first. ``part``
    and ``cold`` are not clones: not every call enters them.
    """
    clone = re.compile(re.escape(function) + r"(\.(constprop|isra|llvm|lto_priv)\.\d+)*")
    names = {name for name in probeable if clone.fullmatch(name)}
    return sorted(names, key=lambda name: (len(name), name))
