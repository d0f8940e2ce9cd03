# SPDX-License-Identifier: MIT
"""What the emulator counts, against programs of which every instruction is known."""

from __future__ import annotations

import mmap
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from harness import images
from harness.base import process
from harness.base.progress import Progress
from harness.beds.virtual import icache

pytestmark = pytest.mark.guest

WAYS, SETS, LINE = 8, 64, 64
# A chain of jumps for ever, one in each of LINES lines.
PROGRAM = """
    .code16
    cli
    movw $0x1000, %ax
    movw %ax, %es
    xorw %di, %di
    movw $LINES, %cx
1:  movb $0xe9, %es:(%di)
    movw $61, %es:1(%di)
    addw $64, %di
    loop 1b
    subw $64, %di
    movw %di, %ax
    addw $3, %ax
    negw %ax
    movw %ax, %es:1(%di)
    ljmp $0x1000, $0
    .org 510
    .word 0xaa55
"""


@contextmanager
def running(lines: int, directory: Path) -> Iterator[mmap.mmap]:
    """The program on an emulated machine; its counters."""
    listing, code, disk = (directory / name for name in ("boot.s", "boot.o", "boot.bin"))
    listing.write_text(PROGRAM.replace("LINES", str(lines)))
    process.run(["as", "--32", "-o", str(code), str(listing)])
    process.run(["objcopy", "-O", "binary", "-j", ".text", str(code), str(disk)])
    with disk.open("r+b") as file:
        file.truncate(1 << 20)
    plugin, counters = icache.plugin(), directory / icache.COUNTERS
    command = images.tools(Progress(bars=False)).qemu(
        ["-nodefaults", "-display", "none", "-machine", "q35", "-accel", "tcg,thread=multi",
         "-drive", f"file={disk},format=raw,if=none,id=boot,readonly=on",
         "-device", "virtio-blk-pci,drive=boot,bootindex=0", *icache.arguments(plugin, directory)]
    )  # fmt: skip
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True) as started:
        try:
            time.sleep(5.0)  # the BIOS is through
            assert started.poll() is None
            with counters.open("r+b") as file, closing(mmap.mmap(file.fileno(), 4096)) as page:
                yield page
        finally:
            process.end(started)


def now(page: mmap.mmap) -> tuple[int, int]:
    """Instructions and misses so far."""
    instructions, misses = struct.unpack_from("<2Q", page, 56)
    return instructions, misses


def switch(page: mmap.mmap, wanted: int) -> None:
    page[8:16] = struct.pack("<Q", wanted)
    deadline = time.monotonic() + 5.0
    while struct.unpack_from("<Q", page, 16) != (wanted,):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def counted(page: mmap.mmap) -> tuple[int, int]:
    """Instructions and misses of half a second, once the cache is as the program leaves it."""
    switch(page, 1)
    time.sleep(1.0)
    before = now(page)
    time.sleep(0.5)
    after = now(page)
    switch(page, 0)
    return after[0] - before[0], after[1] - before[1]


def test_code_that_fits_misses_nothing(tmp_path: Path) -> None:
    with running(WAYS * SETS, tmp_path) as page:
        instructions, misses = counted(page)
        assert instructions > 1_000_000
        assert misses == 0
        time.sleep(0.5)
        stopped = now(page)
        time.sleep(0.5)
        assert now(page) == stopped
        blocks = icache.blocks(tmp_path)
    # A jump each, all of them as often; the first misses were before the window.
    assert [block.address for block in blocks] == [0x10000 + 64 * n for n in range(WAYS * SETS)]
    assert max(block.runs for block in blocks) - min(block.runs for block in blocks) <= 1
    assert sum(block.instructions for block in blocks) == stopped[0]
    assert [block.misses for block in blocks] == [1] * (WAYS * SETS)


def test_code_with_one_line_too_many_in_each_set_misses_always(tmp_path: Path) -> None:
    with running((WAYS + 1) * SETS, tmp_path) as page:
        instructions, misses = counted(page)
    assert instructions > 1_000_000
    # Both counters are not read at one moment.
    assert misses == pytest.approx(instructions, rel=1e-4)


def test_one_line_too_many_in_one_set(tmp_path: Path) -> None:
    with running(WAYS * SETS + 1, tmp_path) as page:
        instructions, misses = counted(page)
    assert misses / instructions == pytest.approx((WAYS + 1) / (WAYS * SETS + 1), rel=1e-2)
