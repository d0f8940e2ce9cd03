# SPDX-License-Identifier: MIT
"""``--vary``: what a user may write, what a cell is called, and what a boot is given."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness import cells, config, vary
from harness.base.errors import ConfigurationError, InfrastructureError
from harness.beds.local.nic_model import NicModel
from harness.cli import cli
from harness.kernels import Image
from harness.kernels.configuration import benchmark
from harness.plan import PlannedBoot, blocks_for_verdict, claims, families, make_plan, step_number
from harness.results import samples
from tests.unit import simulated_lab
from tests.unit.simulated_lab import HOSTS, Lab

pytestmark = pytest.mark.unit
lab = simulated_lab.lab

MACHINES = HOSTS + "  quick: {kind: uml, address: 198.18.0.2/24}\n"
NATIVE = """\
  native:
    dut: quick
    generator: wire
"""


@pytest.fixture
def hosts(tmp_path: Path) -> config.HostsFile:
    path = tmp_path / "hosts.yaml"
    path.write_text(MACHINES.replace("hosts:\n", NATIVE + "hosts:\n", 1))
    return config.load(path)


def read(hosts: config.HostsFile, *texts: str, bed: str = "native") -> vary.Varied:
    return vary.read(texts, hosts, config.bed(hosts, bed))


def test_a_cell_is_a_variant_at_levels() -> None:
    factors = {"burst": ("1", "64"), "gro": ("on", "off")}
    found = cells.crossed(("0", "8"), factors)
    assert found[:3] == ("0[burst=1,gro=on]", "8[burst=1,gro=on]", "0[burst=1,gro=off]")
    assert len(found) == 8
    assert cells.factors_of(found) == factors
    assert cells.by_levels(found)["[burst=64,gro=off]"] == ["0", "8"]
    assert cells.beside("8[burst=1,gro=on]", "0") == "0[burst=1,gro=on]"
    assert cells.meant("8[gro=on,burst=1]", found) == "8[burst=1,gro=on]"
    assert cells.crossed(("0", "8"), {}) == ("0", "8")
    for plain in ("0", "2m", "8+10+11", "worktree"):
        assert (cells.variant_of(plain), cells.levels_of(plain)) == (plain, {})
        assert PlannedBoot(1, 2, plain).directory == f"b01-p02-s{plain}"


def test_a_cell_has_the_kernel_and_the_path_of_its_step() -> None:
    assert step_number("8[burst=64]") == 8
    assert step_number("shipped[burst=64]") is None
    named = PlannedBoot(3, 1, "8[cmdline=a=b /c]").directory
    assert named == "b03-p01-s8-cmdline=a=b-c"


def test_each_level_has_families_of_its_own_and_each_factor_two() -> None:
    plain = ("0", "2", "8", "shipped")
    found = cells.crossed(plain, {"gro": ("on", "off")})
    assert families(found) == (
        ("8[gro=on]", "2[gro=on]"),
        ("shipped[gro=on]",),
        ("8[gro=off]", "2[gro=off]"),
        ("shipped[gro=off]",),
    )
    assert claims(found) == 4 + 2
    assert claims(cells.crossed(("0",), {"gro": ("on", "off")})) == 1
    assert blocks_for_verdict(found) == 8


def test_every_block_boots_every_cell(hosts: config.HostsFile) -> None:
    varied = read(hosts, "burst=1,8,64", "gro=on,off")
    profile = replace(vary_profile(), blocks=5)
    drawn = make_plan(varied.cells(("0", "8")), profile, seed=3)
    assert all(sorted(row) == sorted(drawn.steps) for row in drawn.order)
    assert len(drawn.steps) == 12


def vary_profile() -> Any:
    from harness.beds.registry import profile

    return profile("quick", bed_kind="native")


@pytest.mark.parametrize(
    ("texts", "message", "hint"),
    [
        (["burst"], "'burst' has no levels", "KEY=LEVEL"),
        (["=1,2"], "'' cannot be varied", "burst"),
        (["burts=1,2"], "'burts' cannot be varied", "did you mean burst"),
        (["rx_usec=1,2"], "'rx_usec' cannot be varied", "rx_usecs"),
        (["steering=rss,auto"], "'steering' cannot be varied", "keys: "),
        (["burst=1,"], "a level is empty", "KEY=LEVEL"),
        (["burst=1,[2]"], "a level has a bracket", "KEY=LEVEL"),
        (["burst=1,1"], "levels '1' and '1' are the same", "differ"),
        (["burst=8,0x8"], "levels '8' and '0x8' are the same", "differ"),
        (["gro=on,true"], "levels 'on' and 'true' are the same", "differ"),
        (["gro_flush_timeout_ns=0"], "level '0' is the default of bed native", "differ"),
        (["burst=default,null"], "level 'null' is the default", "differ"),
        (["burst=1,2", "burst=3,4"], "burst is given twice", "all levels once"),
        (["burst=1,5000"], "burst=5000: 5000 is not usable", "burst: most frames"),
        (["burst=1,{a}"], "burst={a}: '{a}' is not usable", "burst: "),
        (["gro=on,maybe"], "gro=maybe: 'maybe' is not usable; expected true or false", "gro"),
        (["rx_queues=1,2"], "rx_queues=2: quick has one CPU", "rx_queues"),
        (["rx_usecs=0,70000"], "70000 is not usable; expected less than", "rx_usecs"),
        (["cmdline=a;b"], "'a;b' is not a plain word", "letters"),
        (["cmdline=quiet,root=/dev/sda"], "'root=/dev/sda' is set by the bed", "leave it out"),
        (["config=CONFIG_A=y PREEMPT=y"], "'PREEMPT=y' is not an option", "CONFIG_"),
        (["config=CONFIG_A=y CONFIG_B=n,CONFIG_B=n CONFIG_A=y"], "are the same", "differ"),
    ],
)
def test_nonsense_is_refused(
    hosts: config.HostsFile, texts: list[str], message: str, hint: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read(hosts, *texts)
    assert refused.value.message.startswith("--vary ")
    assert message in refused.value.message
    assert hint in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("bed", "text", "message"),
    [
        ("rack", "burst=1,8", "rack is a machine"),
        ("virtual", "burst=1,8", "delivers each frame once"),
        ("rack", "cmdline=quiet", "one command line"),
        ("rack", "rx_usecs=60", "level '60' is the default of bed rack"),
        ("virtual", "rx_queues=1,4", "more than the 2 vCPUs"),
    ],
)
def test_some_beds_cannot(hosts: config.HostsFile, bed: str, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read(hosts, text, bed=bed)


def test_too_many_cells_are_refused(hosts: config.HostsFile) -> None:
    varied = read(hosts, "burst=1,2,4,8", "rx_usecs=0,1,2")
    assert len(varied.cells(("0", "8"))) == 24
    with pytest.raises(ConfigurationError, match="36 boots in each block; at most 32"):
        varied.cells(("0", "2", "8"))


def test_a_level_changes_the_bed_and_nothing_else(hosts: config.HostsFile) -> None:
    bed = config.bed(hosts, "native")
    varied = read(hosts, "burst=1,default", "offloads.gro=on,off", "rx_usecs=0,60")
    assert [*varied.factors] == ["burst", "gro", "rx_usecs"]
    there = varied.bed(bed, "8[burst=1,gro=off,rx_usecs=60]")
    assert there.tuning()["offloads"] == {"gro": False}
    assert there.tuning()["coalesce"] == {"adaptive_rx": False, "rx_usecs": 60}
    assert there.dut.model_dump()["wire"] == {"repeat": "auto", "burst": 1}
    usual = {name for name in config.Bed.model_fields if getattr(there, name) == getattr(bed, name)}
    assert config.Bed.model_fields.keys() - usual == {"offloads", "coalesce", "dut"}
    default = varied.bed(bed, "8[burst=default,gro=on,rx_usecs=0]")
    assert default.dut == bed.dut
    assert varied.bed(bed, "8") is bed


def test_what_is_not_varied_stays_as_hosts_yaml_says(hosts: config.HostsFile) -> None:
    bed = config.bed(hosts, "rack")
    there = read(hosts, "gro=off", bed="rack").bed(bed, "0[gro=off]")
    assert there.tuning()["offloads"] == {"gro": False, "lro": False}
    assert there.rx_queues == bed.rx_queues


def test_a_command_line_and_a_configuration_are_those_of_the_cell(
    hosts: config.HostsFile, tmp_path: Path
) -> None:
    varied = read(hosts, "cmdline=quiet nosmt", "config=CONFIG_SLUB_DEBUG=n,CONFIG_A=y CONFIG_B=1")
    image = Image(
        step="8", layout=1, release="r", patches=(), source="", compiler="", config_sha256="",
        image_sha256="", directory=tmp_path,
    )  # fmt: skip
    cell = "8[cmdline=quiet nosmt,config=CONFIG_SLUB_DEBUG=n]"
    assert cell in varied.cells(("0", "8"))
    assert varied.image(image, cell).cmdline == ("quiet", "nosmt")
    assert varied.image(image, cell).provenance()["cmdline"] == ("quiet", "nosmt")
    assert varied.options(cell) == ("CONFIG_SLUB_DEBUG=n",)
    default = "8[cmdline=default,config=CONFIG_A=y CONFIG_B=1]"
    assert varied.image(image, default) is image
    assert varied.options(default) == ("CONFIG_A=y", "CONFIG_B=1")
    assert "cmdline" not in image.provenance()
    assert varied.options("8") == ()


def test_an_option_counts_more_than_the_fragments() -> None:
    usual = benchmark()
    changed = usual.with_options("CONFIG_SLUB_DEBUG=n", "CONFIG_HZ=250")
    assert changed.asked == usual.asked + "# CONFIG_SLUB_DEBUG is not set\nCONFIG_HZ=250\n"
    assert changed.identity != usual.identity
    assert usual.with_options() == usual


def test_a_level_that_the_dut_does_not_have_ends_the_campaign(hosts: config.HostsFile) -> None:
    varied = read(hosts, "gro_hw=on,off")
    skipped = [{"setting": "offloads.gro_hw", "why": "the driver cannot change it"}]
    with pytest.raises(ConfigurationError, match="--vary gro_hw=on: the dut does not have it: the"):
        varied.require_made("8[gro_hw=on]", skipped)
    varied.require_made("8[gro_hw=on]", [{"setting": "offloads.lro", "why": "fixed"}])


def plan_of(*words: str) -> str:
    done = CliRunner().invoke(cli, ["plan", "--bed", "native", "--seed", "3", *words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_the_plan_shows_cells_and_what_is_confounded(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = plan_of("--steps", "0,8", "--vary", "burst=1,8,64", "--vary", "gro=on,off")
    assert "8 blocks × 12 cells = 96 boots" in shown
    assert "(16 links" in shown
    assert "varied in each block: burst 1, 8, 64 × gro on, off" in shown
    assert "how burst and gro act together is not judged" in shown
    assert "burst and interrupt moderation are confounded" in shown
    assert "12 boots at once × 256 MiB" in shown
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": 2 << 30}))
    with pytest.raises(InfrastructureError, match="need 3072") as lacking:
        plan_of("--steps", "0,8", "--vary", "burst=1,8,64", "--vary", "gro=on,off")
    assert "--vary" in (lacking.value.hint or "")


def test_the_plan_says_what_is_decided() -> None:
    shown = plan_of("--steps", "0,8", "--vary", "gro=on,off")
    assert "step 8[gro=on] · step 8[gro=off]" in shown
    assert "the gain of each step at the other levels" in shown
    assert "confounded" not in shown
    baseline = plan_of("--steps", "0", "--vary", "gro=on,off")
    assert "0[gro=on]" in baseline


def test_a_and_a_have_no_levels() -> None:
    with pytest.raises(ConfigurationError, match="--vary and --aa exclude each other"):
        plan_of("--aa", "--vary", "gro=on,off")


def test_keys_are_completed() -> None:
    words = {"COMP_WORDS": "harness run --vary rx_", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "harness"],
        env={**os.environ, "_HARNESS_COMPLETE": "bash_complete", **words},
        capture_output=True,
        text=True,
        check=False,
    )
    offered = {line.partition(",")[2] for line in done.stdout.splitlines()}
    assert offered == {"rx_queues=", "rx_ring=", "rx_usecs=", "rx_checksum=", "rx_hash="}


def test_run_teaches_it() -> None:
    shown = CliRunner().invoke(cli, ["run", "--help"]).output
    assert "harness run --steps 0,8 --vary gro=on,off" in shown


def test_each_boot_is_set_up_as_its_cell_says(lab: Lab) -> None:
    done = lab.run("--profile", "smoke", "--vary", "rx_usecs=0,60")
    assert done.exit_code == 0, done.output
    campaign = samples.read_campaign(lab.out)
    assert campaign.steps == ["0[rx_usecs=0]", "8[rx_usecs=0]", "0[rx_usecs=60]", "8[rx_usecs=60]"]
    assert campaign.baseline == "0"
    assert not campaign.of_commits
    for path in lab.out.glob("boots/*/boot.json"):
        boot = samples.read_boot(path)
        after = boot.settings["dut"]["after"]
        assert after["coalesce"]["rx_usecs"] == int(cells.levels_of(boot.step)["rx_usecs"])
    report = lab.report()
    assert report["settings_varied"] == []
    assert report["settings"]["dut"]["after"]["coalesce"]["rx_usecs"] == 0
    assert report["complete"], report["problems"]


def test_the_wire_of_each_boot_has_the_burst_of_its_cell(lab: Lab) -> None:
    wire = "{kind: qemu, wire: {repeat: auto}, address: 198.18.0.2/24}"
    lab.hosts.write_text(HOSTS.replace("{kind: qemu, address: 198.18.0.2/24}", wire))
    asked = ["--bed", "virtual", "--profile", "smoke", "--vary", "burst=1,64"]
    assert lab.run(*asked).exit_code == 0
    steps = [samples.read_boot(path).step for path in lab.out.glob("boots/*/boot.json")]
    cells_ = sorted(f"r{cells.variant_of(s)} {cells.levels_of(s)['burst']}" for s in steps)
    asked = sorted(
        line.split("wire of ")[1].replace("burst=", "")
        for line in lab.transcript.lines
        if "wire of" in line
    )
    assert asked == cells_ == ["r0 1", "r0 64", "r8 1", "r8 64"]


def test_the_nic_model_is_told_of_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(NicModel, "_ask", lambda _, call: told.append(call))
    model = NicModel.__new__(NicModel)
    model.set_wire(config.Wire(repeat="auto", burst=64))
    assert model.repeats
    model.set_wire(config.Wire(repeat=1))
    assert not model.repeats
    assert told == [
        {"call": "wire", "repeat": 0, "burst": 64},
        {"call": "wire", "repeat": 1, "burst": 0},
    ]


def test_it_is_resumed_with_its_levels(lab: Lab) -> None:
    assert lab.run("--profile", "smoke", "--vary", "rx_usecs=0,60").exit_code == 0
    lost = next(lab.out.glob("boots/*s8-rx_usecs=60/boot.json"))
    lost.unlink()
    assert not lab.report()["complete"]
    done = lab.run("--resume")
    assert done.exit_code == 0, done.output
    assert lab.report()["complete"]
    assert samples.read_boot(lost).settings["dut"]["after"]["coalesce"]["rx_usecs"] == 60


def test_what_is_wrong_is_said_before_anything_is_made(lab: Lab) -> None:
    done = lab.run("--vary", "rx_usecs=60,60")
    assert isinstance(done.exception, ConfigurationError)
    assert done.exception.exit_code == 2
    assert not lab.out.exists()
