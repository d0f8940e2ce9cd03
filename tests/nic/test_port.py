# SPDX-License-Identifier: MIT
"""The port as the driver uses it: self-tests, the link, and ethtool's other requests."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

import pytest

from tests.nic.fake_wire import FakeWire
from tests.nic.frames import MAC, udp4
from tests.nic.minidriver import McdiFailedError, McRebootedError, MiniDriver

pytestmark = pytest.mark.nic

START_BIST, POLL_BIST, GET_LOOPBACK_MODES, GET_LINK, SET_LINK = 0x25, 0x26, 0x28, 0x29, 0x2A
ENABLE_OFFLINE_BIST, REBOOT = 0xED, 0x3D
PHY_BIST, MC_MEM_BIST, REG_BIST = 5, 6, 8
FDX_1000, FDX_10000, PAUSE, ASYM, AN = 1 << 6, 1 << 7, 1 << 8, 1 << 9, 1 << 10
CAPS = FDX_1000 | FDX_10000 | PAUSE | ASYM


@pytest.fixture
def driver() -> Iterator[MiniDriver]:
    made = MiniDriver(FakeWire(slots=512))
    made.attach()
    made.set_irqs()
    made.probe()
    yield made
    made.close()


def run_bist(driver: MiniDriver, kind: int) -> int:
    """efx_ef10_run_bist(), efx_mcdi_bist(): the result."""
    assert driver.mcdi(START_BIST, struct.pack("<I", kind)) == b""
    answer = driver.mcdi(POLL_BIST)
    assert len(answer) >= 8
    return int(struct.unpack_from("<I", answer)[0])


def set_link(driver: MiniDriver, caps: int = CAPS, flags: int = 0, mode: int = 0) -> None:
    assert driver.mcdi(SET_LINK, struct.pack("<4I", caps, flags, mode, 0)) == b""


def get_link(driver: MiniDriver) -> dict[str, int]:
    names = ("caps", "partner", "speed", "loopback", "flags", "fcntl", "fault")
    return dict(zip(names, struct.unpack("<7I", driver.mcdi(GET_LINK)), strict=True))


def link_events(driver: MiniDriver) -> list[tuple[bool, int]]:
    """(up, speed code) of each LINKCHANGE."""
    return [
        (bool(event >> 24 & 1), event >> 16 & 15)
        for event in driver.events()
        if (event >> 60, event >> 44 & 0xFF) == (12, 4)
    ]


def failure(driver: MiniDriver, command: int, *words: int) -> int:
    with pytest.raises(McdiFailedError) as failed:
        driver.mcdi(command, struct.pack(f"<{len(words)}I", *words))
    return failed.value.code


def test_the_offline_self_test(driver: MiniDriver) -> None:
    """efx_selftest() with ETH_TEST_FL_OFFLINE, as efx_ef10_test_chip() does it."""
    driver.open()
    assert struct.unpack("<I", driver.mcdi(0x43)) == (1,)  # GET_PHY_STATE: OK
    flags = struct.unpack_from("<I", driver.mcdi(0x24))[0]
    assert flags >> 6 & 1
    assert run_bist(driver, PHY_BIST) == 2
    assert driver.mcdi(ENABLE_OFFLINE_BIST) == b""
    assert [run_bist(driver, kind) for kind in (MC_MEM_BIST, REG_BIST)] == [2, 2]
    boots = driver.read_region(2, 0x10, 4)
    assert len(driver.mcdi(0x06, struct.pack("<I", 1))) == 140
    with pytest.raises(McRebootedError):
        driver.mcdi(REBOOT, bytes(4))
    assert driver.read_region(2, 0x10, 4) != boots
    driver.channels.clear()
    driver.probe()
    driver.open()
    driver.wire.inject(udp4())
    assert len(driver.pass_wire()) == 1
    # Offline is over.
    assert failure(driver, START_BIST, MC_MEM_BIST) == errno.EINVAL


def test_offline_tests_take_the_queues(driver: MiniDriver) -> None:
    driver.open()
    driver.mcdi(ENABLE_OFFLINE_BIST)
    driver.wire.inject(udp4())
    driver.nic.receive()
    assert driver.events(ack=False) == []


def test_what_no_bist_is(driver: MiniDriver) -> None:
    assert failure(driver, POLL_BIST) == errno.EINVAL
    for kind in (0, 1, 4, MC_MEM_BIST, REG_BIST, 99):
        assert failure(driver, START_BIST, kind) == errno.EINVAL
    assert failure(driver, START_BIST) == errno.EINVAL


@pytest.mark.parametrize("offloaded", [False, True])
def test_the_loopback_self_test(driver: MiniDriver, offloaded: bool) -> None:
    """efx_test_loopbacks(): bursts of 1, 16 and 256 frames come back as they were sent."""
    driver.open(entries=512, evq_entries=2048)
    (modes,) = struct.unpack_from("<Q", driver.mcdi(GET_LOOPBACK_MODES), 24)
    assert modes == 1 << 1
    set_link(driver, mode=1, flags=4)  # with the transmitter off, as the driver does
    assert get_link(driver)["flags"] & 1
    assert get_link(driver)["loopback"] == 1
    for count in (1, 16, 256):
        driver.wire.inject(udp4(b"from the wire"))
        option = 1 << 63 | (0b11 if offloaded else 0)
        frames = []
        for index in range(count):
            frame = bytearray(udp4(b"Hello world! This is a test" * 3, partial=offloaded))
            frame[26:30] = (0x7F000001 | index << 2).to_bytes(4, "big")
            frame[24:26] = b"\xde\xad"
            frames.append(bytes(frame))
            at = driver.allocate(len(frame))
            driver.poke(at, bytes(frame))
            driver.post_tx([option, at | len(frame) << 48])
        got = driver.pass_wire()
        assert [frame[:24] for frame, _ in got] == [frame[:24] for frame in frames]
        assert [frame[26:40] for frame, _ in got] == [frame[26:40] for frame in frames]
        assert all((event >> 25 & 1) == (not offloaded) for _, event in got)
        driver.refill()
    assert driver.wire.sent == []
    counters = driver.nic.counters()
    assert counters["tx_looped"] == counters["tx_frames"] == 1 + 16 + 256
    assert counters["rx_link_down"] == 3
    assert counters["rx_frames"] == counters["rx_delivered"] + 3
    set_link(driver)
    driver.wire.inject(udp4(b"heard"))
    assert [frame for frame, _ in driver.pass_wire()] == [udp4(b"heard").ljust(60, b"\0")]
    driver.send(udp4(b"said"))
    assert len(driver.wire.sent) == 1


def test_loopback_does_without_a_cable_and_ends_with_a_reset(driver: MiniDriver) -> None:
    driver.open()
    driver.nic.set_link(up=False)
    assert link_events(driver) == [(False, 0)]
    set_link(driver, mode=1)
    assert link_events(driver) == [(True, 3)]
    driver.mcdi(ENABLE_OFFLINE_BIST)
    with pytest.raises(McRebootedError):
        driver.mcdi(REBOOT, bytes(4))
    assert not driver.nic.link_up
    driver.nic.set_link(up=True)
    driver.channels.clear()
    driver.probe()
    driver.open()
    assert get_link(driver)["loopback"] == 0
    driver.send(udp4(b"out"))
    assert len(driver.wire.sent) == 1


@pytest.mark.parametrize("flag", [1, 2, 4, 8])
def test_the_driver_takes_the_link_down_and_up(driver: MiniDriver, flag: int) -> None:
    driver.open()
    set_link(driver)
    assert link_events(driver) == [], "nothing changed"
    set_link(driver, flags=flag)
    assert link_events(driver) == [(False, 0)]
    assert (get_link(driver)["flags"] & 1, get_link(driver)["speed"]) == (0, 0)
    driver.wire.inject(udp4())
    assert driver.pass_wire() == []
    driver.send(udp4())
    assert driver.wire.sent == []
    assert driver.nic.counters()["tx_link_down"] == 1
    set_link(driver)
    assert link_events(driver) == [(True, 3)]
    driver.wire.inject(udp4())
    assert len(driver.pass_wire()) == 1


def test_speeds(driver: MiniDriver) -> None:
    driver.open()
    set_link(driver, FDX_1000)
    assert link_events(driver) == [(True, 2)]
    assert (get_link(driver)["speed"], get_link(driver)["caps"]) == (1000, FDX_1000)
    driver.wire.inject(udp4())
    assert len(driver.pass_wire()) == 1
    set_link(driver, FDX_10000 | PAUSE)
    assert link_events(driver) == [(True, 3)]
    for words in (
        (0, 0, 0, 0), (PAUSE, 0, 0, 0), (CAPS | AN, 0, 0, 0), (1 << 4, 0, 0, 0),
        (CAPS, 0, 2, 0), (CAPS, 0, 0xFFFFFFFF, 0), (CAPS,),
    ):  # fmt: skip
        assert failure(driver, SET_LINK, *words) == errno.EINVAL
    assert get_link(driver)["caps"] == FDX_10000 | PAUSE, "what was refused changed nothing"
    assert link_events(driver) == []


def test_flow_control_is_reported(driver: MiniDriver) -> None:
    driver.open()
    for asked, told in ((1, 1), (2, 2), (0, 0), (3, 2)):
        driver.mcdi(0x2C, struct.pack("<IIQIII", 1518, 0, 0, 0, asked, 0))
        assert get_link(driver)["fcntl"] == told
        assert link_events(driver) == [(True, 3)]
    set_link(driver, CAPS & ~PAUSE)
    assert get_link(driver)["fcntl"] == 0, "negotiated"
    assert link_events(driver) == [(True, 3)]


@pytest.mark.parametrize("how", ["flr", "message", "reboot"])
def test_a_reset_resets_the_link(driver: MiniDriver, how: str) -> None:
    driver.open()
    set_link(driver, FDX_1000, flags=8, mode=1)
    assert not driver.nic.link_up
    if how == "flr":
        driver.write_region(7, 0x78, struct.pack("<H", 0x8000))
    elif how == "message":
        assert driver.request(13)[0] == 0
    else:
        with pytest.raises(McRebootedError):
            driver.mcdi(REBOOT, bytes(4))
    link = get_link(driver)
    assert (link["speed"], link["loopback"], link["caps"]) == (10_000, 0, CAPS)
    assert driver.nic.link_up


def test_the_led_and_the_module(driver: MiniDriver) -> None:
    for state in range(3):
        assert driver.mcdi(0x2B, struct.pack("<I", state)) == b""
    assert failure(driver, 0x2B, 3) == errno.EINVAL
    answer = driver.mcdi(0x4B, struct.pack("<I", 0))
    assert struct.unpack_from("<I", answer) == (128,)
    page = answer[4:]
    assert len(page) == 128
    assert (page[0], page[92]) == (3, 0), "an SFP without diagnostics"
    assert (page[63], page[95]) == (sum(page[:63]) & 0xFF, sum(page[64:95]) & 0xFF)
    assert len(driver.mcdi(0x4B, struct.pack("<I", 1))) == 132
    assert failure(driver, 0x4B, 2) == errno.EINVAL


def test_what_other_drivers_cannot_do_without(driver: MiniDriver) -> None:
    assert struct.unpack("<II", driver.mcdi(0xAC))[0] > 0  # GET_CLOCK
    assert driver.mcdi(0xB6) == b"\1"  # GET_PF_COUNT
    assert struct.unpack("<III", driver.mcdi(0xBF)) == (0, 32, 0)  # GET_VECTOR_CFG
    board = driver.mcdi(0x18)
    assert (len(board), board[44:50], struct.unpack_from("<I", board, 56)) == (96, MAC, (1,))
    assert struct.unpack("<I", driver.mcdi(0x5A, bytes(8)))[0] & 1  # PRIVILEGE_MASK: admin
    assert failure(driver, 0x5A, 0, 1 << 31) == errno.EPERM
