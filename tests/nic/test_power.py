# SPDX-License-Identifier: MIT
"""Bus mastering, power states and resets: what the function may do, and what it forgets."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator

import pytest

from harness.nic import pci, receive, transport
from tests.nic.frames import MAC, udp4
from tests.nic.minidriver import BUS_MASTER, CONFIG, MiniDriver

pytestmark = pytest.mark.nic


@pytest.fixture
def driver() -> Iterator[MiniDriver]:
    made = MiniDriver()
    made.attach()
    made.set_irqs()
    made.probe()
    made.open()
    made.interrupts()
    yield made
    made.close()


Switch = Callable[[MiniDriver, bool], None]


def by_command(driver: MiniDriver, on: bool) -> None:
    driver.write_command(BUS_MASTER if on else 0)


def by_power(driver: MiniDriver, on: bool) -> None:
    driver.write_power(0 if on else 3)


both = pytest.mark.parametrize("switch", [by_command, by_power])


@both
def test_nothing_is_written_and_nothing_sent(driver: MiniDriver, switch: Switch) -> None:
    driver.send(udp4(b"before"))
    driver.events()
    at = driver.allocate(0x61 * 8)
    driver.mcdi(0x2E, struct.pack("<QIII", at, 0b1100 | 1000 << 16, 0x61 * 8, 0))
    posted = driver.allocate(4096)
    driver.poke(posted, udp4(b"meanwhile"))
    driver.poke(driver.channels[0].txq + 8, struct.pack("<Q", posted | 60 << 48))
    driver.interrupts()
    switch(driver, False)
    before = driver.peek(driver.base, driver.size)
    driver.wire.inject(udp4(b"waits"))
    driver.writel(0xA18, 2)
    for _ in range(3):
        driver.nic.receive()
        driver.nic.transmit()
        driver.clock.now_ns += receive.RESIDENCE_NS // 4
    driver.nic.set_link(up=False)
    driver.nic.set_link(up=True)
    driver.clock.now_ns += 1_000_000_000
    driver.nic.tick()
    driver.writel(0x200, 0)
    driver.writel(0x204, driver.mcdi_at)
    assert driver.peek(driver.base, driver.size) == before
    assert len(driver.wire.sent) == 1
    assert driver.interrupts() == 0
    assert not driver.nic.wants_to_transmit, "or the loop would not rest"
    assert driver.journal.counts["internal_errors"] == 0


@both
def test_it_goes_on_where_it_was(driver: MiniDriver, switch: Switch) -> None:
    switch(driver, False)
    driver.wire.inject(udp4(b"waits"))
    driver.nic.receive()
    assert driver.nic.starved
    assert driver.receive(ack=False) == []
    switch(driver, True)
    assert [frame for frame, _ in driver.pass_wire()] == [udp4(b"waits").ljust(60, b"\0")]
    driver.send(udp4(b"goes on"))
    assert len(driver.wire.sent) == 1
    assert driver.mcdi(0x55)[:6] == MAC


@both
def test_frames_do_not_wait_for_ever(driver: MiniDriver, switch: Switch) -> None:
    switch(driver, False)
    driver.wire.inject(*[udp4()] * 30)
    driver.nic.receive()
    driver.clock.now_ns += receive.RESIDENCE_NS
    driver.nic.receive()
    switch(driver, True)
    assert driver.pass_wire() == []
    counters = driver.nic.counters()
    assert (counters["rx_nodesc"], driver.wire.waiting()) == (30, 0)
    assert driver.stats()[0x36] == 30


@both
def test_an_interrupt_waits_until_it_may_be_sent(driver: MiniDriver, switch: Switch) -> None:
    switch(driver, False)
    driver.nic.interrupts.raise_vector(1)
    assert driver.interrupts(1) == 0
    irqs = struct.pack("<IIIII", 20, 0x24, 2, 1, 1)
    driver.request(transport.DEVICE_SET_IRQS, irqs)
    driver.request(transport.DEVICE_SET_IRQS, irqs, (driver.eventfds[1],))
    assert driver.interrupts(1) == 0
    switch(driver, True)
    assert driver.interrupts(1) == 1


def test_a_function_asleep_answers_to_configuration_alone(driver: MiniDriver) -> None:
    driver.write_power(3)
    assert driver.read_region(2, 0x10, 4) == b"\xff" * 4
    assert driver.read_region(CONFIG, 0, 2) == b"\x24\x19"
    driver.writel(0x830, 8)
    assert driver.journal.counts["region_asleep"] == 2
    driver.write_power(0)
    assert driver.read_region(2, 0x10, 4)[2:] == b"\x07\xb0"


def test_there_is_no_state_between(driver: MiniDriver) -> None:
    for state in (1, 2):
        driver.write_power(state)
        assert driver.read_region(CONFIG, 0x44, 2)[0] & 3 == 0
    driver.write_power(3)
    for state in (1, 2):
        driver.write_power(state)
        assert driver.read_region(CONFIG, 0x44, 2)[0] & 3 == 3


def test_the_command_register_may_be_written_by_halves(driver: MiniDriver) -> None:
    driver.write_region(CONFIG, 5, b"\x04")
    driver.wire.inject(udp4())
    assert len(driver.pass_wire()) == 1
    driver.write_region(CONFIG, 4, b"\x02")
    driver.wire.inject(udp4())
    assert driver.pass_wire() == []


def reset(driver: MiniDriver, how: str) -> None:
    if how == "message":
        assert driver.request(transport.DEVICE_RESET)[0] == 0
    else:
        driver.write_region(CONFIG, 0x78, struct.pack("<H", 0x8000))


hows = pytest.mark.parametrize("how", ["message", "flr"])


@hows
@pytest.mark.parametrize("why", ["no descriptor", "no bus mastering", "asleep"])
def test_no_interrupt_outlives_a_reset(driver: MiniDriver, how: str, why: str) -> None:
    irqs = struct.pack("<IIIII", 20, 0x24, 2, 1, 1)
    if why == "no descriptor":
        driver.request(transport.DEVICE_SET_IRQS, irqs)
    elif why == "asleep":
        driver.write_power(3)
    else:
        driver.write_command(0)
    driver.nic.interrupts.raise_vector(1)
    reset(driver, how)
    assert driver.read_region(pci.BAR4, 0x2000, 8) == bytes(8)
    driver.write_command(BUS_MASTER)
    driver.request(transport.DEVICE_SET_IRQS, irqs, (driver.eventfds[1],))
    assert driver.interrupts(1) == 0


@hows
def test_nothing_held_off_outlives_a_reset(driver: MiniDriver, how: str) -> None:
    driver.writel(0x420, 3 << 14 | 100 | 100 << 16)
    driver.receive()
    driver.interrupts()
    driver.wire.inject(udp4())
    driver.nic.receive()
    assert driver.nic.next_due_ns() is not None
    reset(driver, how)
    assert driver.nic.next_due_ns() is None
    driver.clock.now_ns += 1_000_000_000
    driver.nic.tick()
    assert driver.interrupts() == 0


@hows
def test_frames_and_requests_underway_do_not_outlive_a_reset(driver: MiniDriver, how: str) -> None:
    driver.write_command(0)
    driver.wire.inject(*[udp4(b"before")] * 5)
    driver.nic.receive()
    driver.write_command(BUS_MASTER)
    driver.writel(0x200, 0x1234)  # half a doorbell
    at = driver.allocate(64)
    driver.poke(at, b"half a frame".ljust(20))
    driver.post_tx([at | 20 << 48 | 1 << 62])
    reset(driver, how)
    driver.channels.clear()
    driver.writel(0x204, driver.mcdi_at)
    assert driver.journal.counts["mcdi_bad_address"] == 0
    driver.probe()
    driver.open()
    driver.wire.inject(udp4(b"after"))
    assert [frame for frame, _ in driver.pass_wire()] == [udp4(b"after").ljust(60, b"\0")]
    driver.send(udp4(b"whole"))
    assert driver.wire.sent == [udp4(b"whole").ljust(60, b"\0")]
    counters = driver.nic.counters()
    assert counters["rx_flushed"] == 5
    assert counters["rx_frames"] == 6


def test_a_queue_that_is_set_up_anew_sends_nothing_old(driver: MiniDriver) -> None:
    queues = driver.channels[0]
    at = driver.allocate(64)
    driver.poke(queues.txq, struct.pack("<Q", at | 20 << 48))
    driver.writel(0xA18, 1)
    driver.mcdi(0x82, struct.pack("<7IQ", queues.entries, 0, 0, 0, 6, 0, 0, queues.txq))
    assert not driver.nic.wants_to_transmit
    driver.nic.transmit()
    assert driver.wire.sent == []


def test_a_descriptor_that_is_no_eventfd_is_refused(driver: MiniDriver) -> None:
    reader, writer = os.pipe()
    irqs = struct.pack("<IIIII", 20, 0x24, 2, 1, 1)
    assert driver.request(transport.DEVICE_SET_IRQS, irqs, (writer,))[0] == 22
    os.close(reader)
    os.close(writer)
