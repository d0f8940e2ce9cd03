# SPDX-License-Identifier: MIT
"""``harness run`` as a user calls it, where kernels and beds are simulated."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from harness.base.errors import HarnessError
from harness.cli import cli
from harness.kernels import Image, Kernels
from harness.report import document
from harness.results import samples
from harness.results.analysis import analyse
from tests.unit.simulated_bed import SimulatedBoots, Transcript
from tests.unit.simulated_hosts import Clock, Kernel

HOSTS = """\
version: 1
default_bed: rack
load: {test: UDP_STREAM, streams: 4, message_bytes: 1}
beds:
  rack:
    dut: rx
    generator: tx
    placement: {irq_cpu: 2, netserver_cpu: 4, netperf_cpus: [0, 6]}
    rx_queues: 1
    rx_ring: 1024
    offloads: {gro: true, lro: false}
    coalesce: {adaptive_rx: false, rx_usecs: 60}
    irqbalance: off
    governor: performance
  virtual:
    dut: guest
    generator: wire
    placement: {irq_cpu: 0, netserver_cpu: same}
    coalesce: {adaptive_rx: false, rx_usecs: 60}
hosts:
  rx: {kind: ssh, hostname: rx.lab, interface: eth1, address: 198.18.0.2/24}
  tx: {kind: ssh, hostname: tx.lab, interface: eth7, address: 198.18.0.1/24}
  guest: {kind: qemu, address: 198.18.0.2/24}
  wire: {kind: netns, address: 198.18.0.1/24}
"""
STACK_PPS = {"0": 200_000.0, "8": 240_000.0}
"""What each step takes on the simulated dut."""


@dataclass
class Lab:
    """Where ``harness run`` finds kernels and beds, both simulated."""

    root: Path
    clock: Clock = field(default_factory=Clock)
    boots: dict[str, SimulatedBoots] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.transcript = Transcript(self.clock)
        self.transcript.directory = self.out = self.root / "out"
        self.hosts = self.root / "hosts.yaml"
        self.hosts.write_text(HOSTS)
        self.kernels = {
            f"r{step}": Kernel(f"r{step}", pps, int(step)) for step, pps in STACK_PPS.items()
        }

    def run(self, *words: str) -> Result:
        """``harness run`` of steps 0 and 8, one block, always in the same order."""
        given = ["run", "--hosts", str(self.hosts), "--out", str(self.out)]
        if "--resume" not in words:
            given += ["--steps", "0,8", "--blocks", "1", "--seed", "3"]
        done = CliRunner().invoke(cli, [*given, *words])
        self.transcript.add("", f"exit: {type(done.exception).__name__}")
        if done.exception and not isinstance(done.exception, HarnessError | SystemExit):
            raise done.exception
        return done

    @contextmanager
    def opened(self, place: Any, *_: Any, **__: Any) -> Iterator[SimulatedBoots]:
        name = place.bed.name
        boots = SimulatedBoots(self.clock, self.transcript, machines=name == "rack")
        boots.kernels = self.kernels
        self.boots[name] = boots
        try:
            yield boots
        finally:
            boots.close()

    @property
    def bed(self) -> SimulatedBoots:
        """The one that was opened last."""
        return [*self.boots.values()][-1]

    def calls(self, *names: str) -> list[str]:
        """The lines of these calls."""
        return [line for line in self.transcript.lines if line[14:].partition(" ")[0] in names]

    def boot(self, step: str) -> samples.Boot:
        [path] = self.out.glob(f"boots/*-s{step}/boot.json")
        return samples.read_boot(path)

    def report(self) -> dict[str, Any]:
        return document(analyse(samples.ResultDirectory.open(self.out)))

    def row(self, step: str) -> dict[str, Any]:
        return next(row for row in self.report()["rows"] if row["step"] == step)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab(tmp_path)

    def built(wanted: Kernels, _: Any) -> dict[str, tuple[Image, ...]]:
        return {
            step: (
                Image(
                    step=step, layout=0, release=f"r{step}", patches=(), source="linux",
                    compiler="gcc", config_sha256="", image_sha256="", directory=tmp_path,
                ),
            )
            for step in wanted.names
        }  # fmt: skip

    on_disk = os.fsync

    def fsync(handle: int) -> None:
        on_disk(handle)
        made.transcript.look()

    monkeypatch.setattr("time.sleep", made.clock.sleep)
    monkeypatch.setattr("time.monotonic", made.clock.monotonic)
    monkeypatch.setattr("os.fsync", fsync)
    where = "harness.commands.run"
    place = lambda bed: nullcontext(SimpleNamespace(bed=bed))  # noqa: E731
    monkeypatch.setattr(f"{where}.registry.acquired", place)
    monkeypatch.setattr(f"{where}.registry.opened", made.opened)
    monkeypatch.setattr(f"{where}.registry.kernel_config", lambda *_, **__: None)
    monkeypatch.setattr(f"{where}.registry.made_meanwhile", lambda *_: nullcontext())
    monkeypatch.setattr(Kernels, "build", built)
    monkeypatch.setattr(f"{where}.needs.require", lambda _: None)
    return made


def fails_once(
    error: Exception, role: str, name: str, nth: int = 1
) -> Callable[[str, str, Callable[[], Any]], Any]:
    """The ``nth`` call of that name goes wrong, and none after it."""
    calls = itertools.count(1)

    def answers(asked: str, call: str, usual: Callable[[], Any]) -> Any:
        if (asked, call) == (role, name) and next(calls) == nth:
            raise error
        return usual()

    return answers
