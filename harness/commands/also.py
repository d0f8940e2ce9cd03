# SPDX-License-Identifier: MIT
"""The option ``--also``, for the commands that know the kinds of trial."""

from __future__ import annotations

import click

from harness.trials import EXTRAS, KINDS

also_option = click.option(
    "--also",
    type=click.Choice(EXTRAS),
    multiple=True,
    help="Also measure "
    + ", ".join(f"{kind.summary} ({kind.also})" for kind in KINDS if kind.also)
    + ". Can be repeated.",
)
