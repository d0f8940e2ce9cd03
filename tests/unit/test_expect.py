# SPDX-License-Identifier: MIT
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import ConfigurationError
from harness.plan import AA_STEPS
from harness.results.analysis import analyse
from harness.results.expect import (
    ExpectationMissedError,
    ExpectationOpenError,
    check,
    no_difference_in_aa,
    parse,
    require,
)
from harness.results.rows import DRIVER_STAGE, PRIMARY, Analysis, Beside, ListLengths, Row
from harness.results.samples import ResultDirectory
from harness.results.stats import Verdict
from harness.trials import RATES
from tests.unit.synthetic import analysed, make_campaign, row_of

pytestmark = pytest.mark.unit

STEPS = ("0", "2", "8", "2m")


LISTS = ListLengths(
    name=DRIVER_STAGE, lists=9, packets=576, p50=64, p90=64, max=64, lengths=(), overflow=0
)


def _analysis(*, blocks: int = 6) -> Analysis:
    """Step 8 at 1.12 to 1.17 times step 0, and 0.8 times its time a packet."""

    def row(step: str, rates: list[float], ns: float, **figures: Any) -> Row:
        boots = [{PRIMARY: rate, "cpu_ns_per_packet": ns} for rate in rates[:blocks]]
        typical = dict.fromkeys(RATES) | {PRIMARY: rates[0]}
        return row_of(step, boots, rates=typical, **figures)

    base = [200e3, 150e3, 240e3, 210e3, 190e3, 230e3]
    ratios = [1.12, 1.13, 1.14, 1.15, 1.16, 1.17]
    better = [r * b for r, b in zip(ratios, base, strict=True)]
    return analysed(
        row("0", base, 5000, ip_rcv_per_packet=1.0),
        row("2", base, 5000, ip_rcv_per_packet=1.0, stages=(LISTS,)),
        row("8", better, 4000, ip_rcv_per_packet=0.0001, stages=(LISTS,)),
    )


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("step8 stack_rx_pps > 1.1x step0", "met"),
        ("step8 stack_rx_pps > step0", "met"),
        ("step8 stack_rx_pps >= 1.15x step0", "open"),
        ("step8 stack_rx_pps > 1.2x step0", "missed"),
        ("step8 stack_rx_pps < 1.2x step0", "met"),
        ("step0 stack_rx_pps < 0.95x step8", "met"),
        ("step2 stack_rx_pps > step0", "missed"),
        ("step2 stack_rx_pps >= step0", "met"),
        ("step8 cpu_ns_per_packet < 0.9x step0", "met"),
        ("step8 ip_rcv_per_packet < 0.01", "met"),
        ("step2 ip_rcv_per_packet < 0.01", "missed"),
        ("  step8   list_len_p50>=32 ", "met"),
        ("step0 list_len_p50 >= 32", "open"),
        ("step8 stack_rx_pps > 1e5", "met"),
        ("step8 stack_rx_pps > 3e5", "missed"),
        ("step8 stack_rx_pps > 2e5", "open"),
        ("step8 cpu_ns_per_packet <= 4000", "met"),
    ],
)
def test_outcomes(text: str, outcome: str) -> None:
    assert check(parse(text, STEPS), _analysis()).outcome == outcome


@pytest.mark.parametrize("bound", ["step0", "1e3"])
def test_too_few_blocks_and_incomplete_campaigns_leave_it_open(bound: str) -> None:
    expected = parse(f"step8 stack_rx_pps > {bound}", STEPS)
    few = check(expected, _analysis(blocks=5))
    assert (few.outcome, few.why) == ("open", "5 of the 6 blocks that an interval needs")
    assert check(expected, replace(_analysis(), problems=("a boot died",))).outcome == "open"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step8 faster", "cannot be read"),
        ("", "cannot be read"),
        ("step8 stack_rx_pps == 3", "cannot be read"),
        ("step8 stack_rx_pps > 1.1 x step0 or so", "cannot be read"),
        ("step7 stack_rx_pps > step0", "step 7, which is not measured"),
        ("step8 stack_rx_pps > step1", "step 1, which is not measured"),
        ("step8 speed > step0", "names 'speed'"),
        ("step8 list_len_p50 > 2x step0", "names 'list_len_p50'"),
        ("step8 stack_rx_pps > step8", "with itself"),
        ("step8 stack_rx_pps > 0x step0", "factor of 0"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse(text, STEPS)


@given(st.text("step028mx _rk<>=.e", max_size=40))
def test_no_text_is_a_bug(text: str) -> None:
    try:
        parse(text, STEPS)
    except ConfigurationError:
        return


def test_the_worst_finding_decides_how_a_run_ends() -> None:
    analysis = _analysis()
    met, missed, left = (
        check(parse(f"step8 stack_rx_pps > {factor}x step0", STEPS), analysis)
        for factor in ("1.1", "1.2", "1.15")
    )
    require([met])
    with pytest.raises(ExpectationMissedError, match="missed") as caught:
        require([left, missed, met])
    assert caught.value.exit_code == 6
    with pytest.raises(ExpectationOpenError, match="open") as undecided:
        require([left, met])
    assert undecided.value.exit_code == 7


@pytest.mark.parametrize(
    ("effect", "blocks", "outcome"), [(1.0, 6, "met"), (1.2, 6, "missed"), (1.0, 2, "open")]
)
def test_a_baseline_against_itself_has_to_show_nothing(
    tmp_path: Path, effect: float, blocks: int, outcome: str
) -> None:
    root = make_campaign(
        tmp_path, effects=dict(zip(AA_STEPS, (1.0, effect), strict=True)), blocks=blocks
    )
    [finding, *_] = no_difference_in_aa(analyse(ResultDirectory.open(root)))
    assert finding.outcome == outcome


def _beside(p_value: float, blocks: int) -> Beside:
    verdict = Verdict(
        outcome="inconclusive", ratio=1.0, interval=(0.9, 1.1), confidence=0.95, blocks=blocks,
        p_value=p_value, p_corrected=p_value, margin=0.02, p_equivalent=1.0,
        p_equivalent_corrected=1.0, equivalence_interval=(0.9, 1.1), bound=0.1, detectable=0.1,
    )  # fmt: skip
    return Beside(median=1.0, change=None, verdict=verdict)


@pytest.mark.parametrize(
    ("p_values", "blocks", "outcome"),
    [
        ([0.04, 0.9], 10, "met"),
        ([0.01, 0.9], 10, "missed"),
        ([0.031, 0.031], 6, "open"),
        ([0.031], 6, "missed"),
    ],
)
def test_no_measure_of_a_baseline_may_differ_from_itself(
    tmp_path: Path, p_values: list[float], blocks: int, outcome: str
) -> None:
    root = make_campaign(tmp_path, effects=dict.fromkeys(AA_STEPS, 1.0), blocks=blocks)
    analysis = analyse(ResultDirectory.open(root))
    [base, own] = analysis.rows
    measures = {str(number): _beside(p, blocks) for number, p in enumerate(p_values)}
    analysis = replace(analysis, rows=(base, replace(own, measures=measures)))
    _, beside = no_difference_in_aa(analysis)
    assert beside.outcome == outcome


def test_other_campaigns_are_no_comparison_with_itself(tmp_path: Path) -> None:
    root = make_campaign(tmp_path, effects={"0": 1.0, "8": 1.0}, blocks=2)
    assert no_difference_in_aa(analyse(ResultDirectory.open(root))) == []
