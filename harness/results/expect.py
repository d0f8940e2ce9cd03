# SPDX-License-Identifier: MIT
"""Expectations for CI: conditions that a finished campaign meets, misses or leaves open.

An expectation has one of two forms::

    step8 stack_rx_pps > 1.15x step0     a metric compared with another step's, by block
    step8 ip_rcv_per_packet < 0.01       a metric compared with a number

Where factors are varied, a step has its levels: ``step8[burst=64] … > 1.1x step0[burst=64]``.
The factor may be left out (``> step0``). What differs from boot to boot is judged by its
interval over blocks: met if the whole interval is on the wanted side, missed if none of it is,
and open otherwise, so noise neither passes nor fails a build. The counts of
:data:`OTHER_METRICS` are compared as they are. In an incomplete campaign all expectations are
open.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from harness import cells
from harness.base.errors import ConfigurationError, HarnessError
from harness.plan import AA_STEPS, MIN_BLOCKS_FOR_VERDICT
from harness.results.ranks import CONFIDENCE
from harness.results.rows import Analysis, Row
from harness.results.stats import Verdict, holm
from harness.trials import MEASURES, paced

RATE_METRICS = ("stack_rx_pps", "delivered_pps", "nic_rx_pps", "cpu_ns_per_packet")
OTHER_METRICS = (
    "ip_rcv_per_packet",
    "list_len_p50",
    "list_len_p90",
    "list_len_max",
    "interrupts_per_packet",
    "unsaturated_trials",
    "void_trials",
)

_COMPARE: Mapping[str, Callable[[float, float], bool]] = MappingProxyType(
    {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
)
_NUMBER = r"\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
# A variant has its own name: worktree, or the hash of a commit.
_STEP = r"(?:step)?(?P<{}>[\w+]+(?:\[[^\]]*\])?)"
_FORM = re.compile(
    rf"""\s* {_STEP.format("step")} \s+ (?P<metric>\w+) \s* (?P<sign>>=|<=|>|<) \s*
    (?: (?P<number>{_NUMBER}) | (?:(?P<factor>{_NUMBER})\s*x\s+)? {_STEP.format("other")} ) \s*""",
    re.VERBOSE,
)


Outcome = Literal["met", "missed", "open"]


class ExpectationMissedError(HarnessError):
    """The campaign shows that an expectation does not hold."""

    exit_code = 6


class ExpectationOpenError(HarnessError):
    """The campaign cannot tell whether an expectation holds."""

    exit_code = 7


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """``metric`` of ``step`` is on the ``sign`` side of ``bound``, or of ``bound`` times the
    metric of ``other``."""

    text: str
    step: str
    metric: str
    sign: str
    bound: float
    other: str | None


@dataclass(frozen=True)
class ExpectationResult:
    """Whether an expectation holds, and the figures that show it."""

    expected: str
    step: str
    outcome: Outcome
    why: str

    def __str__(self) -> str:
        return f"expected {self.expected}: {self.outcome} ({self.why})"


def parse(text: str, steps: Sequence[str]) -> Expectation:
    """Read one expectation about a campaign of ``steps``.

    Raises:
        ConfigurationError: it has neither form, or names an unknown step or metric.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConfigurationError(
            f"expectation {text!r} cannot be read",
            hint="write 'step8 stack_rx_pps > 1.15x step0' or 'step8 ip_rcv_per_packet < 0.01'",
        )
    own, other = (name and cells.meant(name, steps) for name in (match["step"], match["other"]))
    for step in (own, other):
        if step is not None and step not in steps:
            raise ConfigurationError(
                f"expectation {text!r} is about step {step}, which is not measured",
                hint=f"steps of this campaign: {', '.join(steps)}",
            )
    compared = (*RATE_METRICS, *MEASURES)
    metrics = compared if other is not None else (*compared, *OTHER_METRICS)
    if match["metric"] not in metrics:
        raise ConfigurationError(
            f"expectation {text!r} names {match['metric']!r}, which this form cannot compare",
            hint=f"metrics of this form: {', '.join(metrics)}",
        )
    if other is not None and other == own:
        raise ConfigurationError(f"expectation {text!r} compares a step with itself")
    bound = float(match["number"] or match["factor"] or 1.0)
    if not np.isfinite(bound):
        raise ConfigurationError(f"expectation {text!r:.200} has a number that is too large")
    if other is not None and bound <= 0:
        raise ConfigurationError(f"expectation {text!r} has a factor of 0")
    return Expectation(
        text=" ".join(text.split()),
        step=own,
        metric=match["metric"],
        sign=match["sign"],
        bound=bound,
        other=other,
    )


def require_measured(
    expectations: Sequence[Expectation], extras: Sequence[str], bed: str, paced_pps: int | None
) -> None:
    """Raise unless a campaign that measures ``extras`` can judge all ``expectations``.

    Raises:
        ConfigurationError: names the expectation and the missing option.
    """
    for one in expectations:
        also = MEASURES[one.metric].also if one.metric in MEASURES else None
        if also is not None and also not in extras:
            raise ConfigurationError(
                f"expectation {one.text!r} is about a metric that this run does not measure",
                hint=f"add --also {also}",
            )
        require_paced(one.metric, bed, paced_pps)


def require_paced(metric: str, bed: str, paced_pps: int | None) -> None:
    """Raise if ``metric`` is the CPU time at a paced load that ``bed`` does not have.

    Raises:
        ConfigurationError: names the metrics that the bed has.
    """
    fixed = paced.measure_at(None)
    if metric in paced.NAMES and (metric == fixed) != bool(paced_pps):
        can = [fixed] if paced_pps else [name for name in paced.NAMES if name != fixed]
        raise ConfigurationError(
            f"bed {bed} does not measure {metric}",
            hint=f"name {' or '.join(can)}, or change paced_pps of the bed in hosts.yaml",
        )


def check(expectation: Expectation, analysis: Analysis) -> ExpectationResult:
    """Judge ``expectation`` by a campaign."""
    if not analysis.complete:
        why = analysis.no_verdict or "the campaign is incomplete"
        return ExpectationResult(expectation.text, expectation.step, "open", why)
    if expectation.metric in OTHER_METRICS:
        return _check_count(expectation, analysis)
    return _check_interval(expectation, analysis)


def hold(analysis: Analysis, expectations: Sequence[Expectation]) -> list[ExpectationResult]:
    """Judge ``expectations``, and in an A/A campaign also that step 0 equals itself."""
    findings = [check(expectation, analysis) for expectation in expectations]
    return findings + no_difference_in_aa(analysis)


def no_difference_in_aa(analysis: Analysis) -> list[ExpectationResult]:
    """Whether an A/A campaign shows no difference; no findings for other campaigns.

    The rate is one finding. All other measures together are one more, corrected for their
    number.
    """
    if tuple(analysis.campaign.steps) != AA_STEPS:
        return []
    step = AA_STEPS[1]
    row = analysis.row(step)
    expected, verdict = f"no difference between step {AA_STEPS[0]} and itself", row.verdict
    if verdict is None:
        return [
            ExpectationResult(expected, step, "open", analysis.no_verdict or "it was not measured")
        ]
    low, high = verdict.interval
    found = verdict.outcome in ("faster", "slower") or verdict.beds_differ
    finding = ExpectationResult(
        expected,
        step,
        "missed" if found else "met",
        f"{verdict.confidence:.0%} interval {low:.3f}x to {high:.3f}x"
        + ", but beds differ" * verdict.beds_differ,
    )
    told = {name: one.verdict for name, one in row.measures.items() if one.verdict}
    return [finding, *([_none_differs(step, expected, told)] if told else [])]


def _none_differs(step: str, expected: str, verdicts: Mapping[str, Verdict]) -> ExpectationResult:
    """Whether any measure differs, with Holm's correction over all of them."""
    corrected = holm([verdict.p_value for verdict in verdicts.values()])
    name, least = min(zip(verdicts, corrected, strict=True), key=lambda one: one[1])
    blocks = max(verdict.blocks for verdict in verdicts.values())
    could_tell = len(verdicts) * 2 * 0.5**blocks < 1 - CONFIDENCE
    return ExpectationResult(
        f"{expected} in the other measures",
        step,
        "missed" if least < 1 - CONFIDENCE else "met" if could_tell else "open",
        f"smallest of {len(verdicts)} corrected p-values {least:.3f} ({name})"
        if could_tell
        else f"{blocks} blocks are too few for {len(verdicts)} measures",
    )


def require(findings: Sequence[ExpectationResult]) -> None:
    """Raise for the worst finding; return if all are met.

    Raises:
        ExpectationMissedError: at least one was missed.
        ExpectationOpenError: none was missed and at least one is open.
    """
    for outcome, error in (("missed", ExpectationMissedError), ("open", ExpectationOpenError)):
        told = [str(finding) for finding in findings if finding.outcome == outcome]
        if told:
            raise error("\n".join(told))


def _unsaturated(metric: str, *rows: Row) -> str:
    """To append to a reason: how many trials of ``rows`` are void for the rate ``metric``."""
    if metric not in RATE_METRICS:
        return ""
    told = [
        f"step {row.step}: {row.unsaturated_trials} of {row.timed_trials}"
        for row in rows
        if row.unsaturated_trials
    ]
    return f"; trials that did not saturate the receiver: {', '.join(told)}" if told else ""


def _check_count(expectation: Expectation, analysis: Analysis) -> ExpectationResult:
    figure = analysis.row(expectation.step).figure(expectation.metric)
    outcome: Outcome = "open"
    why = "this step has no such figure"
    if figure is not None:
        outcome = "met" if _COMPARE[expectation.sign](figure, expectation.bound) else "missed"
        why = f"it is {figure:.6g}"
    return ExpectationResult(expectation.text, expectation.step, outcome, why)


def _check_interval(expectation: Expectation, analysis: Analysis) -> ExpectationResult:
    step, other, metric = expectation.step, expectation.other, expectation.metric
    found = analysis.against(step, other, metric) if other else analysis.level_of(step, metric)
    interval = found.interval(1 - analysis.level) if found else None
    blocks = len(found.ratios) if found else 0
    if found is None or interval is None:
        rows = [analysis.row(one) for one in (step, other) if one is not None]
        return ExpectationResult(
            expectation.text,
            step,
            "open",
            f"{blocks} of the {MIN_BLOCKS_FOR_VERDICT} blocks that an interval needs"
            + _unsaturated(metric, *rows),
        )
    low, high, confidence = interval
    inside = [_COMPARE[expectation.sign](end, expectation.bound) for end in (low, high)]
    differ = found.beds_differ
    told = f"{low:.3f}x to {high:.3f}x" if other else f"{low:.6g} to {high:.6g}"
    return ExpectationResult(
        expectation.text,
        step,
        "open" if differ else "met" if all(inside) else "open" if any(inside) else "missed",
        f"{confidence:.0%} interval {told} over {blocks} blocks" + ", but beds differ" * differ,
    )
