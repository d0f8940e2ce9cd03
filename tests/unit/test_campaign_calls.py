# SPDX-License-Identifier: MIT
"""What whole campaigns ask of their hosts, call by call, on beds that are simulated.

The transcripts in ``fixtures/calls-*.txt`` are what was asked, in order: who was asked, the
call, and the arguments that are not the protocol's defaults; lines of the journal and boot.json
stand where they came to disk. A change of what is asked shows as a diff of these files.
``WRITE_CALLS=1 pytest tests/unit/test_campaign_calls.py`` writes them again.
"""

from __future__ import annotations

import difflib
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

from harness.base.errors import HarnessError, HostLostError, KernelError
from harness.cli import cli
from harness.kernels import Image
from harness.report import document
from harness.results import samples
from harness.results.analysis import analyse
from tests.unit.simulated_bed import (
    CYCLES_PER_S,
    INSTRUCTIONS,
    READ_SHARE,
    Clock,
    Kernel,
    SimulatedBoots,
    Transcript,
    round_trip_us,
)

pytestmark = pytest.mark.unit

FIXTURES = Path(__file__).parent / "fixtures"
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
        yield boots
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

    def built(_: Any, steps: list[str], layouts: int, **__: Any) -> dict[str, tuple[Image, ...]]:
        return {
            step: (
                Image(
                    step=step, layout=0, release=f"r{step}", patches=(), source="linux",
                    compiler="gcc", config_sha256="", image_sha256="", directory=tmp_path,
                ),
            )
            for step in steps
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
    monkeypatch.setattr(f"{where}.kernels.layouts", built)
    monkeypatch.setattr(f"{where}.needs.require", lambda _: None)
    return made


def require_as_written(name: str, lines: list[str]) -> None:
    """The transcript is the one that is kept under ``name``."""
    path = FIXTURES / f"calls-{name}.txt"
    if os.environ.get("WRITE_CALLS"):
        path.write_text("".join(f"{line}\n" for line in lines))
    kept = path.read_text().splitlines()
    changed = list(difflib.unified_diff(kept, lines, path.name, "this run", lineterm="", n=2))
    assert not changed, "\n".join([*changed[:60], "WRITE_CALLS=1 writes it again"])


def _all(lab: Lab) -> Result:
    return lab.run("--also", "cpu", "--also", "latency", "--also", "ndr")


def test_machines_are_asked_this(lab: Lab) -> None:
    done = _all(lab)
    assert done.exit_code == 0, done.output
    require_as_written("machines", lab.transcript.lines)


def test_a_virtual_bed_is_asked_this(lab: Lab) -> None:
    extras = [word for extra in ("cpu", "icache", "latency", "ndr") for word in ("--also", extra)]
    done = lab.run("--bed", "virtual", "--profile", "smoke", *extras)
    assert done.exit_code == 0, done.output
    require_as_written("virtual", lab.transcript.lines)


def _once(
    error: Exception, role: str, name: str, nth: int = 1
) -> Callable[[str, str, Callable[[], Any]], Any]:
    """The ``nth`` call of that name goes wrong, and none after it."""
    calls = itertools.count(1)

    def answers(asked: str, call: str, usual: Callable[[], Any]) -> Any:
        if (asked, call) == (role, name) and next(calls) == nth:
            raise error
        return usual()

    return answers


def test_a_host_that_is_lost_and_a_kernel_that_dies_are_asked_this(lab: Lab) -> None:
    lab.kernels["r0"].answers = _once(HostLostError("rx: no answer"), "dut", "window")
    lab.kernels["r8"].answers = _once(KernelError("rx: the kernel died"), "dut", "trace")
    done = lab.run("--profile", "smoke")
    assert isinstance(done.exception, KernelError)
    for words in (["--resume"], ["--resume", "--retry-failed"]):
        done = lab.run(*words)
    assert done.exit_code == 0, done.output
    require_as_written("faults", lab.transcript.lines)


def test_the_figures_are_those_of_the_simulated_kernels(lab: Lab) -> None:
    assert _all(lab).exit_code == 0
    report = lab.report()
    assert report["void"] == []
    assert report["settings_varied"] == []
    assert report["problems"] == []
    for step, pps in STACK_PPS.items():
        row = lab.row(step)
        assert row["timed_trials"] == 3
        assert row["stack_rx_pps"] == pytest.approx(pps, rel=1e-3)
        assert row["delivered_pps"] == pytest.approx(READ_SHARE * pps, rel=1e-3)
        assert row["cpu_ns_per_packet"] == pytest.approx(1e9 / pps, rel=1e-3)
        assert row["traced_stack_rx_pps"] < 0.8 * pps
        found = {name: one["median"] for name, one in row["measures"].items()}
        for share in (10, 50, 90):
            cost_ns = found.pop(f"paced{share}_cpu_ns_per_packet")
            assert cost_ns == pytest.approx(1e9 / pps, rel=1e-3)
        assert found.pop("ndr_pps") == pytest.approx(READ_SHARE * pps, rel=0.03)
        assert found.pop("cycles_per_packet") == pytest.approx(CYCLES_PER_S / pps, rel=1e-3)
        assert found.pop("instructions_per_packet") == pytest.approx(2 * INSTRUCTIONS, rel=1e-3)
        assert found.pop("l1i_misses_per_packet") == pytest.approx(8, rel=1e-3)
        for usecs, moderation in ((60, ""), (0, "no_")):
            for busy_us, polling in ((50, ""), (0, "no_")):
                cell = f"{moderation}moderation_{polling}busy_poll"
                for which in ("mean", "p50", "p90", "p99"):
                    round_us = found.pop(f"rr_{which}_us_{cell}")
                    assert round_us == pytest.approx(round_trip_us(usecs, busy_us))
        assert found == {}


def test_what_the_emulator_counted_is_per_packet_and_by_function(lab: Lab) -> None:
    assert lab.run("--bed", "virtual", "--profile", "smoke", "--also", "icache").exit_code == 0
    row = lab.row("8")
    counted = row["measures"]["emulated_instructions_per_packet"]["median"]
    assert counted == pytest.approx(INSTRUCTIONS, rel=1e-3)
    share = {name: one["instructions"] / counted for name, one in row["functions"].items()}
    assert share == {"function_1": pytest.approx(1 / 3), "function_2": pytest.approx(2 / 3)}
