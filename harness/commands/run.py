# SPDX-License-Identifier: MIT
"""``harness run``: a whole campaign, from patches to the table."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import click

from harness import config, kernels, needs, plan, trials
from harness.base.errors import ConfigurationError
from harness.base.progress import Progress
from harness.base.write_ahead import WriteAheadLog
from harness.beds import registry
from harness.campaign import run as campaign
from harness.commands import (
    also_option,
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
from harness.report import document, render
from harness.results import samples
from harness.results.analysis import analyse
from harness.results.expect import Finding, hold, parse, require, require_measured


@click.command()
@steps_option
@profile_option("quick")
@blocks_option
@also_option
@seed_option
@bed_option
@beds_option
@hosts_option
@tree_option
@out_option()
@click.option(
    "--expect",
    multiple=True,
    help="What has to hold, as 'step8 stack_rx_pps > 1.1x step0'; may be given again.",
)
@click.option(
    "--aa",
    is_flag=True,
    help="Measure step 0 against itself, which must find nothing; exit code 6 if it does.",
)
@click.option(
    "--resume", is_flag=True, help="Go on with the campaign in --out: boots that are finished stay."
)
@click.option(
    "--retry-failed", is_flag=True, help="With --resume: boot steps again whose kernel died."
)
def run(
    steps: str,
    profile_name: str,
    blocks: int | None,
    also: tuple[str, ...],
    seed: int | None,
    bed_name: str | None,
    bed_names: tuple[str, ...],
    hosts_path: Path | None,
    tree: Path | None,
    directory: Path,
    aa: bool,
    resume: bool,
    retry_failed: bool,
    expect: tuple[str, ...],
) -> None:
    """Build the kernels, boot each in random order, load them, count, and print the table.

    \b
    harness run                          steps 0, 2 and 8, a few minutes
    harness run --steps 0-8              all nine
    harness run --profile standard       enough boots for verdicts
    harness run --aa --profile standard  what this bed finds where there is nothing
    harness run --also cpu --also latency --also ndr
    harness run --resume --out DIR       go on after an interruption
    harness run --beds rack1,rack2       each block on one of several beds of machines

    With --expect the exit code is 6 if something expected was missed, and 7 if
    the measurement cannot tell.

    Results stay in a directory that `harness report` reads again at any time.
    """
    require_apart(directory, tree)
    kept = _kept(directory, resume=resume)
    was = kept.options if kept else samples.Options()
    if bed_name is None and not bed_names:
        bed_name, bed_names = was.bed, was.beds
    hosts_path = config.locate(hosts_path or was.hosts)
    tree = tree or was.tree
    hosts = config.load(hosts_path)
    beds = config.beds(hosts, bed_name, bed_names)
    chosen_steps = plan.AA_STEPS if aa else plan.parse_steps(steps)
    wanted = tuple(kept.steps) if kept else chosen_steps
    chosen = registry.profile(
        kept.profile if kept else profile_name,
        bed_kind=beds[0].kind,
        blocks=kept.blocks if kept else blocks,
        extras=trials.extras(kept.trial.get("extras", ()) if kept else also, beds[0].kind),
        paced_pps=beds[0].paced_pps,
    )
    drawn = plan.make_plan(
        wanted,
        chosen,
        seed=kept.seed if kept else seed if seed is not None else secrets.randbits(31),
        beds=[bed.name for bed in beds],
    )
    expected = [parse(text, wanted) for text in expect]
    require_measured(expected, chosen.extras, beds[0].name, beds[0].paced_pps)
    findings: list[Finding] = []
    with (
        Progress() as progress,
        contextlib.ExitStack() as in_the_end,
        contextlib.ExitStack() as up,
    ):
        # By name: of two campaigns that begin at once, one gets all.
        by_name = sorted(beds, key=lambda bed: bed.name)
        places = {bed.name: up.enter_context(registry.acquired(bed)) for bed in by_name}
        host = registry.kernel_config(
            hosts.kernel, *(places[bed.name].bed for bed in beds), resumed=kept is not None
        )
        to_build = list(dict.fromkeys(plan.kernel_of(step) for step in wanted))
        layouts = min(chosen.layouts, drawn.blocks_of_a_bed)
        needs.require(
            needs.of_kernels(
                hosts.kernel,
                to_build,
                layouts,
                tree=tree,
                host=host,
                bed=beds[0],
                together=max(len(group) for group in drawn.groups()),
                results=directory,
            )
        )
        with registry.made_meanwhile(beds[0]):
            made = kernels.layouts(
                hosts.kernel,
                to_build,
                layouts,
                tree=tree,
                arch=beds[0].arch,
                host=host,
                progress=progress,
            )
            built = {step: made[plan.kernel_of(step)] for step in wanted}
            campaign_id = kept.id if kept else WriteAheadLog(directory).begin_campaign()
            opened = {
                name: up.enter_context(
                    registry.opened(
                        place,
                        built[wanted[0]][0],
                        registry.Wanted(campaign_id, directory, trials.counting(chosen)),
                        progress,
                    )
                )
                for name, place in places.items()
            }
        (bed, booted), *others = [(places[bed.name].bed, opened[bed.name]) for bed in beds]
        setup = campaign.Setup(
            bed=bed, load=hosts.load, plan=drawn, images=built, boots=booted, others=others
        )
        record = campaign.record(
            setup,
            profile=chosen.name,
            id_=campaign_id,
            options=samples.Options(
                hosts=hosts_path.absolute(),
                tree=tree and tree.absolute(),
                bed=bed_name,
                beds=bed_names,
            ),
        )
        if kept is None:
            samples.write_campaign(directory, record)
        else:
            campaign.require_same(kept, record)
        by = f", {booted.accelerator.upper()}" if booted.accelerator else ""
        progress.say(f"results: {directory}, seed {drawn.seed}{by}")

        @in_the_end.callback
        def _() -> None:
            analysis = analyse(samples.ResultDirectory.open(directory))
            findings.extend(hold(analysis, expected))
            if analysis.boots_done:
                click.echo(render(document(analysis, findings), "table"))

        campaign.run(setup, directory, progress=progress, retry_failed=retry_failed)
    require(findings)


def _kept(directory: Path, *, resume: bool) -> samples.Campaign | None:
    """The campaign ``directory`` already holds, if it is to be gone on with."""
    there = os.path.lexists(directory / "campaign.json")
    if resume and not there:
        raise ConfigurationError(
            f"{directory} holds no campaign to go on with", hint="name it by --out"
        )
    if there and not resume:
        raise ConfigurationError(
            f"{directory} already holds a campaign",
            hint="name another directory, or go on with it by --resume",
        )
    return samples.read_campaign(directory) if there else None
