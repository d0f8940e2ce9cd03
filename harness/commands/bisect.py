# SPDX-License-Identifier: MIT
"""``harness bisect``: the step or commit at which a metric moves."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from harness import bisect as bisection
from harness import config, kernels, needs, plan, trials
from harness.base.errors import ConfigurationError
from harness.base.progress import Progress
from harness.beds import registry
from harness.beds.bed import Boots
from harness.beds.labgrid import Place
from harness.campaign import run as campaign
from harness.commands import (
    PathOf,
    bed_option,
    hosts_option,
    out_option,
    profile_option,
    require_apart,
    seed_option,
)
from harness.results import samples
from harness.results.analysis import Analysis, analyse
from harness.results.expect import require_paced
from harness.trials import MEASURES


@click.command()
@click.option(
    "--metric",
    default="stack_rx_pps",
    show_default=True,
    type=click.Choice(bisection.METRICS),
    help="What moves.",
)
@click.option("--good", required=True, help="Step (or commit) before it moved.")
@click.option("--bad", required=True, help="Step (or commit) after it moved.")
@click.option("--by", default="2%", show_default=True, help="How far it moves at least.")
@click.option("--steps", help="Steps to search among; 0-8 if not given.")
@click.option(
    "--tree",
    type=PathOf(),
    help="Git tree whose commits to search, as they are, instead of the series.",
)
@profile_option("standard")
@click.option(
    "--max-blocks",
    default=18,
    show_default=True,
    type=click.IntRange(min=bisection.LOOK_BLOCKS, max=plan.MAX_BLOCKS),
    help=f"Most blocks to decide a point; tried after every {bisection.LOOK_BLOCKS}.",
)
@seed_option
@bed_option
@hosts_option
@out_option("bisect-")
@click.option("--resume", is_flag=True, help="Go on with the bisection in --out.")
@click.option("--retry-failed", is_flag=True, help="With --resume: try dead kernels again.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "json")),
    default="table",
    show_default=True,
    help="How to show it.",
)
def bisect(
    metric: str,
    good: str,
    bad: str,
    by: str,
    steps: str | None,
    tree: Path | None,
    profile_name: str,
    max_blocks: int,
    seed: int | None,
    bed_name: str | None,
    hosts_path: Path | None,
    directory: Path,
    resume: bool,
    retry_failed: bool,
    form: str,
) -> None:
    """Find the first step, or commit of a tree, at which a metric has moved.

    \b
    harness bisect --good 0 --bad 8                             a rate: an hour or so
    harness bisect --good 0 --bad 8 --metric ip_rcv_per_packet  counted: a few boots
    harness bisect --tree TREE --good v6.12 --bad HEAD          any range of commits
    harness bisect --resume --out DIR …                         go on; the same options again

    With --tree the ends are commits, and those between are searched along first
    parents. The metric is taken to be a staircase that leads one way from good to bad: each
    decision boots the step in the middle beside the good end and halves what is left.
    A rate is decided when the interval of its ratio to the good end's is wholly beyond
    --by or wholly within; until then blocks are added. Each decision errs at most one
    time in twenty. What probes count (ip_rcv_per_packet and list lengths) is compared as
    it is, after one boot. A kernel that cannot be built or dies is passed over.

    The exit code is 6 if the ends do not differ, and 7 if the measurement cannot tell.
    """
    require_apart(directory, tree)
    hosts = config.load(config.locate(hosts_path))
    bed = config.bed(hosts, bed_name)
    if tree and steps is not None:
        raise ConfigurationError("--tree and --steps exclude each other")
    if tree and (why := registry.of(bed).no_commits):
        raise ConfigurationError(
            f"bed {bed.name} is {bed.kind}: {why}",
            hint="name a virtual bed with --bed, or search the steps of the series",
        )
    require_paced(metric, bed.name, bed.paced_pps)
    commits = kernels.commits_between(tree, good, bad) if tree else []
    titles = {commit.name: commit.subject for commit in commits}
    question = bisection.Question(
        metric=metric,
        by=_share(by),
        kind="commit" if tree else "step",
        points=tuple(titles)
        if tree
        else _between(good, bad, plan.parse_steps("0-8" if steps is None else steps)),
        max_blocks=max_blocks,
        profile=profile_name,
        bed=bed.name,
    )
    journal = bisection.begin(
        directory,
        question,
        seed=secrets.randbits(31) if seed is None else seed,
        resume=resume,
        retry_failed=retry_failed,
    )
    with Progress() as progress, contextlib.ExitStack() as up:
        progress.say(f"results: {directory}, seed {journal.seed}")

        place = up.enter_context(registry.acquired(bed))
        host = registry.kernel_config(hosts.kernel, place.bed)
        ends = (question.points[0], question.points[-1])
        job = needs.of_kernels(
            hosts.kernel, ends, 1, tree=None, host=host, bed=bed, together=2, results=directory
        )
        # Commits are as good as never kept.
        needs.require(replace(job, kernels=lambda: len(ends)) if tree else job)

        def build(points: Sequence[str], layouts: int) -> dict[str, tuple[kernels.Image, ...]]:
            if tree:
                touched = kernels.files_between(tree, commits[0].name, commits[-1].name)
                return kernels.build_commits(
                    tree,
                    points,
                    kernel=hosts.kernel,
                    touched=touched,
                    layouts=layouts,
                    host=host,
                    progress=progress,
                )
            return kernels.layouts(
                hosts.kernel, points, layouts, host=host, arch=bed.arch, progress=progress
            )

        bench = _Bench(place, hosts.load, journal, directory, build, progress, up, retry_failed)
        journal = bisection.run(journal, directory, bench.measure, say=progress.say, titles=titles)
    shown = bisection.result(journal) | {"virtual": registry.of(bed).here}
    if form == "json":
        click.echo(json.dumps(shown, indent=1))
    else:
        if shown["virtual"]:
            click.echo(f"{bed.kind} bed: not a hardware figure\n")
        click.echo(bisection.table(journal))
        if shown["found"]:
            click.echo(f"\n{shown['sentence']}")
    bisection.require(shown)


def _share(by: str) -> float:
    """``2%`` as 0.02."""
    match = re.fullmatch(r"\s*([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*%\s*", by)
    if match is None or not float(match[1]):
        raise ConfigurationError(f"{by!r} is no share to move by", hint="write --by 2%")
    return float(match[1]) / 100


def _between(good: str, bad: str, steps: Sequence[str]) -> tuple[str, ...]:
    """The steps from ``good`` to ``bad``, both included."""
    for end in (good, bad):
        if end not in steps:
            raise ConfigurationError(
                f"step {end} is not among those to search",
                hint=f"steps to search among: {', '.join(steps)}",
            )
    first, last = steps.index(good), steps.index(bad)
    if first >= last:
        raise ConfigurationError(
            f"the good end, step {good}, does not come before the bad end, step {bad}",
            hint="good is what was before the metric moved, whichever way it moved",
        )
    return tuple(steps[first : last + 1])


@dataclass
class _Bench:
    """Measures points as campaigns; kernels are made and the bed is had when first needed."""

    place: Place
    load: config.Load
    journal: bisection.Journal
    directory: Path
    build: Callable[[Sequence[str], int], dict[str, tuple[kernels.Image, ...]]]
    progress: Progress
    up: contextlib.ExitStack
    retry_failed: bool
    boots: Boots | None = None

    def measure(self, name: str, points: Sequence[str], blocks: int) -> Analysis:
        """The campaign ``name``, in which ``points`` have ``blocks`` blocks."""
        profile = self._profile(blocks)
        with registry.made_meanwhile(self.place.bed):
            built = self.build(points, min(profile.layouts, blocks))
            self.boots = self.boots or self.up.enter_context(
                registry.opened(
                    self.place,
                    built[points[0]][0],
                    registry.Wanted(self.journal.id, self.directory, trials.counting(profile)),
                    self.progress,
                )
            )
        setup = campaign.Setup(
            bed=self.place.bed,
            load=self.load,
            plan=plan.make_plan(points, profile, seed=self.journal.seed),
            images=built,
            boots=self.boots,
        )
        where = self.directory / name
        record = campaign.record(setup, profile=setup.plan.profile.name)
        if (where / "campaign.json").exists():
            # Fewer blocks of one seed are the first of more.
            kept = samples.read_campaign(where)
            campaign.require_same(kept.model_copy(update={"order": record.order}), record)
            record = record.model_copy(update={"id": kept.id, "created": kept.created})
        samples.write_campaign(where, record)
        campaign.run(setup, where, progress=self.progress, retry_failed=self.retry_failed)
        return analyse(samples.ResultDirectory.open(where))

    def _profile(self, blocks: int) -> plan.Profile:
        """Timed trials alone for a rate, traced ones alone for what probes count."""
        question = self.journal.question
        measure = MEASURES.get(question.metric)
        chosen = registry.profile(
            question.profile,
            bed_kind=self.place.bed.kind,
            blocks=blocks,
            extras=trials.extras(
                [measure.also] if measure and measure.also else [], self.place.bed.kind
            ),
            paced_pps=self.place.bed.paced_pps,
        )
        if question.exact:
            return replace(chosen, warmups=0, trials=0, trace_blocks=blocks, slice_s=0.0, layouts=1)
        return replace(chosen, trace_blocks=0)
