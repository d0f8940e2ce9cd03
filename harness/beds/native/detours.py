# SPDX-License-Identifier: MIT
"""The probes as code in a user-mode kernel: how its functions are led to it.

Computed from the kernel's file alone: its symbols, its code and its BTF. The first instructions
of a probed function become a jump to code that counts, executes them, and jumps back.
"""

from __future__ import annotations

import functools
import re
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.agent.tracing import stages as probed
from harness.agent.tracing.btf import Btf
from harness.agent.tracing.stages import Stage
from harness.base import cache, process
from harness.base.errors import InfrastructureError
from harness.base.resources import shipped
from harness.beds.native.elf import Elf, Symbol

MARK = "snmp_seq_show"
"""Prints /proc/net/snmp: called when a reading takes the counters, and in process context, where
no packet is being received: then no function of the receive path is half entered."""
_ATTACH = "detour"
_BASE, _SESSION_BASE = 0x50000000, 0x51000000
"""Below the kernel, which begins at 0x60000000, and within reach of its jumps."""
_JUMP_BYTES, _MOVED_BYTES = 5, 32
_MEMBERS = {
    "SKB_DEV": ("sk_buff", "dev"),
    "DEV_IFINDEX": ("net_device", "ifindex"),
    "SKB_QUEUE": ("sk_buff", "queue_mapping"),
    "SKB_IIF": ("sk_buff", "skb_iif"),
}
_KEY = ("tracepoint", "key")
_COMPILE = [
    "gcc", "-x", "c", "-O2", "-Wall", "-Wno-unused-but-set-variable", "-ffreestanding",
    "-fno-pic", "-fno-stack-protector", "-fcf-protection=none", "-mgeneral-regs-only",
    "-fno-asynchronous-unwind-tables", "-fno-tree-loop-distribute-patterns", "-nostdlib",
    "-static", "-no-pie", "-Wl,-N,-e,0,--build-id=none,--no-warn-rwx-segments",
]  # fmt: skip
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*\t?(.*)$", re.MULTILINE)
_STAYS = re.compile(r"(?:j\w+|call|ret|loop\w*|int3|ud2|\(bad\)|notrack|bnd)(?:\s|$)|.*\(%rip\)")
"""What works only at its own address, or does not lead to the next instruction."""
_TARGET = re.compile(r"\s(?:0x)?([0-9a-f]+)(?:\s|$)")


@dataclass(frozen=True)
class Detours:
    """What is changed in a kernel so that it counts, for a trial or for a session."""

    stages: tuple[Stage, ...]
    """Every stage, with the reason if it is not counted."""
    dropped: Stage
    kernel: Elf
    program: Elf
    """The code that counts; its symbols are the tables of the probe."""
    trigger: int
    plan: dict[str, Any]
    """For :mod:`harness.beds.native.patcher`, without the process."""
    reasons: dict[int, str]
    """Why a packet is dropped, by number."""


def of_kernel(path: Path, *, session: bool) -> Detours:
    """The detours for the kernel in this file.

    Raises:
        InfrastructureError: the kernel has no BTF, or not the functions that every trial needs,
            or the probe does not compile.
    """
    kernel = Elf(path)
    source = (shipped("probes") / probed.SOURCE).read_text(encoding="utf-8")
    found = probed.of_program(source, kernel.symbols, session=session)
    truth, dropped = _tracepoint(probed.TRACEPOINT, kernel), _tracepoint(probed.DROP, kernel)
    mark = Stage(MARK, "", 0, function=MARK)
    places = {stage.name: stage for stage in found} | {probed.TRACEPOINT: truth, "mark": mark}
    if session:
        places[probed.DROP] = dropped
    entries = {name: entry for name, stage in places.items() if (entry := _entry(kernel, stage))}
    for stage in (truth, mark):
        if stage.attach is None:
            raise InfrastructureError(f"packets cannot be counted in {path}: {stage.why}")
    btf = kernel.section(".BTF")
    offsets = Btf(btf).member_offsets(*_MEMBERS.values(), _KEY) if btf else None
    if offsets is None:
        raise InfrastructureError(
            f"packets cannot be counted in {path}: its BTF lacks a structure that is read",
            hint="build it with CONFIG_DEBUG_INFO_BTF",
        )
    *members, key = offsets
    text = _text(dict(zip(_MEMBERS, members, strict=True)), [*entries], session=session)
    program = Elf(_program(text, _SESSION_BASE if session else _BASE))
    switches = [
        [kernel.symbols[f"__tracepoint_{name}"].address + key, 1]
        for name in (probed.TRACEPOINT, probed.DROP)
        if name in entries
    ]
    return Detours(
        stages=tuple(found),
        dropped=dropped,
        kernel=kernel,
        program=program,
        trigger=kernel.symbols[MARK].address,
        plan=_plan(kernel, program, entries) | {"switches": switches},
        reasons={
            number: name.removeprefix("SKB_DROP_REASON_")
            for number, name in Btf(btf).enumerators("skb_drop_reason").items()
        },
    )


def _tracepoint(name: str, kernel: Elf) -> Stage:
    """A tracepoint: calls a function with the packet as second argument if its key is not 0."""
    stage = Stage(f"skb:{name}" if name == probed.DROP else f"net:{name}", "", 0)
    if f"__tracepoint_{name}" in kernel.symbols:
        stage.function = f"__traceiter_{name}"
    return stage


def _entry(kernel: Elf, stage: Stage) -> tuple[str, bytes] | None:
    """The function of ``stage``, and its first instructions, which make room for a jump.

    None if that is not possible; the stage then says why.
    """
    symbol = kernel.symbols.get(stage.function or "")
    if stage.function is None or symbol is None:
        stage.why = stage.why or f"this kernel has no function for {stage.name}"
        return None
    moved = b""
    for _, code, shown in disassembled(kernel.bytes_at(symbol.address, _MOVED_BYTES), 0):
        if len(moved) >= _JUMP_BYTES:
            break
        if _STAYS.match(shown):
            stage.why = f"{stage.function} begins with an instruction that cannot be moved"
            return None
        moved += code
    inside = range(symbol.address + 1, symbol.address + len(moved))
    cold = kernel.symbols.get(f"{stage.function}.cold")
    for part in (symbol, *([cold] if cold else [])):
        if any(target in inside for target in _targets(kernel, part)):
            stage.why = f"{stage.function} jumps into its first instructions"
            return None
    stage.attach, stage.why = _ATTACH, None
    return stage.function, moved


def disassembled(code: bytes, address: int) -> Iterator[tuple[int, bytes, str]]:
    """Each instruction of ``code``: its address, its bytes, and how objdump shows it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(code)
        file.flush()
        shown = process.run(
            ["objdump", "-D", "-w", "-b", "binary", "-m", "i386:x86-64",
             f"--adjust-vma={address:#x}", file.name],
            hint="apt-get install binutils",
        ).stdout  # fmt: skip
    for at, data, text in _INSTRUCTION.findall(shown):
        yield int(at, 16), bytes.fromhex(data), text


def _targets(kernel: Elf, part: Symbol) -> Iterator[int]:
    """Where the jumps of a function lead to."""
    code = kernel.bytes_at(part.address, part.size)
    for _, _, shown in disassembled(code, part.address):
        if shown.startswith(("j", "loop")) and (found := _TARGET.search(shown)):
            yield int(found[1], 16)


def _text(members: dict[str, int], names: list[str], *, session: bool) -> str:
    """The program: the probe with what makes it run in a kernel's process."""
    tracepoints = (probed.TRACEPOINT, probed.DROP)
    return "\n".join(
        [
            '#include "inside.h"',
            *(f"#define {name} {offset}" for name, offset in members.items()),
            *["#define SESSION"] * session,
            "#define NO_FENTRY",
            "#define KPROBES",
            f'#include "{probed.SOURCE}"',
            "MARK(list_stages, skb_stages)",
            *(
                f"DETOUR({name}, tracepoint_{name}, 8);"
                if name in tracepoints
                else f"DETOUR({name}, {name if name == 'mark' else f'kprobed_{name}'}, 0);"
                for name in names
            ),
            "",
        ]
    )


def _program(text: str, base: int) -> Path:
    """The program linked to ``base``, from the cache or made now.

    Raises:
        InfrastructureError: it does not compile.
    """
    probes = shipped("probes")
    command = [*_COMPILE, f"-Wl,-Ttext={base:#x}", "-I", str(probes)]

    def make(making: Path) -> None:
        (making / "counting.c").write_text(text, encoding="utf-8")
        compile_ = [*command, "-o", str(making / "counting"), str(making / "counting.c")]
        process.run(compile_, env=process.building(), hint="apt-get install gcc")

    headers = [path.read_text(encoding="utf-8") for path in sorted(probes.glob("*.[ch]"))]
    key = cache.digest(text, *headers, *command[: -len(["-I", probes])])
    kept = cache.entry(cache.root() / "plugins" / key, make, what="the counting code")
    return kept / "counting"


def _plan(kernel: Elf, program: Elf, entries: dict[str, tuple[str, bytes]]) -> dict[str, Any]:
    code = bytearray(program.section(".text"))
    start, end = program.address(".text"), program.symbols["_end"].address
    patches = []
    for name, (function, moved) in entries.items():
        entry = kernel.symbols[function].address
        jump = b"\xe9" + struct.pack(
            "<i", program.symbols[f"detour_{name}"].address - entry - _JUMP_BYTES
        )
        patches.append([entry, moved.hex(), (jump + moved[_JUMP_BYTES:]).hex()])
        at = program.symbols[f"moved_{name}"].address
        back = entry + len(moved) - (at + len(moved) + _JUMP_BYTES)
        put = moved + b"\xe9" + struct.pack("<i", back)
        code[at - start : at - start + len(put)] = put
    size = -(-(end - start) // 4096) * 4096
    return {
        "memory": [start, size],
        "scratch": kernel.room()[0] + 15 & ~15,
        "contents": [[start, code.hex()], [start + len(code), bytes(size - len(code)).hex()]],
        "patches": patches,
    }


@functools.cache
def layout() -> tuple[int, int, int, int]:
    """The probe's longest list with a bucket of its own, and its numbers of queues, of stages
    for lists and of stages for packets."""
    source = (shipped("probes") / probed.SOURCE).read_text(encoding="utf-8")
    defined = dict(re.findall(r"^#define (\w+) (\d+)", source, re.MULTILINE))
    names = ("LONGEST_COUNTED", "QUEUES", "LIST_STAGES", "SKB_STAGES")
    longest, queues, lists, skbs = (int(defined[name]) for name in names)
    return longest, queues, lists, skbs
