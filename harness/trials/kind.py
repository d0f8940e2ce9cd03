# SPDX-License-Identifier: MIT
"""What a kind of trial is. Each kind is one module of this room, registered in ``__init__.py``.

A kind says which trials a boot gets, measures them, and reads what their samples tell. What it
measures, the rules by which its trials are void and its figure are declared with it; plan,
table, report, ``--expect`` and exporters take them from the registry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from harness.trials.readings import Trace, Trial, Void

if TYPE_CHECKING:
    from harness.config import Bed
    from harness.plan import PlannedTrial, Profile
    from harness.trials.block import Block
    from harness.trials.saturation import Saturation

Tolerances = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Measure:
    """A named quantity that a trial tells."""

    title: str
    unit: str
    published: float | None = None
    """The difference the series' author expected, in ``unit``."""
    better: Literal["lower", "higher"] = "lower"
    source: str = ""
    """Where it was read."""
    also: str | None = None
    """The ``--also`` that a campaign needs for it."""
    sentence: bool = True
    """Has its verdict a sentence of its own under the table?"""


@dataclass(frozen=True)
class VoidRule:
    """One reason, fixed beforehand, to leave a trial out of the statistics.

    ``tolerances`` are what a reader may want to know or change: ``share`` is of
    the larger side of a comparison, the others are counts in their names' unit.
    """

    description: str
    tolerances: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """One pair of axes of a figure: a measure by step, or its ``[p50, p90, p99, mean]``."""

    title: str
    unit: str
    measures: Sequence[str]


@dataclass(frozen=True)
class Figure:
    """What a report draws of a kind, as far as it was measured."""

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What was planned for a trial, by which its sample is judged."""

    tolerances: Tolerances
    irq_cpu: int | None = None
    netserver_cpu: int | None = None
    rx_queues: int | None = None
    """``None``: not planned, or not a rule yet when the campaign began."""
    holdoff_us: float = 0.0
    """The interrupt moderation; 0: not known."""

    @property
    def irq_cpus(self) -> Collection[int]:
        return () if self.irq_cpu is None else (self.irq_cpu,)


@dataclass(frozen=True, kw_only=True)
class FunctionCost:
    """What an emulated kernel does in one function for each packet."""

    calls: float
    instructions: float
    misses: float


@dataclass(kw_only=True)
class Told:
    """What one trial tells, and why it does not count if it does not."""

    values: dict[str, float] = field(default_factory=dict)
    """By names of the kind's measures; what was not read is left out."""
    void: tuple[Void, ...] = ()
    rates_void: tuple[Void, ...] = ()
    """Why its rates do not count, though what a packet costs does."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """Why measures are not there, where they were asked for."""
    offered_packets: int | None = None
    """Frames that reached the port over the whole trial."""
    drops: Mapping[str, int] = field(default_factory=dict)
    """Packets dropped over the whole trial, by place."""
    pauses: Mapping[str, int] = field(default_factory=dict)
    """Pause frames over the whole trial, ``sent`` and ``received`` by the dut's port."""
    saturation: Saturation | None = None
    trace: Trace | None = None
    traced_pps: float | None = None
    """Packets a second at IP while the probes ran, to set beside the timed rate."""
    functions: Mapping[str, FunctionCost] = field(default_factory=dict)


Sample = TypeVar("Sample", bound=Trial)


class Kind(ABC, Generic[Sample]):
    """One kind of trial."""

    name: ClassVar[str]
    """In files and on the command line."""
    sample: ClassVar[type[Trial]]
    """What a trial keeps; its ``kind`` is a literal of :attr:`name`."""
    also: ClassVar[str | None] = None
    """The ``--also`` that asks for it; ``None``: every campaign has it."""
    summary: ClassVar[str] = ""
    """What ``--also`` measures."""
    paces: ClassVar[bool] = False
    """Is the generator held to a rate?"""
    counting: ClassVar[bool] = False
    """Does an emulator count what the kernel executes?"""
    measures: ClassVar[Mapping[str, Measure]] = {}
    rules: ClassVar[Mapping[str, VoidRule]] = {}
    figure: ClassVar[Figure | None] = None
    beds: ClassVar[Collection[str] | None] = None
    """The kinds of bed that can measure it; ``None``: all."""
    elsewhere: ClassVar[str] = ""
    """What to do on other beds."""

    def about(self, bed: Bed) -> str:  # noqa: ARG002
        """:attr:`summary`, with what the bed adds to it."""
        return self.summary

    def changes(self) -> tuple[str, str] | None:
        """What it sets on the dut beside the bed's settings: what, and how."""
        return None

    @abstractmethod
    def planned(self, profile: Profile, ordinal: int) -> Iterator[PlannedTrial]:
        """The trials of a boot in that block of its bed."""

    def lasts_s(self, trial: PlannedTrial) -> float:
        """Seconds ``trial`` measures, without its ramp."""
        return trial.duration_s

    @abstractmethod
    def measure(self, block: Block, planned: Sequence[PlannedTrial]) -> None:
        """Measure ``planned`` in the boots of ``block`` that are up."""

    @abstractmethod
    def judge(self, sample: Sample, conditions: Conditions) -> Told:
        """What ``sample`` tells under ``conditions``."""


AnyKind = Kind[Any]
