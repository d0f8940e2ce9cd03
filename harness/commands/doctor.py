# SPDX-License-Identifier: MIT
"""``harness doctor``: report what a machine lacks before a run does."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from harness import config, plan
from harness.base.errors import ConfigurationError, InfrastructureError
from harness.base.process import harmless
from harness.beds import registry
from harness.commands import hosts_option

_BOTH = 2

if TYPE_CHECKING:
    from harness.beds.machine.doctor import Finding

_HERE = "this machine"


@click.command()
@click.argument("names", metavar="[HOST]...", nargs=-1)
@click.option("--bed", "bed_name", help="Check both hosts of this bed.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
@click.option(
    "--flood",
    is_flag=True,
    help="Also send at full rate for two seconds: is the generator fast enough?",
)
@hosts_option
def doctor(
    names: tuple[str, ...], bed_name: str | None, form: str, flood: bool, hosts_path: Path | None
) -> None:
    """Check everything a run needs of each HOST, and print a remedy for each failed check.

    Without HOST it checks the machines of the default bed and the path between them; for
    that, both have their test addresses for some seconds. If the bed is virtual or native,
    it checks this machine. With HOST nothing is changed. --flood takes about 10 s. The exit
    code is 3 if something is missing that a run needs.
    """
    from harness.beds.machine.doctor import examine

    loaded = config.load(config.locate(hosts_path))
    chosen = names or _machines(loaded, bed_name)
    found: dict[str, list[Finding]] = {}

    def take(name: str, title: str, rows: Iterable[Finding]) -> None:
        found[name] = []
        if form == "table":
            click.secho(title, bold=True)
        for row in rows:
            found[name].append(row)
            if form == "table":
                _show(row)

    for name in chosen:
        if config.host(loaded, name).bed_kind == "hardware":
            host = config.machine(loaded, name)
            role, irq_cpu = _role(loaded, name)
            rows = examine(name, host, role=role, irq_cpu=irq_cpu)
            take(name, f"{name} ({role}, {host.hostname})", rows)
        elif _HERE not in found:
            take(_HERE, f"{_HERE}, which runs the bed", _here(loaded, name))
    if not names and len(chosen) == _BOTH and all(_reached(rows) for rows in found.values()):
        from harness.beds.machine import between

        bed = config.bed(loaded, bed_name)
        title = f"bed {bed.name}, from {bed.generator_name} to {bed.dut_name}"
        take(f"bed {bed.name}", title, between.examine(bed, loaded.load, flood=flood))
    if form == "json":
        click.echo(
            json.dumps({n: [asdict(r) for r in rows] for n, rows in found.items()}, indent=2)
        )
    lacking = {n: [r.check for r in rows if r.needed and not r.ok] for n, rows in found.items()}
    if any(lacking.values()):
        raise InfrastructureError(
            "; ".join(f"{name} lacks: {', '.join(what)}" for name, what in lacking.items() if what)
        )


def _reached(rows: list[Finding]) -> bool:
    """Did the agent start, and does the interface exist?"""
    there = {row.check for row in rows if row.ok}
    return {"agent", "interface"} <= there


def _machines(loaded: config.HostsFile, bed_name: str | None) -> list[str]:
    bed = config.bed(loaded, bed_name)
    return [bed.dut_name] if registry.of(bed).here else [bed.dut_name, bed.generator_name]


def _here(loaded: config.HostsFile, name: str) -> Iterator[Finding]:
    """Every check of this machine for `harness run` on the bed of host ``name``."""
    from harness import kernels, needs

    of = [bed for bed, entry in loaded.beds.items() if name in (entry.dut, entry.generator)]
    if not of:
        raise ConfigurationError(f"host {name} is not in any bed")
    bed = registry.possible(config.bed(loaded, of[0]))
    steps = plan.parse_steps(plan.DEFAULT_STEPS)
    layouts = registry.profile("quick", bed_kind=bed.kind).layouts
    yield from needs.examine(
        needs.of_kernels(
            kernels.Kernels(kernel=loaded.kernel, names=steps, layouts=layouts, arch=bed.arch),
            bed=bed,
            together=len(steps),
        )
    )


def _role(loaded: config.HostsFile, name: str) -> tuple[Literal["dut", "generator"], int | None]:
    """Its role, and as a dut the CPU of the interrupt; a dut needs more than a generator."""
    for entry in loaded.beds.values():
        if entry.dut == name:
            return "dut", entry.placement.irq_cpu
    return "generator", None


def _show(row: Finding) -> None:
    sign, colour = ("ok", "green") if row.ok else ("FAIL", "red") if row.needed else ("-", "yellow")
    click.echo(f"  {click.style(f'{sign:<4}', fg=colour)}  {row.check:<22} {harmless(row.detail)}")
    if row.remedy:
        click.echo(f"  {'':<4}  {'':<22} → {harmless(row.remedy)}")
