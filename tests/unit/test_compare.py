# SPDX-License-Identifier: MIT
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.base.errors import ConfigurationError
from harness.commands.compare import compare as command
from harness.report.comparison import table
from harness.results.analysis import analyse
from harness.results.compare import compare
from harness.results.rows import Analysis
from harness.results.samples import ResultDirectory
from tests.unit.synthetic import make_campaign

pytestmark = pytest.mark.unit


def measured(root: Path, *, step8: float = 1.2, blocks: int = 6, **options: Any) -> Analysis:
    make_campaign(root, effects={"0": 1.0, "8": step8}, blocks=blocks, **options)
    return analyse(ResultDirectory.open(root))


def planned(side: Analysis, **changes: Any) -> Analysis:
    """``side``, as if its campaign had been another one."""
    return replace(side, campaign=side.campaign.model_copy(update=changes))


def set_up(side: Analysis, after: dict[str, Any]) -> Analysis:
    """``side``, as if its dut had been set up so."""
    return replace(side, settings={"dut": {"after": after}})


@pytest.mark.parametrize(
    ("step8", "verdicts"), [(1.2, {"no difference", "inconclusive"}), (1.5, {"faster"})]
)
def test_a_step_is_held_against_itself(tmp_path: Path, step8: float, verdicts: set[str]) -> None:
    one, other = measured(tmp_path / "1", seed=1), measured(tmp_path / "2", seed=2, step8=step8)
    found = compare(one, other)
    [step] = found["steps"]
    assert step["verdict"] in verdicts
    assert step["interval"][0] <= step8 / 1.2 <= step["interval"][1]
    assert "second over first" in table(found)


def test_words_are_corrected_for_all_steps(tmp_path: Path) -> None:
    """Step 8 is decided first; then step 2, whose p-value alone would be smaller."""
    before, after = {"0": 1.0, "2": 1.1, "8": 1.2}, {"0": 1.0, "2": 1.3, "8": 1.22}
    sides = []
    for name, effects in (("1", before), ("2", after)):
        make_campaign(tmp_path / name, effects=effects, blocks=8, seed=int(name))
        sides.append(analyse(ResultDirectory.open(tmp_path / name)))
    two, eight = compare(*sides)["steps"]
    assert eight["p_value"] > 0.05 > two["p_value"]
    assert eight["p_corrected"] == eight["p_value"]
    assert two["p_corrected"] == eight["p_value"]
    assert {two["verdict"], eight["verdict"]} == {"inconclusive"}
    [line] = [one for one in table(compare(*sides)).splitlines() if one.startswith("2 ")]
    assert f"{two['p_value']:.2g} ({two['p_corrected']:.2g})" in line


def test_few_blocks_give_figures_and_no_verdict(tmp_path: Path) -> None:
    one, other = measured(tmp_path / "1", blocks=2), measured(tmp_path / "2", blocks=6)
    [step] = compare(one, other)["steps"]
    assert (step["verdict"], step["blocks"]) == (None, [2, 6])


def test_what_differs_is_named_and_nothing_compared(tmp_path: Path) -> None:
    one, other = measured(tmp_path / "1"), measured(tmp_path / "2", edit=_lose)
    other = planned(other, load={"streams": 2, "message_bytes": 1400})
    one, other = (
        set_up(side, {"sysctl": {"net.core.busy_poll": polls}})
        for side, polls in ((one, "0"), (other, "50"))
    )
    with pytest.raises(ConfigurationError) as refused:
        compare(one, other)
    assert refused.value.message.splitlines()[1:] == [
        "  the second is incomplete: 11 of 12 boots are finished",
        "  load.message_bytes: 1 and 1400",
        "  dut: net.core.busy_poll: 0 and 50",
    ]


def test_offloads_that_both_knew_have_to_be_alike(tmp_path: Path) -> None:
    one, other = measured(tmp_path / "1"), measured(tmp_path / "2")
    gro = {"rx-gro": {"on": True, "fixed": False}}
    newer = {"rx-new": {"on": True, "fixed": False}}
    one = set_up(one, {"offloads": gro})
    assert compare(one, set_up(other, {"offloads": gro | newer}))["steps"]
    other = set_up(other, {"offloads": {"rx-gro": {"on": False, "fixed": False}}})
    with pytest.raises(ConfigurationError, match="dut: rx-gro: True and False"):
        compare(one, other)


def test_what_makes_two_measurements_unlike(tmp_path: Path) -> None:
    one, other = measured(tmp_path / "1"), measured(tmp_path / "2")
    one, other = (
        replace(
            planned(set_up(side, {"cpu": {"turbo": turbo}}), trial={"slice_s": slice_s}),
            inventory={"dut": {"cpu_model": model}},
        )
        for side, slice_s, model, turbo in ((one, 0.3, "X1", "on"), (other, 0.0, "X2", "off"))
    )
    with pytest.raises(ConfigurationError) as refused:
        compare(one, other)
    assert refused.value.message.splitlines()[1:] == [
        "  boots time-sliced: True and False",
        "  dut: cpu_model: X1 and X2",
        "  dut: cpu.turbo: on and off",
    ]


def test_a_controller_counts_where_it_is_the_bed(tmp_path: Path) -> None:
    one, other = measured(tmp_path / "1"), measured(tmp_path / "2")
    other = planned(other, provenance=other.campaign.provenance | {"cpu_model": "another"})
    with pytest.raises(ConfigurationError, match="this machine's cpu_model"):
        compare(one, other)
    one, other = (planned(side, bed_kind="hardware") for side in (one, other))
    assert compare(one, other)["steps"]


def _lose(boot: Any, block: int, _position: int, step: str) -> Any:
    return None if (block, step) == (3, "8") else boot


def test_hardware_is_compared_by_its_rates_too(tmp_path: Path) -> None:
    one = measured(tmp_path / "1", seed=1)
    other = measured(tmp_path / "2", seed=2, base_pps=300_000)
    one, other = (planned(side, bed_kind="hardware") for side in (one, other))
    rates = {
        step["step"]: step["change"]
        for step in compare(one, other)["steps"]
        if step["metric"] == "stack_rx_pps"
    }
    assert rates == {"0": pytest.approx(1.5, rel=0.1), "8": pytest.approx(1.5, rel=0.1)}


def test_the_command(tmp_path: Path) -> None:
    roots = [str(tmp_path / name) for name in ("1", "2")]
    for root in roots:
        measured(Path(root))
    shown = CliRunner().invoke(command, [*roots, "--format", "json"])
    assert json.loads(shown.output)["schema"] == "receive-batching/comparison"
