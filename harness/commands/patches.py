# SPDX-License-Identifier: MIT
"""``harness patches``: the series that ship, on a user's tree."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
from tabulate import tabulate

from harness import config
from harness import patches as kernel_patches
from harness.base.errors import KernelError
from harness.base.progress import Progress
from harness.commands import PathOf, hosts_option
from harness.kernels.deep import CHECKS, DeepCheck, check_deep
from harness.kernels.source import Tree, from_git, from_package, resolve

_tree = click.argument("tree", type=PathOf(file_okay=False, exists=True))
_series = click.option(
    "--series", "name", default="auto", metavar="NAME", help="Series. Default: the tree's version."
)


def _package(_context: click.Context, _option: click.Parameter, given: str | None) -> str | None:
    if given is not None and not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", given):
        raise click.BadParameter(f"{given!a} is not a package name such as linux-source-6.12")
    return given


_COLOURS = {"applies": "green", "present": "yellow", "fails": "red", "not tried": None}


@click.group()
def patches() -> None:
    """List, check and apply the kernel series."""


@patches.command("list")
def list_() -> None:
    """List the series that ship and their steps."""
    for series in kernel_patches.list_series():
        click.secho(series.base, bold=True)
        for patch in series.patches:
            click.echo(f"  step {patch.name}   {patch.subject}")
        for patch in series.optional:
            click.echo(f"  step {patch.name:2}  {patch.subject} (optional)")


@patches.command()
@click.argument("tree", type=PathOf(file_okay=False, exists=True), required=False)
@click.option("--step", metavar="N", help="Last step to try. Default: all.")
@_series
@click.option(
    "--deep",
    is_flag=True,
    help="Also compile every step in several configurations, and run checkpatch and sparse.",
)
@click.option(
    "--package",
    metavar="NAME",
    callback=_package,
    help="Debian package with the kernel source, instead of TREE.",
)
@click.option(
    "--only",
    "checks",
    multiple=True,
    type=click.Choice(tuple(CHECKS)),
    default=tuple(CHECKS),
    help="With --deep: run only this check. Can be repeated. Default: all.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "markdown", "json")),
    default="table",
    help="With --deep: output format.",
)
@hosts_option
def check(
    tree: Path | None,
    step: str | None,
    name: str,
    deep: bool,
    package: str | None,
    checks: tuple[str, ...],
    form: str,
    hosts_path: Path | None,
) -> None:
    """Check that a series applies to TREE, without changing TREE.

    Of a git tree, the last commit is used. Without TREE the source in hosts.yaml is used.
    --deep takes an hour or more the first time.
    """
    if package is not None:
        source = from_package(package)
    elif tree and deep:
        source = from_git(tree)
    elif not tree:
        source = resolve(config.load(config.locate(hosts_path)).kernel.source)
    if tree is None or package is not None:
        with Tree.of(source).as_shipped() as shipped:
            series = kernel_patches.series_for(shipped, name)
            report = None if deep else kernel_patches.check(shipped, series, step)
        named = str(source)
    else:
        series = kernel_patches.series_for(tree, name)
        report = None if deep else kernel_patches.check(tree, series, step)
        named = str(tree)
    if report is None:
        with Progress() as progress:
            found = list(check_deep(source, series, checks, progress=progress))
        click.echo(_shown(found, form))
        for why in dict.fromkeys(f"{one.check}: {one.detail}" for one in found if one.ok is None):
            click.echo(f"not checked: {why}", err=True)
        if failed := [one for one in found if one.ok is False]:
            lines = "\n".join(f"  step {one.step}, {one.check}: {one.detail}" for one in failed)
            raise KernelError(f"{series.base} failed these checks:\n{lines}")
        return
    click.echo(f"{named}: Linux {report.release}, series {report.series.base}")
    for outcome in report.outcomes:
        state = click.style(f"{outcome.state:9}", fg=_COLOURS[outcome.state])
        detail = f"\n             {outcome.detail}" if outcome.detail else ""
        click.echo(f"  {state}  step {outcome.patch.name}  {outcome.patch.subject}{detail}")
    report.require()


def _shown(found: Sequence[DeepCheck], form: str) -> str:
    if form == "json":
        return json.dumps([asdict(one) for one in found], indent=1)
    words = {True: "ok", False: "fails", None: "—"}
    rows = [
        {"step": step} | {one.check: words[one.ok] for one in found if one.step == step}
        for step in dict.fromkeys(one.step for one in found)
    ]
    return tabulate(rows, headers="keys", tablefmt="github" if form == "markdown" else "simple")


@patches.command()
@_tree
@click.option("--step", required=True, metavar="N", help="Last step to apply.")
@click.option(
    "--worktree",
    type=PathOf(),
    metavar="PATH",
    help="Path of the new worktree. Default: TREE-stepN.",
)
@click.option("--in-place", is_flag=True, help="Commit to the branch that is checked out in TREE.")
@_series
def apply(tree: Path, step: str, worktree: Path | None, in_place: bool, name: str) -> None:
    """Commit a series up to a step on top of the git tree TREE.

    The commits go to a new branch in a new worktree; TREE itself is not changed.
    """
    if worktree and in_place:
        raise click.UsageError("--worktree and --in-place exclude each other")
    series = kernel_patches.series_for(tree, name)
    applied = kernel_patches.apply(tree, step, series=series, worktree=worktree, in_place=in_place)
    branch = f", branch {applied.branch}" if applied.branch else ""
    click.echo(f"{applied.commits} patches of {series.base} in {applied.directory}{branch}")


@patches.command()
@click.option(
    "--onto",
    "tree",
    type=PathOf(file_okay=False, exists=True),
    required=True,
    metavar="TREE",
    help="Git tree; the series is rebased onto its last commit.",
)
@click.option(
    "--series", "name", metavar="NAME", help="Series. Default: that of the nearest version."
)
@click.option(
    "--worktree",
    type=PathOf(),
    metavar="PATH",
    help="Worktree in which the patches are applied. Default: TREE-rebase.",
)
@click.option(
    "--out",
    type=PathOf(),
    metavar="DIR",
    help="Directory for the new series. Default: linux-X.Y in this directory.",
)
def rebase(tree: Path, name: str | None, worktree: Path | None, out: Path | None) -> None:
    """Rebase a series onto another kernel version.

    If a patch does not apply, the command stops and leaves a worktree that is ready for
    `git am --continue`. Run the same command again after that to write the new series.
    """
    if name is not None:
        series = kernel_patches.series(name)
    else:
        base, _ = kernel_patches.base_of(tree)
        found = kernel_patches.nearest(base, kernel_patches.list_series())
        assert found is not None, "a series ships"
        series = found
    done = kernel_patches.rebase(series, tree, worktree=worktree, out=out)
    click.echo(f"{done.patches} patches of {series.base} rebased: {done.directory}")
    click.echo(f"the commits are in {done.worktree}; review titles and changelogs")
