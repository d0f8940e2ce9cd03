# SPDX-License-Identifier: MIT
"""Two campaigns side by side: the result of each for a step, and whether they differ.

Compares the ratio to the baseline, which each campaign measured within its own blocks.
Compares the rates themselves only on hardware: those of a virtual bed depend on the load
of the machine at the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from harness.agent.settings.registry import DECLARED
from harness.base.errors import ConfigurationError
from harness.plan import MIN_BLOCKS_FOR_VERDICT, families
from harness.results.ranks import rank_sum_equivalence_p, rank_sum_interval, rank_sum_p
from harness.results.rows import PRIMARY, Analysis, Row
from harness.results.samples import Campaign
from harness.results.stats import MARGIN, Paired, corrected, outcome_of

Document = dict[str, Any]

SCHEMA = "receive-batching/comparison"
VERSION = 1

# These must be equal, or the campaigns did not measure the same thing.
_SAME_PLAN = ("bed", "bed_kind", "accelerator", "whole_load", "placement")
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
        "steps": _steps(one, other),
    }


def _reasons(one: Analysis, other: Analysis) -> Iterator[str]:
    for name, side in zip(("first", "second"), (one, other), strict=True):
        if side.campaign.shard:
            yield f"the {name} cannot be compared: {side.no_verdict}"
        elif not side.complete:
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
    yield from _factors_differ(*(side.campaign.factors for side in sides))
    for name in _SAME_PLAN:
        shown = name.removeprefix("whole_")
        yield from differs(shown, *(getattr(side.campaign, name) for side in sides))
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


def _factors_differ(
    one: Mapping[str, Sequence[str]], other: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Levels in another order are other comparisons: the first is the reference."""
    for key in sorted(one.keys() | other.keys()):
        was, now = (", ".join(side.get(key, ())) or "not varied" for side in (one, other))
        yield from differs(f"--vary {key}", was, now)


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
    return [
        row.step for row in one.rows if row.step in there and not one.campaign.is_baseline(row.step)
    ]


def _steps(one: Analysis, other: Analysis) -> list[Document]:
    """Every step that both have: its change over the baseline and, on hardware, its rate.

    The words are corrected for all of them, in the order in which a campaign decides.
    """
    sides, common, baseline = (one, other), _common(one, other), one.campaign.baseline
    asked = {("ratio_to_step0", step): [side.row(step).change for side in sides] for step in common}
    bases = [row.step for row in one.rows if one.campaign.is_baseline(row.step)]
    groups = {"ratio_to_step0": families((*bases, *common), baseline)}
    if not one.campaign.virtual and not one.campaign.beds:  # several beds: different machines
        both = [step for step in (*bases, *common) if all(step in s.campaign.steps for s in sides)]
        asked |= {(PRIMARY, step): [_rates(side.row(step)) for side in sides] for step in both}
        groups[PRIMARY] = (*groups["ratio_to_step0"], *((base,) for base in bases))
    places = {one: place for place, one in enumerate(asked)}
    chains = [
        [places[metric, step] for step in family if (metric, step) in places]
        for metric, of in groups.items()
        for family in of
    ]
    found = [_step(step, metric, *values) for (metric, step), values in asked.items()]
    differ = corrected([step["p_value"] or 1.0 for step in found], chains)
    equal = corrected(
        [step["p_equivalent"] or 1.0 for step in found], [[*reversed(chain)] for chain in chains]
    )
    for step, p_value, p_equivalent in zip(found, differ, equal, strict=True):
        if step["change"] is not None:
            step["p_corrected"], step["p_equivalent_corrected"] = p_value, p_equivalent
            step["verdict"] = outcome_of(step["change"], p_value, p_equivalent)
    return found


def _rates(row: Row) -> Paired | None:
    """The rate of each boot."""
    boots = [boot for boot in row.boots if PRIMARY in boot.rates]
    releases = tuple(boot.release or "" for boot in boots)
    return (
        boots
        and Paired(
            ratios=tuple(boot.rates[PRIMARY] for boot in boots),
            layouts=releases if len(set(releases)) > 1 else (),
        )
    ) or None


def _step(step: str, metric: str, one: Paired | None, other: Paired | None) -> Document:
    sides = [side.units if side else np.empty(0) for side in (one, other)]
    found: Document = {
        "step": step,
        "metric": metric,
        "medians": [float(np.median(side.ratios)) if side else None for side in (one, other)],
        "blocks": [side.size for side in sides],
        "change": None,
        "interval": None,
        "confidence": None,
        "margin": MARGIN,
        "p_value": None,
        "p_corrected": None,
        "p_equivalent": None,
        "p_equivalent_corrected": None,
        "verdict": None,
    }
    if min(found["blocks"]) < MIN_BLOCKS_FOR_VERDICT:
        return found
    first, second = sides
    estimate, low, high, confidence = rank_sum_interval(first, second)
    return found | {
        "change": float(np.exp(estimate)),
        "interval": [float(np.exp(low)), float(np.exp(high))],
        "confidence": confidence,
        "p_value": rank_sum_p(first, second),
        "p_equivalent": rank_sum_equivalence_p(first, second, float(np.log1p(MARGIN))),
    }
