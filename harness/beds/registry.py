# SPDX-License-Identifier: MIT
"""The kinds of bed, by the name that the models of their hosts use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType

from harness import plan
from harness.base.errors import ConfigurationError
from harness.base.progress import Progress
from harness.beds import labgrid
from harness.beds.bed import BedKind, Boots, Wanted
from harness.beds.labgrid import Place
from harness.beds.machine.kind import Hardware
from harness.beds.native.kind import Native
from harness.beds.virtual.kind import Virtual
from harness.config import Bed, Kernel
from harness.kernels import HostConfig, Image

KINDS: Mapping[str, BedKind] = MappingProxyType(
    {"virtual": Virtual(), "native": Native(), "hardware": Hardware()}
)

__all__ = [
    "KINDS",
    "Wanted",
    "acquired",
    "kernel_config",
    "made_meanwhile",
    "of",
    "opened",
    "possible",
    "profile",
    "require_free",
]


def of(bed: Bed) -> BedKind:
    """The kind of ``bed``."""
    return KINDS[bed.kind]


def profile(
    name: str,
    *,
    bed_kind: str = "virtual",
    blocks: int | None = None,
    extras: Sequence[str] = (),
    paced_pps: int | None = None,
) -> plan.Profile:
    """The profile ``name`` for a kind of bed; errors as in :func:`harness.plan.profile`."""
    profiles = KINDS[bed_kind].profiles
    return plan.profile(name, profiles, blocks=blocks, extras=extras, paced_pps=paced_pps)


def possible(bed: Bed) -> Bed:
    """See :meth:`BedKind.possible`."""
    return of(bed).possible(bed)


def require_free(bed: Bed) -> None:
    """See :meth:`BedKind.require_free`."""
    of(bed).require_free(bed)


def acquired(bed: Bed) -> AbstractContextManager[Place]:
    """:func:`possible`; its labgrid place is held in the context."""
    return labgrid.acquired(possible(bed))


def opened(
    place: Place, image: Image, wanted: Wanted, progress: Progress
) -> AbstractContextManager[Boots]:
    """See :meth:`BedKind.opened`."""
    return of(place.bed).opened(place, image, wanted, progress)


def made_meanwhile(bed: Bed) -> AbstractContextManager[None]:
    """See :meth:`BedKind.made_meanwhile`."""
    return of(bed).made_meanwhile(bed)


def kernel_config(kernel: Kernel, *beds: Bed, resumed: bool = False) -> HostConfig | None:
    """The base .config for all of ``beds``, if it is taken from the duts.

    Checks the machines in any case, so that their faults are reported before anything is built.

    Raises:
        InfrastructureError: a machine does not answer, or has no room.
        ConfigurationError: the duts have different .configs, or a machine is not as hosts.yaml
            says.
    """
    for bed in beds:
        of(bed).look_at(bed, kernel, resumed=resumed)
    found: HostConfig | None = None
    for bed in beds:
        own = of(bed).host_config(bed, kernel, resumed=resumed)
        if own is None:
            return None
        if found not in (None, own):
            raise ConfigurationError(
                f"the kernels of {beds[0].dut_name} and {bed.dut_name} have different .configs",
                hint="name a .config that both boot with as kernel.config in hosts.yaml",
            )
        found = own
    return found
