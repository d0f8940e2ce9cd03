# SPDX-License-Identifier: MIT
"""``harness plan``: show what a run would boot, change and measure."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from tabulate import tabulate

from harness import config, trials
from harness.agent.settings.registry import KEYED, PLAIN
from harness.beds import registry
from harness.cells import variant_of
from harness.commands import (
    bed_option,
    beds_option,
    blocks_option,
    hosts_option,
    profile_option,
    require_seed,
    seed_option,
    shard_option,
    steps_option,
    tree_option,
)
from harness.commands.also import also_option
from harness.commands.load import beds_for, load_option, profile_for, told
from harness.commands.variants import compared, variants_options
from harness.commands.vary import lines, varied, vary_option
from harness.plan import (
    AA_STEPS,
    BASELINE,
    Plan,
    Profile,
    Shard,
    claims,
    families,
    make_plan,
    ordered_steps,
    parse_steps,
)
from harness.results.power import power, power_of_looks
from harness.results.ranks import CONFIDENCE
from harness.results.stats import MARGIN
from harness.trials import loads
from harness.vary import Varied

_CHANGES = (0.02, 0.05, 0.10)
"""True changes for which the power is shown."""
_STEERED = {
    "auto": "their number, else the indirection table, else an ntuple rule for UDP",
    "rss": "the indirection table",
    "ntuple": "an ntuple rule for UDP",
}


@click.command()
@steps_option
@profile_option("quick")
@blocks_option
@also_option
@load_option
@seed_option
@shard_option
@click.option("--aa", is_flag=True, help="The plan for step 0 against itself.")
@click.option(
    "--noise",
    type=click.FloatRange(min=0, max=100, min_open=True, max_open=True),
    metavar="PERCENT",
    help="Standard deviation of the ratio of two steps in a block, for the power. Default: what "
    "campaigns on such a bed showed.",
)
@bed_option
@beds_option
@hosts_option
@tree_option
@variants_options
@vary_option
def plan(
    steps: str,
    profile_name: str,
    blocks: int | None,
    also: tuple[str, ...],
    load: str | None,
    seed: int | None,
    shard: Shard | None,
    aa: bool,
    noise: float | None,
    bed_name: str | None,
    bed_names: tuple[str, ...],
    hosts_path: Path | None,
    tree: Path | None,
    variants: str | None,
    mbox: str | None,
    base: str | None,
    vary_texts: tuple[str, ...],
) -> None:
    """Show the order of boots, the duration, settings and void rules of a run; change nothing."""
    require_seed(shard, seed)
    hosts = config.with_load(config.load(config.locate(hosts_path)), load)
    beds = beds_for(hosts.load, config.beds(hosts, bed_name, bed_names), also)
    factors = varied(vary_texts, hosts, beds, aa=aa)
    among = compared(tree, variants, mbox, base, keep=False)
    chosen = make_plan(
        factors.cells(among.names or (AA_STEPS if aa else parse_steps(steps))),
        profile_for(
            hosts.load,
            registry.profile(
                profile_name,
                bed_kind=beds[0].kind,
                blocks=blocks,
                extras=trials.extras(also, beds[0].kind),
                paced_pps=beds[0].paced_pps,
            ),
        ),
        seed=secrets.randbits(31) if seed is None else seed,
        beds=[bed.name for bed in beds],
        baseline=among.names[0] if among.names else BASELINE,
        ranged=among.ranged,
    ).shared(shard)
    for line in _lines(chosen, beds, hosts.load, noise and noise / 100, factors):
        click.echo(line)


def _lines(
    plan: Plan, beds: Sequence[config.Bed], load: config.Load, noise: float | None, factors: Varied
) -> Iterator[str]:
    timing, bed = plan.profile, beds[0]
    boots = sum(1 for _ in plan.boots())
    measured_s = trials.measured_s(plan)
    about_s = measured_s + plan.blocks_of_a_bed * len(plan.steps) * registry.of(bed).boot_s
    named = f"beds {', '.join(one.name for one in beds)}" if len(beds) > 1 else f"bed {bed.name}"
    yield f"{named} ({bed.kind}) · profile {timing.name} · seed {plan.seed}"
    yield (
        f"{_of_all(plan)}{boots // len(plan.steps)} blocks × {len(plan.steps)} "
        f"{'cells' if plan.factors else 'steps'} = "
        f"{boots} boots, "
        f"{_minutes(measured_s)} of measured windows, about {_minutes(about_s)} in all "
        "once the kernels are built"
    )
    yield (
        "in each boot: "
        + f"{timing.warmups} warm-up of {timing.warmup_s:g} s, then " * bool(timing.warmups)
        + f"{timing.trials} trials of {timing.window_s:g} s"
        + f"; in the first {_counted(timing.trace_blocks)} {'of each bed ' * (len(beds) > 1)}also "
        f"{timing.trace_s:g} s with probes attached" * bool(timing.trace_blocks)
    )
    yield told(load)
    if plan.layouts > 1:
        kernels = len({(variant_of(step), factors.options(step)) for step in plan.steps})
        each = "one for each block" if plan.layouts == len(plan.order) else "which blocks share"
        yield (
            f"each kernel is linked in {plan.layouts} layouts, {each} "
            f"({plan.layouts * kernels} links if none is in the cache): the position of "
            "functions must not look like the effect of a patch"
        )
    if also := [kind.about(bed, timing) for kind in trials.asked(timing) if kind.also]:
        yield f"in each boot also: {', '.join(also)}"
    if timing.slice_s:
        yield (
            f"boots of a block run side by side, time-sliced ({timing.slice_s:g} s): "
            "a slowdown of this machine affects all of them equally"
        )
    yield from lines(plan, factors, bed)
    yield from _verdicts(plan, bed, noise)
    yield ""
    where = [[bed] for bed in plan.block_beds] or [[] for _ in plan.order]
    rows = [
        [number, *at, *row]
        for number, (at, row) in enumerate(zip(where, plan.order, strict=True), 1)
        if plan.shard is None or plan.shard.has(number)
    ]
    places = ["block", *(["bed"] * (len(beds) > 1))]
    yield tabulate(rows, headers=[*places, *(f"boot {n + 1}" for n in range(len(plan.steps)))])
    yield ""
    for one in beds:
        yield from _changes(one, load, timing)
        yield ""
    yield "a trial is void unless:"
    for name, rule in trials.VOID_RULES.items():
        allowed = ", ".join(f"{value:g} {unit}" for unit, value in rule.tolerances.items())
        yield f"  {name}: {rule.description}" + (f" (tolerance: {allowed})" if allowed else "")


def _verdicts(plan: Plan, bed: config.Bed, noise: float | None) -> Iterator[str]:
    """What the campaign will decide, in which order, and how surely."""
    if too_few := plan.too_few_blocks:
        yield too_few
        return
    what = "variant" if plan.of_commits else "step"
    groups = families(plan.steps, plan.baseline)
    decided = [", then ".join(f"{what} {step}" for step in group) for group in groups]
    yield f"compared with {what} {plan.baseline}, each group for itself: {' · '.join(decided)}"
    if not groups:
        return
    if looks := plan.profile.looks:
        told = ", ".join(f"{blocks} (p {level:g})" for blocks, level in looks)
        yield (
            f"it ends after so many blocks if {what} {groups[0][0]} is decided there, and nowhere "
            f"else: {told}; nothing else is decided before {what} {groups[0][0]}"
        )
    if series := ordered_steps(plan.steps, plan.baseline, ranged=plan.ranged):
        yield f"and a trend over {what}s {', '.join(series)}"
    yield f'"no difference" means: none larger than {100 * MARGIN:g} %'
    known = registry.of(bed).noise
    if noise is None and known is None:
        yield f"power: not known, because the noise of {bed.kind} beds is not; name it with --noise"
        return
    sd, source = (noise, "--noise") if noise is not None else known or (0.0, "")
    found = []
    for change in _CHANGES:
        if looks := plan.profile.looks:
            share, blocks = power_of_looks(looks, sd, change)
            after = f", after {blocks:.0f} blocks on average"
        else:
            level = (1 - CONFIDENCE) / claims(plan.steps, plan.baseline, ranged=plan.ranged)
            share, after = power(len(plan.order), sd, change, level), ""
        found.append(f"a change of {100 * change:g} % in {100 * share:.0f}{after}")
    yield (
        f"if a block's ratio has a standard deviation of {100 * sd:.1f} % ({source}), {what} "
        f"{groups[0][0]} is found to differ in so many of 100 campaigns, after correction: "
        f"{', '.join(found)}"
    )


def _changes(bed: config.Bed, load: config.Load, timing: Profile) -> Iterator[str]:
    """What is set during a run, host by host."""
    kind = loads.named(load.kind)
    of_load = {
        role: "".join(f", {name}: {_value(value)}" for name, value in wanted.items())
        for role, wanted in kind.settings(bed).items()
    }
    v6 = "" if any("address6" in told for told in of_load.values()) else ", no IPv6"
    yield f"set on {bed.dut_name} (dut) during a run, and restored after it:"
    wanted = {
        "address": f"{bed.dut.address}, with a neighbour entry for the other host{v6}"
        + of_load["dut"],
        "receive queues in use": bed.steering and f"{bed.rx_queues} (by {_STEERED[bed.steering]})",
        "CPU of the interrupt": bed.placement.irq_cpu,
        "CPU of netserver": bed.netserver_cpu,
    }
    for key, value in {**{n: one.plain for n, one in PLAIN.items()}, **bed.tuning()}.items():
        one = KEYED.get(key) or PLAIN[key]
        as_it_is = value is None or value == {}
        wanted[one.title] = None if as_it_is else "off" if value is False else one.shown(value)
    changes = [registry.of(bed).changes(), *(kind.changes() for kind in trials.asked(timing))]
    wanted |= dict(change for change in changes if change)
    for name, value in wanted.items():
        yield f"  {name}: {'not changed' if value is None else value}"
    yield f"set on {bed.generator_name} (generator):"
    yield (
        f"  address: {bed.generator.address}, with a neighbour entry for the other host{v6}"
        + of_load["generator"]
    )
    if any(kind.paces for kind in trials.asked(timing)):
        yield "  pacing: a token bucket on its interface while the load is paced"


def _value(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _of_all(plan: Plan) -> str:
    return f"shard {plan.shard} of {len(plan.order)} blocks: " if plan.shard else ""


def _counted(blocks: int) -> str:
    return "block" if blocks == 1 else f"{blocks} blocks"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
