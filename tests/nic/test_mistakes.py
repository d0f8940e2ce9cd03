# SPDX-License-Identifier: MIT
"""A bug of the model costs only the frames or the request where it occurs, and is counted."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from harness.nic import offload, queues, transmit
from harness.nic.journal import Journal
from harness.nic.wire import SlotRing
from tests.nic.conftest import PYTHON
from tests.nic.frames import MAC, udp4
from tests.nic.minidriver import McdiFailedError, MiniDriver

pytestmark = pytest.mark.nic


@pytest.fixture
def driver() -> Iterator[MiniDriver]:
    made = MiniDriver(path=PYTHON)
    made.attach()
    made.set_irqs()
    made.probe()
    made.open()
    yield made
    made.close()


def broken(*_: object, **__: object) -> None:
    raise ZeroDivisionError


Breaking = Callable[[pytest.MonkeyPatch], None]


def break_take(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SlotRing, "take", broken)


def break_parser(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(offload, "uniform", broken)
    patch.setattr(offload, "classify", broken)


def break_delivery(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(queues.RxQueue, "deliver_equal", broken)
    patch.setattr(queues.RxQueue, "deliver", broken)


@pytest.mark.parametrize("breaking", [break_take, break_parser, break_delivery])
def test_frames_of_a_broken_pass_are_dropped_under_a_name(
    driver: MiniDriver, breaking: Breaking
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        breaking(patch)
        driver.wire.inject(*[udp4()] * 30)
        assert driver.nic.receive() == 30, "or the loop would never rest"
        driver.wire.inject(*[udp4(bytes(n)) for n in range(10)])
        assert driver.nic.receive() == 10
    assert driver.wire.waiting() == 0
    counters = driver.nic.counters()
    assert (counters["rx_frames"], counters["rx_internal_drops"]) == (40, 40)
    assert counters["internal_errors"] >= 2
    driver.wire.inject(udp4(b"after"))
    assert len(driver.pass_wire()) == 1


def test_only_those_that_ended_nowhere_else_are_dropped(
    driver: MiniDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = bytes.fromhex("020000000077")
    monkeypatch.setattr(queues.RxQueue, "deliver", broken)
    driver.wire.inject(udp4(b"x" * 3000), udp4(to=other), udp4(), udp4(b"y"))
    driver.nic.receive()
    counters = driver.nic.counters()
    names = ("rx_frames", "rx_oversize", "rx_filtered", "rx_internal_drops", "rx_delivered")
    assert [counters[name] for name in names] == [4, 1, 1, 2, 0]


def test_a_broken_transmit_drops_what_was_posted(
    driver: MiniDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(transmit.TxQueue, "_data", broken)
        driver.send(udp4())
        assert not driver.nic.wants_to_transmit, "or the loop would never rest"
    assert [event & 0xFFFF for event in driver.events() if event >> 60 == 2] == [0]
    counters = driver.nic.counters()
    assert (counters["tx_internal_drops"], counters["internal_errors"]) == (1, 1)
    driver.send(udp4())
    assert len(driver.wire.sent) == 1


def test_a_broken_command_is_answered(driver: MiniDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver.nic.steering, "insert", broken)
    with pytest.raises(McdiFailedError) as failed:
        driver.add_filter(MAC)
    assert failed.value.code == 71  # EPROTO
    assert driver.journal.counts["internal_errors"] == 1
    assert driver.mcdi(0x55)[:6] == MAC


def test_a_kind_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal()

    def other() -> None:
        raise ZeroDivisionError

    for _ in range(50):
        for step in (broken, other):
            try:
                step()
            except ZeroDivisionError as error:
                journal.mistake(error)
    assert journal.counts["internal_errors"] == 100
    assert caplog.text.count("Traceback") == 2


def test_a_campaign_can_see_it(driver: MiniDriver) -> None:
    assert {"internal_errors", "rx_internal_drops", "tx_internal_drops"} <= set(
        driver.nic.counters()
    )
    assert driver.nic.counters()["internal_errors"] == 0


def test_frames_wait_from_when_they_came(driver: MiniDriver) -> None:
    """The time counts from their arrival, not from when the previous frame left."""
    driver.clock.now_ns += 1_000_000_000
    driver.writel(0x830, 0)
    driver.channels[0].rx_removed = driver.channels[0].rx_added = 0
    driver.wire.inject(udp4(struct.pack("<I", 7)))
    driver.nic.receive()
    assert driver.wire.waiting() == 1
    driver.refill()
    assert len(driver.pass_wire()) == 1
