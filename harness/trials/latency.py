# SPDX-License-Identifier: MIT
"""Round-trip times with interrupt moderation and busy polling on and off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from harness.base.errors import TrialVoidError
from harness.plan import PlannedTrial, Profile
from harness.trials import loads, rules
from harness.trials.kind import Conditions, Figure, Kind, Measure, Panel, Told, VoidRule
from harness.trials.load import PORT, have_netserver, required
from harness.trials.readings import Declared, Trial, Whole

if TYPE_CHECKING:
    from harness.beds.bed import RunningBed
    from harness.config import Bed, Load
    from harness.trials.block import Block, MeasuredBoot

_BUSY_READ_US = 50
_NO_MODERATION = {"adaptive_rx": False, "rx_usecs": 0}
_WHICH = ("mean", "p50", "p90", "p99")


@dataclass(frozen=True)
class Cell:
    """How the dut waits for a packet while latency is measured."""

    moderation: bool
    """True: interrupt moderation as set for the bed; False: none."""
    busy_poll: bool
    """Does the reading process poll the queue itself (``net.core.busy_read``)?"""

    @property
    def name(self) -> str:
        """The part of a metric's name that names the cell."""
        no = {False: "no_", True: ""}
        return f"{no[self.moderation]}moderation_{no[self.busy_poll]}busy_poll"

    def __str__(self) -> str:
        on = {False: "off", True: "on"}
        return f"moderation {on[self.moderation]}, busy poll {on[self.busy_poll]}"


CELLS = tuple(Cell(moderation, poll) for moderation in (True, False) for poll in (False, True))
_EXPECTED_US = {Cell(moderation=False, busy_poll=True): 0.16, Cell(True, False): 0.06}


class RoundTrips(Declared):
    """The results of one UDP_RR test of netperf."""

    transactions_per_s: float
    mean_us: float
    p50_us: float
    p90_us: float
    p99_us: float


class LatencyTrial(Trial):
    """Round trips in one cell."""

    kind: Literal["latency"] = "latency"
    cell: Cell | None = None
    round_trips: RoundTrips | None = None
    whole: Whole | None = None
    """Until its end, while netserver is still running."""


class Latency(Kind[LatencyTrial]):
    """One trial per cell, while the other boots of the block are frozen."""

    name = "latency"
    sample = LatencyTrial
    also = "latency"
    summary = "round-trip times with interrupt moderation and busy polling on and off"
    measures = {
        f"rr_{which}_us_{cell.name}": Measure(
            f"round trip, {cell}: {which}",
            "µs",
            _EXPECTED_US.get(cell) if which == "mean" else None,
            source="netperf UDP_RR on the generator",
            also="latency",
            sentence=which == "mean",
        )
        for cell in CELLS
        for which in _WHICH
    }
    rules = {"cell-missing": VoidRule("the dut accepts the settings of the latency trial")}
    figure = Figure(
        "latency",
        "Round trips",
        "UDP_RR, one byte in each direction: the median to the 99th percentile (line, with the "
        "90th marked) and the mean (dot), each as the median over boots.",
        [
            Panel(
                str(cell), "µs", [f"rr_{which}_us_{cell.name}" for which in (*_WHICH[1:], "mean")]
            )
            for cell in CELLS
        ],
    )

    def changes(self) -> tuple[str, str]:
        return "for round trips", "moderation on and off, busy polling on and off"

    def planned(self, profile: Profile, ordinal: int) -> Iterator[PlannedTrial]:  # noqa: ARG002
        for index in range(len(CELLS)):
            yield PlannedTrial("latency", index, profile.window_s)

    def measure(self, block: Block, planned: Sequence[PlannedTrial]) -> None:
        def measure(boot: MeasuredBoot, trial: PlannedTrial) -> None:
            cell, bed = CELLS[trial.index], boot.bed
            found: dict[str, Any] = {"index": trial.index, "cell": asdict(cell)}
            before = bed.dut.counters(interface=bed.dut_interface)
            try:
                found["round_trips"] = round_trips(
                    block.bed,
                    bed,
                    cell,
                    load=block.load,
                    usual=boot.settings["dut"]["after"],
                    duration_s=trial.duration_s,
                )
            except TrialVoidError as error:
                found["void"] = [{"rule": "cell-missing", "detail": error.message}]
            after = bed.dut.counters(interface=bed.dut_interface)
            found["whole"] = {"before": before, "after": after}
            boot.trials.append(LatencyTrial.model_validate(found))

        block.alone("round trips", planned, measure)

    def judge(self, sample: LatencyTrial, conditions: Conditions) -> Told:
        cell, found = sample.cell, sample.round_trips
        polled = cell is not None and cell.busy_poll
        void = rules.alone(sample.void, sample.whole, conditions, polled=polled)
        if cell is None or found is None:
            return Told(void=void)
        values = {f"rr_{which}_us_{cell.name}": getattr(found, f"{which}_us") for which in _WHICH}
        return Told(void=void, values=values)


def round_trips(
    bed_config: Bed,
    bed: RunningBed,
    cell: Cell,
    *,
    load: Load,
    usual: dict[str, Any],
    duration_s: float,
) -> dict[str, Any]:
    """UDP_RR for ``duration_s`` in one cell; then restores the dut's ``usual`` settings.

    Raises:
        TrialVoidError: the dut does not accept the settings of this cell.
    """
    moderation, busy_read_us = usual["coalesce"], usual["busy_read_us"]

    def set_dut(**wanted: Any) -> None:
        required(bed.dut.settings_apply(interface=bed.dut_interface, **wanted))

    try:
        set_dut(
            coalesce=moderation if cell.moderation else _NO_MODERATION,
            busy_read_us=_BUSY_READ_US if cell.busy_poll else 0,
        )
        have_netserver(bed_config, load, bed)
        return dict(
            bed.generator.netperf_rr(
                target=loads.named(load.kind).listens(bed_config),
                port=PORT,
                duration_s=duration_s,
                cpu=bed.netperf_cpus[0] if bed.netperf_cpus else None,
                command_prefix=bed.netperf_prefix,
            )
        )
    finally:
        set_dut(coalesce=moderation, busy_read_us=busy_read_us)
