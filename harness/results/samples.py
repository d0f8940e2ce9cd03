# SPDX-License-Identifier: MIT
"""The result directory: the content of its files, and how they are written and read.

``campaign.json`` is written before the first boot, ``boots/*/boot.json`` when a boot is
finished, each completely or not at all. Missing files (a failed boot, a killed harness)
make the campaign *incomplete*, never unreadable.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness import cells
from harness.base.errors import ConfigurationError, HarnessError, InfrastructureError
from harness.plan import BASELINE, PlannedBoot, Shard, boots_of
from harness.trials import AnyTrial
from harness.trials.readings import Declared

CAMPAIGN_SCHEMA: Final = "receive-batching/campaign"
BOOT_SCHEMA: Final = "receive-batching/boot"
VERSION: Final = 1


class Failure(Declared):
    """The error that ended a boot early."""

    model_config = ConfigDict(populate_by_name=True)
    kind: str = Field(alias="class")
    message: str = ""


class Boot(Declared):
    """``boot.json``: one boot of one variant with its trials."""

    schema_: Literal["receive-batching/boot"] = Field(default=BOOT_SCHEMA, alias="schema")
    version: Literal[1] = VERSION
    block: int
    position: int
    step: str
    release: str | None = None
    boot_id: str | None = None
    bed: str | None = None
    """The bed of this boot, if the campaign has several beds."""
    turns: str | None = None
    """Boots with the same id were time-sliced; ``None``: this boot had the machine alone."""
    outcome: Literal["ok", "failed"]
    error: Failure | None = None
    inventory: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    placement_host: dict[str, Any] | None = None
    trials: list[AnyTrial] = Field(default_factory=list)
    nic_model: dict[str, Any] | None = None
    link_mbps: dict[str, int | None] = Field(default_factory=dict)
    """By role, the speed of its link after setup; ``None``: not reported."""
    times_s: dict[str, float | None] = Field(default_factory=dict)

    model_config = ConfigDict(populate_by_name=True)

    def failed(self, error: HarnessError) -> Self:
        """This boot, ended by ``error``."""
        failure = Failure.model_validate({"class": type(error).__name__, "message": error.message})
        return self.model_copy(update={"outcome": "failed", "error": failure})


def holdoff_us(settings: Mapping[str, Any]) -> float:
    """The interrupt moderation (``rx_usecs``) from a boot's ``settings``; 0: not known."""
    after = (settings.get("dut") or {}).get("after") or {}
    usecs = (after.get("coalesce") or {}).get("rx_usecs")
    return float(usecs) if isinstance(usecs, int | float) else 0.0


class Options(Declared):
    """Options of ``harness run`` that name hosts, beds and kernels; used again by ``--resume``."""

    hosts: Path | None = None
    tree: Path | None = None
    mbox: str | None = None
    base: str | None = None
    """The commit that a mailed series was applied to."""
    bed: str | None = None
    beds: tuple[str, ...] = ()
    load: str | None = None


class Campaign(Declared):
    """``campaign.json``: the plan, the bed and where everything came from."""

    schema_: Literal["receive-batching/campaign"] = Field(default=CAMPAIGN_SCHEMA, alias="schema")
    version: Literal[1] = VERSION
    id: str
    created: str
    profile: str
    design: str | None = None
    """The design by which it was planned, as in :data:`harness.plan.DESIGN`; ``None``: before
    designs had names."""
    seed: int
    bed: str
    bed_kind: str
    bed_label: str | None = None
    """How reliable its figures are; ``None`` in results of earlier versions."""
    accelerator: str | None = None
    steps: list[str]
    baseline: str = BASELINE
    """What the other steps are compared with; for commits it is the first of them."""
    ranged: bool = False
    """Are its steps the commits of one range A..B, in their order?"""
    blocks: int
    order: list[list[str]]
    block_beds: list[str] = Field(default_factory=list)
    """The bed of each block, if there are several."""
    shard: Shard | None = None
    """The share of the blocks that this directory is for; ``None``: all."""
    trial: dict[str, Any] = Field(default_factory=dict)
    load: dict[str, Any] = Field(default_factory=dict)
    placement: dict[str, Any] = Field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    provenance: dict[str, Any] = Field(default_factory=dict)
    options: Options = Field(default_factory=Options)

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="after")
    def _each_block_has_a_bed(self) -> Self:
        if self.block_beds and len(self.block_beds) != len(self.order):
            raise ValueError("block_beds does not name a bed for each block")
        return self

    @property
    def beds(self) -> list[str]:
        """All beds of a campaign on several beds; else empty."""
        return list(dict.fromkeys(self.block_beds))

    @property
    def load_kind(self) -> str:
        """The kind of its load, which earlier versions did not name: they had one."""
        return str(self.load.get("kind", "udp"))

    @property
    def whole_load(self) -> dict[str, Any]:
        """Its load, with the kind."""
        return {"kind": self.load_kind, **self.load}

    @property
    def of_commits(self) -> bool:
        """Are its ``steps`` commits of a tree?"""
        return self.baseline != BASELINE

    @property
    def factors(self) -> dict[str, tuple[str, ...]]:
        """What was varied besides code: the levels of each factor."""
        return cells.factors_of(self.steps)

    def baseline_of(self, step: str) -> str:
        """What ``step`` is compared with: the baseline at its levels."""
        return cells.beside(step, self.baseline)

    def is_baseline(self, step: str) -> bool:
        return cells.variant_of(step) == self.baseline

    @property
    def virtual(self) -> bool:
        """Was it measured on this machine? Then its figures are not hardware figures."""
        return self.bed_kind != "hardware"

    @property
    def label(self) -> str:
        """How reliable the figures of its bed are, in a few words."""
        if self.bed_label or not self.virtual:
            return self.bed_label or "hardware bed"
        return f"virtual bed, {(self.accelerator or 'emulated').upper()}: not a hardware figure"

    @property
    def kernel(self) -> str | None:
        """Release and source of the base that all steps share, if recorded."""
        for variant in self.variants.values():
            # Each step adds its own local version to the release of the base.
            [named, *_] = variant.get("layouts") or [variant]
            release = str(named.get("release") or "").partition("-")[0]
            source = str(variant.get("source") or "").rpartition("/")[2]
            if release or source:
                return f"{release} ({source})" if release and source else release or source
        return None

    @property
    def looks(self) -> list[tuple[int, float]]:
        """After how many blocks it may end, and the p-value that decides there; else empty."""
        return [(int(blocks), float(level)) for blocks, level in self.trial.get("looks") or ()]

    def until(self, blocks: int) -> Self:
        """The part of it that ends after ``blocks``."""
        part = {"order": self.order[:blocks], "block_beds": self.block_beds[:blocks]}
        return self.model_copy(update=part | {"blocks": blocks})

    def planned(self) -> Iterator[PlannedBoot]:
        """Every boot of the stored order, or those of its shard."""
        return boots_of(self.order, self.shard)

    @property
    def merged(self) -> list[dict[str, Any]]:
        """The shards that it was merged from, with the machine and the blocks of each."""
        return list(self.provenance.get("shards") or ())


SCHEMAS: Mapping[str, type[BaseModel]] = MappingProxyType({"campaign": Campaign, "boot": Boot})
"""The files of a result directory."""


def write_campaign(root: Path, campaign: Campaign) -> Path:
    """Write ``campaign.json`` into ``root``, which is created if it does not exist."""
    return _write(root / "campaign.json", campaign)


def write_boot(root: Path, boot: Boot) -> Path:
    """Write a finished boot into its own directory under ``root``."""
    return _write(boot_directory(root, boot) / "boot.json", boot)


def boot_directory(root: Path, boot: Boot | PlannedBoot) -> Path:
    """Where a boot's file, console and NIC log are kept under ``root``."""
    return root / "boots" / PlannedBoot(boot.block, boot.position, boot.step).directory


def _write(path: Path, model: BaseModel) -> Path:
    return write_atomic(path, model.model_dump_json(by_alias=True).encode())


def write_atomic(path: Path, content: bytes) -> Path:
    """Write ``content`` to ``path`` durably, completely or not at all.

    Raises:
        InfrastructureError: the disk is full or the directory is not writable; the old
            content of ``path`` is intact.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise InfrastructureError(
            f"{path} was not written: {error.strerror or error}",
            hint="free space or name a writable directory; earlier results are intact",
        ) from error
    return path


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_Model = TypeVar("_Model", Campaign, Boot)


def read_campaign(root: Path) -> Campaign:
    """Read ``root/campaign.json``.

    Raises:
        ConfigurationError: ``root`` holds no campaign, or one of another format.
        InfrastructureError: the file is damaged or cannot be read.
    """
    path = root / "campaign.json"
    if not path.is_file():
        raise ConfigurationError(
            f"{root} holds no campaign: campaign.json is missing",
            hint="name a directory that `harness run --out DIR` has written",
        )
    return _read(path, Campaign, CAMPAIGN_SCHEMA)


def read_boot(path: Path) -> Boot:
    """Read one ``boot.json``; errors as in :func:`read_campaign`."""
    return _read(path, Boot, BOOT_SCHEMA)


class _Head(BaseModel):
    schema_: Any = Field(default=None, alias="schema")
    version: Any = None


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of one of :data:`SCHEMAS`: ``campaign.json`` or ``boot.json``."""
    return SCHEMAS[name].model_json_schema()


def _read(path: Path, model: type[_Model], schema: str) -> _Model:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InfrastructureError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise InfrastructureError(
                f"{path} is not valid JSON: {first['msg']}", hint="the file is damaged or truncated"
            ) from error
        _refuse_other_format(path, text, schema, error)
        key = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise InfrastructureError(
            f"{path}: {key}: {first['msg']}", hint=f"not a valid {schema} version {VERSION}"
        ) from error


def _refuse_other_format(path: Path, text: bytes, schema: str, cause: Exception) -> None:
    try:
        head = _Head.model_validate_json(text)
    except ValidationError:  # not an object
        head = _Head()
    if head.schema_ != schema:
        raise ConfigurationError(
            f"{path} has schema {head.schema_!r}, expected {schema!r}",
            hint="this file was not written by `harness run`",
        ) from cause
    if head.version != VERSION:
        raise ConfigurationError(
            f"{path} has version {head.version!r} of {schema}, this harness reads {VERSION}",
            hint="read it with the version of the harness that wrote it, or a newer one",
        ) from cause


@dataclass
class ResultDirectory:
    """A result on disk, read one boot at a time to limit memory."""

    root: Path
    campaign: Campaign
    problems: list[str] = field(default_factory=list)
    """Filled by :meth:`boots`: the planned boots that are missing, with reasons."""

    @classmethod
    def open(cls, root: Path) -> ResultDirectory:
        """Read the campaign in ``root``; errors as in :func:`read_campaign`."""
        return cls(root, read_campaign(root))

    def boots(self) -> Iterator[Boot]:
        """Every boot that can be read, in the planned order.

        Raises:
            ConfigurationError: a boot has another format, or its place in the plan does not
                match its directory.
        """
        self.problems.clear()
        beds = self.campaign.block_beds
        for planned in self.campaign.planned():
            path = boot_directory(self.root, planned) / "boot.json"
            if not path.is_file():
                self.problems.append(f"{planned.directory}: not finished")
                continue
            try:
                boot = read_boot(path)
            except InfrastructureError as error:
                self.problems.append(f"{planned.directory}: {error.message}")
                continue
            if PlannedBoot(boot.block, boot.position, boot.step) != planned:
                raise ConfigurationError(
                    f"{path} is of block {boot.block}, position {boot.position}, "
                    f"step {boot.step}, not of {planned.directory}",
                    hint="the directory mixes several campaigns",
                )
            if beds and boot.bed != beds[boot.block - 1]:
                self.problems.append(
                    f"{planned.directory}: on bed {boot.bed}, not {beds[boot.block - 1]}"
                )
                continue
            if boot.outcome != "ok":
                why = f"{boot.error.kind}: {boot.error.message}" if boot.error else "failed"
                self.problems.append(f"{planned.directory}: {why}")
            yield boot
