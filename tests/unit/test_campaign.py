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

from harness import plan
from harness.base.errors import DiedLeavingError, HostLostError, KernelError
from harness.base.progress import Progress
from harness.base.write_ahead import WriteAheadLog
from harness.beds import registry
from harness.beds.access.channel import Pending
from harness.campaign import run as campaign
from harness.config import Load
from harness.results import samples
from harness.trials.timed import TimedTrial
from tests.unit import synthetic
from tests.unit.fake_agent import FakeAgent

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
        self.became: KernelError | None = None
        self.losses: dict[str, int] = {}
        self.takes_along: set[str] = set()
        self.last: str | None = None
        self.dies_leaving: str | None = None

    @contextmanager
    def boot(self, image: Any, _directory: Path, note: Any) -> Iterator[Bed]:
        left, self.last = self.last, image.release
        if left and left == self.dies_leaving:
            self.dies_leaving = self.last = None
            raise DiedLeavingError(f"{left} panicked", left)
        note("leaving", release=image.release)
        self.up.append(image.step)
        try:
            yield Bed(self, image.step)
        finally:
            self.running.discard(image.step)
            self.up.remove(image.step)

    def lost(self, error: HostLostError) -> None:
        if self.became or not (self.losses or isinstance(error, DiedLeavingError)):
            raise self.became or error

    def crashed(self, notes: Any) -> str | None:
        release = notes.get("leaving", {}).get("release")
        return f"{release} took it along" if release in self.takes_along else None


class Bed:
    """A bed that is up: it counts as a synthetic host does, in its turn alone."""

    def __init__(self, machine: Machine, step: str) -> None:
        self.machine, self.step = machine, step
        self.host = synthetic.Host()
        self.left = 0
        self.frozen = False
        self.repeats = False
        self.dut = FakeAgent(
            self.call, opens=self.begin, ready={"release": f"r{step}", "boot_id": None}
        )
        self.probes = self.dut
        self.generator = FakeAgent(self.call)
        self.nic_counters = dict
        self.console = str
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

    def begin(self, name: str, /, *, duration_s: float, **_: Any) -> Pending[Any]:
        if self.machine.losses.get(self.step):
            self.machine.losses[self.step] -= 1
            raise HostLostError("no answer")
        self.left = 0 if name == "trace" else WINDOWS_TAKE
        kind = "trace" if name == "trace" else "timed"
        made = synthetic.trial(self.host, kind, 0, 50_000, duration_s, int(self.step))

        def result() -> Any:
            assert self.left == 0 or not self.frozen, "it waits for a bed that stands still"
            return made[name]

        return Pending(lambda: self.left == 0, result)

    def trace(self, duration_s: float, within_s: float) -> Pending[Any]:
        assert within_s > duration_s
        return self.begin("trace", duration_s=duration_s)

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

    monkeypatch.setattr("time.sleep", lambda _: None)
    return shared


def setup(machine: Machine, bed_kind: Any = "virtual", blocks: int = 2) -> campaign.Setup:
    host = SimpleNamespace(address=IPv4Interface("198.18.0.2/24"))
    placement = SimpleNamespace(irq_cpu=0)
    bed = SimpleNamespace(
        name="bed", dut=host, generator=host, placement=placement, netserver_cpu=0, rx_queues=1,
        steering="auto", tuning=dict,
    )  # fmt: skip
    profile = registry.profile("quick", bed_kind=bed_kind, blocks=blocks)
    return campaign.Setup(
        bed=bed,  # type: ignore[arg-type]
        load=Load(),
        plan=plan.make_plan(["0", "2", "8"], profile, seed=1),
        images={step: (SimpleNamespace(step=step, release=f"r{step}"),) for step in "028"},  # type: ignore[misc]
        boots=machine,  # type: ignore[arg-type]
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
    campaign.run(setup(machine, blocks=1), tmp_path, progress=Progress())
    assert machine.most_at_once == 1
    trials = 4
    ramped, turns = machine.turns[:3], machine.turns[3 : 3 + trials * WINDOWS_TAKE * 3]
    assert sorted(ramped) == ["0", "2", "8"]
    assert {step: turns.count(step) for step in "028"} == dict.fromkeys(
        "028", trials * WINDOWS_TAKE
    )
    # There and back: none is always before another.
    assert turns[:3] == turns[5:2:-1]
    assert machine.up == []


def test_a_kernel_that_dies_leaves_the_others_theirs(machine: Machine, tmp_path: Path) -> None:
    machine.dies["2"] = KernelError("it panicked")
    with pytest.raises(KernelError, match="step 2: it panicked"):
        campaign.run(setup(machine), tmp_path, progress=Progress())
    assert outcomes(tmp_path) == {"0": ["ok"] * 2, "8": ["ok"] * 2, "2": ["failed"]}
    for path in tmp_path.glob("boots/*-s[08]/boot.json"):
        assert all(
            trial.window
            for trial in samples.read_boot(path).trials
            if isinstance(trial, TimedTrial)
        )
    assert machine.up == []


def test_a_host_that_is_lost_ends_the_campaign_and_keeps_its_blocks(
    machine: Machine, tmp_path: Path
) -> None:
    campaign.run(setup(machine, blocks=1), tmp_path, progress=Progress())
    machine.dies["8"] = HostLostError("gone")
    with pytest.raises(HostLostError, match="gone"):
        campaign.run(setup(machine, blocks=2), tmp_path, progress=Progress())
    assert outcomes(tmp_path) == {"0": ["ok"], "2": ["ok"], "8": ["ok", "failed"]}
    assert machine.up == []
    machine.dies.clear()
    campaign.run(setup(machine, blocks=2), tmp_path, progress=Progress())
    assert outcomes(tmp_path) == dict.fromkeys("028", ["ok"] * 2)


def test_boots_say_with_whom_they_took_turns(machine: Machine, tmp_path: Path) -> None:
    campaign.run(setup(machine), tmp_path, progress=Progress())
    [again] = tmp_path.glob("boots/b02-*-s8/boot.json")
    again.unlink()
    campaign.run(setup(machine), tmp_path, progress=Progress())
    boots = [samples.read_boot(path) for path in tmp_path.glob("boots/*/boot.json")]
    turns = {(boot.block, boot.step): boot.turns for boot in boots}
    assert turns[1, "0"] == turns[1, "2"] == turns[1, "8"] != None  # noqa: E711
    assert turns[2, "0"] == turns[2, "2"] not in (None, turns[1, "0"])
    assert turns[2, "8"] is None  # it was measured again, alone


def test_a_trial_is_lost_with_the_line_to_a_machine_and_the_campaign_is_not(
    machine: Machine, tmp_path: Path
) -> None:
    machine.losses = {"2": 2}
    campaign.run(setup(machine, "hardware", blocks=1), tmp_path, progress=Progress())
    assert outcomes(tmp_path) == {step: ["ok"] for step in "028"}
    machine.losses = {"2": 99}
    with pytest.raises(HostLostError):
        campaign.run(setup(machine, "hardware", blocks=2), tmp_path, progress=Progress())


def test_a_step_that_took_its_host_along_is_booted_again_only_when_asked(
    machine: Machine, tmp_path: Path
) -> None:
    machine.losses, machine.became = {"2": 1}, KernelError("r2 is gone")
    hardware = setup(machine, "hardware")
    for _ in range(2):
        with pytest.raises(KernelError, match="step 2: r2 is gone"):
            campaign.run(hardware, tmp_path, progress=Progress())
        assert outcomes(tmp_path) == {"0": ["ok"] * 2, "8": ["ok"] * 2, "2": ["failed"]}
    campaign.run(hardware, tmp_path, progress=Progress(), retry_failed=True)
    assert outcomes(tmp_path) == dict.fromkeys("028", ["ok"] * 2)


def test_a_kernel_that_dies_when_left_is_not_booted_again_and_the_next_is(
    machine: Machine, tmp_path: Path
) -> None:
    machine.dies_leaving = "r2"
    hardware = setup(machine, "hardware")
    for _ in range(2):
        with pytest.raises(KernelError, match="step 2: r2 panicked"):
            campaign.run(hardware, tmp_path, progress=Progress())
        found = outcomes(tmp_path)
        assert set(found.pop("2")) == {"failed"}
        assert found == {"0": ["ok"] * 2, "8": ["ok"] * 2}
    campaign.run(hardware, tmp_path, progress=Progress(), retry_failed=True)
    assert outcomes(tmp_path) == dict.fromkeys("028", ["ok"] * 2)


@pytest.mark.parametrize("guilty", [True, False])
def test_what_a_killed_harness_left_is_looked_at_before_it_is_repeated(
    machine: Machine, tmp_path: Path, guilty: bool
) -> None:
    hardware = setup(machine, "hardware", blocks=1)
    first = next(hardware.plan.boots())
    journal = WriteAheadLog(tmp_path)
    journal.note(first.directory, "begin")
    journal.note(first.directory, "leaving", release=f"r{first.step}")
    machine.takes_along = {f"r{first.step}"} if guilty else set()
    if guilty:
        with pytest.raises(KernelError, match="took it along"):
            campaign.run(hardware, tmp_path, progress=Progress())
        assert outcomes(tmp_path)[first.step] == ["failed"]
    else:
        campaign.run(hardware, tmp_path, progress=Progress())
        assert outcomes(tmp_path) == {step: ["ok"] for step in "028"}
    assert journal.unfinished() == {}


def test_a_journal_cut_short_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    journal = WriteAheadLog(tmp_path)
    journal.note("b01", "begin")
    journal.note("b01", "up", boot_id="x")
    journal.path.write_text(journal.path.read_text() + '{"boot": "b01", "ev')
    assert journal.unfinished()["b01"]["up"]["boot_id"] == "x"
    journal.note("b01", "end")
    assert journal.unfinished() == {}
