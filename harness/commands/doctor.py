# SPDX-License-Identifier: MIT
"""``harness doctor``: what is missing on a machine, before a run finds it out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from harness import config
from harness.commands import hosts_option
from harness.errors import ConfigurationError, InfrastructureError
from harness.process import harmless

_BOTH = 2

if TYPE_CHECKING:
    from harness.hosts.doctor import Finding


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
    their test addresses for some seconds. With HOST nothing is changed. --flood sends at full
    rate for 2 s, some 10 s with what belongs to it. The exit code is 3 if a run cannot do
    without something that is missing.
    """
    from harness.hosts.doctor import examine

    loaded = config.load(config.locate(hosts_path))
    chosen = names or _machines(loaded, bed_name)
    found: dict[str, list[Finding]] = {}
    for name in chosen:
        host = config.host(loaded, name)
        if not isinstance(host, config.SshHost):
            raise ConfigurationError(
                f"host {name} is of kind {host.kind}: only machines of kind ssh are checked"
            )
        role, irq_cpu = _role(loaded, name)
        rows = found[name] = []
        if form == "table":
            click.secho(f"{name} ({role}, {host.hostname})", bold=True)
        for row in examine(name, host, role=role, irq_cpu=irq_cpu):
            rows.append(row)
            if form == "table":
                _show(row)
    if not names and len(chosen) == _BOTH and all(_reached(rows) for rows in found.values()):
        from harness.hosts import between

        bed = config.bed(loaded, bed_name)
        rows = found[f"bed {bed.name}"] = []
        if form == "table":
            click.secho(f"bed {bed.name}, from {bed.generator_name} to {bed.dut_name}", bold=True)
        for row in between.examine(bed, loaded.load, flood=flood):
            rows.append(row)
            if form == "table":
                _show(row)
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
    of = ((bed.dut_name, bed.dut), (bed.generator_name, bed.generator))
    names = [name for name, host in of if isinstance(host, config.SshHost)]
    if not names:
        raise ConfigurationError(
            f"bed {bed.name} is of no machines", hint="name a host of kind ssh, or a --bed"
        )
    return names


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
