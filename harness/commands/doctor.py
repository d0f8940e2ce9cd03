# SPDX-License-Identifier: MIT
"""``harness doctor``: what is missing on a machine, before a run finds it out."""

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
@click.option("--bed", "bed_name", help="Check both machines of this bed.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
@click.option(
    "--flood", is_flag=True, help="Also load the dut for two seconds: is the generator strong?"
)
@hosts_option
def doctor(
    names: tuple[str, ...], bed_name: str | None, form: str, flood: bool, hosts_path: Path | None
) -> None:
    """Check everything a run needs of each HOST, and say the remedy of what fails.

    Without HOST: the machines of the default bed, and the way between them, for which both have
    their test addresses for some seconds; or this machine, if the bed is virtual. With HOST
    nothing is changed. --flood sends at full rate for 2 s, some 10 s with what belongs to it. The
    exit code is 3 if a run cannot do without something that is missing.
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
            take(_HERE, f"{_HERE}, which runs virtual beds", _here(loaded, name))
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
    """Was an agent there, and the interface?"""
    there = {row.check for row in rows if row.ok}
    return {"agent", "interface"} <= there


def _machines(loaded: config.HostsFile, bed_name: str | None) -> list[str]:
    bed = config.bed(loaded, bed_name)
    return [bed.dut_name] if registry.of(bed).here else [bed.dut_name, bed.generator_name]


def _here(loaded: config.HostsFile, name: str) -> Iterator[Finding]:
    """Every check of this machine for a `harness run` on the virtual bed with ``name``."""
    from harness import needs

    of = [bed for bed, entry in loaded.beds.items() if name in (entry.dut, entry.generator)]
    if not of:
        raise ConfigurationError(f"host {name} is in no bed")
    steps = plan.parse_steps("0,2,8")
    layouts = registry.profile("quick").layouts
    yield from needs.examine(
        needs.of_kernels(
            loaded.kernel,
            steps,
            layouts,
            tree=None,
            host=None,
            bed=config.bed(loaded, of[0]),
            together=len(steps),
        )
    )


def _role(loaded: config.HostsFile, name: str) -> tuple[Literal["dut", "generator"], int | None]:
    """What it is in the bed that comes first; a dut needs more."""
    for entry in loaded.beds.values():
        if entry.dut == name:
            return "dut", entry.placement.irq_cpu
    return "generator", None


def _show(row: Finding) -> None:
    sign, colour = ("ok", "green") if row.ok else ("FAIL", "red") if row.needed else ("-", "yellow")
    click.echo(f"  {click.style(f'{sign:<4}', fg=colour)}  {row.check:<22} {harmless(row.detail)}")
    if row.remedy:
        click.echo(f"  {'':<4}  {'':<22} → {harmless(row.remedy)}")
