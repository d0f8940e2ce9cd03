# SPDX-License-Identifier: MIT
"""How boots share a machine; the beds are stand-ins, real ones run in the guest tier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import campaign, plan, samples
from harness.config import Load
from harness.errors import HostLostError, KernelError
from harness.hosts.channel import Pending
from harness.progress import Progress
from tests.unit import synthetic

WINDOWS_TAKE = 3
"""Turns until a window is over."""


class Machine:
    """Whose turn it was, and what happens to whom."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.turns: list[str] = []
        self.most_at_once = 0
        self.dies: dict[str, Exception] = {}
        self.up: list[str] = []


class Bed:
    """A bed that is up: it counts as a synthetic host does, in its turn alone."""

    def __init__(self, machine: Machine, step: str) -> None:
        self.machine, self.step = machine, step
        self.host = synthetic.Host()
        self.left = 0
        self.frozen = False
        self.dut = SimpleNamespace(
            call=self.call, begin=self.begin, ready={"release": f"r{step}", "boot_id": None}
        )
        self.generator = SimpleNamespace(call=self.call)
        self.nic = SimpleNamespace(counters=dict)
        self.guest = SimpleNamespace(console=str)
        self.dut_interface = self.generator_interface = "eth1"
        self.dut_mac = self.generator_mac = "02:00:00:00:00:01"
        self.netperf_prefix: list[str] = []
        self.netperf_cpus = [1]
        self.netperf_nice = 0
        self.placed: dict[str, Any] = {}

    def call(self, name: str, /, **_: Any) -> Any:
        if name == "inventory":
            return {"versions": {"netserver": "2.7.1", "netperf": "2.7.1"}}
        if name == "counters":
            self.host.run(1.0, synthetic.Flow(packets=50_000))
            return self.host.snapshot()
        if name == "netperf_sending":
            return {"streams": Load().streams}
        return [] if name == "netperf_wait" else {}

    def begin(self, name: str, /, *, duration_s: float, **_: Any) -> Pending:
        self.left = 0 if name == "trace" else WINDOWS_TAKE
        kind = "trace" if name == "trace" else "timed"
        made = synthetic.trial(self.host, kind, 0, 50_000, duration_s, int(self.step))

        def result() -> Any:
            assert self.left == 0 or not self.frozen, "it waits for a bed that stands still"
            return made[name]

        return Pending(lambda: self.left == 0, result)

    def freeze(self) -> None:
        self.frozen = True
        self.machine.running.discard(self.step)

    def thaw(self) -> None:
        self.frozen = False
        self.machine.running.add(self.step)
        self.machine.turns.append(self.step)
        if self.left:
            self.left -= 1
            self.machine.most_at_once = max(self.machine.most_at_once, len(self.machine.running))
        if self.step in self.machine.dies and len(self.machine.turns) > 4:
            raise self.machine.dies[self.step]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    shared = Machine()

    @contextmanager
    def bed(_bed: Any, image: Any, *_: Any) -> Iterator[Bed]:
        shared.up.append(image.step)
        try:
            yield Bed(shared, image.step)
        finally:
            shared.running.discard(image.step)
            shared.up.remove(image.step)

    monkeypatch.setattr(campaign, "virtual_bed", bed)
    monkeypatch.setattr("time.sleep", lambda _: None)
    return shared


def setup(bed_kind: Any = "virtual", blocks: int = 2) -> campaign.Setup:
    host = SimpleNamespace(address=IPv4Interface("198.18.0.2/24"))
    placement = SimpleNamespace(irq_cpu=0)
    bed = SimpleNamespace(
        dut=host, generator=host, placement=placement, netserver_cpu=0, rx_queues=1,
        coalesce=None, irqbalance=None, governor=None,
    )  # fmt: skip
    profile = plan.profile("quick", bed_kind=bed_kind, blocks=blocks)
    return campaign.Setup(
        bed=bed,  # type: ignore[arg-type]
        load=Load(),
        plan=plan.make_plan(["0", "2", "8"], profile, seed=1),
        images={step: (SimpleNamespace(step=step, release=f"r{step}"),) for step in "028"},  # type: ignore[misc]
        equipment=None,  # type: ignore[arg-type]
    )


def outcomes(root: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(root.glob("boots/*/boot.json")):
        boot = samples.read_boot(path)
        found.setdefault(boot.step, []).append(boot.outcome)
    return found


def test_boots_of_a_block_take_equal_turns_and_one_at_a_time(
    machine: Machine, tmp_path: Path
) -> None:
    campaign.run(setup(blocks=1), tmp_path, progress=Progress())
    assert machine.most_at_once == 1
    trials = 4
    turns = machine.turns[: trials * WINDOWS_TAKE * 3]
    assert {step: turns.count(step) for step in "028"} == dict.fromkeys(
        "028", trials * WINDOWS_TAKE
    )
    # There and back: none is always before another.
    assert turns[:3] == turns[5:2:-1]
    assert machine.up == []


def test_a_kernel_that_dies_leaves_the_others_theirs(machine: Machine, tmp_path: Path) -> None:
    machine.dies["2"] = KernelError("it panicked")
    with pytest.raises(KernelError, match="step 2: it panicked"):
        campaign.run(setup(), tmp_path, progress=Progress())
    assert outcomes(tmp_path) == {"0": ["ok"] * 2, "8": ["ok"] * 2, "2": ["failed"]}
    for path in tmp_path.glob("boots/*-s[08]/boot.json"):
        assert all(
            trial.window for trial in samples.read_boot(path).trials if trial.kind != "trace"
        )
    assert machine.up == []


def test_a_host_that_is_lost_ends_the_campaign_and_keeps_its_blocks(
    machine: Machine, tmp_path: Path
) -> None:
    campaign.run(setup(blocks=1), tmp_path, progress=Progress())
    machine.dies["8"] = HostLostError("gone")
    with pytest.raises(HostLostError, match="gone"):
        campaign.run(setup(blocks=2), tmp_path, progress=Progress())
    assert outcomes(tmp_path) == {"0": ["ok"], "2": ["ok"], "8": ["ok", "failed"]}
    assert machine.up == []
    machine.dies.clear()
    campaign.run(setup(blocks=2), tmp_path, progress=Progress())
    assert outcomes(tmp_path) == dict.fromkeys("028", ["ok"] * 2)


def test_boots_say_with_whom_they_took_turns(machine: Machine, tmp_path: Path) -> None:
    campaign.run(setup(), tmp_path, progress=Progress())
    [again] = tmp_path.glob("boots/b02-*-s8/boot.json")
    again.unlink()
    campaign.run(setup(), tmp_path, progress=Progress())
    boots = [samples.read_boot(path) for path in tmp_path.glob("boots/*/boot.json")]
    turns = {(boot.block, boot.step): boot.turns for boot in boots}
    assert turns[1, "0"] == turns[1, "2"] == turns[1, "8"] != None  # noqa: E711
    assert turns[2, "0"] == turns[2, "2"] not in (None, turns[1, "0"])
    assert turns[2, "8"] is None  # it was measured again, alone
