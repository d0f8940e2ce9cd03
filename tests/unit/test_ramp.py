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
from harness.trials import load

pytestmark = pytest.mark.unit


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

    slept = itertools.count()
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(time, "monotonic", lambda: next(slept) * load._RAMP_SAMPLE_S)
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


def test_a_receiver_is_ended_when_it_has_read_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reads:
        def __init__(self, *seen: int) -> None:
            self._seen = list(seen)
            self.asked = 0

        def datagrams_read(self) -> int:
            self.asked += 1
            return self._seen.pop(0) if len(self._seen) > 1 else self._seen[0]

    class Boot:
        def __init__(self, up: bool) -> None:
            self.up = up

    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    slow, quick, dead = Reads(1, 2, 3, 3, 4), Reads(7), Reads(0)
    loads: Any = {Boot(True): slow, Boot(True): quick, Boot(False): dead}
    load._until_read(loads, load.alone)
    assert (slow.asked, quick.asked, dead.asked) == (4, 4, 0)
    assert len(slept) == 3
    never = Reads(*range(99))
    loads = {Boot(True): never}
    load._until_read(loads, load.alone)
    assert never.asked == 10
