# SPDX-License-Identifier: MIT
"""What the probes cost in a user-mode kernel: its CPU time per packet with and without them.

All in one boot of a native bed under the load of a campaign, in turn: without probes; with
those of a trial, attached but not counting; counting; and with those of a session of
``harness trace``. CPU time is that of the kernel's process, so that what else runs on this
machine counts for less.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import config, kernels, plan
from harness.base.progress import Progress
from harness.beds import native
from harness.campaign import prepare
from harness.trials.counted import Delta
from harness.trials.load import start_load
from harness.trials.readings import Snapshot
from tests.bench import command, ranged, show, spread
from tests.bench.guest import options


@dataclass
class Probes:
    """One way to probe, and what was measured with it."""

    name: str
    measure: Callable[[native.NativeBed, float], dict[str, Any]]
    cost_ns: list[float] = field(default_factory=list)
    pps: list[float] = field(default_factory=list)

    def window(self, bed: native.NativeBed, window_s: float) -> None:
        told = self.measure(bed, window_s)
        bed.probes.trace_detach()
        edges = (Snapshot.model_validate(told[edge]) for edge in ("start", "end"))
        delta = Delta(*edges)
        self.cost_ns.append(delta.cost_ns(0) or 0.0)
        self.pps.append(delta.ip_pps or 0.0)


def unprobed(bed: native.NativeBed, window_s: float) -> dict[str, Any]:
    return bed.dut.window(interface=bed.dut_interface, duration_s=window_s)


def attached(bed: native.NativeBed, window_s: float) -> dict[str, Any]:
    bed.probes.trace_attach(interface=bed.dut_interface)
    return unprobed(bed, window_s)


def counting(bed: native.NativeBed, window_s: float) -> dict[str, Any]:
    bed.probes.trace_attach(interface=bed.dut_interface)
    return bed.trace(window_s, window_s + 60).result()


def session(bed: native.NativeBed, window_s: float) -> dict[str, Any]:
    bed.probes.trace_watch(interface=bed.dut_interface)
    return unprobed(bed, window_s)


def main() -> None:
    chosen = options("native_probe_cost", __doc__, rounds=20, window_s=0.5)
    hosts = config.load(config.locate(chosen.hosts))
    bed = config.bed(hosts, "native")
    [step] = plan.parse_steps(chosen.step)
    ways = [
        Probes("none", unprobed),
        Probes("attached, not counting", attached),
        Probes("all, in a trial", counting),
        Probes("all, in a session", session),
    ]
    with Progress() as progress, tempfile.TemporaryDirectory(prefix="rb-bench-") as kept:
        wanted = kernels.Kernels(kernel=hosts.kernel, names=[step], arch=bed.arch)
        image = wanted.build(progress)[step][0]
        equipment = native.equipment(progress)
        with native.native_bed(bed, image, equipment, Path(kept)) as running:
            prepare.apply_settings(bed, running)
            start_load(bed, hosts.load, running)
            unprobed(running, 2.0)
            for number in range(chosen.rounds):
                with progress.task(f"round {number + 1}/{chosen.rounds}"):
                    for way in ways[number % 4 :] + ways[: number % 4]:
                        way.window(running, chosen.window_s)
    without = ways[0].cost_ns
    more = {
        way.name: [cost - none for cost, none in zip(way.cost_ns, without, strict=True)]
        for way in ways
    }
    result = {
        "bench": chosen.bench,
        "release": image.release,
        "window_s": chosen.window_s,
        "rounds": chosen.rounds,
        "ways": [
            {
                "name": way.name,
                "pps": spread(way.pps),
                "cost_ns": spread(way.cost_ns),
                "more_ns": spread(more[way.name]),
            }
            for way in ways
        ],
    }
    rows = [
        {
            "probes": way.name,
            "packets/s": ranged(way.pps, ",.0f"),
            "CPU time, ns/packet": ranged(way.cost_ns, ".0f"),
            "more than none": ranged(more[way.name], "+.0f") if way is not ways[0] else "",
        }
        for way in ways
    ]
    show(result, rows, as_json=chosen.json)
    if not chosen.json:
        print(
            f"\n{image.release}, {chosen.rounds} windows of {chosen.window_s:g} s each, "
            "interleaved; native, user-mode kernel: not hardware figures"
        )


if __name__ == "__main__":
    command(main)
