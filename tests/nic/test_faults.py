# SPDX-License-Identifier: MIT
"""Faults on demand: each happens as asked, ends as asked, and leaves the model whole."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.nic.injection import FAULTS, Request
from tests.nic.fake_wire import FakeWire
from tests.nic.frames import udp4
from tests.nic.minidriver import McdiFailedError, McRebootedError, MiniDriver

pytestmark = pytest.mark.nic

GET_LINK, GET_CLOCK = 0x29, 0xAC
CMDDONE, LINKCHANGE, TX_ERR, RX_ERR, MC_REBOOT, BADASSERT = 3, 4, 0x0B, 0x11, 0x15, 1
MS = 1_000_000
README = Path(__file__).parents[2] / "harness/nic/README.md"


@pytest.fixture
def driver() -> Iterator[MiniDriver]:
    made = MiniDriver(FakeWire(slots=512))
    made.attach()
    made.set_irqs()
    made.probe()
    made.open()
    yield made
    counters = made.nic.counters()
    made.close()
    assert counters["internal_errors"] == 0


def inject(
    driver: MiniDriver, name: str, *, number: int = 1, ms: int = 0, command: int | None = None
) -> None:
    driver.nic.injector.inject(name, Request(number, ms, command))


def pass_ms(driver: MiniDriver, ms: int) -> None:
    driver.clock.now_ns += ms * MS
    driver.nic.tick()


def codes(driver: MiniDriver) -> list[int]:
    """The codes of the management CPU's events."""
    return [event >> 44 & 0xFF for event in driver.events() if event >> 60 == 12]


def received(driver: MiniDriver) -> int:
    driver.wire.inject(udp4())
    return len(driver.pass_wire())


def reopened(driver: MiniDriver) -> bool:
    """Whether everything works after the driver's own reset."""
    driver.channels.clear()
    driver.mcdi(0x20, struct.pack("<I", 1))
    driver.mcdi(0x8B, struct.pack("<II", 1, 8))
    driver.open()
    return received(driver) == 1


def test_the_link_flaps(driver: MiniDriver) -> None:
    inject(driver, "link-flap", number=2, ms=50)
    for up in (False, True, False, True):
        assert driver.nic.link_up is up
        assert codes(driver) == [LINKCHANGE]
        pass_ms(driver, 50)
    assert driver.nic.link_up
    assert received(driver) == 1


def test_even_a_fast_flap_does_not_keep_the_model_busy(driver: MiniDriver) -> None:
    inject(driver, "link-flap", number=1_000_000, ms=0)
    pass_ms(driver, 1000)
    assert driver.nic.link_up
    pass_ms(driver, 1000)
    assert not driver.nic.link_up


def test_the_management_cpu_restarts(driver: MiniDriver) -> None:
    boots = driver.read_region(2, 0x10, 4)
    inject(driver, "mc-reboot")
    assert codes(driver) == [MC_REBOOT]
    assert driver.read_region(2, 0x10, 4) != boots
    assert received(driver) == 0
    assert reopened(driver)


@pytest.mark.parametrize("event", [False, True])
def test_it_restarts_in_a_command(driver: MiniDriver, event: bool) -> None:
    inject(driver, "mc-reboot-in-command", command=GET_LINK)
    driver.mcdi(GET_CLOCK)
    with pytest.raises(McRebootedError):
        driver.mcdi(GET_LINK, event=event)
    assert codes(driver) == [MC_REBOOT]
    assert reopened(driver)


def test_it_fails_an_assertion(driver: MiniDriver) -> None:
    """efx_mcdi_handle_assertion()."""
    inject(driver, "mc-assertion")
    assert codes(driver) == [BADASSERT]
    with pytest.raises(McdiFailedError) as failed:
        driver.mcdi(GET_LINK)
    assert failed.value.code == 4
    answer = struct.unpack("<35I", driver.mcdi(0x06, struct.pack("<I", 1)))
    assert answer[0] == 3, "a thread-level assertion"
    assert set(answer[2:33]) == {0xDA7A1057}
    with pytest.raises(McRebootedError):
        driver.mcdi(0x3D, struct.pack("<I", 1))
    assert struct.unpack_from("<I", driver.mcdi(0x06, struct.pack("<I", 1)))[0] == 1
    assert driver.mcdi(0x3D, struct.pack("<I", 1)) == b"", "after no assertion it stays up"
    assert reopened(driver)


def test_a_sensor_reports(driver: MiniDriver) -> None:
    """efx_mcdi_sensor_event()."""
    inject(driver, "sensor-warning")
    (event,) = driver.events()
    assert (event >> 44 & 0xFF, event & 0xFF, event >> 8 & 0xFF, event >> 16 & 0xFFFF) == (
        5, 0, 1, 95,
    )  # fmt: skip


def test_requests_without_an_answer(driver: MiniDriver) -> None:
    inject(driver, "mcdi-stuck", number=2)
    for _ in range(2):
        with pytest.raises(AssertionError, match="no response"):
            driver.mcdi(GET_LINK, event=True)
    assert codes(driver) == []
    driver.mcdi(GET_LINK, event=True)
    assert codes(driver) == [CMDDONE]


def test_late_answers(driver: MiniDriver) -> None:
    inject(driver, "mcdi-late", ms=300)
    with pytest.raises(AssertionError, match="no response"):
        driver.mcdi(GET_LINK, event=True)
    pass_ms(driver, 299)
    assert codes(driver) == []
    pass_ms(driver, 1)
    assert codes(driver) == [CMDDONE]
    assert driver.peek(driver.mcdi_at + 2, 1)[0] >> 7, "the answer is there"


@pytest.mark.parametrize("how", ["flr", "unmapped"])
def test_an_answer_does_not_outlive_a_reset(driver: MiniDriver, how: str) -> None:
    inject(driver, "mcdi-late", ms=300)
    with pytest.raises(AssertionError, match="no response"):
        driver.mcdi(GET_LINK)
    if how == "flr":
        driver.write_region(7, 0x78, struct.pack("<H", 0x8000))
    else:
        assert driver.unmap(driver.base, driver.size) == 0
    pass_ms(driver, 300)
    assert not driver.peek(driver.mcdi_at + 2, 1)[0] >> 7
    assert driver.nic.counters().get("mcdi_bad_address", 0) == (how == "unmapped")


@pytest.mark.parametrize(("name", "events"), [("mcdi-no-event", 0), ("mcdi-event-twice", 2)])
def test_events_of_answers(driver: MiniDriver, name: str, events: int) -> None:
    inject(driver, name)
    driver.mcdi(GET_LINK, event=True)
    assert codes(driver) == [CMDDONE] * events
    driver.mcdi(GET_LINK, event=True)
    assert codes(driver) == [CMDDONE]


def test_a_lost_event_shows_in_the_next(driver: MiniDriver) -> None:
    inject(driver, "rx-event-lost", number=3)
    driver.wire.inject(udp4())
    driver.nic.receive()
    (event,) = driver.events()
    assert event >> 48 & 15 == (driver.channels[0].rx_removed + 1 + 3) & 15


def test_a_repeated_event_is_for_no_descriptor(driver: MiniDriver) -> None:
    assert received(driver) == 1
    inject(driver, "rx-event-twice", number=2)
    again = driver.events()
    assert [event >> 48 & 15 for event in again] == [driver.channels[0].rx_removed & 15] * 2
    assert received(driver) == 1


@pytest.mark.parametrize(("name", "octets", "crc"), [("rx-length", 0x3FFF, 0), ("rx-crc", 64, 1)])
def test_events_with_errors(driver: MiniDriver, name: str, octets: int, crc: int) -> None:
    inject(driver, name, number=2)
    for event in driver.events():
        assert (event & 0x3FFF, event >> 24 & 1, event >> 60) == (octets, crc, 0)
        driver.channels[0].rx_removed += 1
        assert event >> 48 & 15 == driver.channels[0].rx_removed & 15
    assert driver.channels[0].rx_removed == 2
    assert received(driver) == 1


def test_errors_need_a_posted_descriptor() -> None:
    driver = MiniDriver(FakeWire())
    driver.attach()
    for name in FAULTS:
        inject(driver, name, number=3, ms=1)
    driver.set_irqs()
    pass_ms(driver, 10)
    pass_ms(driver, 10)
    assert driver.nic.counters()["internal_errors"] == 0
    driver.close()


@pytest.mark.parametrize(("name", "code"), [("rx-error", RX_ERR), ("tx-error", TX_ERR)])
def test_descriptor_errors(driver: MiniDriver, name: str, code: int) -> None:
    inject(driver, name, number=2)
    assert codes(driver) == [code, code]


def test_nothing_is_received_for_a_time(driver: MiniDriver) -> None:
    inject(driver, "rx-starved", ms=40)
    before = driver.stats()[0x36]
    assert received(driver) == 0
    pass_ms(driver, 20)
    assert driver.pass_wire() == []
    assert driver.stats()[0x36] == before + 1, "NODESC"
    pass_ms(driver, 20)
    assert received(driver) == 1


def test_conditions_may_overlap(driver: MiniDriver) -> None:
    inject(driver, "rx-starved", ms=40)
    inject(driver, "rx-starved", ms=10)
    pass_ms(driver, 10)
    assert received(driver) == 0
    pass_ms(driver, 30)
    assert len(driver.pass_wire()) == 1


def test_nothing_is_sent_for_a_time(driver: MiniDriver) -> None:
    inject(driver, "tx-halted", ms=40)
    driver.send(udp4())
    assert (driver.wire.sent, driver.events()) == ([], [])
    pass_ms(driver, 40)
    driver.nic.transmit()
    assert len(driver.wire.sent) == 1
    assert [event >> 60 for event in driver.events()] == [2]


def test_lost_frames_are_completed_with_the_next(driver: MiniDriver) -> None:
    inject(driver, "tx-halted", ms=10)
    driver.send(udp4())
    inject(driver, "tx-event-lost")
    pass_ms(driver, 10)
    driver.nic.transmit()
    assert driver.events() == []
    driver.send(udp4(b"next"))
    assert [event & 0xFFFF for event in driver.events()] == [1]
    assert len(driver.wire.sent) == 1


def test_events_of_transmit_queues(driver: MiniDriver) -> None:
    driver.send(udp4())
    (first,) = driver.events()
    inject(driver, "tx-event-twice")
    assert driver.events() == [first]
    inject(driver, "tx-event-ahead")
    assert driver.events() == [first + 1]


def test_interrupts_wait(driver: MiniDriver) -> None:
    driver.interrupts()
    inject(driver, "interrupts-late", ms=30)
    driver.wire.inject(udp4())
    driver.nic.receive()
    assert driver.interrupts() == 0
    pass_ms(driver, 30)
    assert driver.interrupts() == 1
    assert len(driver.receive()) == 1


def test_no_access_to_memory(driver: MiniDriver) -> None:
    inject(driver, "dma-fault", ms=30)
    assert received(driver) == 0
    driver.send(udp4())
    with pytest.raises(AssertionError, match="no response"):
        driver.mcdi(GET_LINK)
    assert driver.wire.sent == []
    pass_ms(driver, 30)
    assert codes(driver) == [RX_ERR]
    assert reopened(driver)


def test_a_fault_does_not_give_a_powered_down_function_its_memory(driver: MiniDriver) -> None:
    inject(driver, "dma-fault", ms=30)
    inject(driver, "interrupts-late", ms=30)
    driver.write_command(0)
    pass_ms(driver, 30)
    assert not driver.nic.memory.reachable
    assert not driver.nic.interrupts.sending
    driver.write_command(4)
    assert driver.nic.memory.reachable
    assert driver.nic.interrupts.sending


def test_the_card_is_pulled_out(driver: MiniDriver) -> None:
    inject(driver, "removal")
    assert driver.read_region(2, 0x10, 4) == driver.read_region(7, 0, 4) == b"\xff" * 4
    with pytest.raises(AssertionError, match="no response"):
        driver.mcdi(GET_LINK)
    driver.send(udp4())
    assert (received(driver), driver.wire.sent, driver.events()) == (0, [], [])
    driver.write_command(0)
    driver.write_command(4)
    assert driver.request(13)[0] == 0
    assert not driver.nic.memory.reachable


@pytest.mark.parametrize(
    "wrong", [{"number": 0}, {"number": 1_000_001}, {"ms": -1}, {"ms": 600_001}]
)
def test_what_cannot_be_asked_for(driver: MiniDriver, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="number is 1 to"):
        inject(driver, "link-flap", **wrong)
    assert driver.nic.link_up
    with pytest.raises(KeyError):
        inject(driver, "no-such")


def test_each_fault_is_counted(driver: MiniDriver) -> None:
    for name in FAULTS:
        inject(driver, name)
        assert driver.nic.counters()["fault_" + name.replace("-", "_")] == 1


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_documented(name: str) -> None:
    assert f"| `{name}` | {FAULTS[name].what} | " in README.read_text()
