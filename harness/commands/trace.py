# SPDX-License-Identifier: MIT
"""``harness trace``: show list lengths on a live host."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness import config, plan, tracing
from harness.base.errors import ConfigurationError
from harness.beds import registry
from harness.beds.access.channel import RemoteAgent
from harness.beds.access.ssh import SshTarget
from harness.campaign.session import opened
from harness.commands import Seconds, hosts_option
from harness.commands.load import beds_for

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_LONGEST_S = 7 * 86400
_WIDTH = 120
_BARS = 22
_BLOCKS = " ▁▂▃▄▅▆▇█"
_DROPS = 6


@click.command()
@click.argument("host", required=False)
@click.option(
    "--step", default="8", show_default=True, help="Step to boot on a virtual or native host."
)
@click.option("--idle", is_flag=True, help="Send no load to a virtual or native host.")
@click.option("--interface", help="Interface to watch. Default: the one in hosts.yaml.")
@click.option(
    "--duration",
    "duration_s",
    type=Seconds(min=0.1, max=_LONGEST_S),
    help="Seconds to watch. Default: until Ctrl-C.",
)
@click.option(
    "--interval",
    "interval_s",
    type=Seconds(min=0.1, max=3600),
    default=1.0,
    show_default=True,
    help="Seconds between readings.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one line of JSON about the probes, then one for each reading.",
)
@hosts_option
def trace(
    host: str | None,
    step: str,
    idle: bool,
    interface: str | None,
    duration_s: float | None,
    interval_s: float,
    as_json: bool,
    hosts_path: Path | None,
) -> None:
    """Show the lengths of packet lists on HOST, stage by stage, while packets arrive.

    Also shows where and why lists are split, and what removes packets from them.

    \b
    harness trace                        the default bed's guest, step 8, under load
    harness trace --step 2 --idle        after patch 2, with no load but your own
    harness trace process                a user-mode kernel
    harness trace lab1 --interface eth2  a machine of kind ssh, as it is

    A virtual or native host is booted only for the session. On a machine of kind ssh the probes are
    attached, and detached when the session ends; nothing else is changed.
    """
    hosts = config.load(config.locate(hosts_path))
    name = config.bed(hosts, None).dut_name if host is None else host
    target = config.host(hosts, name)
    wanted = plan.parse_step(step)
    with contextlib.ExitStack() as up:
        if not target.bed_kind:
            raise ConfigurationError(f"{name} is a generator: it receives nothing to trace")
        kind = registry.KINDS[target.bed_kind]
        if kind.here:
            bed = _bed_of(hosts, name)
            [bed] = beds_for(hosts.load, [bed])
            session = up.enter_context(opened(hosts, bed, [wanted]))
            [running] = up.enter_context(session.up([wanted], idle=idle)).values()
            agent, found = running.probes, running.dut_interface
        else:
            machine = config.machine(hosts, name)
            agent, found = up.enter_context(_machine(name, machine)), machine.interface
        probes = tracing.begin(agent, found if interface is None else interface)
        up.callback(tracing.end, agent)
        show = _lines(name, probes) if as_json else up.enter_context(_screen(name, probes))
        try:
            for reading in tracing.readings(agent, interval_s=interval_s, duration_s=duration_s):
                show(reading)
        except KeyboardInterrupt:
            if duration_s is not None:  # without a duration, Ctrl-C is the normal end
                raise


def _bed_of(hosts: config.HostsFile, name: str) -> config.Bed:
    """A bed whose dut is the host ``name``."""
    named = [bed for bed, entry in hosts.beds.items() if entry.dut == name]
    if not named:
        raise ConfigurationError(
            f"host {name} is not the dut of any bed",
            hint="add a bed with it and a generator to hosts.yaml",
        )
    return config.bed(hosts, named[0])


@contextlib.contextmanager
def _machine(name: str, host: config.SshHost) -> Iterator[RemoteAgent]:
    """The agent on a machine; when it ends, it detaches all probes."""
    target = SshTarget.of(host)
    with tempfile.TemporaryDirectory(prefix="rb-trace-") as scratch:
        agent = target.start_agent(host=name, log=Path(scratch) / "agent.log")
        try:
            yield agent
        finally:
            agent.close()


def _lines(name: str, probes: list[tracing.Probe]) -> Callable[[tracing.Reading], None]:
    click.echo(json.dumps(tracing.header(name, probes)))
    return lambda reading: click.echo(json.dumps(reading.record()))


@contextlib.contextmanager
def _screen(name: str, probes: list[tracing.Probe]) -> Iterator[Callable[[tracing.Reading], None]]:
    """A table, redrawn in place on a terminal, and printed once at the end elsewhere."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    for probe in probes:
        how = f"attached by {probe.attach}" if probe.attach else f"not attached: {probe.why}"
        console.print(f"{probe.name}: {how}", markup=False, highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        yield lambda reading: live.update(_tables(name, reading), refresh=console.is_terminal)
    if not console.is_terminal:
        console.print()


def _tables(name: str, reading: tracing.Reading) -> Group:
    from rich.console import Group

    shown = [_stages(name, reading)]
    if reading.splits:
        shown.append(_splits(reading.splits))
    if reading.drops:
        shown.append(_drops(reading.drops))
    return Group(*shown)


def _stages(name: str, reading: tracing.Reading) -> Table:
    from rich.table import Table

    shown = Table(
        title=f"{name}: {reading.elapsed_s:.0f} s, {reading.packets:,} packets, "
        f"{reading.pps:,.0f} packets/s now" + f", {reading.missed} missed" * bool(reading.missed),
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    shown.add_column("stage", no_wrap=True)
    for column, width in (("lists", 9), ("packets", 11), ("mean", 5)):
        shown.add_column(column, justify="right", no_wrap=True, min_width=width)
    shown.add_column("lengths 1 … 64, >64", no_wrap=True, min_width=_BARS)
    shown.add_column("CPU", no_wrap=True)
    shown.add_column("queue", no_wrap=True)
    for stage in reading.stages:
        lists = sum(stage.lengths[1:]) + stage.overflow
        shown.add_row(
            stage.name,
            f"{lists:,}",
            f"{stage.packets:,}",
            f"{stage.packets / lists:.1f}" if lists else "—",
            _histogram([*stage.lengths[1:], stage.overflow]),
            _shares(stage.by_cpu),
            _shares(stage.by_queue),
        )
    for function, packets in reading.per_skb.items():
        shown.add_row(function, "", f"{packets:,}", "", "one by one", "", "")
    return shown


def _splits(splits: tuple[tracing.Split, ...]) -> Table:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    shown.add_column("\nsplit in", no_wrap=True)
    for column, width in (("lists", 9), ("into", 11)):
        shown.add_column(f"\n{column}", justify="right", no_wrap=True, min_width=width)
    shown.add_column("\nwhy (times)", min_width=_BARS)
    shown.add_column("\nremoved", justify="right", no_wrap=True)
    shown.add_column("\nby")
    for split in splits:
        shown.add_row(
            split.at,
            f"{split.lists:,}",
            f"{split.sublists:,}",
            ", ".join(f"{reason} ({times:,})" for reason, times in split.why.items()) or "—",
            f"{split.taken:,}",
            split.taken_by if split.taken else "",
        )
    return shown


def _drops(drops: tuple[tracing.Drop, ...]) -> Table:
    from rich.table import Table

    shown = Table(box=None, pad_edge=False)
    for column in ("dropped in", "packets", "reason"):
        shown.add_column(f"\n{column}", justify="right" if column == "packets" else "left")
    for drop in drops[:_DROPS]:
        shown.add_row(drop.function, f"{drop.packets:,}", drop.reason)
    return shown


def _shares(packets_by: dict[str, int]) -> str:
    if len(packets_by) < 2:
        return "".join(packets_by)
    total = sum(packets_by.values()) or 1
    return ", ".join(f"{key}: {packets / total:.0%}" for key, packets in packets_by.items())


def _histogram(counts: list[int], width: int = _BARS) -> str:
    """A bar for each group of neighbouring lengths, scaled to the highest group."""
    each = -(-len(counts) // width)
    sums = [sum(counts[start : start + each]) for start in range(0, len(counts), each)]
    highest = max(sums)
    if not highest:
        return ""
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[-(-count * steps // highest)] for count in sums)
