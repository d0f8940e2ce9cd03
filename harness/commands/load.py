# SPDX-License-Identifier: MIT
"""The option ``--load``, for the commands that know the loads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import click

from harness.base.errors import ConfigurationError
from harness.config import Bed, Load
from harness.plan import Profile
from harness.trials import KINDS, loads

load_option = click.option(
    "--load",
    metavar="NAME,KEY=VALUE,…",
    help="What the generator sends: "
    + "; ".join(f"{load.name}, {load.summary}" for load in loads.LOADS)
    + ". With streams=N and message_bytes=N. Default: load in hosts.yaml.",
)


def beds_for(load: Load, beds: Sequence[Bed], also: Collection[str] = ()) -> tuple[Bed, ...]:
    """``beds`` as ``load`` needs them.

    Raises:
        ConfigurationError: one of them cannot have it, or it cannot be paced for ``--also``.
    """
    kind = loads.named(load.kind)
    for bed in beds:
        if why := kind.refused(bed):
            raise ConfigurationError(f"bed {bed.name} cannot have the load {load.kind}: {why}")
    paced = [one.also for one in KINDS if one.paces and one.also in also]
    if paced and not kind.paced:
        raise ConfigurationError(
            f"--also {paced[0]} limits the packets per second, which the load {load.kind} cannot",
            hint=f"leave --also {paced[0]} out, or choose --load udp",
        )
    return tuple(kind.on(bed) for bed in beds)


def profile_for(load: Load, profile: Profile) -> Profile:
    """``profile`` as ``load`` needs it."""
    return profile if loads.named(load.kind).sliced else replace(profile, slice_s=0.0)


def told(load: Load) -> str:
    """``load`` in one line."""
    kind = loads.named(load.kind)
    return (
        f"load {load.kind}: {kind.summary}, {load.streams} "
        f"stream{'s' * (load.streams > 1)}, messages of {load.message_bytes} "
        f"byte{'s' * (load.message_bytes > 1)}; delivered are {kind.ends}; what saturates the "
        f"dut: {kind.saturates}"
    )
