# SPDX-License-Identifier: MIT
"""Paced loads are shares of what the receiver takes, the same for all boots of a block."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness import config, plan
from harness.base.errors import ConfigurationError
from harness.base.progress import Progress
from harness.beds import registry
from harness.beds.access.channel import Pending
from harness.campaign import pacing
from harness.campaign import run as campaign
from harness.commands.plan import plan as plan_command
from harness.report import document, render
from harness.results import samples
from harness.results.analysis import analyse
from harness.results.expect import parse, require_measured, require_paced
from harness.results.samples import ResultDirectory
from harness.trials.block import Taken
from harness.trials.paced import PacedTrial
from harness.trials.timed import TimedTrial
from tests.unit.synthetic import Host, make_campaign, trial
from tests.unit.test_campaign import WINDOWS_TAKE, Bed, Machine, setup

pytestmark = pytest.mark.unit

Json = dict[str, Any]
STEPS = ("0", "8")


def _timed(pps: float, *, idle: float = 0.0, **more: Any) -> TimedTrial:
    made = trial(Host(), "timed", 0, pps, 4.0, 0)
    made["window"]["end"]["cpu"][0]["idle_ns"] = round(idle * 4e9)
    return TimedTrial.model_validate(made | more)


def test_what_a_boot_takes_is_told_by_its_saturated_trials() -> None:
    warmup = TimedTrial.model_validate(trial(Host(), "warmup", 0, 900_000, 1.0, 0))
    void = _timed(900_000, void=[{"rule": "no-load", "detail": ""}])
    idle = _timed(90_000, idle=0.5)
    trials = [warmup, void, idle, _timed(200_000), _timed(210_000), _timed(220_000)]
    found = pacing.taken(trials, 0)
    assert found == Taken(_about(210_000, rel=1e-3), True)
    assert found.paced(0.5) == pytest.approx(105_000, rel=1e-3)
    assert pacing.taken([warmup, void], 0) is None


def test_where_none_was_saturated_the_loads_own_rate_is_taken_and_said() -> None:
    found = pacing.taken([_timed(90_000, idle=0.5), _timed(100_000, idle=0.5)], 0)
    assert found == Taken(_about(95_000, rel=1e-3), False)


def test_the_slowest_boot_tells() -> None:
    assert pacing.slowest([Taken(5.0, True), None, Taken(4.0, False)]) == Taken(4.0, False)
    assert pacing.slowest([None]) is None


def _campaign(root: Path, **more: Any) -> plan.Plan:
    """Three blocks; step 8 takes a fifth more. Without boots that ``edit`` left out."""
    make_campaign(
        root,
        effects={"0": 1.0, "8": 1.2},
        blocks=3,
        noise=lambda _: 0.0,
        **more,
    )
    order = json.loads((root / "campaign.json").read_text())["order"]
    profile = registry.profile("standard", bed_kind="hardware", blocks=3)
    return plan.Plan(profile=profile, steps=STEPS, seed=1, order=tuple(tuple(row) for row in order))


def _kept(root: Path, drawn: plan.Plan, block: int, position: int) -> Taken | None:
    [own] = [b for b in drawn.boots() if (b.block, b.position) == (block, position)]
    return pacing.kept(root, drawn, block, 0, [own])


def test_the_first_block_goes_by_its_first_boot_and_later_ones_by_its_slowest(
    tmp_path: Path,
) -> None:
    def first_alone(boot: Json, block: int, position: int, _step: str) -> Json | None:
        boot["trials"].append(
            {"kind": "paced", "index": 0, "paced_of_pps": 123_000.0, "paced_of_saturated": True}
        )
        return boot if (block, position) == (1, 1) else None

    drawn = _campaign(tmp_path / "one", edit=first_alone)
    assert _kept(tmp_path / "one", drawn, 1, 1) is None  # its own tells
    assert _kept(tmp_path / "one", drawn, 1, 2) == Taken(123_000.0, True)

    drawn = _campaign(tmp_path / "all")
    for position in (1, 2):
        found = _kept(tmp_path / "all", drawn, 3, position)
        assert found == Taken(_about(200_000, rel=0.02), True)


def test_a_first_block_that_failed_leaves_it_to_the_next(tmp_path: Path) -> None:
    def failed(boot: Json, block: int, *_: Any) -> Json:
        error = {"class": "KernelError", "message": "panic"}
        return boot | ({"outcome": "failed", "error": error} if block == 1 else {})

    drawn = _campaign(tmp_path, edit=failed)
    assert _kept(tmp_path, drawn, 2, 1) is None
    assert _kept(tmp_path, drawn, 3, 1) == Taken(_about(200_000, rel=0.02), True)
    assert _kept(tmp_path, drawn, 1, 1) is None


def test_each_share_is_a_metric_of_its_own(tmp_path: Path) -> None:
    def edit(boot: Json, *_: Any) -> Json:
        for index, share in enumerate(plan.PACED_SHARES):
            paced = trial(Host(), "paced", index, 200_000 * share, 4.0, 0)
            paced |= {"paced_pps": round(200_000 * share), "paced_share": share,
                      "paced_of_pps": 200_000.0, "paced_of_saturated": index > 0}  # fmt: skip
            paced["window"]["end"]["cpu"][0]["idle_ns"] = round(4e9 * (1 - share))
            boot["trials"].append(paced)
        return boot

    make_campaign(tmp_path, effects={"0": 1.0, "8": 1.0}, blocks=1, edit=edit)
    report = document(analyse(ResultDirectory.open(tmp_path)))
    paced = [f"paced{n}_cpu_ns_per_packet" for n in (10, 50, 90)]
    assert list(report["measures"]) == ["delivered_pps", *paced]
    for name in paced:
        median = report["rows"][0]["measures"][name]["median"]
        assert median == pytest.approx(1e9 / 200_000, rel=0.01)
    table = render(report, "table")
    assert "CPU time per packet at 10% of the saturating load" in table
    assert "shares of a rate at which the receiver was not saturated" in table


def test_a_bed_may_name_a_rate_and_else_has_shares(tmp_path: Path) -> None:
    path = tmp_path / "hosts.yaml"
    usual = config.locate(None).read_text()
    for text, told in (
        (usual, "CPU time per packet at 10%, 50% and 90% of the rate of the slowest step"),
        (usual.replace("    rx_queues: 1\n", "    rx_queues: 1\n    paced_pps: 50000\n", 1),
         "CPU time per packet at 50,000 packets/s"),
    ):  # fmt: skip
        path.write_text(text)
        ran = CliRunner().invoke(
            plan_command, ["--bed", "virtual", "--also", "cpu", "--hosts", str(path)]
        )
        assert ran.exit_code == 0, ran.output
        assert told in ran.output


@pytest.mark.parametrize(
    ("metric", "pps", "extras", "hint"),
    [
        ("ndr_pps", None, ["cpu"], "--also ndr"),
        ("paced50_cpu_ns_per_packet", None, [], "--also cpu"),
        ("paced50_cpu_ns_per_packet", 40_000, ["cpu"], "name paced_cpu_ns_per_packet,"),
        ("paced_cpu_ns_per_packet", None, ["cpu"], "paced10_cpu_ns_per_packet or paced50"),
        ("paced50_cpu_ns_per_packet", None, ["cpu"], None),
        ("paced_cpu_ns_per_packet", 40_000, ["cpu"], None),
        ("cycles_per_packet", None, [], None),
        ("stack_rx_pps", None, [], None),
    ],
)
def test_what_a_run_does_not_measure_cannot_be_expected_of_it(
    metric: str, pps: int | None, extras: list[str], hint: str | None
) -> None:
    expected = [parse(f"step8 {metric} > step0", STEPS)]
    if hint is None:
        require_measured(expected, extras, "rack", pps)
        require_paced(metric, "rack", pps)
        return
    with pytest.raises(ConfigurationError) as raised:
        require_measured(expected, extras, "rack", pps)
    assert hint in str(raised.value.hint)


def _about(rate: float, rel: float) -> Any:
    return pytest.approx(rate, rel=rel)


class _Paced(Bed):
    """A step takes a tenth more than the one before, and what it is paced to if that is less."""

    pps: int | None = None

    def call(self, name: str, /, **arguments: Any) -> Any:
        if name != "settings_apply":
            return super().call(name, **arguments)
        if "pacing_bytes_per_s" in arguments:
            assert not self.repeats
            self.pps = arguments["pacing_bytes_per_s"] // 43
        return {"skipped": []}

    def pace_repetition(self, pps: int | None) -> None:
        assert self.repeats
        self.pps = pps

    def begin(self, name: str, /, *, duration_s: float, **_: Any) -> Pending[Any]:
        pps = min(self.pps or 10**9, 50_000 * (1 + int(self.step) / 10))
        self.left = 0 if name == "trace" else WINDOWS_TAKE
        kind = "trace" if name == "trace" else "timed"
        made = trial(self.host, kind, 0, pps, duration_s, int(self.step))
        return Pending(lambda: self.left == 0, lambda: made[name])


class _Machine(Machine):
    repeats = False
    """Whether the wire of its bed repeats frames."""

    @contextmanager
    def boot(self, image: Any, directory: Path, note: Any) -> Iterator[Bed]:
        with super().boot(image, directory, note):
            bed = _Paced(self, image.step)
            bed.repeats = self.repeats
            yield bed


def _run(root: Path, kind: str, pps: int | None, *, repeats: bool = False) -> plan.Plan:
    machine = _Machine()
    machine.repeats = repeats
    made = setup(machine, kind, blocks=3)
    made.bed.paced_pps = pps
    profile = registry.profile("quick", bed_kind=kind, blocks=3, extras=["cpu"], paced_pps=pps)
    drawn = plan.make_plan(STEPS, replace(profile, trials=2, trace_blocks=0), seed=1)
    campaign.run(replace(made, plan=drawn), root, progress=Progress())
    return drawn


def _loads(root: Path) -> dict[int, dict[str, list[tuple[float | None, int | None]]]]:
    """By block and step: each paced trial's share and rate."""
    found: dict[int, dict[str, list[tuple[float | None, int | None]]]] = {}
    for path in sorted(root.glob("boots/*/boot.json")):
        boot = samples.read_boot(path)
        found.setdefault(boot.block, {})[boot.step] = [
            (one.paced_share, one.paced_pps) for one in boot.trials if isinstance(one, PacedTrial)
        ]
    return found


@pytest.mark.parametrize(
    ("kind", "repeats"), [("virtual", False), ("virtual", True), ("hardware", False)]
)
def test_all_boots_of_a_block_get_the_same_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, repeats: bool
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    drawn = _run(tmp_path, kind, None, repeats=repeats)
    for block, by_step in _loads(tmp_path).items():
        first_pps = 50_000 * (1 + int(drawn.order[block - 1][0]) / 10)
        of = first_pps if kind == "hardware" and block == 1 else 50_000
        expected = [
            (share, _about(share * of, rel=1e-3)) for share in plan.PACED_SHARES for _ in range(2)
        ]
        assert by_step == {"0": expected, "8": expected}


def test_a_rate_that_the_bed_names_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    _run(tmp_path, "hardware", 40_000)
    for by_step in _loads(tmp_path).values():
        assert by_step == {step: [(None, 40_000)] * 2 for step in STEPS}


def test_a_share_of_what_nobody_knows_is_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("harness.campaign.pacing.taken", lambda *_, **__: None)
    _run(tmp_path, "virtual", None)
    for path in tmp_path.glob("boots/*/boot.json"):
        paced = [one for one in samples.read_boot(path).trials if isinstance(one, PacedTrial)]
        assert [void.rule for one in paced for void in one.void] == ["rate-unknown"] * 6
