# SPDX-License-Identifier: MIT
"""``harness build``: build the kernels of a campaign in advance."""

from __future__ import annotations

from pathlib import Path

import click

from harness import config, kernels, needs, plan
from harness.base.progress import Progress
from harness.beds import registry
from harness.commands import bed_option, hosts_option, steps_option, tree_option


@click.command()
@steps_option
@bed_option
@hosts_option
@tree_option
@click.option(
    "--layouts",
    type=click.IntRange(min=1, max=plan.MAX_LAYOUTS),
    help="Layouts of each kernel. Default: those of the profile quick on that bed.",
)
def build(
    steps: str,
    bed_name: str | None,
    hosts_path: Path | None,
    tree: Path | None,
    layouts: int | None,
) -> None:
    """Build the kernels of the given steps and keep them in the cache.

    A kernel is built once for each combination of source, patches, configuration and
    compiler, and linked once for each layout of its functions. Kernels that are already
    in the cache are only listed.
    """
    hosts = config.load(config.locate(hosts_path))
    with Progress() as progress, registry.acquired(config.bed(hosts, bed_name)) as place:
        layouts = layouts or registry.profile("quick", bed_kind=place.bed.kind).layouts
        wanted = kernels.Kernels(
            kernel=hosts.kernel,
            names=plan.parse_steps(steps),
            layouts=layouts,
            tree=tree,
            host=registry.kernel_config(hosts.kernel, place.bed),
            arch=place.bed.arch,
        )
        needs.require(needs.of_kernels(wanted))
        made = wanted.build(progress)
    for step, images in made.items():
        for image in images:
            click.echo(f"step {step}  layout {image.layout}  {image.release}  {image.kernel}")
