# SPDX-License-Identifier: MIT
"""Streams of netperf to boots, and trials measured under them.

Trials under one load share the readings of the whole load: netperf's own counts, and the
counters before it began and after everything settled.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.agent import drivers
from harness.agent.protocol import Calls
from harness.base.errors import HarnessError, TrialVoidError
from harness.trials import loads
from harness.trials.loads.kind import entered

if TYPE_CHECKING:
    from harness.beds.access.channel import Pending
    from harness.beds.bed import RunningBed
    from harness.config import Bed, Load
    from harness.plan import PlannedTrial
    from harness.trials.block import Blamed, Block, MeasuredBoot
    from harness.trials.readings import Trial

PORT = 12865
_SETTLE_S = 0.3 + drivers.statistics_s()
_WATCHED_S = 0.25
_RAMP_S = 30
_RAMP_SAMPLES = 8
_RAMP_SAMPLE_S = 0.3
_LONGER = 1.5
"""Each sample under the whole load is longer, as a busy machine is unsteady in short ones."""
_LAST_PACKETS_S = 0.3
_LOOKS = 30
_STEADY = 0.25
_LEAST_PPS = 1000
_LONGEST_LOAD_S = 3600
_PACED_SEND_BUFFER_BYTES = 4096
"""Small, because packets queued in the pacer would arrive while the receiver is frozen."""
_ANSWER_S = 60

Open = Callable[["RunningBed", "PlannedTrial", float], "Pending[dict[str, Any]]"]
"""Begins the readings of a trial; the answer must come within the given seconds."""


def start_load(
    bed_config: Bed,
    load: Load,
    bed: RunningBed,
    *,
    paced_pps: float | None = None,
    watched_s: float | None = None,
) -> None:
    """Start all streams of ``load``; they send until they are stopped.

    Together they send ``paced_pps`` packets/s, or as many as they can. Returns after
    ``watched_s``, by default shortly before they begin.
    """
    if paced_pps:
        pace(bed, load, paced_pps)
    have_netserver(bed_config, load, bed)
    kind = loads.named(load.kind)
    bed.generator.netperf_start(
        target=kind.listens(bed_config),
        port=PORT,
        streams=load.streams,
        message_bytes=load.message_bytes,
        cpus=bed.netperf_cpus,
        duration_s=_LONGEST_LOAD_S,
        send_buffer_bytes=_PACED_SEND_BUFFER_BYTES if paced_pps else 0,
        nice=bed.netperf_nice,
        watched_s=watched_s,
        data_to=kind.target(bed_config),
        test=kind.test,
        command_prefix=bed.netperf_prefix,
    )


def end_load(bed: RunningBed) -> None:
    """Stop the generator's streams and restore its settings, if it still answers.

    Its agent survives a dut whose kernel dies; it would pace the loads of the next boot.
    """
    with contextlib.suppress(HarnessError):
        bed.generator.netperf_stop()
        bed.generator.settings_restore()


def have_netserver(bed_config: Bed, load: Load, bed: RunningBed) -> None:
    """Start netserver on the dut if it is not running."""
    bed.dut.netserver_start(
        address=loads.named(load.kind).listens(bed_config),
        port=PORT,
        cpu=bed_config.netserver_cpu,
    )


def pace(bed: RunningBed, load: Load, pps: float | None) -> None:
    """Limit the load to ``pps`` packets per second; ``None``: no limit.

    Where the wire repeats what the generator sends, the wire is limited.
    """
    if bed.repeats:
        bed.pace_repetition(pps)
        return
    frame_bytes = loads.named(load.kind).headers_bytes + load.message_bytes
    rate = round((pps or 0) * frame_bytes)
    required(
        bed.generator.settings_apply(interface=bed.generator_interface, pacing_bytes_per_s=rate)
    )


def hold(bed: RunningBed) -> None:
    """Let no packet of the load come until :func:`release`."""
    if bed.repeats:
        bed.pace_repetition(0)
    else:
        bed.generator.netperf_pause()


def release(bed: RunningBed, load: Load, pps: float) -> None:
    """Let ``pps`` packets per second come, after :func:`hold`."""
    pace(bed, load, pps)
    if not bed.repeats:
        bed.generator.netperf_resume()


def required(done: Mapping[str, Any]) -> None:
    """Raise if a setting that a trial needs was skipped.

    Raises:
        TrialVoidError: names the settings that the host does not have.
    """
    if skipped := [f"{one['setting']}: {one['why']}" for one in done["skipped"]]:
        raise TrialVoidError("; ".join(skipped))


def window(irq_cpu: int | None, *, emulated: bool = False) -> Open:
    """Reads counters at both ends, and between them the PMU of the interrupt's CPU."""

    def begin(bed: RunningBed, trial: PlannedTrial, within_s: float) -> Pending[dict[str, Any]]:
        return bed.dut.begin(
            Calls.window,
            within_s,
            interface=bed.dut_interface,
            duration_s=trial.duration_s,
            netserver=True,
            pmu_cpu=irq_cpu,
            emulated=emulated,
        )

    return begin


@dataclass(frozen=True)
class Reading:
    """How far the receiving processes are."""

    packets: int
    waiting: bool
    """Do datagrams of the load wait in sockets?"""


class LoadOnBoot:
    """One load on one boot, and its readings so far."""

    def __init__(self, block: Block, bed: RunningBed, paced_pps: float | None = None) -> None:
        self._block, self._bed = block, bed
        self._paced_pps = paced_pps
        self._before: dict[str, Any] = {}
        self._ramp: dict[str, Any] | None = None
        self._netperf: list[dict[str, Any]] = []
        self.void: list[dict[str, str]] = []
        self.answers: list[dict[str, Any]] = []

    def begin(self, watched_s: float | None = None) -> None:
        """Start the streams; they set up their connections."""
        self._before = self._counters()
        start_load(
            self._block.bed,
            self._block.load,
            self._bed,
            paced_pps=self._paced_pps,
            watched_s=watched_s,
        )

    def ramp_up(self) -> None:
        """Wait until packets arrive at a steady rate."""
        try:
            self._ramp = _ramp_up(self._bed, self._block.load.streams)
        except TrialVoidError as error:
            self.give_up(error)

    def give_up(self, error: TrialVoidError) -> None:
        """Make all its trials void."""
        self.void = [{"rule": "no-load", "detail": error.message}]

    def whole(self) -> dict[str, Any]:
        """Counters before the load and now."""
        return {"before": self._before, "after": self._counters()}

    def end_streams(self) -> None:
        """End the streams; their last packets are under way for a moment."""
        if self._paced_pps:
            pace(self._bed, self._block.load, None)
        self._bed.generator.netperf_end()

    def reading(self) -> Reading:
        """What the dut's processes have read so far, and what waits for them."""
        now = self._counters()
        waiting = _queued_bytes(now) > _queued_bytes(self._before)
        return Reading(packets=loads.named(self._block.load.kind).read(now), waiting=waiting)

    def end_receiver(self) -> None:
        """End netserver; netperf and the NIC's statistics need a moment to settle."""
        self._bed.dut.netserver_end()
        self._netperf = self._bed.generator.netperf_wait(timeout_s=30)

    def shared(self) -> dict[str, Any]:
        """The readings that its trials share."""
        return {
            "void": self.void,
            "ramp": self._ramp,
            "netperf": self._netperf,
            "whole": self.whole(),
        }

    def _counters(self) -> dict[str, Any]:
        return self._bed.dut.counters(interface=self._bed.dut_interface)


def under_load(
    block: Block,
    planned: Sequence[PlannedTrial],
    begin: Open,
    sample: Callable[[MeasuredBoot, dict[str, Any], dict[str, Any] | None], Trial],
    *,
    only: MeasuredBoot | None = None,
    paced_pps: int | None = None,
) -> None:
    """Measure ``planned`` under one load per boot: start it, wait until steady, measure, end.

    Several boots are time-sliced: at any moment all but one are frozen, so a slowdown of
    this machine affects all of them equally.

    ``sample`` makes a trial from a boot, the readings shared under the load, and the answer
    to ``begin`` (``None``: there was no answer).
    """
    boots = [only] if only else block.up
    blamed: Blamed = alone if only else block.blamed
    together = len(boots) > 1
    loads = {boot: LoadOnBoot(block, boot.bed, paced_pps) for boot in boots}
    for boot, load in loads.items():
        with blamed(boot):
            # Where there are several, each waits for its messages while the next are started.
            load.begin(_WATCHED_S if together else None)
            if together:
                boot.bed.freeze()

    def ramp_up(boot: MeasuredBoot, load: LoadOnBoot) -> None:
        if together:
            boot.bed.thaw()
        load.ramp_up()
        if together:
            boot.bed.freeze()

    _each(loads, blamed, ramp_up)
    for trial in planned:
        pending: dict[MeasuredBoot, Pending[dict[str, Any]]] = {}
        for boot, load in loads.items():
            if boot.up and not load.void:
                with blamed(boot):
                    within_s = (trial.duration_s + _ANSWER_S) * len(boots)
                    pending[boot] = begin(boot.bed, trial, within_s)
        if together:
            block.take_turns(pending)
        for boot, answer in pending.items():
            if boot.up:
                with blamed(boot):
                    try:
                        loads[boot].answers.append(answer.result())
                    except TrialVoidError as error:
                        loads[boot].give_up(error)
    if together:
        _each(loads, blamed, lambda boot, _: boot.bed.thaw())
    end_all(loads, blamed)

    def write(boot: MeasuredBoot, load: LoadOnBoot) -> None:
        shared = load.shared()
        answers = itertools.chain(load.answers, itertools.repeat(None))
        for trial, told in zip(planned, answers, strict=False):
            head = {"kind": trial.kind, "index": trial.index}
            boot.trials.append(sample(boot, head | shared, told))

    _each(loads, blamed, write)


def alone(_: MeasuredBoot) -> contextlib.nullcontext[None]:
    """A :data:`Blamed` that blames nobody."""
    return contextlib.nullcontext()


def end_all(loads: Mapping[MeasuredBoot, LoadOnBoot], blamed: Blamed = alone) -> None:
    """End the loads, and wait until every counter has settled."""
    _each(loads, blamed, lambda _, load: load.end_streams())
    _until_read(loads, blamed)
    _each(loads, blamed, lambda _, load: load.end_receiver())
    time.sleep(_SETTLE_S)


def _until_read(loads: Mapping[MeasuredBoot, LoadOnBoot], blamed: Blamed) -> None:
    """Wait until netserver has read what is queued for it, which takes a slow guest a moment.

    No counter has what a socket still holds when it is closed.
    """
    read: dict[MeasuredBoot, Reading] = {}
    for _ in range(_LOOKS):
        before = dict(read)
        _each(loads, blamed, lambda boot, load: read.update({boot: load.reading()}))
        if before == read and not any(reading.waiting for reading in read.values()):
            return
        time.sleep(_LAST_PACKETS_S)


def _queued_bytes(counters: Mapping[str, Any]) -> int:
    return sum(one["queued_bytes"] for one in counters["udp_sockets"])


def _each(
    loads: Mapping[MeasuredBoot, LoadOnBoot],
    blamed: Blamed,
    act: Callable[[MeasuredBoot, LoadOnBoot], object],
) -> None:
    """Do something to each boot that is up."""
    for boot, load in loads.items():
        if boot.up:
            with blamed(boot):
                act(boot, load)


def _ramp_up(bed: RunningBed, streams: int) -> dict[str, Any]:
    """Wait until all streams send and packets arrive at a steady rate.

    Returns the rates seen, in packets/s, and whether the last two under the whole load were
    similar.

    Raises:
        TrialVoidError: not all streams send, or no packets arrive.
    """
    deadline = time.monotonic() + _RAMP_S
    rates: list[float] = []
    sending = whole = 0
    sample_s = _RAMP_SAMPLE_S
    last = bed.dut.counters(interface=bed.dut_interface)
    while time.monotonic() < deadline:
        time.sleep(sample_s)
        sending = bed.generator.netperf_sending()["streams"]
        now = bed.dut.counters(interface=bed.dut_interface)
        packets = entered(now) - entered(last)
        rates.append(packets / (now["monotonic_ns"] - last["monotonic_ns"]) * 1e9)
        last = now
        if sending == streams and rates[-1] >= _LEAST_PPS:
            whole += 1
            sample_s *= _LONGER
            steady = len(rates) > 1 and abs(rates[-1] - rates[-2]) <= _STEADY * rates[-1]
            if steady or whole >= _RAMP_SAMPLES:
                return {"rates_pps": rates, "steady": steady}
    if whole:
        return {"rates_pps": rates, "steady": False}
    if sending < streams:
        raise TrialVoidError(f"{sending} of {streams} streams send after {_RAMP_S} s")
    raise TrialVoidError("no packets arrive although every stream has started")
