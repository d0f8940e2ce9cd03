# SPDX-License-Identifier: MIT
"""Where a user-mode kernel is stopped to count packets, and what is read there.

Computed from the kernel's file alone: its symbols, its code and its BTF. The result is the
plan that :mod:`harness.beds.native.tracer` follows.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.agent.tracing import stages as probed
from harness.agent.tracing.btf import Btf
from harness.agent.tracing.stages import Stage
from harness.base.errors import InfrastructureError
from harness.base.resources import shipped
from harness.beds.native.elf import Elf

ATTACH = "breakpoint"
MARK = "snmp_seq_show"
"""Prints /proc/net/snmp: called at the moment in which a reading takes the counters."""
_SLOT_BYTES = 32
_MEMBERS = (
    ("sk_buff", "list"),
    ("sk_buff", "dev"),
    ("sk_buff", "queue_mapping"),
    ("sk_buff", "skb_iif"),
    ("list_head", "next"),
    ("net_device", "name"),
    ("net_device", "ifindex"),
    ("tracepoint", "key"),
)
_DROP_REASON = "SKB_DROP_REASON_"
# First instructions of functions that work at any address: optional REX, then the opcode.
_PUSH = re.compile(rb"\x41?[\x50-\x57]", re.DOTALL)
_ENDBR = b"\xf3\x0f\x1e\xfa"
_WITH_OPERAND = {  # opcode: bytes of the immediate value
    **dict.fromkeys((0x01, 0x03, 0x29, 0x2B, 0x31, 0x33, 0x39, 0x3B, 0x63, 0x85, 0x89, 0x8B), 0),
    0x8D: 0,
    0x83: 1,
    0x81: 4,
    0xC7: 4,
    0xF6: 1,
}


def instruction_bytes(code: bytes) -> int | None:
    """The length of the first instruction of ``code``; None if it may not be moved.

    Only what compilers begin functions with is known; jumps, calls and operands relative to
    the instruction's own address are not.
    """
    if found := _PUSH.match(code):
        return found.end()
    if code.startswith(_ENDBR):
        return len(_ENDBR)
    at = int(0x40 <= code[0] <= 0x4F)
    opcode, modrm = code[at : at + 2]
    if opcode not in _WITH_OPERAND or (opcode == 0xF6 and modrm & 0x30):
        return None
    mode, register = modrm >> 6, modrm & 7
    length = at + 2 + _WITH_OPERAND[opcode]
    if mode == 3:
        return length
    if register == 4:
        length += 1
        if mode == 0 and code[at + 2] & 7 == 5:
            length += 4
    elif mode == 0 and register == 5:
        return None
    return length + {0: 0, 1: 1, 2: 4}[mode]


def point(elf: Elf, function: str, number: int, **what: Any) -> dict[str, Any] | None:
    """A breakpoint at ``function`` whose copy is in slot ``number``; None if it cannot be."""
    address = elf.symbols[function]
    code = elf.bytes_at(address, 16)
    length = instruction_bytes(code) if len(code) == 16 else None
    start, size = elf.room()
    slot = (start + 15 & ~15) + _SLOT_BYTES * number
    if length is None or slot + _SLOT_BYTES > start + size:
        return None
    jump = address + length - (slot + length + 5)
    return {
        "name": function,
        "stage": 0,
        "address": address,
        "slot": slot,
        "entry": code[:length].hex(),
        "moved": (code[:length] + b"\xe9" + struct.pack("<i", jump)).hex(),
    } | what


@dataclass(frozen=True)
class Breakpoints:
    """The places of one kernel, and what is known of its types."""

    elf: Elf
    stages: tuple[Stage, ...]
    """Every stage, with the reason if it has no breakpoint."""
    truth: Stage
    dropped: Stage
    points: tuple[dict[str, Any], ...]
    switches: dict[str, int]
    """The address of each tracepoint's key, by the name of the tracepoint."""
    offsets: dict[str, int]
    reasons: dict[int, str]
    """Why a packet is dropped, by number."""

    def plan(self, pid: int, interface: str, *, session: bool) -> dict[str, Any]:
        """What the tracer is told; a trial has fewer breakpoints than a session."""
        names = {stage.name for stage in self.shown(session=session)}
        names |= {self.truth.name} if session else {self.truth.name, MARK}
        chosen = [one for one in self.points if one["name"] in names]
        return {
            "pid": pid,
            "interface": interface,
            "session": session,
            "points": chosen,
            "switches": [
                at for name, at in self.switches.items() if name in {one["name"] for one in chosen}
            ],
            "offsets": self.offsets,
        }

    def shown(self, *, session: bool) -> list[Stage]:
        """The stages of a session or a trial."""
        if session:
            return [*self.stages, self.dropped]
        source = _source()
        in_trial = {stage.name for stage in probed.of_program(source, (), session=False)}
        return [stage for stage in self.stages if stage.name in in_trial]


def of_kernel(path: Path) -> Breakpoints:
    """The breakpoints for the kernel in this file.

    Raises:
        InfrastructureError: the kernel has no BTF, or not the functions that every trial needs.
    """
    elf = Elf(path)
    symbols = elf.symbols
    found = probed.of_program(_source(), symbols, session=True)
    truth = _tracepoint(probed.TRACEPOINT, f"net:{probed.TRACEPOINT}", symbols)
    dropped = _tracepoint(probed.DROP, f"skb:{probed.DROP}", symbols)
    # A slot keeps its content, so each function has the same one in trials and in sessions.
    points = [*_points(elf, [*found, truth, dropped])]
    if MARK in symbols and (mark := point(elf, MARK, len(points), kind="mark")):
        points.append(mark)
    lacking = {truth.name, MARK} - {one["name"] for one in points}
    if lacking:
        told = ", ".join(sorted(lacking))
        raise InfrastructureError(
            f"packets cannot be counted in {path}: no breakpoint is possible at {told}",
            hint="the kernel needs tracepoints and /proc/net/snmp",
        )
    btf = elf.section(".BTF")
    offsets = Btf(btf).member_offsets(*_MEMBERS) if btf else None
    if offsets is None:
        raise InfrastructureError(
            f"packets cannot be counted in {path}: its BTF lacks a structure that is read",
            hint="build it with CONFIG_DEBUG_INFO_BTF",
        )
    at = dict(zip(map(".".join, _MEMBERS), offsets, strict=True))
    reasons = Btf(btf).enumerators("skb_drop_reason")
    return Breakpoints(
        elf=elf,
        stages=tuple(found),
        truth=truth,
        dropped=dropped,
        points=tuple(points),
        switches={
            stage.name: symbols[f"__tracepoint_{name}"] + at["tracepoint.key"]
            for stage, name in ((truth, probed.TRACEPOINT), (dropped, probed.DROP))
            if stage.function is not None
        },
        offsets=at,
        reasons={n: name.removeprefix(_DROP_REASON) for n, name in reasons.items()},
    )


def _tracepoint(name: str, shown: str, symbols: Iterable[str]) -> Stage:
    """A tracepoint: called with the packet as second argument, once its key is not 0."""
    stage = Stage(shown, "tracepoint", 0)
    if f"__traceiter_{name}" in symbols and f"__tracepoint_{name}" in symbols:
        stage.function = f"__traceiter_{name}"
    else:
        stage.why = "this kernel does not have the tracepoint"
    return stage


def _points(elf: Elf, places: Iterable[Stage]) -> Iterable[dict[str, Any]]:
    """A breakpoint for each stage that can have one; says in the stage why another has none."""
    number = 0
    for stage in places:
        if stage.function is None:
            continue
        drop = stage.name == f"skb:{probed.DROP}"
        kind = "drop" if drop else "list" if stage.handler == "count_list" else "skb"
        made = point(
            elf,
            stage.function,
            number,
            name=stage.name,
            kind=kind,
            stage=stage.index,
            argument=int(stage.handler == "tracepoint"),
            orig_dev=stage.name in probed.TOLD_ORIG_DEV,
        )
        if made is None:
            stage.why = f"the first instruction of {stage.function} cannot be moved"
        else:
            stage.attach = ATTACH
            number += 1
            yield made


def _source() -> str:
    return (shipped("probes") / probed.SOURCE).read_text(encoding="utf-8")
