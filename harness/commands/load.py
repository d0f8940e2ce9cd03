# SPDX-License-Identifier: MIT
"""The option ``--load``, for the commands that know the loads."""

from __future__ import annotations

from collections.abc import Sequence

import click

from harness.base.errors import ConfigurationError
from harness.config import Bed, Load
from harness.trials import loads

load_option = click.option(
    "--load",
    metavar="NAME,KEY=VALUE,…",
    help="What the generator sends: "
    + "; ".join(f"{load.name}, {load.summary}" for load in loads.LOADS)
    + ". With streams=N and message_bytes=N. Default: load in hosts.yaml.",
)


def require_load(load: Load, beds: Sequence[Bed]) -> None:
    """Raise a :class:`ConfigurationError` if one of ``beds`` cannot have ``load``."""
    for bed in beds:
        if why := loads.named(load.kind).refused(bed):
            raise ConfigurationError(f"bed {bed.name} cannot have the load {load.kind}: {why}")


def told(load: Load) -> str:
    """``load`` in one line."""
    kind = loads.named(load.kind)
    return (
        f"load {load.kind}: {kind.summary}, {load.streams} "
        f"stream{'s' * (load.streams > 1)}, messages of {load.message_bytes} "
        f"byte{'s' * (load.message_bytes > 1)}; delivered are {kind.ends}; what saturates the "
        f"dut: {kind.saturates}"
    )
