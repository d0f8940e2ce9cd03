# SPDX-License-Identifier: MIT
"""A NIC driver is one declaration: its counters, functions and quirks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.agent import drivers
from harness.agent.doctor import card
from harness.agent.drivers import CounterNames, Driver, Function
from harness.agent.interface import ethtool, nic
from harness.agent.interface.ethtool import Ethtool
from harness.agent.settings import queues
from harness.trials.counted import Delta
from harness.trials.readings import Snapshot

pytestmark = pytest.mark.unit

FAKE = Driver(
    name="fake",
    family="Fake",
    counters=(
        CounterNames(
            known_by=("fake_rx",),
            at_port="fake_rx",
            ring_drops=("fake_full",),
            other_drops=("fake_bad",),
            driver_drops=("fake_short",),
            in_link_dropped=("fake_full",),
            of_32_bits=frozenset({"fake_short"}),
            queue_packets=re.compile(r"q\d+_frames"),
            pauses=re.compile(r"fake_[rt]x_xoff"),
        ),
    ),
    functions={"1af4:f00d": Function("F1", "Fake 10G", "PF")},
    queue_irq=re.compile(r"fake-comp(?P<queue>\d+)@.*"),
    statistics_s=4.0,
)
BEFORE = {"fake_rx": 10, "fake_short": (1 << 32) - 1, "q0_frames": 1, "q1_frames": 1}
AFTER = {
    "fake_rx": 110,
    "fake_full": 20,
    "fake_bad": 3,
    "fake_short": 2,
    "fake_tx_xoff": 7,
    "q0_frames": 61,
    "q1_frames": 18,
}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    caches = (drivers.counter_names, drivers.queue_counters, drivers.pause_counters)
    monkeypatch.setitem(drivers.DRIVERS, FAKE.name, FAKE)
    for one in caches:
        one.cache_clear()
    yield FAKE
    for one in caches:
        one.cache_clear()


def _delta(before: dict[str, int], after: dict[str, int], **link: int) -> Delta:
    return Delta(
        Snapshot(monotonic_ns=0, nic=before, link=dict.fromkeys(link, 0)),
        Snapshot(monotonic_ns=10**9, nic=after, link=link),
    )


@pytest.mark.usefixtures("fake")
def test_counters_of_a_registered_driver_are_read_by_its_names() -> None:
    delta = _delta(BEFORE, AFTER, rx_missed_errors=99, rx_packets=5)
    assert (delta.at_port, delta.offered) == (100, 100)
    assert (delta.nic_ring_drops(), delta.nic_other_drops(), delta.driver_drops()) == (20, 3, 3)
    assert delta.nic_in_link() == 20
    assert delta.queues == {"q0_frames": 60, "q1_frames": 17}
    assert delta.nic_delivered == 77
    assert delta.pauses() == {"sent": 7, "received": 0}


def test_without_a_module_the_link_alone_tells() -> None:
    delta = _delta(BEFORE, AFTER, rx_missed_errors=9, rx_packets=5)
    assert (delta.at_port, delta.offered, delta.nic_delivered) == (None, 14, 5)
    assert (delta.nic_ring_drops(), delta.nic_other_drops(), delta.driver_drops()) == (9, 0, 0)
    assert delta.nic_in_link() == 0


@pytest.mark.parametrize(
    ("there", "ring", "in_link"),
    [
        (("port_rx_packets", "rx_unicast", "rx_overflow"), 4, 3),
        (("port_rx_packets",), 4, 7),
        (("rx_unicast", "rx_overflow"), 16, 0),
    ],
    ids=["port and adapter", "no virtual adapters", "a VF"],
)
def test_a_function_of_an_ef10_may_see_fewer_counters(
    there: tuple[str, ...], ring: int, in_link: int
) -> None:
    counted = {"port_rx_nodesc_drops": 4, "rx_nodesc_trunc": 1, "rx_noskb_drops": 2}
    after = dict.fromkeys(there, 0) | counted
    after |= {"rx_overflow": 16} if "rx_overflow" in there else {}
    delta = _delta({}, after)
    assert (delta.nic_ring_drops(), delta.nic_in_link()) == (ring, in_link)


def test_a_registered_function_is_described(tmp_path: Path, fake: Driver) -> None:
    irqs = {30: "fake-comp0@pci:0000:01:00.0", 31: "fake-async@pci:0000:01:00.0"}

    def described(driver: str, pci_id: str) -> tuple[str, dict[str, int], list[str]]:
        found = nic.describe(tmp_path, driver=driver, pci_id=pci_id, firmware="1.0", irqs=irqs)
        return found["chip"], found["queue_irqs"], found["warnings"]

    chip, queues, [warning] = described("fake", "1af4:f00d")
    assert (chip, queues) == ("F1", {"0": 30})
    assert warning == "fake: the series does not make its driver hand lists to the stack"
    [warning] = described("vfio-pci", "1af4:f00d")[2]
    assert warning == "Fake function (F1) under the driver vfio-pci, not fake"
    assert drivers.statistics_s() == fake.statistics_s


@pytest.mark.parametrize(
    ("driver", "ok", "told"),
    [
        ("sfc", True, "sfc 0000:01:00.0"),
        ("fake", True, "fake 0000:01:00.0: the series does not make it hand lists to the stack"),
        ("other", False, "other 0000:01:00.0: unknown to the harness"),
    ],
)
@pytest.mark.usefixtures("fake")
def test_the_doctor_says_what_it_knows_of_a_driver(driver: str, ok: bool, told: str) -> None:
    row = card._driver({"driver": driver, "bus": "0000:01:00.0"}, drivers.named(driver))
    assert (row["ok"], row["needed"]) == (ok, True)
    assert row["detail"].startswith(told)
    assert ok or "harness/agent/drivers" in str(row["remedy"])


def test_no_two_drivers_are_known_by_the_same_counters() -> None:
    known = [names.known_by for one in drivers.DRIVERS.values() for names in one.counters]
    assert all(known)
    assert len({*known}) == len(known)
    for one in drivers.DRIVERS.values():
        for names in one.counters:
            there = drivers.counter_names(names.known_by)
            assert there in one.counters, f"counters of {one.name} are taken for another driver's"


@pytest.mark.parametrize(
    ("steering", "asked", "found"),
    [
        (("channels", "rss", "ntuple"), "auto", (1, {"rx": 0, "combined": 1})),
        (("rss", "ntuple"), "auto", (1, {"rx": 0, "combined": 4})),
        (("ntuple",), "auto", None),
        (("ntuple",), "rss", (1, {"rx": 0, "combined": 4})),
    ],
)
def test_steering_takes_the_ways_that_work_with_the_driver(
    monkeypatch: pytest.MonkeyPatch,
    steering: tuple[str, ...],
    asked: str,
    found: tuple[int, dict[str, int]] | None,
) -> None:
    monkeypatch.setitem(drivers.DRIVERS, "fake", replace(FAKE, steering=steering))
    monkeypatch.setattr(Ethtool, "driver", lambda _: ethtool.Driver("fake", "", "", 0))
    now = {"in_use": 4, "channels": {"rx": 0, "combined": 4}, "indirection": [0, 1, 2, 3]}
    wanted = queues._wanted(now, {"interface": "lo", "rx_queues": 1, "steering": asked})
    assert (wanted and (wanted["in_use"], wanted["channels"])) == found
