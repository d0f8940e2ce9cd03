# SPDX-License-Identifier: MIT
"""Two campaigns side by side: the result of each for a step, and whether they differ.

Compares the ratio to the baseline, which each campaign measured within its own blocks.
Compares the rates themselves only on hardware: those of a virtual bed depend on the load
of the machine at the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from harness.agent.settings.registry import DECLARED
from harness.base.errors import ConfigurationError
from harness.plan import MIN_BLOCKS_FOR_VERDICT
from harness.results.rows import PRIMARY, Analysis
from harness.results.samples import Campaign
from harness.results.stats import outcome_of, rank_sum_interval

Document = dict[str, Any]

SCHEMA = "receive-batching/comparison"
VERSION = 1

# These must be equal, or the campaigns did not measure the same thing.
_SAME_PLAN = ("bed", "bed_kind", "accelerator", "load", "placement")
_SAME_HOST = (
    "cpus",
    "cpu_model",
    "driver",
    "pci_id",
    "firmware",
    "mtu",
    "speed_mbps",
    "governors",
)
_SAME_SETTINGS = (*(one.name for one in DECLARED.values() if one.compared), "xps", "gro", "cpu")


def compare(one: Analysis, other: Analysis) -> Document:
    """``other`` against ``one``.

    Raises:
        ConfigurationError: they did not measure the same thing; names the differences.
    """
    reasons = list(_reasons(one, other))
    if reasons:
        raise ConfigurationError(
            "these campaigns cannot be compared:\n  " + "\n  ".join(reasons),
            hint="measure again with the same conditions",
        )
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "campaigns": [
            {
                "id": side.campaign.id,
                "created": side.campaign.created,
                "kernel": side.campaign.kernel,
                "seed": side.campaign.seed,
            }
            for side in (one, other)
        ],
        "label": one.campaign.label,
        "steps": list(_steps(one, other)),
    }


def _reasons(one: Analysis, other: Analysis) -> Iterator[str]:
    for name, side in zip(("first", "second"), (one, other), strict=True):
        if not side.complete:
            yield (
                f"the {name} is incomplete: {side.boots_done} of "
                f"{side.boots_planned} boots are finished"
            )
    yield from unlike(one, other)
    if not _common(one, other):
        yield "no step but the baseline is in both"


class Side(Protocol):
    """A campaign and the conditions under which it was measured, as in an analysis."""

    @property
    def campaign(self) -> Campaign: ...
    @property
    def settings(self) -> Document: ...
    @property
    def inventory(self) -> Document: ...


def unlike(one: Side, other: Side) -> Iterator[str]:
    """Where the bed, the load, the hosts or their settings of two campaigns differ."""
    sides = (one, other)
    yield from differs("baseline", *(side.campaign.baseline for side in sides))
    for name in _SAME_PLAN:
        yield from differs(name, *(getattr(side.campaign, name) for side in sides))
    yield from differs(
        "boots time-sliced", *(bool(side.campaign.trial.get("slice_s")) for side in sides)
    )
    if one.campaign.virtual:
        for name in ("cpu_model", "host_cpus"):
            yield from differs(
                f"this machine's {name}", *(side.campaign.provenance.get(name) for side in sides)
            )
    for bed in one.campaign.beds or [""]:
        for role in ("dut", "generator"):
            yield from _host_differs(f"{bed} {role}".strip(), one, other)


def _host_differs(role: str, one: Side, other: Side) -> Iterator[str]:
    sides = (one, other)
    hosts = [_of_role(side.campaign, side.inventory).get(role, {}) for side in sides]
    yield from _common_differ(role, *({n: h[n] for n in _SAME_HOST if n in h} for h in hosts))
    roles = [_of_role(side.campaign, side.settings).get(role) or {} for side in sides]
    was = [settings.get("after") or {} for settings in roles]
    for name in _SAME_SETTINGS:
        yield from differs(f"{role}: {name}", *(settings.get(name) for settings in was))
    # Newer kernels have more of these.
    yield from _common_differ(role, *(settings.get("sysctl") or {} for settings in was))
    offloads = [settings.get("offloads") or {} for settings in was]
    yield from _common_differ(role, *({n: o[n]["on"] for n in o} for o in offloads))


def _common_differ(role: str, one: Document, other: Document) -> Iterator[str]:
    """Differences in the keys that both have."""
    for name in sorted(one.keys() & other.keys()):
        yield from differs(f"{role}: {name}", one[name], other[name])


def _of_role(campaign: Campaign, found: Document) -> Document:
    """``found`` by role; with several beds, by bed and role."""
    if not campaign.beds:
        return found
    return {f"{bed} {role}": of for bed, roles in found.items() for role, of in roles.items()}


def differs(name: str, one: Any, other: Any) -> Iterator[str]:
    """A line for each value that differs, with both; ``name`` says what they are."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted(one.keys() | other.keys()):
            yield from differs(f"{name}.{key}", one.get(key), other.get(key))
    elif one != other:
        yield f"{name}: {one} and {other}"


def _common(one: Analysis, other: Analysis) -> list[str]:
    there = {row.step for row in other.rows}
    return [row.step for row in one.rows if row.step in there - {one.campaign.baseline}]


def _steps(one: Analysis, other: Analysis) -> Iterator[Document]:
    sides, common = (one, other), _common(one, other)
    for step in common:
        changes = [side.row(step).change for side in sides]
        yield _step(step, "ratio_to_step0", *(list(c.ratios) if c else [] for c in changes))
    if not one.campaign.virtual and not one.campaign.beds:  # several beds: different machines
        for step in (one.campaign.baseline, *common):
            if all(step in side.campaign.steps for side in sides):
                boots = [side.row(step).boots for side in sides]
                rates = [[b.rates[PRIMARY] for b in of if PRIMARY in b.rates] for of in boots]
                yield _step(step, PRIMARY, *rates)


def _step(step: str, metric: str, one: list[float], other: list[float]) -> Document:
    found: Document = {
        "step": step,
        "metric": metric,
        "medians": [float(np.median(side)) if side else None for side in (one, other)],
        "blocks": [len(one), len(other)],
        "change": None,
        "interval": None,
        "confidence": None,
        "verdict": None,
    }
    if min(len(one), len(other)) < MIN_BLOCKS_FOR_VERDICT:
        return found
    estimate, low, high, confidence = rank_sum_interval(np.log(one), np.log(other))
    return found | {
        "change": float(np.exp(estimate)),
        "interval": [float(np.exp(low)), float(np.exp(high))],
        "confidence": confidence,
        "verdict": outcome_of(low, high),
    }
