# SPDX-License-Identifier: MIT
"""A client's memory: many pieces, ranges taken away, and files that shrink."""

from __future__ import annotations

import errno
import gc
import os
import resource
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.nic import faults, memory, transport
from harness.nic.memory import GuestAccessError, GuestMemory, MapError
from tests.nic.frames import udp4
from tests.nic.minidriver import MiniDriver

pytestmark = pytest.mark.nic

PAGE = 4096
SIZE = 16 << 20


@pytest.fixture
def driver() -> Iterator[MiniDriver]:
    made = MiniDriver()
    made.attach()
    made.set_irqs()
    made.probe()
    yield made
    made.close()


@pytest.mark.parametrize("pieces", [1025, 4096])
def test_memory_in_thousands_of_pieces(driver: MiniDriver, pieces: int) -> None:
    """Frames for buffers in a thousand segments, in any order."""
    assert driver.unmap(driver.base, driver.size) == 0
    piece = driver.size // 4096
    for index in range(4096):
        # The last ones as one, so that as many are mapped as were asked for.
        if index < pieces - 1:
            at, size = index * piece, piece
        elif index == pieces - 1:
            at, size = index * piece, driver.size - index * piece
        else:
            break
        assert driver.map(driver.base + at, size, fd=driver.memfd, offset=at) == 0
    assert len(driver.nic.memory) == pieces
    # Rings are of one page each, wherever they lie; 64 buffers of half a page.
    driver.open()
    sent = [udp4(struct.pack("<I", n) * (n + 1)) for n in range(50)]
    driver.wire.inject(*sent)
    assert [frame for frame, _ in driver.pass_wire()] == [f.ljust(60, b"\0") for f in sent]
    driver.send(sent[0])
    assert driver.wire.sent == [sent[0].ljust(60, b"\0")]
    assert driver.unmap(0, 1 << 40) == 0
    assert len(driver.nic.memory) == 0


def test_one_piece_too_many_is_told_so(driver: MiniDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.MAX_SEGMENTS > 1024
    monkeypatch.setattr(memory, "MAX_SEGMENTS", 4)
    at = 1 << 40
    assert [driver.map(at + n * PAGE, PAGE, fd=None) for n in range(4)] == [0, 0, 0, errno.ENOSPC]
    assert driver.unmap(at, PAGE) == 0
    assert driver.map(at + 8 * PAGE, PAGE, fd=None) == 0


def test_the_client_is_told_how_many(driver: MiniDriver) -> None:
    _, reply = driver.request(transport.VERSION, struct.pack("<HH", 0, 0) + b"{}\0")
    assert b'"max_dma_maps":%d' % memory.MAX_SEGMENTS in reply


@pytest.mark.parametrize(
    ("start", "size", "failure", "left"),
    [
        (0x10000, 0x3000, 0, [0x20000]),
        (0, 0x18000, 0, [0x20000]),
        (0x10000, 0x1000, 0, [0x11000, 0x12000, 0x20000]),
        (0x10000, 0x11000, 0, []),
        (0, (1 << 64) - 1, 0, []),
        (0x10800, 0x2800, errno.EINVAL, None),  # half of the first
        (0x10000, 0x2800, errno.EINVAL, None),  # half of the last
        (0x10000, 0x800, errno.EINVAL, None),
        (0x10800, 0x100, errno.ENOENT, None),
        (0x13000, 0x1000, errno.ENOENT, None),  # a gap
        (0x30000, 0x1000, errno.ENOENT, None),
        (0x10000, 0, errno.ENOENT, None),
    ],
)
def test_a_range_is_unmapped_whole_or_not_at_all(
    start: int, size: int, failure: int, left: list[int] | None
) -> None:
    driver = MiniDriver(megabytes=1, base=1 << 32)
    pieces = [0x10000, 0x11000, 0x12000, 0x20000]
    for at in pieces:
        assert driver.map(at, PAGE, fd=driver.memfd) == 0
    assert driver.unmap(start, size) == failure
    for at in pieces:
        if at in (pieces if left is None else left):
            driver.nic.memory.read(at, PAGE)
        else:
            with pytest.raises(GuestAccessError):
                driver.nic.memory.read(at, 1)
    driver.close()


def test_all_is_unmapped(driver: MiniDriver) -> None:
    assert driver.map(1 << 40, PAGE, fd=None) == 0
    assert driver.unmap_all(0, PAGE) == errno.EINVAL
    assert len(driver.nic.memory) == 2
    assert driver.unmap_all() == 0
    assert len(driver.nic.memory) == 0
    dirty = struct.pack("<IIQQ", 24, 1, 0, PAGE)
    assert driver.request(transport.DMA_UNMAP, dirty)[0] == errno.EINVAL


def test_pieces_are_found_whichever_are_reachable() -> None:
    table = GuestMemory()
    fd = os.memfd_create("guest")
    os.ftruncate(fd, 16 * PAGE)
    for index in range(0, 16, 2):
        table.map(
            index * PAGE, PAGE, writable=index != 4, fd=fd if index != 8 else None,
            offset=index * PAGE,
        )  # fmt: skip
    source = np.arange(64, dtype=np.uint8)
    to = np.array([index * PAGE + 8 for index in range(15, -1, -1)] + [PAGE - 32])
    missed = table.scatter(to, source, np.zeros(to.size, np.int64), 64)
    bad = {index for index in range(16) if index % 2 or index in (4, 8)}
    assert {15 - index for index in missed.tolist() if index < 16} == bad
    assert missed.tolist()[-1] == 16
    table.reachable = False
    assert table.scatter(to, source, np.zeros(to.size, np.int64), 64).size == to.size
    with pytest.raises(GuestAccessError):
        table.read(0, 1)
    with pytest.raises(MapError):
        table.map(0, PAGE, writable=True, fd=fd, offset=0)
    table.reachable = True
    assert table.read(8, 64) == source.tobytes()
    os.close(fd)


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run in a process of its own, because a failure ends it by a signal."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    )


def test_a_file_that_shrinks_ends_nothing() -> None:
    """Every kind of access: rings, receive and transmit buffers, requests, statistics."""
    done = run("""
        import os, struct
        from tests.nic.frames import udp4, MAC
        from tests.nic.minidriver import MiniDriver
        driver = MiniDriver()
        driver.attach()
        driver.set_irqs()
        driver.probe()
        driver.open()
        driver.memory.close()
        os.ftruncate(driver.memfd, 0)
        nic, wire = driver.nic, driver.wire
        for turn in range(3):
            wire.inject(*[udp4()] * 20)
            nic.receive()
            wire.inject(*[udp4(bytes(n)) for n in range(20)])
            nic.receive()
            driver.writel(0x830, 56)
            driver.writel(0xA18, 5 + turn)
            nic.transmit()
            driver.writel(0x400, 3)
            driver.writel(0x200, 0)
            driver.writel(0x204, driver.mcdi_at)
            nic.mac_stats(driver.base + 65536, 97, clear=False)
            nic.set_link(up=turn != 1)
        lost = nic.counters()["guest_pages_lost"]
        assert lost > 3, lost
        assert nic.counters()["internal_errors"] == 0
        # It grew again, and is mapped anew.
        os.ftruncate(driver.memfd, driver.size)
        assert driver.unmap(driver.base, driver.size) == 0
        assert driver.map(driver.base, driver.size, fd=driver.memfd) == 0
        import mmap
        driver.memory = mmap.mmap(driver.memfd, driver.size)
        driver.channels.clear()
        assert driver.request(13)[0] == 0
        driver.probe()
        driver.open()
        wire.inject(udp4(b"again"))
        assert [f for f, _ in driver.pass_wire()] == [udp4(b"again").ljust(60, b"\\0")]
        print("lived")
    """)
    assert done.stdout == "lived\n", (done.returncode, done.stderr)


def test_another_fault_is_still_one() -> None:
    done = run("""
        import mmap, os
        from harness.nic.memory import GuestMemory
        fd = os.memfd_create("guest")
        os.ftruncate(fd, 8192)
        GuestMemory().map(0, 8192, writable=True, fd=fd, offset=0)
        ours = mmap.mmap(fd, 8192)
        os.ftruncate(fd, 0)
        print(ours[5000])
    """)
    assert done.returncode == -7, (done.returncode, done.stdout, done.stderr)


def test_no_mapping_is_guarded_for_longer_than_it_lives() -> None:
    before = len(faults._areas)
    driver = MiniDriver(megabytes=1)
    driver.attach()
    assert len(faults._areas) == before + 1
    driver.close()
    del driver
    gc.collect()
    assert len(faults._areas) == before
