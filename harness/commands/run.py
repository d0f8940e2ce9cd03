# SPDX-License-Identifier: MIT
"""``harness run``: a whole campaign, from the patches to the table."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from harness import cells, config, kernels, needs, plan, trials
from harness.base.errors import ConfigurationError
from harness.base.progress import Progress
from harness.base.write_ahead import WriteAheadLog
from harness.beds import registry
from harness.beds.waiting import Waiting
from harness.campaign import run as campaign
from harness.commands import (
    bed_option,
    beds_option,
    blocks_option,
    hosts_option,
    out_option,
    profile_option,
    require_apart,
    require_seed,
    seed_option,
    shard_option,
    steps_option,
    tree_option,
    wait_option,
)
from harness.commands.also import also_option
from harness.commands.load import beds_for, load_option, profile_for
from harness.commands.variants import compared, variants_options
from harness.commands.vary import varied, vary_option
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
@shard_option
@bed_option
@beds_option
@hosts_option
@tree_option
@variants_options
@vary_option
@out_option()
@wait_option
@click.option(
    "--expect",
    multiple=True,
    help="A condition that must hold, such as 'step8 stack_rx_pps > 1.1x step0'; with --vary, a "
    "step has its levels: step8[burst=64]. Can be repeated.",
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
    shard: plan.Shard | None,
    bed_name: str | None,
    bed_names: tuple[str, ...],
    hosts_path: Path | None,
    tree: Path | None,
    variants: str | None,
    mbox: str | None,
    base: str | None,
    vary_texts: tuple[str, ...],
    directory: Path,
    wait_s: float | None,
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
    harness run --tree . --mbox series.mbox         what each patch of a mailed series does
    harness run --steps 0,8 --vary gro=on,off     and whether their gain depends on GRO
    harness run --resume --out DIR       continue after an interruption
    harness run --wait                   first wait until the bed and this machine are free
    harness run --beds rack1,rack2       each block on one of several beds of machines
    harness run --seed 13 --shard 2/3    a share of the blocks; `harness merge` joins all

    With --expect the exit code is 6 if an expectation was missed, and 7 if the
    measurement cannot tell.

    Results stay in a directory that `harness report` can read at any time.
    """
    require_apart(directory, tree)
    kept = _kept(directory, resume=resume)
    shard = _shard_of(kept, shard, seed, expect)
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
        mbox, base = was.mbox, was.base
        names = dict.fromkeys(map(cells.variant_of, kept.steps))
        variants = ",".join(names) if kept.of_commits and not mbox else None
        vary_texts = tuple(f"{key}={','.join(of)}" for key, of in kept.factors.items())
    factors = varied(vary_texts, hosts, beds, aa=aa)
    among = compared(tree, variants, mbox, base)
    if kept and mbox and factors.cells(among.names) != tuple(kept.steps):
        raise ConfigurationError(
            f"the campaign cannot be resumed: {mbox} has other patches now",
            hint="put back the series of its first run, or start a new campaign",
        )
    chosen_steps = plan.AA_STEPS if aa else plan.parse_steps(steps)
    drawn = plan.make_plan(
        tuple(kept.steps) if kept else factors.cells(among.names or chosen_steps),
        profile,
        seed=kept.seed if kept else seed if seed is not None else secrets.randbits(31),
        beds=[bed.name for bed in beds],
        baseline=among.names[0] if among.commits else plan.BASELINE,
        ranged=kept.ranged if kept else among.ranged,
    ).shared(shard)
    expected = [parse(text, drawn.steps) for text in expect]
    require_measured(expected, profile.extras, beds[0].name, beds[0].paced_pps)
    options = samples.Options(
        hosts=hosts_path.absolute(),
        tree=tree and tree.absolute(),
        mbox=among.mbox,
        base=among.base,
        bed=bed_name,
        beds=bed_names,
        load=load,
    )
    findings: list[ExpectationResult] = []

    def show() -> None:
        analysis = analyse(samples.ResultDirectory.open(directory))
        findings.extend([] if shard else hold(analysis, expected))
        if analysis.boots_done:
            click.echo(render(document(analysis, findings), "table"))

    with Progress() as progress, contextlib.ExitStack() as at_end, contextlib.ExitStack() as up:
        wanted = kernels.Kernels(
            kernel=hosts.kernel,
            names=list(dict.fromkeys(plan.kernel_of(step) for step in drawn.steps)),
            # A kernel that is compared with itself has other layouts under its other name.
            layouts=drawn.layouts * (2 if tuple(drawn.steps) == plan.AA_STEPS else 1),
            tree=tree,
            commits=among.commits,
            arch=beds[0].arch,
        )
        by_step = {step: replace(wanted, options=factors.options(step)) for step in drawn.steps}
        waiting = Waiting(progress, wait_s)
        setup, campaign_id = _opened(up, hosts, beds, drawn, by_step, kept, directory, waiting)
        setup = replace(setup, varied=factors)
        record = campaign.record(setup, profile=profile.name, id_=campaign_id, options=options)
        if kept is None:
            samples.write_campaign(directory, record)
        else:
            campaign.require_same(kept, record)
        accelerator = setup.boots.accelerator
        by = f", {accelerator.upper()}" if accelerator else ""
        progress.say(f"results: {directory}, seed {drawn.seed}{by}")
        if shard:
            own = list(dict.fromkeys(boot.block for boot in drawn.boots()))
            named = f"block{'s' * (len(own) > 1)} {', '.join(map(str, own))}"
            progress.say(f"shard {shard}: {named} of {len(drawn.order)}")
        elif too_few := drawn.too_few_blocks:
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
    wanted: Mapping[str, kernels.Kernels],
    kept: samples.Campaign | None,
    directory: Path,
    waiting: Waiting,
) -> tuple[campaign.Setup, str]:
    """Acquire ``beds`` until ``up`` ends, build the kernels, and make the beds ready to boot.

    ``wanted`` are the kernels by step. Returns also the id of the campaign.
    """
    # In the order of their names: of two campaigns that start at once, one gets all beds.
    by_name = sorted(beds, key=lambda bed: bed.name)
    places = {bed.name: waiting.entered(up, partial(registry.acquired, bed)) for bed in by_name}
    first = places[beds[0].name].bed
    if waiting.alone:  # before kernels are built beside another measurement
        waiting.until_free(partial(registry.require_free, first))
    acquired = [places[bed.name].bed for bed in beds]
    host = waiting.until_free(
        lambda: registry.kernel_config(hosts.kernel, *acquired, resumed=kept is not None)
    )
    # Steps whose kernels have the same options share one build.
    by_options = {one.options: replace(one, host=host) for one in wanted.values()}
    together = max(len(group) for group in drawn.groups())
    for one in by_options.values():
        needs.require(needs.of_kernels(one, results=directory, bed=first, together=together))
    with registry.made_meanwhile(first):
        made = {options: one.build(waiting.progress) for options, one in by_options.items()}
        built = {
            step: images[step][: drawn.layouts]
            if step in images
            else images[plan.kernel_of(step)][-drawn.layouts :]
            for step in drawn.steps
            for images in [made[wanted[step].options]]
        }
        campaign_id = kept.id if kept else WriteAheadLog(directory).begin_campaign()
        counting = trials.counting(drawn.profile)
        opening = registry.Wanted(campaign_id, directory, counting, alone=waiting.alone)
        open_bed = partial(registry.opened, wanted=opening, progress=waiting.progress)
        opened = {
            name: waiting.entered(up, partial(open_bed, place, built[drawn.steps[0]][0]))
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
    kept = samples.read_campaign(directory) if there else None
    if kept and kept.merged:
        raise ConfigurationError(
            f"{directory} was merged from shards, so there is nothing to resume",
            hint="resume the directory of a shard, and merge again",
        )
    return kept


def _shard_of(
    kept: samples.Campaign | None,
    shard: plan.Shard | None,
    seed: int | None,
    expect: Sequence[str],
) -> plan.Shard | None:
    """The shard to measure, in a campaign to resume that of its first run.

    Raises:
        ConfigurationError: it is another one, has no seed, or is to meet expectations.
    """
    if kept and shard not in (None, kept.shard):
        raise ConfigurationError(
            f"the campaign cannot be resumed as shard {shard}: it is "
            + (f"shard {kept.shard}" if kept.shard else "a whole campaign"),
            hint="leave --shard out, or name another directory with --out",
        )
    if not kept:
        require_seed(shard, seed)
    found = kept.shard if kept else shard
    if found and expect:
        raise ConfigurationError(
            f"--expect needs the whole campaign, and shard {found} is a part of it",
            hint="join the shards: harness merge DIR…; then harness report DIR --expect …",
        )
    return found
