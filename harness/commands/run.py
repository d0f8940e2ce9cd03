# SPDX-License-Identifier: MIT
"""``harness run``: a whole campaign, from the patches to the table."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from harness import config, kernels, needs, plan, trials
from harness.base.errors import ConfigurationError
from harness.base.progress import Progress
from harness.base.write_ahead import WriteAheadLog
from harness.beds import registry
from harness.campaign import run as campaign
from harness.commands import (
    bed_option,
    beds_option,
    blocks_option,
    hosts_option,
    out_option,
    profile_option,
    require_apart,
    seed_option,
    steps_option,
    tree_option,
)
from harness.commands.also import also_option
from harness.commands.load import beds_for, load_option, profile_for
from harness.commands.variants import commits_of, is_range, variants_option
from harness.report import document, render
from harness.results import samples
from harness.results.analysis import analyse
from harness.results.expect import ExpectationResult, hold, parse, require, require_measured


@click.command()
@steps_option
@profile_option("quick")
@blocks_option
@also_option
@load_option
@seed_option
@bed_option
@beds_option
@hosts_option
@tree_option
@variants_option
@out_option()
@click.option(
    "--expect",
    multiple=True,
    help="A condition that must hold, such as 'step8 stack_rx_pps > 1.1x step0'. Can be repeated.",
)
@click.option(
    "--aa",
    is_flag=True,
    help="Measure step 0 against itself; exit code 6 if a difference is found.",
)
@click.option(
    "--resume", is_flag=True, help="Continue the campaign in --out; finished boots are kept."
)
@click.option("--retry-failed", is_flag=True, help="With --resume: retry steps whose kernel died.")
def run(
    steps: str,
    profile_name: str,
    blocks: int | None,
    also: tuple[str, ...],
    load: str | None,
    seed: int | None,
    bed_name: str | None,
    bed_names: tuple[str, ...],
    hosts_path: Path | None,
    tree: Path | None,
    variants: str | None,
    directory: Path,
    aa: bool,
    resume: bool,
    retry_failed: bool,
    expect: tuple[str, ...],
) -> None:
    """Build the kernels, boot them in random order, measure, and print the table.

    \b
    harness run                          steps 0, 2, 8 and the tree as it ships
    harness run --steps 0-8              all nine steps
    harness run --profile standard       enough boots for verdicts
    harness run --profile thorough       until the last step is decided, at declared looks
    harness run --aa --profile standard  step 0 against itself: the noise of this bed
    harness run --also cpu --also latency --also ndr
    harness run --load udp6,streams=10,message_bytes=64
    harness run --tree . --variants HEAD,worktree   what a change of your own does
    harness run --resume --out DIR       continue after an interruption
    harness run --beds rack1,rack2       each block on one of several beds of machines

    With --expect the exit code is 6 if an expectation was missed, and 7 if the
    measurement cannot tell.

    Results stay in a directory that `harness report` can read at any time.
    """
    require_apart(directory, tree)
    kept = _kept(directory, resume=resume)
    was = kept.options if kept else samples.Options()
    if bed_name is None and not bed_names:
        bed_name, bed_names = was.bed, was.beds
    hosts_path = config.locate(hosts_path or was.hosts)
    tree = tree or was.tree
    load = was.load if load is None else load
    hosts = config.with_load(config.load(hosts_path), load)
    beds = beds_for(hosts.load, config.beds(hosts, bed_name, bed_names), also)
    profile = registry.profile(
        kept.profile if kept else profile_name,
        bed_kind=beds[0].kind,
        blocks=kept.blocks if kept else blocks,
        extras=trials.extras(kept.trial.get("extras", ()) if kept else also, beds[0].kind),
        paced_pps=beds[0].paced_pps,
    )
    profile = profile_for(hosts.load, profile)
    if kept:  # by name: HEAD may have moved
        variants = ",".join(kept.steps) if kept.of_commits else None
    commits = commits_of(tree, variants)
    chosen_steps = plan.AA_STEPS if aa else plan.parse_steps(steps)
    drawn = plan.make_plan(
        tuple(kept.steps if kept else [commit.name for commit in commits] or chosen_steps),
        profile,
        seed=kept.seed if kept else seed if seed is not None else secrets.randbits(31),
        beds=[bed.name for bed in beds],
        baseline=commits[0].name if commits else plan.BASELINE,
        ranged=kept.ranged if kept else is_range(variants),
    )
    expected = [parse(text, drawn.steps) for text in expect]
    require_measured(expected, profile.extras, beds[0].name, beds[0].paced_pps)
    options = samples.Options(
        hosts=hosts_path.absolute(),
        tree=tree and tree.absolute(),
        bed=bed_name,
        beds=bed_names,
        load=load,
    )
    findings: list[ExpectationResult] = []

    def show() -> None:
        analysis = analyse(samples.ResultDirectory.open(directory))
        findings.extend(hold(analysis, expected))
        if analysis.boots_done:
            click.echo(render(document(analysis, findings), "table"))

    with Progress() as progress, contextlib.ExitStack() as at_end, contextlib.ExitStack() as up:
        wanted = kernels.Kernels(
            kernel=hosts.kernel,
            names=list(dict.fromkeys(plan.kernel_of(step) for step in drawn.steps)),
            # A kernel that is compared with itself has other layouts under its other name.
            layouts=drawn.layouts * (2 if tuple(drawn.steps) == plan.AA_STEPS else 1),
            tree=tree,
            commits=commits,
            arch=beds[0].arch,
        )
        setup, campaign_id = _opened(up, hosts, beds, drawn, wanted, kept, directory, progress)
        record = campaign.record(setup, profile=profile.name, id_=campaign_id, options=options)
        if kept is None:
            samples.write_campaign(directory, record)
        else:
            campaign.require_same(kept, record)
        accelerator = setup.boots.accelerator
        by = f", {accelerator.upper()}" if accelerator else ""
        progress.say(f"results: {directory}, seed {drawn.seed}{by}")
        if too_few := drawn.too_few_blocks:
            progress.say(too_few)
        at_end.callback(show)
        for look in drawn.looks:
            part = replace(setup, plan=drawn.until(look))
            campaign.run(part, directory, progress=progress, retry_failed=retry_failed)
            if profile.looks and analyse(samples.ResultDirectory.open(directory)).complete:
                break  # decided here, or this was the last look
    require(findings)


def _opened(
    up: contextlib.ExitStack,
    hosts: config.HostsFile,
    beds: Sequence[config.Bed],
    drawn: plan.Plan,
    wanted: kernels.Kernels,
    kept: samples.Campaign | None,
    directory: Path,
    progress: Progress,
) -> tuple[campaign.Setup, str]:
    """Acquire ``beds`` until ``up`` ends, build the kernels, and make the beds ready to boot.

    Returns also the id of the campaign.
    """
    # In the order of their names: of two campaigns that start at once, one gets all beds.
    by_name = sorted(beds, key=lambda bed: bed.name)
    places = {bed.name: up.enter_context(registry.acquired(bed)) for bed in by_name}
    host = registry.kernel_config(
        hosts.kernel, *(places[bed.name].bed for bed in beds), resumed=kept is not None
    )
    wanted, first = replace(wanted, host=host), places[beds[0].name].bed
    together = max(len(group) for group in drawn.groups())
    needs.require(needs.of_kernels(wanted, results=directory, bed=first, together=together))
    with registry.made_meanwhile(first):
        made = wanted.build(progress)
        built = {
            step: made[step][: drawn.layouts]
            if step in made
            else made[plan.kernel_of(step)][-drawn.layouts :]
            for step in drawn.steps
        }
        campaign_id = kept.id if kept else WriteAheadLog(directory).begin_campaign()
        opening = registry.Wanted(campaign_id, directory, trials.counting(drawn.profile))
        opened = {
            name: up.enter_context(
                registry.opened(place, built[drawn.steps[0]][0], opening, progress)
            )
            for name, place in places.items()
        }
    (bed, boots), *others = [(places[bed.name].bed, opened[bed.name]) for bed in beds]
    setup = campaign.Setup(
        bed=bed, load=hosts.load, plan=drawn, images=built, boots=boots, others=others
    )
    return setup, campaign_id


def _kept(directory: Path, *, resume: bool) -> samples.Campaign | None:
    """The campaign to resume in ``directory``, if there is one.

    Raises:
        ConfigurationError: ``resume`` and no campaign there, or a campaign and not ``resume``.
    """
    there = os.path.lexists(directory / "campaign.json")
    if resume and not there:
        raise ConfigurationError(
            f"{directory} holds no campaign to resume", hint="name its directory with --out"
        )
    if there and not resume:
        raise ConfigurationError(
            f"{directory} already holds a campaign",
            hint="name another directory, or continue it with --resume",
        )
    return samples.read_campaign(directory) if there else None
