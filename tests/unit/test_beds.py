# SPDX-License-Identifier: MIT
"""A campaign on several beds: how blocks are distributed, and what remains if a bed ends."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from harness import config, kernels, plan
from harness.base.errors import ConfigurationError, HostLostError, KernelError
from harness.base.progress import Progress
from harness.base.write_ahead import WriteAheadLog
from harness.beds import registry
from harness.beds.local.boots import measuring
from harness.campaign import run as campaign
from harness.campaign.boots import image_of
from harness.cli import cli
from harness.kernels import HostConfig, Image
from harness.results import samples
from harness.results.analysis import analyse
from harness.results.expect import ExpectationOpenError
from harness.results.stats import judge
from harness.trials import measured_s
from tests.unit.synthetic import trials_of
from tests.unit.test_campaign import Bed, Machine, outcomes, setup

pytestmark = pytest.mark.unit

STEPS = ("--steps", "0,2,8")
NAMES = ("a", "b", "c")


@given(blocks=st.integers(3, 24), count=st.integers(2, 3), seed=st.integers(0, 2**32))
def test_each_bed_has_a_balanced_share_of_the_blocks(blocks: int, count: int, seed: int) -> None:
    steps = ("0", "2", "8")
    drawn = plan.make_plan(
        steps, registry.profile("standard", blocks=blocks), seed=seed, beds=NAMES[:count]
    )
    assert [row for row in drawn.order if sorted(row) != sorted(steps)] == []
    for bed in NAMES[:count]:
        mine = [block for block in range(1, blocks + 1) if drawn.bed_of(block) == bed]
        assert len(mine) in (blocks // count, blocks // count + 1)
        assert [drawn.ordinal(block) for block in mine] == list(range(1, len(mine) + 1))
        for position in range(len(steps)):
            shares = Counter(drawn.order[block - 1][position] for block in mine)
            assert max(shares.values()) - min(shares[step] for step in steps) <= 1
        assert {boot.block for group in drawn.groups(bed) for boot in group} == set(mine)


def test_one_bed_is_dealt_as_ever() -> None:
    profile = registry.profile("standard", bed_kind="hardware")
    assert plan.make_plan("08", profile, seed=3, beds=["a"]) == plan.make_plan(
        "08", profile, seed=3
    )


def test_each_block_has_a_layout_and_each_bed_its_probes(machine: Machine) -> None:
    made = rig(("a", "b"), blocks=8)[0]
    made = replace(made, images=dict.fromkeys("028", cast("Any", range(8))))
    seen = Counter(image_of(made, boot) for boot in made.plan.boots())
    assert seen == dict.fromkeys(range(8), 3)
    traced = {
        made.plan.bed_of(block)
        for block in range(1, 9)
        for trial in trials_of(made.plan.profile, made.plan.ordinal(block))
        if trial.kind == "trace"
    }
    assert traced == {"a", "b"}
    assert made.plan.blocks_of_a_bed == 4
    assert measured_s(made.plan) < measured_s(replace(made.plan, block_beds=())) / 1.8


def test_fewer_blocks_than_beds_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="3 beds cannot share 2 blocks"):
        plan.make_plan("08", registry.profile("quick"), seed=1, beds=NAMES)


class Rack(Machine):
    """A machine that can be told what to do before it boots."""

    before: Callable[[str], object] = staticmethod(lambda _: None)

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[str] = []

    @contextmanager
    def boot(self, image: Any, directory: Path, note: Any) -> Iterator[Bed]:
        self.before(image.step)
        self.starts.append(image.step)
        with super().boot(image, directory, note) as bed:
            yield bed


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)


def rig(names: tuple[str, ...], blocks: int) -> tuple[campaign.Setup, list[Rack]]:
    """A campaign on hardware beds of those names, and their machines."""
    racks = [Rack() for _ in names]
    one = setup(racks[0], "hardware", blocks)
    beds = [SimpleNamespace(**vars(one.bed) | {"name": name}) for name in names]
    (bed, rack), *others = zip(beds, racks, strict=True)
    drawn = plan.make_plan(one.plan.steps, one.plan.profile, seed=1, beds=names)
    return replace(one, bed=bed, boots=rack, others=others, plan=drawn), racks  # type: ignore[arg-type]


def record(made: campaign.Setup) -> samples.Campaign:
    images = dict.fromkeys(made.images, ())
    return samples.Campaign(
        id="x", created="2026", profile="quick", seed=1, bed="a+b", bed_kind="hardware",
        steps=list(images), blocks=len(made.plan.order), block_beds=list(made.plan.block_beds),
        order=[list(row) for row in made.plan.order],
    )  # fmt: skip


def beds_of(root: Path) -> Counter[str | None]:
    boots = [samples.read_boot(path) for path in root.glob("boots/*/boot.json")]
    return Counter(boot.bed for boot in boots if boot.outcome == "ok")


def test_all_beds_are_at_work_at_once(machine: Machine, tmp_path: Path) -> None:
    made, racks = rig(NAMES, blocks=6)
    together = threading.Barrier(3, timeout=60)
    first = threading.local()

    def meet(_: str) -> None:
        if not getattr(first, "met", False):
            first.met = True
            together.wait()

    for rack in racks:
        rack.before = meet
    campaign.run(made, tmp_path, progress=Progress())
    assert beds_of(tmp_path) == dict.fromkeys(NAMES, 6)
    for path in tmp_path.glob("boots/*/boot.json"):
        boot = samples.read_boot(path)
        assert boot.bed == made.plan.bed_of(boot.block)


def test_a_bed_that_is_lost_ends_alone(
    machine: Machine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made, (_, lost) = rig(("a", "b"), blocks=4)
    lost.losses = {"8": 99}
    with pytest.raises(HostLostError, match="no answer"):
        campaign.run(made, tmp_path, progress=Progress())
    assert beds_of(tmp_path)["a"] == 6
    assert beds_of(tmp_path)["b"] < 3
    assert "b: ended, the other beds continue: no answer" in capfd.readouterr().err
    samples.write_campaign(tmp_path, record(made))
    found = analyse(samples.ResultDirectory.open(tmp_path))
    assert "incomplete" in (found.no_verdict or "")
    lost.losses = {}
    campaign.run(made, tmp_path, progress=Progress())
    assert beds_of(tmp_path) == {"a": 6, "b": 6}
    assert analyse(samples.ResultDirectory.open(tmp_path)).complete


def test_the_worst_that_ended_a_bed_is_told(machine: Machine, tmp_path: Path) -> None:
    made, (one, other) = rig(("a", "b"), blocks=2)
    one.losses = {"2": 99}

    def refuse(_: str) -> None:
        raise ConfigurationError("it cannot be")

    other.before = refuse
    with pytest.raises(ConfigurationError, match="it cannot be"):
        campaign.run(made, tmp_path, progress=Progress())


def test_a_step_that_died_on_one_bed_is_booted_on_no_other(
    machine: Machine, tmp_path: Path
) -> None:
    made, (one, other) = rig(("a", "b"), blocks=6)
    one.losses, one.became = {"2": 1}, KernelError("r2 is gone")
    known, booted = threading.Event(), list[str]()

    def tell(_: str) -> None:
        if not one.losses["2"]:  # this boot comes after the one that died
            known.set()

    def wait(step: str) -> None:
        booted.append(step)
        assert known.wait(60)

    one.before, other.before = tell, wait
    with pytest.raises(KernelError, match="step 2: r2 is gone"):
        campaign.run(made, tmp_path, progress=Progress())
    assert booted[1:].count("2") == 0
    assert len(booted[1:]) == 5 + (booted[0] == "2")
    assert outcomes(tmp_path)["8"] == ["ok"] * 6


def test_an_interruption_ends_every_bed(machine: Machine, tmp_path: Path) -> None:
    made, racks = rig(("a", "b"), blocks=4)
    at_work = threading.Barrier(2, timeout=60)

    def never_ends(_: str) -> None:
        if at_work.wait() == 0:
            os.kill(os.getpid(), signal.SIGINT)
        while True:
            threading.Event().wait(0.01)

    for rack in racks:
        rack.before = never_ends
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        campaign.run(made, tmp_path, progress=Progress())
    assert threading.active_count() == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [rack.up for rack in racks] == [[], []]
    assert outcomes(tmp_path) == {}
    for rack in racks:
        rack.before = lambda _: None
    campaign.run(made, tmp_path, progress=Progress())
    assert beds_of(tmp_path) == {"a": 6, "b": 6}


def test_what_a_killed_harness_left_is_asked_of_its_own_bed(
    machine: Machine, tmp_path: Path
) -> None:
    made, (one, other) = rig(("a", "b"), blocks=2)
    [last] = [boot for boot in made.plan.boots() if (boot.block, boot.position) == (2, 3)]
    journal = WriteAheadLog(tmp_path)
    journal.note(last.directory, "begin")
    journal.note(last.directory, "leaving", release=f"r{last.step}")
    one.takes_along = {f"r{last.step}"}
    campaign.run(made, tmp_path, progress=Progress())
    assert journal.unfinished() == {}
    shutil.rmtree(samples.boot_directory(tmp_path, last))
    journal.note(last.directory, "begin")
    journal.note(last.directory, "leaving", release=f"r{last.step}")
    other.takes_along = {f"r{last.step}"}
    with pytest.raises(KernelError, match="took it along"):
        campaign.run(made, tmp_path, progress=Progress())


def test_a_campaign_has_its_name_before_it_holds_machines(tmp_path: Path) -> None:
    journal = WriteAheadLog(tmp_path / "new")
    name = journal.begin_campaign()
    assert WriteAheadLog(tmp_path / "new").begin_campaign() == name
    assert journal.unfinished() == {}
    assert WriteAheadLog(tmp_path / "other").begin_campaign() != name


def test_other_beds_are_no_resumption(machine: Machine) -> None:
    kept = record(rig(("a", "b"), blocks=4)[0])
    with pytest.raises(ConfigurationError, match="its block_beds has changed"):
        campaign.require_same(kept, kept.model_copy(update={"block_beds": ["a", "b", "b", "a"]}))


@pytest.fixture
def lab(machine: Machine, hosts: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `harness run` did to simulated beds and kernels."""
    seen: dict[str, Any] = {"up": [], "layouts": None, "tree": None}

    @contextmanager
    def acquired(bed: config.Bed) -> Iterator[Any]:
        seen["up"].append(f"place {bed.name}")
        yield SimpleNamespace(bed=bed)

    @contextmanager
    def opened(place: Any, *_: Any, **__: Any) -> Iterator[Rack]:
        seen["up"].append(f"hosts {place.bed.name}")
        seen[place.bed.name] = rack = Rack()
        rack.accelerator = None  # type: ignore[attr-defined]
        yield rack
        seen["up"].append(f"free {place.bed.name}")

    def built(wanted: kernels.Kernels, _: Any) -> dict[str, Any]:
        seen.update(layouts=wanted.layouts, tree=wanted.tree)
        where = Path("nowhere")
        return {
            step: tuple(
                Image(
                    step=step,
                    layout=layout,
                    release=f"r{step}",
                    patches=(),
                    source="linux",
                    compiler="gcc",
                    config_sha256="",
                    image_sha256="",
                    directory=where,
                )
                for layout in range(wanted.layouts)
            )
            for step in wanted.names
        }

    monkeypatch.setattr("harness.commands.run.registry.acquired", acquired)
    monkeypatch.setattr("harness.commands.run.registry.opened", opened)
    monkeypatch.setattr("harness.commands.run.registry.kernel_config", lambda *_, **__: None)
    monkeypatch.setattr(kernels.Kernels, "build", built)
    monkeypatch.setattr("harness.commands.run.needs.require", lambda _: None)
    return seen


def test_a_baseline_against_itself_has_other_layouts(
    lab: dict[str, Any], hosts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["run", "--aa", "--hosts", str(hosts), "--bed", "a", "--blocks", "3"]
    done = CliRunner().invoke(cli, [*words, "--out", str(out)])
    assert isinstance(done.exception, ExpectationOpenError), done.output
    assert lab["layouts"] == 6
    variants = samples.read_campaign(out).variants
    layouts = {step: [one["layout"] for one in told["layouts"]] for step, told in variants.items()}
    assert layouts == {"0": [0, 1, 2], "0again": [3, 4, 5]}


def test_a_run_ends_at_the_look_at_which_it_is_decided(
    lab: dict[str, Any], hosts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rates are all alike, so the first look finds no difference."""
    out = tmp_path / "out"
    words = ["run", "--steps", "0,8", "--hosts", str(hosts), "--out", str(out)]
    done = CliRunner().invoke(cli, [*words, "--bed", "a", "--profile", "thorough"])
    assert done.exit_code == 0, done.output
    assert lab["layouts"] == 18
    assert "ended at the look after 7: step 8 was decided" in done.output
    assert beds_of(out) == {None: 14}
    assert len(samples.read_campaign(out).order) == 18

    def judged(*arguments: Any, **options: Any) -> Any:
        """As if fewer than ten blocks decided nothing."""
        return [
            one and replace(one, outcome=one.outcome if one.blocks >= 10 else "inconclusive")
            for one in judge(*arguments, **options)
        ]

    monkeypatch.setattr("harness.results.judged.judge", judged)
    before = {path: path.stat().st_mtime_ns for path in out.glob("boots/*/boot.json")}
    shutil.rmtree(out / "boots/b07-p02-s8", ignore_errors=True)
    shutil.rmtree(out / "boots/b07-p02-s0", ignore_errors=True)
    done = CliRunner().invoke(cli, ["run", "--resume", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "ended at the look after 10: step 8 was decided" in done.output
    assert beds_of(out) == {None: 20}
    kept = {path: path.stat().st_mtime_ns for path in before}
    assert sum(kept[path] == before[path] for path in before) == 13


def test_a_run_on_two_beds_and_its_resumption(
    lab: dict[str, Any], hosts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["run", *STEPS, "--hosts", str(hosts), "--out", str(out), "--blocks", "4"]
    done = CliRunner().invoke(cli, [*words, "--beds", "b,a", "--tree", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert done.output.count("beds b, a") == 1
    assert lab["up"] == ["place a", "place b", "hosts a", "hosts b", "free b", "free a"]
    assert lab["layouts"] == 4
    kept = samples.read_campaign(out)
    assert (kept.bed, kept.block_beds) == ("b+a", ["b", "a", "b", "a"])
    assert beds_of(out) == {"a": 6, "b": 6}
    for path in out.glob("boots/b02-*/boot.json"):
        path.unlink()
    again = CliRunner().invoke(cli, [*words, "--resume", "--beds", "a,b"])
    assert "its bed has changed" in str(again.exception)
    lab["tree"] = None
    again = CliRunner().invoke(cli, ["run", "--out", str(out), "--resume"])
    assert again.exit_code == 0, again.output
    assert lab["tree"] == tmp_path
    assert len(lab["a"].starts) == 3
    assert lab["b"].starts == []
    assert beds_of(out) == {"a": 6, "b": 6}


def test_a_run_on_one_bed_names_none(lab: dict[str, Any], hosts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(cli, ["run", *STEPS, "--hosts", str(hosts), "--out", str(out)])
    assert done.exit_code == 0, done.output
    kept = samples.read_campaign(out)
    assert (kept.bed, kept.block_beds) == ("a", [])
    assert kept.order == [list(row) for row in plan.balanced_blocks("028", 2, seed=kept.seed)]
    assert beds_of(out) == {None: 6}


def test_kernels_after_the_duts_own_have_to_be_alike(
    hosts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = config.load(hosts)
    beds = config.beds(loaded, None, ["a", "b"])
    said = {"rx1": HostConfig("CONFIG_A=y", ()), "rx2": HostConfig("CONFIG_A=y", ())}
    monkeypatch.setattr(
        "harness.beds.machine.machines.host_config", lambda name, _, **__: said[name]
    )
    monkeypatch.setattr("harness.beds.machine.machines.looked_at", lambda *_, **__: None)
    assert registry.kernel_config(loaded.kernel, *beds) == said["rx1"]
    said["rx2"] = HostConfig("CONFIG_A=m", ())
    with pytest.raises(ConfigurationError, match=r"rx1 and rx2 have different \.configs"):
        registry.kernel_config(loaded.kernel, *beds)


HOSTS = """
version: 1
default_bed: a
beds:
  a: {dut: rx1, generator: tx1}
  b: {dut: rx2, generator: tx2}
  crossed: {dut: tx2, generator: rx2}
  alias: {dut: rx3, generator: tx3}
  paced: {dut: rx4, generator: tx4, paced_pps: 50000}
  guest: {dut: vm, generator: ns}
hosts:
  vm: {kind: qemu, address: 198.18.0.2/24}
  ns: {kind: netns, address: 198.18.0.1/24}
""" + "".join(
    f"  {role}{n}: {{kind: ssh, hostname: {role}{min(n, 2) if role == 'rx' else n}"
    f"{'four' * (n == 4)}.lab, interface: eth1, address: 198.18.{n}.{at}/24}}\n"
    for n in range(1, 5)
    for at, role in ((1, "tx"), (2, "rx"))
)


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts.yaml"
    path.write_text(HOSTS)
    return path


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a a", "bed a is named twice"),
        ("b crossed", "beds b and crossed share host tx2"),
        ("b alias", "beds b and alias share host rx3"),
        ("a guest", "bed guest is virtual"),
        ("a paced", "beds a and paced differ in paced_pps"),
        ("a c", "no bed is named"),
    ],
)
def test_beds_that_cannot_be_used_at_once(hosts: Path, names: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        config.beds(config.load(hosts), None, names.split())


def test_the_plan_says_which_block_is_where(hosts: Path) -> None:
    words = ["plan", *STEPS, "--profile", "standard", "--seed", "1", "--hosts", str(hosts)]
    one, two = (CliRunner().invoke(cli, [*words, *more]) for more in ([], ["--beds", "a, b"]))
    assert one.exit_code == two.exit_code == 0, two.output
    assert "bed a (hardware)" in one.output
    assert "beds a, b (hardware)" in two.output
    rows = [line.split() for line in two.output.splitlines() if line.strip()[:1].isdigit()]
    assert [row[1] for row in rows if len(row) == 5] == ["a", "b"] * 5
    assert "about 150 min" in one.output
    assert "about 76 min" in two.output
    assert "set on rx2 (dut)" in two.output
    refused = CliRunner().invoke(cli, [*words, "--beds", "a,,b"])
    assert "a name is empty" in refused.output
    refused = CliRunner().invoke(cli, [*words, "--beds", "a,b", "--bed", "a"])
    assert isinstance(refused.exception, ConfigurationError)


def test_a_second_harness_on_this_machine_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path))
    with Progress(bars=False) as progress, measuring(progress):
        assert "another harness" not in capsys.readouterr().err
        with measuring(progress):
            assert "another harness is booting kernels" in capsys.readouterr().err
    with Progress(bars=False) as progress, measuring(progress):
        assert "another harness" not in capsys.readouterr().err
