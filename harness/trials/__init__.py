# SPDX-License-Identifier: MIT
"""What can be measured in a boot: the registry of kinds of trial, in the order of measuring.

A new kind is one module with a :class:`~harness.trials.kind.Kind`, and one line here.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from harness.base.errors import ConfigurationError
from harness.trials.emulated import Emulated
from harness.trials.kind import AnyKind, Measure, VoidRule
from harness.trials.latency import Latency
from harness.trials.ndr import Ndr
from harness.trials.paced import Paced
from harness.trials.readings import Trial
from harness.trials.rules import COMMON
from harness.trials.timed import RATES, Timed
from harness.trials.traced import Traced

if TYPE_CHECKING:
    from harness.plan import Plan, PlannedTrial, Profile

KINDS: tuple[AnyKind, ...] = (Timed(), Paced(), Traced(), Emulated(), Latency(), Ndr())

EXTRAS = tuple(kind.also for kind in KINDS if kind.also)
"""What ``--also`` can add to the rate under an unlimited load."""

MEASURES: Mapping[str, Measure] = {
    name: measure for kind in KINDS for name, measure in kind.measures.items()
}
"""All measures other than :data:`RATES`."""

COMPARED: Mapping[str, Measure] = {"delivered_pps": RATES["delivered_pps"], **MEASURES}
"""What is compared beside the primary rate: a stack that takes more packets may deliver fewer."""

VOID_RULES: Mapping[str, VoidRule] = {
    **COMMON,
    **{name: rule for kind in KINDS for name, rule in kind.rules.items()},
}

if TYPE_CHECKING:
    AnyTrial = Trial
else:
    AnyTrial = Annotated[
        functools.reduce(operator.or_, (kind.sample for kind in KINDS)),
        Field(discriminator="kind"),
    ]
"""A sample of any kind, as in files."""

__all__ = ["COMPARED", "EXTRAS", "KINDS", "MEASURES", "RATES", "VOID_RULES", "AnyTrial"]


def kind_of(trial: Trial) -> AnyKind:
    """The kind that measured ``trial``."""
    return next(kind for kind in KINDS if isinstance(trial, kind.sample))


def asked(profile: Profile) -> Iterator[AnyKind]:
    """The kinds that a campaign of ``profile`` measures."""
    return (kind for kind in KINDS if kind.also is None or kind.also in profile.extras)


def planned(profile: Profile, ordinal: int) -> Iterator[tuple[AnyKind, list[PlannedTrial]]]:
    """By kind, the trials of a boot in block number ``ordinal`` of its bed."""
    for kind in asked(profile):
        if trials := list(kind.planned(profile, ordinal)):
            yield kind, trials


def measured_s(plan: Plan) -> float:
    """Seconds spent in measured windows over a campaign, on the bed that takes longest."""

    def boot_s(block: int) -> float:
        of_boot = planned(plan.profile, plan.ordinal(block))
        return sum(kind.lasts_s(trial) for kind, trials in of_boot for trial in trials)

    beds = plan.block_beds or (None,)
    return max(
        sum(boot_s(boot.block) for group in plan.groups(bed) for boot in group) for bed in beds
    )


def extras(names: Collection[str], bed_kind: str) -> tuple[str, ...]:
    """``names``, in the order of :data:`EXTRAS`.

    Raises:
        ConfigurationError: a bed of that kind cannot measure one of them.
    """
    for kind in KINDS:
        if kind.also in names and kind.beds is not None and bed_kind not in kind.beds:
            raise ConfigurationError(
                f"--also {kind.also} cannot be measured on a {bed_kind} bed", hint=kind.elsewhere
            )
    return tuple(name for name in EXTRAS if name in names)


def counting(profile: Profile) -> bool:
    """Must an emulator count what the kernel executes?"""
    return any(kind.counting for kind in asked(profile))


def void_rules_record() -> dict[str, dict[str, Any]]:
    """The rules as stored in a result under ``provenance.void_rules``."""
    return {
        name: {"description": rule.description, "tolerances": dict(rule.tolerances)}
        for name, rule in VOID_RULES.items()
    }
