# SPDX-License-Identifier: MIT
"""The option ``--vary``: factors that are not code, crossed with the variants in each block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from harness import config, needs, vary
from harness.base.errors import ConfigurationError
from harness.plan import Plan
from harness.vary import KEYS, Varied


def _complete(
    _context: click.Context, _option: click.Parameter, begun: str
) -> list[CompletionItem]:
    return [
        CompletionItem(f"{key}=", help=of.about)
        for key, of in KEYS.items()
        if key.startswith(begun)
    ]


vary_option = click.option(
    "--vary",
    "vary_texts",
    multiple=True,
    metavar="KEY=LEVEL,…",
    shell_complete=_complete,
    help="Boot each step at each level of KEY, such as burst=1,8,64 or gro=on,off; KEY is a "
    "setting of a bed in hosts.yaml, burst, rx_queues, cmdline or config. Can be repeated.",
)


def varied(
    texts: Sequence[str], hosts: config.HostsFile, beds: Sequence[config.Bed], *, aa: bool = False
) -> Varied:
    """The factors that a user named.

    Raises:
        ConfigurationError: names the option, key, level and the fix.
    """
    if not texts:
        return Varied()
    context = click.get_current_context()
    if aa and context.get_parameter_source("aa") is ParameterSource.COMMANDLINE:
        raise ConfigurationError(
            "--vary and --aa exclude each other",
            hint="--aa measures the noise of a bed; change its hosts.yaml to measure it elsewhere",
        )
    return vary.read(texts, hosts, beds[0])


def lines(plan: Plan, varied: Varied, bed: config.Bed) -> Iterator[str]:
    """What varied factors add to the text of ``harness plan``."""
    if not plan.factors:
        return
    told = [f"{key} {', '.join(levels)}" for key, levels in plan.factors.items()]
    yield f"varied in each block: {' × '.join(told)}; each cell is a boot of its own"
    yield (
        "also compared, for each factor: the gain of each step at the other levels with that at "
        "the first, and the baseline at the other levels with itself at the first"
    )
    yield from vary.confounded(varied, bed)
    if bed.guest_mib:
        together = max(map(len, plan.groups()))
        needs.require_memory(together * bed.guest_mib)
        yield f"memory: {together} boots at once × {bed.guest_mib} MiB"
