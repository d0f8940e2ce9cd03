# SPDX-License-Identifier: MIT
"""Shards of one campaign, joined to one result directory.

Shards can be joined only if they are the same campaign: the same plan, design and kernels. What
they may differ in is the machine. Then each machine is a bed of the joined campaign, so that its
rates are shown apart, and a verdict over all needs the machines to agree.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base.errors import ConfigurationError
from harness.plan import Shard
from harness.results import samples
from harness.results.samples import Campaign, ResultDirectory

Document = dict[str, Any]

_OPTIONS = {
    "seed": "--seed",
    "profile": "--profile",
    "steps": "--steps, --variants or --mbox",
    "baseline": "--variants",
    "ranged": "--variants",
    "blocks": "--blocks",
    "trial": "--profile and --also",
    "bed_kind": "--bed",
    "bed": "--bed",
}
"""What has to be equal, and the options of ``harness run`` that decide it."""
_HOSTS, _KERNELS, _HARNESS = "hosts.yaml", "kernel source, .config and compiler", "harness"
_SAME = {
    **_OPTIONS,
    "load": _HOSTS,
    "placement": _HOSTS,
    "accelerator": "accelerator (KVM or none)",
    "order": _HARNESS,
    "variants": _KERNELS,
    "provenance.harness": _HARNESS,
    "provenance.void_rules": _HARNESS,
}
_OF_A_SHARD = ("id", "created", "shard", "options", "provenance")
"""What each shard has of its own; whatever else a campaign has must be equal, too."""
_MAY_DIFFER = ("source", "image_sha256")
"""Of a kernel: where its source lies, and bytes that depend on the directory it was built in. Its
release has a digest of the content."""
_OF_MACHINES = ("cpu_model", "host_cpus", "host_kernel", "python")


@dataclass(frozen=True)
class _Part:
    """One shard: its directory and campaign."""

    root: Path
    campaign: Campaign
    shard: Shard

    @property
    def file(self) -> Path:
        return self.root / "campaign.json"

    @property
    def blocks(self) -> list[int]:
        return [number for number in range(1, 1 + self.campaign.blocks) if self.shard.has(number)]

    @property
    def machine(self) -> tuple[Any, ...]:
        """What tells its machine from others."""
        about = self.campaign.provenance
        of_host = (about.get("cpu_model"), about.get("host_cpus")) if self.campaign.virtual else ()
        return about.get("machine"), *of_host


def merge(directories: Sequence[Path], target: Path, *, partial: bool = False) -> Campaign:
    """Join the shards in ``directories`` to one campaign in ``target``; returns it.

    With ``partial``, shards may be missing or unfinished: the campaign is then incomplete. What
    is refused leaves nothing.

    Raises:
        ConfigurationError: they are no shards of one campaign, one is missing, unfinished or
            there twice, or ``target`` is not empty.
        InfrastructureError: a file is damaged, or cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigurationError(
            f"{target} exists already", hint="name another directory with --out"
        )
    parts = sorted(map(_read, directories), key=lambda part: part.shard.number)
    _require_each_once(parts, partial=partial)
    for part in parts[1:]:
        _require_same(parts[0], part)
    if not partial:
        for part in parts:
            _require_finished(part)
    names = _machines(parts)
    joined = _joined(parts, names)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        making = Path(scratch) / "merged"
        for part in parts:
            _copy(part, making, names[part.machine] if joined.block_beds else None)
        samples.write_campaign(making, joined)
        making.rename(target)
    return joined


def _read(root: Path) -> _Part:
    campaign = samples.read_campaign(root)
    if campaign.shard is None:
        what = "merged from shards already" if campaign.merged else "a whole campaign"
        raise ConfigurationError(
            f"{root / 'campaign.json'}: shard is null: this is {what}",
            hint="name the directories of `harness run --shard`",
        )
    return _Part(root, campaign, campaign.shard)


def _require_each_once(parts: Sequence[_Part], *, partial: bool) -> None:
    first = parts[0]
    by_number: dict[int, _Part] = {}
    for part in parts:
        if part.shard.of != first.shard.of:
            raise ConfigurationError(
                f"{part.file}: shard is {part.shard}, but {first.shard} in {first.file}",
                hint="run all shards with the same number after the slash",
            )
        if other := by_number.get(part.shard.number):
            raise ConfigurationError(
                f"{part.file}: shard {part.shard} is in {other.file} as well",
                hint="name one of them: to choose between measurements of the same blocks must "
                "not depend on their results",
            )
        by_number[part.shard.number] = part
    missing = [n for n in range(1, 1 + first.shard.of) if n not in by_number]
    if missing and not partial:
        told = ", ".join(str(Shard(number, first.shard.of)) for number in missing)
        raise ConfigurationError(
            f"shard {told} is missing",
            hint="name its directory too, or use --partial for a campaign that is incomplete and "
            "has no verdict",
        )


def _require_same(first: _Part, other: _Part) -> None:
    others = set(Campaign.model_fields) - {*_SAME, *_OF_A_SHARD}
    for key, decides in (_SAME | dict.fromkeys(sorted(others), "options")).items():
        if key == "bed" and not first.campaign.virtual:
            continue  # beds of machines are what differs
        mine, its = (_value(part.campaign, key) for part in (first, other))
        found = next(_differences(mine, its, key), None)
        if found is None:
            continue
        where, mine, its = found
        raise ConfigurationError(
            f"{other.file}: {where} is {its!s:.200}, but {mine!s:.200} in {first.file}",
            hint=f"run shard {other.shard} again with the same {decides} as shard {first.shard}",
        )


def _value(campaign: Campaign, key: str) -> Any:
    """What ``campaign`` has under a dotted ``key``, as plain data."""
    found: Any = campaign.model_dump(mode="json")
    for name in key.split("."):
        found = found.get(name)
    return found


def _differences(one: Any, other: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """The dotted keys in which two values differ, with both values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in (*one, *(key for key in other if key not in one)):
            if key not in _MAY_DIFFER:
                yield from _differences(one.get(key), other.get(key), f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from _differences(*pair, f"{where}.{number}")
    elif one != other:
        yield where, one, other


def _require_finished(part: _Part) -> None:
    result = ResultDirectory.open(part.root)
    for _ in result.boots():
        pass  # fills the problems
    if result.problems:
        raise ConfigurationError(
            f"{part.root}: shard {part.shard} is unfinished: {result.problems[0]}",
            hint=f"harness run --resume --out {part.root}; or use --partial for a campaign that "
            "is incomplete and has no verdict",
        )


def _machines(parts: Sequence[_Part]) -> dict[tuple[Any, ...], str]:
    """Each machine's name; two of one name get the number of their first shard."""
    names: dict[tuple[Any, ...], str] = {}
    for part in parts:
        name = str(part.machine[0])
        if part.machine not in names and name in names.values():
            name = f"{name} (shard {part.shard.number})"
        names.setdefault(part.machine, name)
    return names


def _joined(parts: Sequence[_Part], names: Mapping[tuple[Any, ...], str]) -> Campaign:
    first = parts[0].campaign
    by_block = {block: names[part.machine] for part in parts for block in part.blocks}
    # A missing shard has no machine of its own: the campaign is incomplete in any case.
    beds = [by_block.get(block, names[parts[0].machine]) for block in range(1, 1 + first.blocks)]
    provenance = {name: value for name, value in first.provenance.items() if name != "machine"}
    for name in _OF_MACHINES:
        told = list(dict.fromkeys(part.campaign.provenance.get(name) for part in parts))
        provenance[name] = told[0] if len(told) == 1 else " + ".join(sorted(map(str, told)))
    provenance["shards"] = [_about(part, names[part.machine]) for part in parts]
    ids = " ".join(part.campaign.id for part in parts)
    return first.model_copy(
        update={
            "id": hashlib.sha256(ids.encode()).hexdigest()[:16],
            "created": min(part.campaign.created for part in parts),
            "bed": "+".join(dict.fromkeys(part.campaign.bed for part in parts)),
            "block_beds": beds if len(names) > 1 else [],
            "shard": None,
            "provenance": provenance,
        }
    )


def _about(part: _Part, machine: str) -> Document:
    campaign = part.campaign
    return {
        "shard": str(part.shard),
        "id": campaign.id,
        "created": campaign.created,
        "bed": campaign.bed,
        "machine": machine,
        **{name: campaign.provenance.get(name) for name in _OF_MACHINES},
        "blocks": part.blocks,
    }


def _copy(part: _Part, target: Path, bed: str | None) -> None:
    """Copy the boots of ``part``; where machines are beds, each boot says its own."""
    for planned in part.campaign.planned():
        found = samples.boot_directory(part.root, planned)
        if not found.is_dir():
            continue
        shutil.copytree(found, samples.boot_directory(target, planned), symlinks=True)
        if bed is not None and (found / "boot.json").is_file():
            boot = samples.read_boot(found / "boot.json")
            samples.write_boot(target, boot.model_copy(update={"bed": bed}))
