# SPDX-License-Identifier: MIT
"""The linker of a kernel's build, which places the code of each object anew.

How fast a kernel runs depends on where its functions happen to lie, by several per
cent under an emulator, and any patch moves all that comes behind it. So a kernel is
measured in several layouts (see Mytkowicz et al., "Producing wrong data without
doing anything obviously wrong!", ASPLOS 2009). A layout is a random order of slots.
Those of objects that no patch of the series touches come first and are wider than
their objects, so all steps have them at the same addresses.

Started by the build in place of ``ld`` for vmlinux alone; imports nothing of the rest.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

_FIRST_SLOT = 0x4000
_TEXT = re.compile(r"\*\(\.text\.hot")
_DISCARD = re.compile(r"^\s*/DISCARD/ : \{", re.MULTILINE)
_MEMBER = re.compile(r"^(\S+):\s+file format ", re.MULTILINE)
_SECTION = re.compile(r"^\s*\d+ \.text(?:\.fixup)?\s+([0-9a-f]+) .*2\*\*(\d+)$", re.MULTILINE)
_WIDEST_ALIGNMENT = 6


def code_sizes(headers: str) -> dict[str, int]:
    """Bytes of code by object, from ``objdump -h`` of an archive.

    Left out are objects without code and those that want more than 64 bytes of alignment.
    """
    sizes = {}
    _, *parts = _MEMBER.split(headers)
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        sections = [(int(size, 16), int(power)) for size, power in _SECTION.findall(text)]
        size = sum(size for size, _ in sections)
        if size and max(power for _, power in sections) <= _WIDEST_ALIGNMENT:
            sizes[name] = size
    return sizes


def placed(script: str, sizes: Mapping[str, int], touched: Collection[str], layout: int) -> str:
    """The kernel's linker ``script`` with a slot for the code of each object of vmlinux.a.

    ``touched`` names source files that a step may change, from the tree's top.

    Raises:
        ValueError: the script has no place for them.
    """
    changing = {str(Path(name).with_suffix(".o")) for name in touched}
    draw = random.Random(layout).random  # noqa: S311 (an order, no secret)
    order = sorted(sorted(sizes), key=lambda _: draw())
    order.sort(key=changing.__contains__)
    lines, at = [], _FIRST_SLOT
    for name in order:
        lines.append(f"  . = {at:#x}; *vmlinux.a:{name}(.text .text.fixup)")
        unit = 4096 if name in changing else 256
        at += -(-(sizes[name] * 5 // 4 + unit) // unit) * unit
    lines.append(f"  . = {at:#x};\n  ")
    made, count = _TEXT.subn("\n".join(lines) + "*(.text.hot", script, count=1)
    if not count:
        raise ValueError("the kernel's linker script has no .text.hot to put the code before")
    return made


def without_debug(script: str) -> str:
    """``script`` leaving out what takes longest to link."""
    return _DISCARD.sub("/DISCARD/ : { *(.debug_*)", script, count=1)


def main(arguments: list[str]) -> None:
    """Link with the layout that ``$KERNEL_LAYOUT`` names, in place of ``--script``."""
    at = next(i for i, argument in enumerate(arguments) if argument.startswith("--script="))
    headers = subprocess.run(
        ["objdump", "-h", "vmlinux.a"], check=True, capture_output=True, text=True
    ).stdout
    script = placed(
        Path(arguments[at].removeprefix("--script=")).read_text(),
        code_sizes(headers),
        os.environ["KERNEL_TOUCHED"].split(),
        int(os.environ["KERNEL_LAYOUT"]),
    )
    if ".tmp_vmlinux1" not in arguments or Path(os.environ["KERNEL_BTF"]).exists():
        script = without_debug(script)
    Path("layout.lds").write_text(script)
    arguments[at] = "--script=layout.lds"
    os.execvp("ld", ["ld", *arguments])  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
