# SPDX-License-Identifier: MIT
"""When a load counts as steady, and when as ended: its streams may be slow."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base.errors import TrialVoidError
from harness.config import Load
from harness.trials import load

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how long each sleep asked, in seconds; none lasts."""
    asked: list[float] = []
    monkeypatch.setattr(time, "sleep", asked.append)
    return asked


def ramp(
    monkeypatch: pytest.MonkeyPatch, sending: Sequence[int], rates_pps: Sequence[float]
) -> dict[str, Any]:
    """The verdict on a load of ten streams; the last of ``sending`` and the rates last on."""
    clock, streams = itertools.count(), iter(sending)
    totals = itertools.accumulate(itertools.chain(rates_pps, itertools.repeat(rates_pps[-1])))
    seen = itertools.chain([0.0], totals)

    def counters(**_: Any) -> dict[str, Any]:
        return {
            "snmp": {"Ip": {"InReceives": next(seen)}},
            "monotonic_ns": next(clock) * 1_000_000_000,
        }

    looks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(looks) * load._RAMP_SAMPLE_S)
    generator = SimpleNamespace(
        netperf_sending=lambda: {"streams": next(streams, sending[-1])},
    )
    bed: Any = SimpleNamespace(
        dut=SimpleNamespace(counters=counters), dut_interface="eth0", generator=generator
    )
    return load._ramp_up(bed, 10)


def test_rates_before_all_streams_send_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    starting = [12.0, 94.0, 23.0, 40.0, 60.0, 80.0, 200.0, 300.0, 500.0]
    found = ramp(monkeypatch, [4] * len(starting) + [10], [*starting, 8000.0, 8400.0])
    assert found["rates_pps"] == pytest.approx([*starting, 8000.0, 8400.0])
    assert found["steady"] is True


def test_a_load_that_does_not_settle_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ramp(monkeypatch, [10], [2000.0, 8000.0] * 8)
    assert found == {"rates_pps": [2000.0, 8000.0] * 4, "steady": False}


def test_one_that_becomes_whole_too_late_to_settle(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = round(load._RAMP_S / load._RAMP_SAMPLE_S) - 1
    rates = [12.0] * (samples - 2) + [3000.0, 9000.0, 3000.0]
    found = ramp(monkeypatch, [9] * (samples - 2) + [10], rates)
    assert found["steady"] is False


@pytest.mark.parametrize(
    ("sending", "said"), [(8, "8 of 10 streams send"), (10, "no packets arrive")]
)
def test_a_load_that_never_starts_is_void(
    sending: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrialVoidError, match=said):
        ramp(monkeypatch, [sending], [5.0])


class Receiver:
    """A dut whose netserver reads: what it has read, and what waits in its sockets."""

    def __init__(self, *seen: tuple[int, int], up: bool = True) -> None:
        self._seen, self.up, self.asked = list(seen), up, -1
        dut = SimpleNamespace(counters=self._counters, netserver_start=lambda **_: None)
        generator = SimpleNamespace(netperf_start=lambda **_: None)
        bed: Any = SimpleNamespace(
            dut=dut,
            generator=generator,
            dut_interface="eth0",
            netperf_cpus=[1],
            netperf_nice=0,
            netperf_prefix=[],
        )
        address = SimpleNamespace(ip="192.0.2.2")
        config = SimpleNamespace(dut=SimpleNamespace(address=address), netserver_cpu=0)
        block: Any = SimpleNamespace(bed=config, load=Load(streams=1))
        self.load = load.LoadOnBoot(block, bed)
        self.load.begin()

    def _counters(self, **_: Any) -> dict[str, Any]:
        self.asked += 1
        read, queued = self._seen.pop(0) if len(self._seen) > 1 else self._seen[0]
        # A socket of somebody else is never read.
        sockets = [{"queued_bytes": 5000}, {"queued_bytes": queued}]
        return {"snmp": {"Udp": {"InDatagrams": read}}, "udp_sockets": sockets}


def until_read(*receivers: Receiver) -> list[int]:
    """How often each was looked at."""
    loads: Any = {one: one.load for one in receivers}
    load._until_read(loads, load.alone)
    return [one.asked for one in receivers]


def test_a_receiver_is_ended_when_it_has_read_everything(slept: list[float]) -> None:
    slow = Receiver((0, 0), (1, 0), (2, 0), (3, 0), (3, 0), (4, 0))
    assert until_read(slow, Receiver((7, 0)), Receiver((0, 0), up=False)) == [4, 4, 0]
    assert len(slept) == 3


def test_one_that_pauses_is_waited_for() -> None:
    assert until_read(Receiver((0, 0), (5, 900), (5, 900), (5, 900), (6, 0), (6, 0))) == [5]


@pytest.mark.parametrize("seen", [[(0, 0), (5, 900)], [(n, 0) for n in range(99)]])
def test_one_that_never_ends_is_not(seen: list[tuple[int, int]]) -> None:
    assert until_read(Receiver(*seen)) == [load._LOOKS]


def test_samples_grow(monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> None:
    found = ramp(monkeypatch, [4, 4, 10], [10.0, 20.0, 2000.0, 8000.0, 2000.0, 2100.0])
    assert found["steady"] is True
    assert slept[:3] == [load._RAMP_SAMPLE_S] * 3
    assert slept[3:] == pytest.approx([load._RAMP_SAMPLE_S * 1.5**n for n in (1, 2, 3)])
