# SPDX-License-Identifier: MIT
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import ConfigurationError
from harness.plan import AA_STEPS
from harness.report import document
from harness.results.analysis import analyse
from harness.results.expect import (
    ExpectationMissedError,
    ExpectationOpenError,
    check,
    no_difference_in_aa,
    parse,
    require,
)
from harness.results.samples import ResultDirectory
from tests.unit.synthetic import make_campaign

pytestmark = pytest.mark.unit

STEPS = ("0", "2", "8", "2m")


def _report(*, blocks: int = 6, complete: bool = True) -> dict[str, Any]:
    """Step 8 at 1.12 to 1.17 times step 0, and 0.8 times its time a packet."""

    def row(step: str, rates: list[float], ns: float, **figures: Any) -> dict[str, Any]:
        boots = [
            {
                "block": block,
                "turns": None,
                "by_trial": [{"index": 0, "stack_rx_pps": rate, "cpu_ns_per_packet": ns}],
            }
            for block, rate in enumerate(rates[:blocks], start=1)
        ]
        return {"step": step, "by_boot": boots, "stack_rx_pps": rates[0], **figures}

    base = [200e3, 150e3, 240e3, 210e3, 190e3, 230e3]
    ratios = [1.12, 1.13, 1.14, 1.15, 1.16, 1.17]
    return {
        "complete": complete,
        "campaign": {"trial": {}},
        "rows": [
            row("0", base, 5000, ip_rcv_per_packet=1.0, list_len_p50=None),
            row("2", base, 5000, ip_rcv_per_packet=1.0, list_len_p50=64),
            row(
                "8",
                [r * b for r, b in zip(ratios, base, strict=True)],
                4000,
                ip_rcv_per_packet=0.0001,
                list_len_p50=64,
            ),
        ],
    }


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
    ],
)
def test_outcomes(text: str, outcome: str) -> None:
    assert check(parse(text, STEPS), _report()).outcome == outcome


def test_too_few_blocks_and_incomplete_campaigns_leave_it_open() -> None:
    expected = parse("step8 stack_rx_pps > step0", STEPS)
    few = check(expected, _report(blocks=5))
    assert (few.outcome, few.why) == ("open", "5 of the 6 blocks that an interval needs")
    assert check(expected, _report(complete=False)).outcome == "open"


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
    report = _report()
    met, missed, left = (
        check(parse(f"step8 stack_rx_pps > {factor}x step0", STEPS), report)
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
    [finding] = no_difference_in_aa(document(analyse(ResultDirectory.open(root))))
    assert finding.outcome == outcome


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
    report = document(analyse(ResultDirectory.open(root)))
    [own] = [row for row in report["rows"] if row["step"] == AA_STEPS[1]]
    own["measures"] = {
        str(number): {"verdict": {"p_value": p_value, "blocks": blocks}}
        for number, p_value in enumerate(p_values)
    }
    _, beside = no_difference_in_aa(report)
    assert beside.outcome == outcome


def test_other_campaigns_are_no_comparison_with_itself(tmp_path: Path) -> None:
    root = make_campaign(tmp_path, effects={"0": 1.0, "8": 1.0}, blocks=2)
    assert no_difference_in_aa(document(analyse(ResultDirectory.open(root)))) == []
