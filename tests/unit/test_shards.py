# SPDX-License-Identifier: MIT
"""A campaign that is measured in shards and merged is the campaign that was measured whole."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import trials
from harness.base.errors import ConfigurationError
from harness.beds import registry
from harness.plan import Shard, make_plan
from harness.report import FORMATS, document, render
from harness.results import samples
from harness.results.analysis import analyse
from harness.results.merge import merge
from harness.results.samples import ResultDirectory, boot_directory
from tests.unit.synthetic import make_campaign
from tests.unit.test_bisect import Booting
from tests.unit.test_variants import commanded

pytestmark = pytest.mark.unit

Json = dict[str, Any]
RECORDED = Path(__file__).parent / "fixtures/result-v1"
EFFECTS = {"0": 1.0, "2": 1.05, "8": 1.2}
ONE = {"machine": "alpha", "cpu_model": "a CPU", "host_cpus": 2, "host_kernel": "6.12",
       "python": "3.11", "harness": "1"}  # fmt: skip


def split(
    whole: Path, parts: Path, of: int, machines: Mapping[int, Json] | None = None
) -> list[Path]:
    """``whole`` as ``of`` shards would have measured it, by default all on one machine."""
    campaign = samples.read_campaign(whole)
    found = []
    for number in range(1, of + 1):
        shard = Shard(number, of)
        about = campaign.provenance | ONE | (machines or {}).get(number, {})
        part = campaign.model_copy(
            update={"id": f"shard {number}", "shard": shard, "provenance": about}
        )
        root = parts / f"s{number}"
        samples.write_campaign(root, part)
        for planned in part.planned():
            shutil.copytree(boot_directory(whole, planned), boot_directory(root, planned))
        found.append(root)
    return found


def files(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path != root / "campaign.json"
    }


def told(root: Path, *, without: tuple[str, ...] = ()) -> Json:
    """The report of ``root``, without what names shards."""
    found = document(analyse(ResultDirectory.open(root)))
    for name in ("id", *without):
        del found["campaign"][name]
    for name in (*ONE, "shards"):
        found["campaign"]["provenance"].pop(name, None)
    return found


@pytest.mark.parametrize("of", [1, 2, 3])
def test_shards_of_one_machine_are_the_whole_campaign(tmp_path: Path, of: int) -> None:
    whole = make_campaign(tmp_path / "whole", effects=EFFECTS, blocks=10, slice_s=0.03)
    parts = split(whole, tmp_path, of)
    merged = tmp_path / "merged"
    merge(list(reversed(parts)), merged)
    assert files(merged) == files(whole)
    assert told(merged) == told(whole)
    assert told(whole)["verdicts"]
    for form in FORMATS:
        one, other = (
            render(document(analyse(ResultDirectory.open(root))), form) for root in (whole, merged)
        )
        if form == "table":
            lines = other.splitlines()
            named = [line for line in lines if line.startswith("merged from shards")]
            assert named == [
                f"merged from shards measured on alpha (blocks {', '.join(map(str, range(1, 11)))})"
            ]
            assert [line for line in lines if line not in named] == one.splitlines()
        elif form in ("csv", "ktap"):
            assert one == other


def test_a_recorded_campaign_is_split_and_merged(tmp_path: Path) -> None:
    merge(split(RECORDED, tmp_path, 2), tmp_path / "merged")
    assert files(tmp_path / "merged") == files(RECORDED)
    assert told(tmp_path / "merged") == told(RECORDED)
    kept = samples.read_campaign(tmp_path / "merged")
    assert [(one["shard"], one["machine"], one["blocks"]) for one in kept.merged] == [
        ("1/2", "alpha", [1]),
        ("2/2", "alpha", [2]),
    ]


def test_machines_that_differ_are_beds(tmp_path: Path) -> None:
    whole = make_campaign(tmp_path / "whole", effects=EFFECTS, blocks=12)
    other = {"machine": "beta", "cpu_model": "another CPU"}
    parts = split(whole, tmp_path, 3, {2: other, 3: {"host_cpus": 4}})
    merged = tmp_path / "merged"
    merge(parts, merged)
    campaign = samples.read_campaign(merged)
    assert campaign.block_beds == ["alpha", "beta", "alpha (shard 3)"] * 4
    assert campaign.provenance["cpu_model"] == "a CPU + another CPU"
    assert campaign.provenance["host_cpus"] == "2 + 4"
    found = told(merged, without=("beds", "block_beds"))
    [first, *_] = found["verdicts"]
    assert (first["verdict"], first["blocks"]) == ("faster", 12)
    assert first["p_beds"] > 0.05
    assert [bed["bed"] for bed in found["rows"][1]["beds"]] == ["alpha", "beta", "alpha (shard 3)"]
    text = render(document(analyse(ResultDirectory.open(merged))), "table")
    assert "alpha (blocks 1, 4, 7, 10), beta (blocks 2, 5, 8, 11)" in text
    assert "beta (blocks 2, 5, 8, 11)" in render(
        document(analyse(ResultDirectory.open(merged))), "html"
    )


def test_beds_of_machines_may_have_names_of_their_own(tmp_path: Path) -> None:
    """As places of a lab have, of which each shard gets one."""
    about = {"bed": "rack1", "bed_kind": "hardware", "accelerator": None}
    whole = make_campaign(tmp_path / "whole", effects=EFFECTS, blocks=12, about=about)
    parts = split(whole, tmp_path, 2, {1: {"machine": "rx1"}, 2: {"machine": "rx2"}})
    edited(parts[1], lambda a: a.update(bed="rack2"))
    campaign = merge(parts, tmp_path / "merged")
    assert (campaign.bed, campaign.beds) == ("rack1+rack2", ["rx1", "rx2"])
    # One machine, driven from two computers.
    parts = split(whole, tmp_path / "2", 2, {1: {"machine": "rx1"}, 2: {"machine": "rx1"}})
    edited(parts[1], lambda a: a["provenance"].update(cpu_model="of another computer"))
    assert merge(parts, tmp_path / "one").block_beds == []


def test_a_shard_alone_has_no_verdict(tmp_path: Path) -> None:
    whole = make_campaign(tmp_path / "whole", effects=EFFECTS, blocks=24)
    [first, _] = split(whole, tmp_path, 2)
    found = document(analyse(ResultDirectory.open(first)))
    assert (found["complete"], found["boots_done"], found["boots_planned"]) == (False, 36, 36)
    assert found["verdicts"] == []
    for form in ("table", "html", "markdown"):
        assert "harness merge" in render(found, form)
        assert "not comparable" not in render(found, form)
    status, said = commanded("compare", str(first), str(whole))
    assert (status, "the first cannot be compared: shard 1/2" in said) == (2, True), said


def edited(root: Path, change: Callable[[Json], object]) -> None:
    path = root / "campaign.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("change", "key", "hint"),
    [
        (lambda a: a.update(seed=8), "seed is 8, but 7", "--seed"),
        (lambda a: a.update(profile="quick"), "profile is quick, but standard", "--profile"),
        (lambda a: a["steps"].reverse(), "steps.0 is 8, but 0", "--steps"),
        (lambda a: a["order"][1].reverse(), "order.1.0 is", "harness"),
        (lambda a: a["trial"].update(window_s=1.0), "trial.window_s is 1.0, but 4.0", "--profile"),
        (lambda a: a["load"].update(streams=3), "load.streams is 3, but 2", "hosts.yaml"),
        (
            lambda a: a["variants"]["8"].update(release="6.12.0-rb-other"),
            "variants.8.release is 6.12.0-rb-other, but 6.12.0-rb-s8",
            "compiler",
        ),
        (lambda a: a["variants"]["8"].update(config_sha256="x"), "variants.8.config", ".config"),
        (lambda a: a["provenance"].update(harness="2"), "provenance.harness is 2, but 1", "the"),
        (
            lambda a: a["provenance"]["void_rules"].pop("nic-conservation"),
            "void_rules.nic-conservation is None, but {",
            "harness",
        ),
        (lambda a: a.update(bed="other"), "bed is other, but virtual", "--bed"),
        (lambda a: a.update(bed_label="good"), "bed_label is good, but None", "same options"),
        (lambda a: a.update(accelerator="kvm"), "accelerator is kvm, but tcg", "KVM"),
    ],
)
def test_what_is_not_the_same_campaign(
    tmp_path: Path, change: Callable[[Json], object], key: str, hint: str
) -> None:
    parts = split(make_campaign(tmp_path / "w", effects=EFFECTS, blocks=3), tmp_path, 3)
    edited(parts[1], change)
    with pytest.raises(ConfigurationError) as caught:
        merge(parts, tmp_path / "merged")
    assert str(caught.value).startswith(f"{parts[1]}/campaign.json: ")
    assert key in caught.value.message
    assert f"in {parts[0]}/campaign.json" in caught.value.message
    assert hint in str(caught.value.hint)
    assert not (tmp_path / "merged").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s1", "s2", "s3", "w"]


def test_where_a_kernel_was_built_may_differ(tmp_path: Path) -> None:
    parts = split(make_campaign(tmp_path / "w", effects=EFFECTS, blocks=3), tmp_path, 3)
    edited(parts[1], lambda a: a["variants"]["8"].update(source="/elsewhere", image_sha256="x"))
    merge(parts, tmp_path / "merged")
    assert analyse(ResultDirectory.open(tmp_path / "merged")).complete


def test_shards_that_are_missing_unfinished_or_there_twice(tmp_path: Path) -> None:
    whole = make_campaign(tmp_path / "w", effects=EFFECTS, blocks=6)
    one, two, three = split(whole, tmp_path, 3)
    out = tmp_path / "merged"
    with pytest.raises(ConfigurationError, match="shard 2/3 is missing"):
        merge([one, three], out)
    for partial in (False, True):
        copy = tmp_path / f"copy-{partial}"
        shutil.copytree(two, copy)
        with pytest.raises(ConfigurationError, match=r"shard 2/3 is in .*s2/campaign.json as well"):
            merge([one, two, copy, three], out, partial=partial)
    [*_, last] = sorted((three / "boots").iterdir())
    shutil.rmtree(last)
    with pytest.raises(ConfigurationError, match="s3: shard 3/3 is unfinished: b06"):
        merge([one, two, three], out)
    edited(two, lambda about: about["shard"].update(of=4))
    with pytest.raises(ConfigurationError, match=r"shard is 2/4, but 1/3 in"):
        merge([one, two, three], out)
    with pytest.raises(ConfigurationError, match="shard is null: this is a whole campaign"):
        merge([one, whole], out)
    assert not out.exists()
    merge([one, three], out, partial=True)
    found = document(analyse(ResultDirectory.open(out)))
    assert (found["boots_done"], found["boots_planned"], found["verdicts"]) == (11, 18, [])
    with pytest.raises(ConfigurationError, match="merged from shards already"):
        merge([one, out], tmp_path / "again")
    with pytest.raises(ConfigurationError, match="exists already"):
        merge([one, three], out, partial=True)


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 2**31))
def test_each_block_is_in_one_shard(blocks: int, of: int, seed: int) -> None:
    profile = registry.profile("standard", bed_kind="native", blocks=blocks)
    whole = make_plan([*EFFECTS], profile, seed=seed)
    if of > blocks:
        with pytest.raises(ConfigurationError, match=f"{blocks} blocks cannot be shared by {of}"):
            whole.shared(Shard(1, of))
        return
    shards = [whole.shared(Shard(number, of)) for number in range(1, of + 1)]
    found = [boot for shard in shards for boot in shard.boots()]
    assert sorted(found, key=str) == sorted(whole.boots(), key=str)
    for shard in shards:
        assert [*itertools.chain.from_iterable(shard.groups())] == [*shard.boots()]
        assert [shard.ordinal(b) for b in dict.fromkeys(boot.block for boot in shard.boots())] == [
            *range(1, 1 + shard.blocks_of_a_bed)
        ]
        assert trials.measured_s(shard) <= trials.measured_s(whole)


def test_shards_from_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    booting = Booting(monkeypatch, EFFECTS)
    asked = ["run", "--bed", "virtual", "--steps", "0,2,8", "--profile", "standard"]
    asked += ["--seed", "11"]
    status, said = commanded(*asked, "--out", str(tmp_path / "whole"))
    assert status == 0, said
    boots, booting.booted = booting.booted, []
    roots = [tmp_path / f"s{number}" for number in (1, 2, 3)]
    for number, root in enumerate(roots, 1):
        status, said = commanded(*asked, "--shard", f"{number}/3", "--out", str(root))
        assert status == 0, said
        assert f"SHARD {number}/3" in said
    assert sorted(booting.booted) == sorted(boots)
    # --resume keeps the shard without being told, and adds what is missing.
    shutil.rmtree(roots[1] / "boots" / next(b for b in booting.booted if b.startswith("b05")))
    status, said = commanded("merge", *map(str, roots), "--out", str(tmp_path / "merged"))
    assert (status, f"harness run --resume --out {roots[1]}" in said) == (2, True), said
    booting.booted = []
    status, said = commanded("run", "--resume", "--out", str(roots[1]))
    assert (status, len(booting.booted)) == (0, 1), said
    status, said = commanded("merge", *map(str, roots), "--out", str(tmp_path / "merged"))
    assert status == 0, said
    assert "step 8 against step 0: faster" in said
    assert files(tmp_path / "merged") == {
        name: text
        for name, text in files(tmp_path / "whole").items()
        if name != "journal.jsonl"
    }  # fmt: skip
    one, other = (told(tmp_path / name, without=("created",)) for name in ("whole", "merged"))
    assert one == other
    assert commanded("compare", str(tmp_path / "whole"), str(tmp_path / "merged"))[0] == 0
    for wrong, why in (
        (["--resume", "--out", str(roots[0]), "--shard", "2/3"], "it is shard 1/3"),
        (["--resume", "--out", str(tmp_path / "whole"), "--shard", "2/3"], "it is a whole"),
        (["--resume", "--out", str(tmp_path / "merged")], "was merged from shards"),
    ):
        status, said = commanded("run", *wrong)
        assert (status, why in said) == (2, True), said


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--shard", "1/2"], "needs --seed"),
        (["--shard", "3/2", "--seed", "1"], "'3/2' is no shard"),
        (["--shard", "0/2", "--seed", "1"], "'0/2' is no shard"),
        (["--shard", "half", "--seed", "1"], "write 2/3"),
        (["--shard", "1/2", "--seed", "1", "--profile", "thorough"], "declared looks"),
        (["--shard", "1/9", "--seed", "1", "--blocks", "4"], "4 blocks cannot be shared by 9"),
    ],
)
def test_shards_that_make_no_sense(options: list[str], why: str, tmp_path: Path) -> None:
    for command, more in (("run", ["--out", str(tmp_path / "out")]), ("plan", [])):
        status, said = commanded(command, "--bed", "virtual", *options, *more)
        assert (status, why in said) == (2, True), said
    assert not (tmp_path / "out").exists()


def test_a_shard_is_not_asked_what_it_cannot_tell(tmp_path: Path) -> None:
    asked = ["--bed", "virtual", "--seed", "1", "--shard", "1/2", "--out", str(tmp_path / "out")]
    status, said = commanded("run", *asked, "--expect", "step8 stack_rx_pps > step0")
    assert (status, "harness merge" in said) == (2, True), said


def test_the_plan_of_a_shard(tmp_path: Path) -> None:
    status, said = commanded("plan", "--bed", "native", "--seed", "1", "--shard", "2/3")
    assert status == 0, said
    assert "shard 2/3 of 8 blocks: 3 blocks × 4 steps = 12 boots" in said
    words = [line.split() for line in said.splitlines()]
    rows = [row[0] for row in words if len(row) == 5 and row[0].isdigit()]
    assert rows == ["2", "5", "8"]
