# SPDX-License-Identifier: MIT
"""What the card has beside its port: flash, sensors, and its name."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

import pytest

from tests.nic.fake_wire import FakeWire
from tests.nic.minidriver import McdiFailedError, McRebootedError, MiniDriver

pytestmark = pytest.mark.nic

INFO, START, READ, WRITE, ERASE, FINISH = 0x37, 0x38, 0x39, 0x3A, 0x3B, 0x3C
MC_FIRMWARE, STATIC_CONFIG, DYNAMIC_CONFIG = 0x100, 0x400, 0x500
CHUNK = 128
"""EFX_MCDI_NVRAM_LEN_MAX."""


@pytest.fixture
def driver() -> Iterator[MiniDriver]:
    made = MiniDriver(FakeWire())
    made.attach()
    made.set_irqs()
    made.probe()
    yield made
    made.close()


def failure(driver: MiniDriver, command: int, payload: bytes) -> int:
    with pytest.raises(McdiFailedError) as failed:
        driver.mcdi(command, payload)
    return failed.value.code


def info(driver: MiniDriver, kind: int) -> tuple[int, int, int]:
    """efx_mcdi_nvram_info(): size, erase size, flags."""
    answer = struct.unpack("<6I", driver.mcdi(INFO, struct.pack("<I", kind)))
    assert answer[0] == kind
    return answer[1], answer[2], answer[3]


def read(driver: MiniDriver, kind: int, offset: int, length: int) -> bytes:
    return driver.mcdi(READ, struct.pack("<4I", kind, offset, length, 0))


def write(driver: MiniDriver, kind: int, offset: int, data: bytes) -> None:
    padded = data + bytes(-len(data) % 4)
    driver.mcdi(WRITE, struct.pack("<3I", kind, offset, len(data)) + padded)


def finish(driver: MiniDriver, kind: int) -> None:
    assert driver.mcdi(FINISH, struct.pack("<3I", kind, 0, 1)) == struct.pack("<I", 1)


def test_the_partitions(driver: MiniDriver) -> None:
    """efx_ef10_mtd_probe(), efx_devlink_info_nvram_partition()."""
    answer = driver.mcdi(0x51)
    (number,) = struct.unpack_from("<I", answer)
    kinds = struct.unpack_from(f"<{number}I", answer, 4)
    assert len(answer) == 4 + 4 * number
    assert {MC_FIRMWARE, STATIC_CONFIG, DYNAMIC_CONFIG} <= set(kinds)
    for kind in kinds:
        size, erase_size, _ = info(driver, kind)
        assert size % erase_size == 0
        metadata = driver.mcdi(0x52, struct.pack("<I", kind))
        assert struct.unpack_from("<I", metadata) == (kind,)
        assert metadata[20:-1].isascii()
        assert read(driver, kind, 0, 8) == metadata[20:28], "our own contents name it"
    version = driver.mcdi(0x52, struct.pack("<I", MC_FIRMWARE))
    assert struct.unpack_from("<I", version, 4)[0] >> 1 & 1
    assert struct.unpack_from("<4H", version, 12) == (1, 0, 0, 1)
    assert info(driver, STATIC_CONFIG)[2] & 1, "protected"


def test_the_older_names_of_partitions(driver: MiniDriver) -> None:
    """efx_mcdi_nvram_test_all(), a part of every self-test."""
    (types,) = struct.unpack("<I", driver.mcdi(0x36))
    tested = [old for old in range(32) if types >> old & 1]
    assert tested
    for old in tested:
        assert driver.mcdi(0x4C, struct.pack("<I", old)) == bytes(4)
    assert failure(driver, 0x4C, struct.pack("<I", 31)) == errno.ENOENT


def test_an_update_as_mtd_makes_it(driver: MiniDriver) -> None:
    size, sector, _ = info(driver, DYNAMIC_CONFIG)
    image = bytes(range(256)) * (sector // 256)
    driver.mcdi(START, struct.pack("<II", DYNAMIC_CONFIG, 1))
    driver.mcdi(ERASE, struct.pack("<3I", DYNAMIC_CONFIG, sector, sector))
    assert read(driver, DYNAMIC_CONFIG, sector, 8) == b"\xff" * 8
    for at in range(0, sector, CHUNK):
        write(driver, DYNAMIC_CONFIG, sector + at, image[at : at + CHUNK])
    finish(driver, DYNAMIC_CONFIG)
    with pytest.raises(McRebootedError):
        driver.mcdi(0x3D, bytes(4))
    stored = b"".join(
        read(driver, DYNAMIC_CONFIG, at, CHUNK) for at in range(sector, 2 * sector, CHUNK)
    )
    assert stored == image, "it outlives a reboot"
    assert read(driver, DYNAMIC_CONFIG, size - 4, 4) == b"\xff" * 4


def test_writing_only_clears_bits(driver: MiniDriver) -> None:
    driver.mcdi(START, struct.pack("<II", DYNAMIC_CONFIG, 1))
    write(driver, DYNAMIC_CONFIG, 4096, b"\xf0\xff\x0f")
    write(driver, DYNAMIC_CONFIG, 4096, b"\x3c\x55\xff")
    assert read(driver, DYNAMIC_CONFIG, 4096, 4) == b"\x30\x55\x0f\xff"


def test_an_update_needs_a_start_and_ends_with_a_reset(driver: MiniDriver) -> None:
    def refused() -> bool:
        words = struct.pack("<3I", DYNAMIC_CONFIG, 0, 4096)
        return failure(driver, ERASE, words) == errno.EACCES

    assert refused()
    assert failure(driver, FINISH, struct.pack("<3I", DYNAMIC_CONFIG, 0, 1)) == errno.EACCES
    driver.mcdi(START, struct.pack("<II", DYNAMIC_CONFIG, 1))
    driver.mcdi(ERASE, struct.pack("<3I", DYNAMIC_CONFIG, 0, 4096))
    finish(driver, DYNAMIC_CONFIG)
    assert refused()
    driver.mcdi(START, struct.pack("<II", DYNAMIC_CONFIG, 1))
    with pytest.raises(McRebootedError):
        driver.mcdi(0x3D, bytes(4))
    assert refused()
    assert failure(driver, START, struct.pack("<II", STATIC_CONFIG, 1)) == errno.EPERM


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 0), (65536, 1), (65535, 2), (0, 65537), (0xFFFFFFFF, 1), (0, 0xFFFFFFFF), (0, 1009)],
)
def test_ranges_outside_a_partition(driver: MiniDriver, offset: int, length: int) -> None:
    words = struct.pack("<4I", DYNAMIC_CONFIG, offset, length, 0)
    assert failure(driver, READ, words) == errno.EINVAL
    driver.mcdi(START, struct.pack("<II", DYNAMIC_CONFIG, 1))
    for command in (WRITE, ERASE):
        assert failure(driver, command, words[:12] + bytes(4)) == errno.EINVAL


def test_what_the_flash_refuses(driver: MiniDriver) -> None:
    for command in (INFO, START, READ, WRITE, ERASE, FINISH, 0x4C, 0x52):
        # Of a missing partition efx_devlink.c forgives ENOENT and nothing else.
        assert failure(driver, command, struct.pack("<4I", 0x9999, 0, 4, 0)) == errno.ENOENT
        assert failure(driver, command, b"") == errno.EINVAL
    driver.mcdi(START, struct.pack("<II", DYNAMIC_CONFIG, 1))
    assert failure(driver, ERASE, struct.pack("<3I", DYNAMIC_CONFIG, 1, 4096)) == errno.EINVAL
    short = struct.pack("<3I", DYNAMIC_CONFIG, 0, 64) + bytes(8)
    assert failure(driver, WRITE, short) == errno.EINVAL


def test_the_sensors(driver: MiniDriver) -> None:
    """efx_mcdi_mon_probe(), efx_mcdi_mon_update()."""
    answer = driver.mcdi(0x41, bytes(4))
    (mask,) = struct.unpack_from("<I", answer)
    numbers = [number for number in range(31) if mask >> number & 1]
    assert not mask >> 31, "one page"
    assert len(answer) == 4 + 8 * len(numbers) > 4
    at = driver.allocate(4096)
    driver.mcdi(0x42, struct.pack("<QI", at, 4 * len(numbers)))
    for index, number in enumerate(numbers):
        least, most, fatal_least, fatal_most = struct.unpack_from("<4H", answer, 4 + 8 * index)
        assert fatal_least <= least < most <= fatal_most
        value, state, kind = struct.unpack("<HBB", driver.peek(at + 4 * index, 4))
        assert (state, kind) == (0, number)
        assert least < value < most
    assert driver.peek(at + 4 * len(numbers), 4) == bytes(4)
    assert failure(driver, 0x41, struct.pack("<I", 1)) == errno.EINVAL
    assert failure(driver, 0x42, struct.pack("<QI", at, 4)) == errno.EINVAL
    assert failure(driver, 0x42, struct.pack("<QI", 1 << 40, 64)) == errno.EINVAL


def test_what_devlink_shows(driver: MiniDriver) -> None:
    """efx_devlink_info_running_v2()."""
    assert len(driver.mcdi(0x08)) == 32
    answer = driver.mcdi(0x08, bytes(4))
    assert len(answer) == 304
    assert struct.unpack_from("<I", answer, 48) == (1 << 4,)
    assert answer[220:228] == b"virtual\0"
    assert answer[240:253] == driver.mac.hex().encode() + b"\0"


def test_nothing_answers_on_mdio(driver: MiniDriver) -> None:
    """efx_mcdi_mdio_read(): a status that is not GOOD becomes EIO."""
    assert struct.unpack("<II", driver.mcdi(0x10, bytes(16)))[1] != 8
    assert struct.unpack("<I", driver.mcdi(0x11, bytes(20)))[0] != 8
