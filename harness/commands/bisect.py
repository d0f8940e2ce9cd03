# SPDX-License-Identifier: MIT
"""``harness bisect``: find the step or commit at which a metric changes."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from harness import bisect as bisection
from harness import config, kernels, needs, plan, trials
from harness.base.errors import ConfigurationError
from harness.base.progress import Progress
from harness.beds import registry
from harness.beds.bed import Boots
from harness.beds.labgrid import Place
from harness.beds.waiting import Waiting
from harness.campaign import run as campaign
from harness.commands import (
    PathOf,
    bed_option,
    hosts_option,
    out_option,
    profile_option,
    require_apart,
    seed_option,
    wait_option,
)
from harness.commands.load import beds_for
from harness.commands.variants import compared, mbox_options
from harness.kernels import Image
from harness.results import samples
from harness.results.analysis import analyse
from harness.results.expect import require_paced
from harness.results.rows import Analysis
from harness.trials import MEASURES


@click.command()
@click.option(
    "--metric",
    default="stack_rx_pps",
    show_default=True,
    type=click.Choice(bisection.METRICS),
    help="The metric.",
)
@click.option("--good", help="Step (or commit) before the change. With --mbox: its base.")
@click.option("--bad", help="Step (or commit) after the change. With --mbox: its last patch.")
@click.option("--by", default="2%", show_default=True, help="Smallest change to look for.")
@click.option("--steps", help="Steps to search. Default: 0-8.")
@click.option(
    "--tree",
    type=PathOf(),
    help="Git tree whose commits are searched as they are, instead of the series.",
)
@mbox_options
@profile_option("standard", looks=False)  # a search has looks of its own
@click.option(
    "--max-blocks",
    default=18,
    show_default=True,
    type=click.IntRange(min=bisection.LOOK_BLOCKS, max=plan.MAX_BLOCKS),
    help="Most blocks for one decision, which is attempted after every "
    f"{bisection.LOOK_BLOCKS} blocks.",
)
@seed_option
@bed_option
@hosts_option
@out_option("bisect-")
@wait_option
@click.option("--resume", is_flag=True, help="Continue the bisection in --out.")
@click.option("--retry-failed", is_flag=True, help="With --resume: retry kernels that failed.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "json")),
    default="table",
    show_default=True,
    help="Output format.",
)
def bisect(
    metric: str,
    good: str | None,
    bad: str | None,
    by: str,
    steps: str | None,
    tree: Path | None,
    mbox: str | None,
    base: str | None,
    profile_name: str,
    max_blocks: int,
    seed: int | None,
    bed_name: str | None,
    hosts_path: Path | None,
    directory: Path,
    wait_s: float | None,
    resume: bool,
    retry_failed: bool,
    form: str,
) -> None:
    """Find the first step, or commit of a tree, at which a metric has changed.

    \b
    harness bisect --good 0 --bad 8                             a rate: about an hour
    harness bisect --good 0 --bad 8 --metric ip_rcv_per_packet  counted: a few boots
    harness bisect --tree TREE --good v6.12 --bad HEAD          any range of commits
    harness bisect --tree TREE --mbox series.mbox               the patches of a mailed series
    harness bisect --resume --out DIR …                         continue; repeat the options

    With --tree both ends are commits, and the search follows first parents. The metric is
    assumed to change in one direction only from good to bad. Each decision boots the step
    in the middle and the good end, and halves the range. A rate is decided when the
    interval of its ratio to the good end is completely outside or completely inside --by;
    until then blocks are added. At most one decision in twenty is wrong. Metrics that
    probes count (ip_rcv_per_packet and list lengths) are compared directly after one boot.
    A kernel that cannot be built or that dies is skipped.

    The exit code is 6 if the ends do not differ, and 7 if the measurement cannot tell.
    """
    require_apart(directory, tree)
    hosts = config.load(config.locate(hosts_path))
    [bed] = beds_for(hosts.load, [config.bed(hosts, bed_name)])
    if tree and steps is not None:
        raise ConfigurationError("--tree and --steps exclude each other")
    require_paced(metric, bed.name, bed.paced_pps)
    commits = _commits(tree, good, bad, mbox, base)
    titles = {commit.name: commit.subject for commit in commits}
    searched = plan.parse_steps("0-8" if steps is None else steps, plan.ALL_STEPS)
    question = bisection.Question(
        metric=metric,
        by=_share(by),
        kind="commit" if tree else "step",
        points=tuple(titles) or _between(good or "", bad or "", searched),
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
        waiting = Waiting(progress, wait_s)
        place = waiting.entered(up, lambda: registry.acquired(bed))
        if waiting.alone:
            waiting.until_free(lambda: registry.require_free(place.bed))
        wanted = kernels.Kernels(
            kernel=hosts.kernel,
            names=(question.points[0], question.points[-1]),
            tree=tree,
            commits=commits,
            host=waiting.until_free(lambda: registry.kernel_config(hosts.kernel, place.bed)),
            arch=bed.arch,
        )
        needs.require(needs.of_kernels(wanted, results=directory, bed=place.bed, together=2))
        bench = _Bench(place, hosts.load, journal, directory, wanted, waiting, up, retry_failed)
        journal = bisection.run(journal, directory, bench.measure, say=progress.say, titles=titles)
    _print(journal, bed, form)


def _print(journal: bisection.Search, bed: config.Bed, form: str) -> None:
    """Print the result; raise if the search did not find what it was for."""
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


def _commits(
    tree: Path | None, good: str | None, bad: str | None, mbox: str | None, base: str | None
) -> Sequence[kernels.Commit]:
    """The commits, or the patches of a mailed series, from ``good`` to ``bad``; none: steps.

    Raises:
        ConfigurationError: an end is not named, or is not among them.
    """
    commits = compared(tree, None, mbox, base).commits
    if commits:
        names = [commit.name for commit in commits]
        ends = _between(good or names[0], bad or names[-1], names)
        return [commit for commit in commits if commit.name in ends]
    for name, end in (("good", good), ("bad", bad)):
        if end is None:
            raise ConfigurationError(
                f"Missing option '--{name}'",
                hint="name both ends, such as --good 0 --bad 8; only --mbox has ends of its own",
            )
    return kernels.commits_between(tree, str(good), str(bad)) if tree else ()


def _share(by: str) -> float:
    """``2%`` as 0.02."""
    match = re.fullmatch(r"\s*([0-9]{1,3}(?:\.[0-9]{1,9})?)\s*%\s*", by)
    if match is None or not float(match[1]):
        raise ConfigurationError(f"--by {by!r} is not a percentage", hint="write --by 2%")
    return float(match[1]) / 100


def _between(good: str, bad: str, steps: Sequence[str]) -> tuple[str, ...]:
    """The steps from ``good`` to ``bad``, both included."""
    for end in (good, bad):
        if end not in steps:
            raise ConfigurationError(
                f"step {end} is not among the steps to search",
                hint=f"steps to search: {', '.join(steps)}",
            )
    first, last = steps.index(good), steps.index(bad)
    if first >= last:
        raise ConfigurationError(
            f"the good end, step {good}, does not come before the bad end, step {bad}",
            hint="good is the step before the metric changed, in whichever direction",
        )
    return tuple(steps[first : last + 1])


@dataclass
class _Bench:
    """Measures points as campaigns; builds kernels and opens the bed when first needed."""

    place: Place
    load: config.Load
    journal: bisection.Search
    directory: Path
    kernels: kernels.Kernels
    waiting: Waiting
    up: contextlib.ExitStack
    retry_failed: bool
    boots: Boots | None = None

    def measure(self, name: str, points: Sequence[str], blocks: int) -> Analysis:
        """Measure ``points`` in ``blocks`` blocks, as the campaign ``name``."""
        profile = self._profile(blocks)
        with registry.made_meanwhile(self.place.bed):
            wanted = replace(self.kernels, names=points, layouts=min(profile.layouts, blocks))
            built = wanted.build(self.waiting.progress)
            self.boots = self.boots or self._opened(built[points[0]][0], profile)
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
            # With the same seed, fewer blocks and layouts are the first of more of them.
            kept = samples.read_campaign(where)
            more = {"order": record.order, "variants": _with_layouts(kept, record)}
            campaign.require_same(kept.model_copy(update=more), record)
            record = record.model_copy(update={"id": kept.id, "created": kept.created})
        samples.write_campaign(where, record)
        campaign.run(setup, where, progress=self.waiting.progress, retry_failed=self.retry_failed)
        return analyse(samples.ResultDirectory.open(where))

    def _opened(self, image: Image, profile: plan.Profile) -> Boots:
        counting, waiting = trials.counting(profile), self.waiting
        wanted = registry.Wanted(
            self.journal.id, self.directory, counting=counting, alone=waiting.alone
        )
        return waiting.entered(
            self.up, lambda: registry.opened(self.place, image, wanted, waiting.progress)
        )

    def _profile(self, blocks: int) -> plan.Profile:
        """Only timed trials for a rate, only traced trials for what probes count."""
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


def _with_layouts(kept: samples.Campaign, record: samples.Campaign) -> dict[str, Any]:
    """The variants of ``kept`` with the layouts of ``record``, if these begin with theirs."""
    variants = {}
    for step, variant in kept.variants.items():
        layouts, more = variant.get("layouts", []), record.variants[step]["layouts"]
        begins = more[: len(layouts)] == layouts
        variants[step] = variant | {"layouts": more if begins else layouts}
    return variants
