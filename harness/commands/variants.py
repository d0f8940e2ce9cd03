# SPDX-License-Identifier: MIT
"""``--variants`` and ``--mbox``: commits of a tree, or a mailed series, in place of the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from harness import kernels
from harness.base.errors import ConfigurationError

_VARIANTS = click.option(
    "--variants",
    metavar="BASE,…",
    help="Commits of --tree instead of steps of the series: the baseline first; A..B is a "
    "range, and worktree is what is not committed yet.",
)


class _Mails(click.types.StringParamType):
    """A path, a message id or a link."""

    name = "mails"

    def shell_complete(
        self, _context: click.Context, _option: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


_MBOX = click.option(
    "--mbox",
    type=_Mails(),
    metavar="FILE",
    help="A mailed series instead of steps: an mbox, a directory of mails or of patches, or a "
    "message id or link, which b4 gets. Its patches are p1, p2 and so on, the baseline is the "
    "commit of --tree that it names, else HEAD.",
)
_BASE = click.option(
    "--base", metavar="COMMIT", help="With --mbox: the commit that the series is applied to."
)


def mbox_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--mbox`` and ``--base``."""
    return _MBOX(_BASE(command))


def variants_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--variants``, ``--mbox`` and ``--base``."""
    return _VARIANTS(mbox_options(command))


def is_range(variants: str) -> bool:
    """Are they one range A..B, so that their order is that of history?"""
    return ".." in variants and "," not in variants


@dataclass(frozen=True)
class Compared:
    """What is compared in place of steps; without commits, it is steps."""

    commits: Sequence[kernels.Commit] = ()
    ranged: bool = False
    """Is their order that of history or of a series?"""
    mbox: str | None = None
    """Of a mailed series, as ``--resume`` needs it: absolute, if it is a path."""
    base: str | None = None

    @property
    def names(self) -> list[str]:
        return [commit.name for commit in self.commits]


def compared(
    tree: Path | None,
    variants: str | None,
    mbox: str | None = None,
    base: str | None = None,
    *,
    keep: bool = True,
) -> Compared:
    """The commits or the mailed series that a user named.

    Without ``keep``, nothing is kept for a build.

    Raises:
        ConfigurationError: there is no such commit, series or tree, or options exclude each other.
        KernelError: a patch does not apply.
    """
    if base is not None and mbox is None:
        raise ConfigurationError(
            "--base is for a mailed series", hint="name one with --mbox, or use --variants"
        )
    if variants is None and mbox is None:
        return Compared()
    given = "--variants" if variants is not None else "--mbox"
    context = click.get_current_context()
    others = [("steps", "steps"), ("aa", "--aa")]
    others += [("variants", "--variants")] if given == "--mbox" else [("mbox", "--mbox")]
    for name, shown in others:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise ConfigurationError(f"{given} and {shown} exclude each other")
    if tree is None:
        what = "--variants are commits" if variants is not None else "--mbox has patches"
        raise ConfigurationError(
            f"{what}, but of which tree?", hint="name it with --tree, such as ."
        )
    if mbox is None:
        assert variants is not None
        return Compared(kernels.variants(tree, variants), is_range(variants))
    series = kernels.mailed(tree, mbox, base, keep=keep)
    for line in series.remarks:
        click.echo(line, err=True)
    path = Path(mbox)
    named = str(path.absolute()) if path.exists() else mbox
    return Compared(series.commits, ranged=True, mbox=named, base=series.base)
