# SPDX-License-Identifier: MIT
"""``harness plan``: what a run would boot, change and measure, before it does."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import click
from tabulate import tabulate

from harness import config
from harness.agent.settings.registry import KEYED, PLAIN
from harness.commands import (
    also_option,
    bed_option,
    beds_option,
    blocks_option,
    hosts_option,
    profile_option,
    seed_option,
    steps_option,
)
from harness.plan import (
    AA_STEPS,
    MIN_BLOCKS_FOR_VERDICT,
    PACED_SHARES,
    VOID_RULES,
    Extra,
    Plan,
    make_plan,
    parse_steps,
    profile,
)

# What surrounds the measured windows of a boot, to tell an evening from a coffee break.
_BOOT_S = {"virtual": 28, "native": 5, "hardware": 240}
_STEERED = {
    "auto": "their number, else the indirection table, else a rule for UDP",
    "rss": "the indirection table",
    "ntuple": "a rule for UDP",
}


@click.command()
@steps_option
@profile_option("quick")
@blocks_option
@also_option
@seed_option
@click.option("--aa", is_flag=True, help="Of step 0 against itself.")
@bed_option
@beds_option
@hosts_option
def plan(
    steps: str,
    profile_name: str,
    blocks: int | None,
    also: tuple[Extra, ...],
    seed: int | None,
    aa: bool,
    bed_name: str | None,
    bed_names: tuple[str, ...],
    hosts_path: Path | None,
) -> None:
    """Show order, duration, settings and void rules of a run; nothing is touched."""
    beds = config.beds(config.load(config.locate(hosts_path)), bed_name, bed_names)
    chosen = make_plan(
        AA_STEPS if aa else parse_steps(steps),
        profile(
            profile_name,
            bed_kind=beds[0].kind,
            blocks=blocks,
            extras=also,
            paced_pps=beds[0].paced_pps,
        ),
        seed=secrets.randbits(31) if seed is None else seed,
        beds=[bed.name for bed in beds],
    )
    for line in _lines(chosen, beds):
        click.echo(line)


def _lines(plan: Plan, beds: Sequence[config.Bed]) -> Iterator[str]:
    timing, bed = plan.profile, beds[0]
    boots = sum(len(row) for row in plan.order)
    about_s = plan.measured_s() + plan.blocks_of_a_bed * len(plan.steps) * _BOOT_S[bed.kind]
    named = f"beds {', '.join(one.name for one in beds)}" if len(beds) > 1 else f"bed {bed.name}"
    yield f"{named} ({bed.kind}) · profile {timing.name} · seed {plan.seed}"
    yield (
        f"{timing.blocks} blocks × {len(plan.steps)} steps = {boots} boots, "
        f"{_minutes(plan.measured_s())} of measured windows, about {_minutes(about_s)} in all "
        "once the kernels are built"
    )
    yield (
        f"in a boot: {timing.warmups} warm-up of {timing.warmup_s:g} s, then {timing.trials} "
        f"trials of {timing.window_s:g} s; in the first {timing.trace_blocks} blocks "
        f"{'of each bed ' * (len(beds) > 1)}also "
        f"{timing.trace_s:g} s under the probes"
    )
    also = {
        "cpu": f"CPU time per packet at {_paced(bed)}",
        "icache": "instructions per packet, and misses in a simulated icache",
        "latency": "round trips with moderation and busy polling on and off",
        "ndr": "the highest rate without loss",
    }
    if timing.layouts > 1:
        layouts = min(timing.layouts, plan.blocks_of_a_bed)
        yield (
            f"each kernel is linked in {layouts} layouts, which blocks "
            "take in turn: where functions lie must not pass for what a patch does"
        )
    if timing.extras:
        yield f"in each boot also: {', '.join(also[extra] for extra in timing.extras)}"
    if timing.slice_s:
        yield (
            f"the boots of a block are up together and take turns of {timing.slice_s:g} s: "
            "what slows this machine down slows all of them down"
        )
    if timing.blocks < MIN_BLOCKS_FOR_VERDICT:
        yield f"no verdict: {timing.blocks} of the {MIN_BLOCKS_FOR_VERDICT} blocks one needs"
    yield ""
    where = [[bed] for bed in plan.block_beds] or [[] for _ in plan.order]
    rows = [
        [number, *at, *row]
        for number, (at, row) in enumerate(zip(where, plan.order, strict=True), 1)
    ]
    places = ["block", *(["bed"] * (len(beds) > 1))]
    yield tabulate(rows, headers=[*places, *(f"boot {n + 1}" for n in range(len(plan.steps)))])
    yield ""
    for one in beds:
        yield from _changes(one, timing.extras)
        yield ""
    yield "a trial is void unless:"
    for name, rule in VOID_RULES.items():
        allowed = ", ".join(f"{value:g} {unit}" for unit, value in rule.tolerances.items())
        yield f"  {name}: {rule.description}" + (f" (tolerance: {allowed})" if allowed else "")


def _changes(bed: config.Bed, extras: Collection[str]) -> Iterator[str]:
    """What is set during a run, host by host."""
    yield f"set on {bed.dut_name} (dut) during a run, and put back after it:"
    wanted = {
        "address": f"{bed.dut.address}, the other's as a neighbour, no IPv6",
        "receive queues in use": bed.steering and f"{bed.rx_queues} (by {_STEERED[bed.steering]})",
        "CPU of the interrupt": bed.placement.irq_cpu,
        "CPU of netserver": bed.netserver_cpu,
    }
    for key, value in {**{n: one.plain for n, one in PLAIN.items()}, **bed.tuning()}.items():
        one = KEYED.get(key) or PLAIN[key]
        as_it_is = value is None or value == {}
        wanted[one.title] = None if as_it_is else "off" if value is False else one.shown(value)
    if "latency" in extras:
        wanted["for round trips in turn"] = "moderation off, busy polling on"
    if bed.kind == "hardware":
        wanted["kernels"] = "one of each step is installed beside its own, and booted once a block"
    for name, value in wanted.items():
        yield f"  {name}: {'left as it is' if value is None else value}"
    yield f"set on {bed.generator_name} (generator):"
    yield f"  address: {bed.generator.address}, the other's as a neighbour, no IPv6"
    if {"cpu", "ndr"} & set(extras):
        yield "  pacing: a token bucket on its interface while a load is paced"


def _paced(bed: config.Bed) -> str:
    if bed.paced_pps:
        return f"{bed.paced_pps:,} packets/s"
    shares = [f"{share:.0%}" for share in PACED_SHARES]
    return f"{', '.join(shares[:-1])} and {shares[-1]} of what the slowest step takes"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
