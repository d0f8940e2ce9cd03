# SPDX-License-Identifier: MIT
from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import ConfigurationError
from harness.beds.registry import KINDS, profile
from harness.cli import cli
from harness.commands.variants import is_range
from harness.plan import (
    AA_STEPS,
    ALL_STEPS,
    DEFAULT_STEPS,
    PROFILE_NAMES,
    SERIES_STEPS,
    balanced_blocks,
    blocks_for_verdict,
    claims,
    families,
    make_plan,
    ordered_steps,
    parse_steps,
    parts_of,
)
from harness.results.power import power
from harness.trials import EXTRAS, VOID_RULES, extras, measured_s, void_rules_record
from tests.unit.synthetic import trials_of

pytestmark = pytest.mark.unit

sizes = st.integers(1, 10)
seeds = st.integers(0, 2**32)


def _variants(size: int) -> list[str]:
    return [f"v{number}" for number in range(size)]


@given(size=sizes, blocks=st.integers(1, 25), seed=seeds)
def test_every_block_boots_every_variant_once(size: int, blocks: int, seed: int) -> None:
    order = balanced_blocks(_variants(size), blocks, seed=seed)
    assert len(order) == blocks
    assert all(sorted(row) == _variants(size) for row in order)


@given(size=sizes, blocks=st.integers(1, 25), seed=seeds)
def test_positions_are_shared_as_evenly_as_can_be(size: int, blocks: int, seed: int) -> None:
    order = balanced_blocks(_variants(size), blocks, seed=seed)
    for position in range(size):
        counts = Counter(row[position] for row in order)
        shares = [counts[variant] for variant in _variants(size)]
        assert max(shares) - min(shares) <= 1


@given(size=st.integers(2, 9), seed=seeds)
def test_neighbours_are_balanced_over_two_squares(size: int, seed: int) -> None:
    order = balanced_blocks(_variants(size), 2 * size, seed=seed)
    pairs = Counter(pair for row in order for pair in itertools.pairwise(row))
    assert len(pairs) == size * (size - 1)
    assert set(pairs.values()) == {2}


@given(size=sizes, blocks=st.integers(1, 12), more=st.integers(1, 12), seed=seeds)
def test_more_blocks_go_on_where_fewer_end(size: int, blocks: int, more: int, seed: int) -> None:
    longer = balanced_blocks(_variants(size), blocks + more, seed=seed)
    assert longer[:blocks] == balanced_blocks(_variants(size), blocks, seed=seed)


def test_the_order_of_a_seed_never_changes() -> None:
    # Stored seeds have to mean the same in later versions.
    assert balanced_blocks(["0", "2", "8"], 6, seed=5) == (
        ("2", "8", "0"),
        ("8", "0", "2"),
        ("0", "2", "8"),
        ("8", "2", "0"),
        ("0", "8", "2"),
        ("2", "0", "8"),
    )


def test_seeds_give_different_orders() -> None:
    assert len({balanced_blocks(SERIES_STEPS, 2, seed=seed) for seed in range(20)}) == 20


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        ("0,2,8", "0 2 8"),
        ("8, 0", "0 8"),
        ("0-8", "0 1 2 3 4 5 6 7 8"),
        ("0-2,8", "0 1 2 8"),
        ("0-2,1-3", "0 1 2 3"),
        ("02", "2"),
        ("2m,0", "0 2m"),
        ("11,8,0+11,0", "0 0+11 8 11"),
        ("8+11+10+11, 08 + 2m", "8+2m 8+10+11"),
        ("8-10,8+10", "8 8+10 9 10"),
    ],
)
def test_steps_are_read(spec: str, steps: str) -> None:
    known = [*SERIES_STEPS, "2m", "9", "10", "11"]
    assert parse_steps(spec, sorted(known, key=ALL_STEPS.index)) == tuple(steps.split())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "empty item"),
        ("0,,2", "empty item"),
        ("99", "'99' does not exist"),
        ("0-99", "'14' does not exist"),
        ("8+3", "'8\\+3' is not a step"),
        ("10+11", "'10\\+11' is not a step"),
        ("8+", "'' does not exist"),
        ("8+x", "'x' does not exist"),
        ("8-0", "backwards"),
        ("two", "'two' does not exist"),
        ("-1", "'-1' does not exist"),
        ("0-99999999999", "is too large"),
        ("²", "'²' does not exist"),
    ],
)
def test_wrong_steps_say_what_is_wrong(spec: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        parse_steps(spec)
    assert caught.value.hint


@given(st.text(alphabet="0123456789-+, m²x", max_size=12))
def test_no_spec_is_a_bug(spec: str) -> None:
    try:
        steps = parse_steps(spec)
    except ConfigurationError:
        return
    assert steps
    assert {part for step in steps for part in parts_of(step)} <= set(ALL_STEPS)


def test_profiles_hold_what_a_verdict_needs() -> None:
    assert profile("quick").blocks == 2
    usual = parse_steps(DEFAULT_STEPS)
    for asked in (profile("standard"), profile("standard", bed_kind="hardware")):
        assert asked.blocks >= blocks_for_verdict(usual)
    for kind, name in itertools.product(KINDS, ("quick", "standard", "thorough")):
        assert profile(name, bed_kind=kind).layouts == profile(name, bed_kind=kind).blocks
    for name in ("quick", "standard"):
        native = profile(name, bed_kind="native")
        assert native.blocks >= blocks_for_verdict(usual)
    assert families(usual) == (("8", "2"), ("shipped",))
    assert families(AA_STEPS) == (("0again",),)
    assert families(parse_steps("0,2,8,10,11,0+11")) == (("8", "2"), ("11", "10"), ("0+11",))
    assert [blocks_for_verdict(steps) for steps in (("0", "8"), usual)] == [6, 7]
    assert profile("standard", blocks=12).blocks == 12
    with pytest.raises(ConfigurationError, match="'slow'"):
        profile("slow")
    with pytest.raises(ConfigurationError, match="0 blocks"):
        profile("quick", blocks=0)


def test_traced_trials_come_last_and_only_in_the_first_blocks() -> None:
    quick = profile("quick")
    kinds = [[trial.kind for trial in trials_of(quick, block)] for block in (1, 2)]
    assert kinds == [["warmup", *["timed"] * 3, "trace"], ["warmup", *["timed"] * 3]]


@pytest.mark.parametrize(("bed_kind", "together"), [("virtual", 3), ("hardware", 1)])
def test_a_block_is_up_together_where_one_machine_bears_it(bed_kind: Any, together: int) -> None:
    drawn = make_plan(["0", "2", "8"], profile("standard", bed_kind=bed_kind), seed=1)
    groups = list(drawn.groups())
    assert {len(group) for group in groups} == {together}
    assert {len({boot.block for boot in group}) for group in groups} == {1}
    assert [boot for group in groups for boot in group] == list(drawn.boots())


def test_a_plan_counts_boots_and_seconds() -> None:
    plan = make_plan(["0", "8"], profile("quick"), seed=1)
    boots = list(plan.boots())
    assert [(boot.block, boot.position) for boot in boots] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert len({boot.directory for boot in boots}) == 4
    assert measured_s(plan) == 2 * 2 * (1 + 3 * 3) + 2 * 2


def test_a_search_for_the_highest_rate_is_many_trials() -> None:
    without, searching = (
        measured_s(make_plan(["0", "8"], profile("quick", extras=also), seed=1))
        for also in ((), ("ndr",))
    )
    assert searching - without > 2 * 2 * 10 * profile("quick").trace_s


def test_void_rules_are_recorded_whole() -> None:
    record = void_rules_record()
    assert record.keys() == VOID_RULES.keys()
    assert record["irq-moved"]["tolerances"] == {"share": 0.01, "interrupts": 2}


def test_machines_have_no_emulator_that_counts() -> None:
    assert [trial.kind for trial in trials_of(profile("quick", extras=("icache",)), 9)].count(
        "icache"
    ) == 1
    with pytest.raises(ConfigurationError, match="icache cannot be measured on a hardware bed"):
        extras(["icache"], "hardware")
    assert extras(["ndr", "cpu"], "hardware") == ("cpu", "ndr")


@pytest.mark.parametrize("bed_kind", KINDS)
def test_every_trial_lasts(bed_kind: str) -> None:
    for name in PROFILE_NAMES:
        also = [one for one in EXTRAS if one != "icache"]
        chosen = profile(name, bed_kind=bed_kind, extras=also)
        assert [trial for trial in trials_of(chosen, 1) if trial.duration_s <= 0] == []


def _planned(*words: str) -> str:
    done = CliRunner().invoke(cli, ["plan", "--seed", "1", "--bed", "native", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_plan_says_how_often_a_change_is_found() -> None:
    said = _planned("--noise", "3", "--steps", "0,8", "--blocks", "10")
    [line] = [line for line in said.splitlines() if "standard deviation of 3.0 % (--noise)" in line]
    shares = re.findall(r"a change of (\d+) % in (\d+)", line)
    assert shares == [
        (f"{100 * change:g}", f"{100 * power(10, 0.03, change, 0.05):.0f}")
        for change in (0.02, 0.05, 0.10)
    ]
    assert "five campaigns" in _planned()


def test_a_plan_names_the_trend_where_there_is_a_series() -> None:
    assert "and a trend over steps 0, 2, 8" in _planned()
    assert "trend" not in _planned("--steps", "0,8")
    assert "none larger than 2 %" in _planned()


def test_a_plan_of_too_few_blocks_has_no_power() -> None:
    said = _planned("--blocks", "6")
    assert "no verdict: 6 of the 7 blocks it needs" in said
    assert "standard deviation" not in said


def test_a_trend_is_of_a_range_or_of_the_series() -> None:
    assert ordered_steps("0123") == tuple("0123")
    assert ordered_steps(("0", "2", "2m", "8", "shipped")) == ("0", "2", "8")
    assert ordered_steps(("0", "8")) == ordered_steps(("2", "5", "8")) == ()
    commits = ("a", "b", "c")
    assert ordered_steps(commits, "a") == ()
    assert ordered_steps(commits, "a", ranged=True) == commits
    assert claims(commits, "a", ranged=True) == 3
    assert not is_range("HEAD~1,HEAD")
    assert not is_range("A..B,worktree")
    assert is_range("A..B")
