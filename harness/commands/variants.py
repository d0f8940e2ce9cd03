# SPDX-License-Identifier: MIT
"""``--variants``: commits of a tree in place of the steps of the series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from harness import kernels
from harness.base.errors import ConfigurationError

variants_option = click.option(
    "--variants",
    metavar="BASE,…",
    help="Commits of --tree instead of steps of the series: the baseline first; A..B is a "
    "range, and worktree is what is not committed yet.",
)


def is_range(variants: str | None) -> bool:
    """Are they one range A..B, so that their order is that of history?"""
    return variants is not None and ".." in variants and "," not in variants


def commits_of(tree: Path | None, variants: str | None) -> Sequence[kernels.Commit]:
    """The commits that a user named; none: he means steps.

    Raises:
        ConfigurationError: there is no such commit, no tree, or options for steps as well.
    """
    if variants is None:
        return ()
    if tree is None:
        raise ConfigurationError(
            "--variants are commits, but of which tree?", hint="name it with --tree, such as ."
        )
    context = click.get_current_context()
    for name, shown in (("steps", "steps"), ("aa", "--aa")):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise ConfigurationError(f"--variants and {shown} exclude each other")
    return kernels.variants(tree, variants)
