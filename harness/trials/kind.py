# SPDX-License-Identifier: MIT
"""The interface of a kind of trial. Each kind is one module here, registered in ``__init__.py``.

A kind plans the trials of a boot, measures them, and judges their samples. It declares its
measures, its void rules and its figure; plan, table, report, ``--expect`` and exporters
take them from the registry.
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
    """A named quantity that a trial measures."""

    title: str
    unit: str
    published: float | None = None
    """The difference the series' author expected, in ``unit``."""
    better: Literal["lower", "higher"] = "lower"
    source: str = ""
    """Where it is read."""
    also: str | None = None
    """The ``--also`` that a campaign needs for it."""
    sentence: bool = True
    """Does its verdict get a line under the table?"""


@dataclass(frozen=True)
class VoidRule:
    """A condition, fixed in advance; a trial that breaks it is left out of the statistics.

    In ``tolerances``, ``share`` is a share of the larger side of a comparison; the others
    are counts in the unit of their name.
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
    """A figure of the report, drawn as far as its measures exist."""

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What was planned for a trial; its sample is judged by this."""

    tolerances: Tolerances
    irq_cpu: int | None = None
    netserver_cpu: int | None = None
    rx_queues: int | None = None
    """``None``: not planned, or the campaign is older than this rule."""
    load: str = "udp"
    """Its kind."""
    holdoff_us: float = 0.0
    """The interrupt moderation (``rx_usecs``); 0: not known."""

    @property
    def irq_cpus(self) -> Collection[int]:
        return () if self.irq_cpu is None else (self.irq_cpu,)


@dataclass(frozen=True, kw_only=True)
class FunctionCost:
    """What an emulated kernel executes in one function, per packet."""

    calls: float
    instructions: float
    misses: float


@dataclass(kw_only=True)
class Told:
    """The values of one trial, and the reasons if it is void."""

    values: dict[str, float] = field(default_factory=dict)
    """By measure; values that were not read are left out."""
    void: tuple[Void, ...] = ()
    rates_void: tuple[Void, ...] = ()
    """Why its rates are void, although its costs per packet count."""
    absent: Mapping[str, str] = field(default_factory=dict)
    """By measure, why it is missing although it was requested."""
    offered_packets: int | None = None
    """Frames that reached the port over the whole trial."""
    drops: Mapping[str, int] = field(default_factory=dict)
    """Packets dropped over the whole trial, by place."""
    pauses: Mapping[str, int] = field(default_factory=dict)
    """Pause frames over the whole trial, ``sent`` and ``received`` by the dut's port."""
    saturation: Saturation | None = None
    trace: Trace | None = None
    traced_pps: float | None = None
    """Packets/s at IP while probes were attached, to compare with the timed rate."""
    functions: Mapping[str, FunctionCost] = field(default_factory=dict)


Sample = TypeVar("Sample", bound=Trial)


class Kind(ABC, Generic[Sample]):
    """One kind of trial."""

    name: ClassVar[str]
    """Its name in files and on the command line."""
    sample: ClassVar[type[Trial]]
    """What a trial keeps; its ``kind`` is a literal of :attr:`name`."""
    also: ClassVar[str | None] = None
    """The ``--also`` that requests it; ``None``: every campaign has it."""
    summary: ClassVar[str] = ""
    """What ``--also`` measures, for ``--help``."""
    paces: ClassVar[bool] = False
    """Is the load limited to a rate?"""
    counting: ClassVar[bool] = False
    """Does an emulator count what the kernel executes?"""
    measures: ClassVar[Mapping[str, Measure]] = {}
    rules: ClassVar[Mapping[str, VoidRule]] = {}
    figure: ClassVar[Figure | None] = None
    beds: ClassVar[Collection[str] | None] = None
    """The kinds of bed that can measure it; ``None``: all."""
    elsewhere: ClassVar[str] = ""
    """The hint for other beds."""

    def about(self, bed: Bed, profile: Profile) -> str:  # noqa: ARG002
        """:attr:`summary`, with details of the bed and the profile."""
        return self.summary

    def changes(self) -> tuple[str, str] | None:
        """What it sets on the dut in addition to the bed's settings: name and value."""
        return None

    @abstractmethod
    def planned(self, profile: Profile, ordinal: int) -> Iterator[PlannedTrial]:
        """The trials of a boot in block number ``ordinal`` of its bed."""

    def lasts_s(self, trial: PlannedTrial) -> float:
        """Seconds that ``trial`` takes without its ramp."""
        return trial.duration_s

    @abstractmethod
    def measure(self, block: Block, planned: Sequence[PlannedTrial]) -> None:
        """Measure ``planned`` in the boots of ``block`` that are up."""

    @abstractmethod
    def judge(self, sample: Sample, conditions: Conditions) -> Told:
        """The values of ``sample``, and whether it is void under ``conditions``."""


AnyKind = Kind[Any]
