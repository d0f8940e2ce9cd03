# SPDX-License-Identifier: MIT
"""The report of a campaign: one document, several formats.

:func:`document` turns an analysis into plain data with a schema and a version. This is
the JSON report. All other formats use only this document, so they all agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness import cells
from harness.base.errors import ConfigurationError
from harness.plan import BASELINE, DESIGN
from harness.report import exchange, text
from harness.results.expect import ExpectationResult
from harness.results.ordered import Trend
from harness.results.rows import COST, PRIMARY, Analysis, Beside, Contrast, OnBed, Row
from harness.results.stats import Verdict
from harness.trials import COMPARED, MEASURES, RATES

SCHEMA = "receive-batching/report"
VERSION = 1

# Published by the author of the series for a 40G Solarflare 7x42Q in a Xeon E3-1220V2.
# Ratios are computed from these rates.
PUBLISHED_PPS: Mapping[str, float] = MappingProxyType({"0": 5.07e6, "2": 5.59e6, "8": 6.44e6})

# For a time or a cost, unlike a rate, more does not mean faster.
_NEUTRAL = {"faster": "higher", "slower": "lower"}
_OF_A_GAIN = {"faster": "larger", "slower": "smaller"}
"""At a level, compared with the same step's at the first level."""

_CAMPAIGN = (
    "id", "created", "profile", "design", "seed", "bed", "beds", "bed_kind", "accelerator",
    "kernel", "steps", "blocks", "order", "block_beds", "trial", "load", "placement", "variants",
    "provenance",
)  # fmt: skip

Document = dict[str, Any]


def document(analysis: Analysis, findings: Sequence[ExpectationResult] = ()) -> Document:
    """``analysis`` as JSON-ready data; the keys are stable within a version.

    ``findings`` are the outcomes of expectations.
    """
    campaign = analysis.campaign
    rows = [_row(row, campaign.baseline_of(row.step), campaign.load_kind) for row in analysis.rows]
    told: Document = {
        "schema": SCHEMA,
        "version": VERSION,
        "complete": analysis.complete,
        "virtual": campaign.virtual,
        "label": campaign.label,
        "campaign": {name: getattr(campaign, name) for name in _CAMPAIGN}
        | ({"shard": str(campaign.shard)} if campaign.shard else {}),
        "design": DESIGN,
        "notes": list(analysis.notes),
        "boots_done": analysis.boots_done,
        "boots_planned": analysis.boots_planned,
        "problems": list(analysis.problems),
        "settings": analysis.settings,
        "settings_varied": list(analysis.settings_varied),
        "inventory": analysis.inventory,
        "repetition": analysis.repetition,
        "metric": PRIMARY,
        "rates": {name: asdict(about) for name, about in RATES.items()},
        "measures": {
            name: asdict(about)
            for name, about in COMPARED.items()
            if any(name in row.measures for row in analysis.rows)
        },
        "absent": {
            name: {"title": MEASURES[name].title, "reasons": list(reasons)}
            for name, reasons in analysis.absent.items()
        },
        "baseline": campaign.baseline,
        "rows": rows,
        "void": [
            {
                "block": trial.boot.block,
                "position": trial.boot.position,
                "step": trial.boot.step,
                "kind": trial.kind,
                "index": trial.index,
                "reasons": [{"rule": void.rule, "detail": void.detail} for void in trial.reasons],
                "rates_only": trial.rates_only,
            }
            for trial in analysis.void
        ],
        "verdicts": [
            _verdict(row.step, PRIMARY, row.verdict, campaign.baseline_of(row.step))
            for row in analysis.rows
            if row.verdict
        ],
        "trend": _trend(analysis.trend) if analysis.trend else None,
        "spread": asdict(analysis.spread) if analysis.spread else None,
        "look": asdict(analysis.look) if analysis.look else None,
        "no_verdict": analysis.no_verdict,
        "expectations": [asdict(finding) for finding in findings],
        "published": {
            "source": "published hardware result: 40G Solarflare 7x42Q, Xeon E3-1220V2",
            "stack_rx_pps": dict(PUBLISHED_PPS),
        },
    }
    return told | _of_factors(analysis, rows) if campaign.factors else told


def schema() -> Document:
    """The JSON Schema of :func:`document`."""
    found: Document = json.loads(
        Path(__file__).with_name("schema.json").read_text(encoding="utf-8")
    )
    return found


def _row(row: Row, baseline: str, load: str) -> Document:
    change = row.change
    published = PUBLISHED_PPS.get(row.step) if load == "udp" else None
    traced, timed = row.traced_pps, row.rates[PRIMARY]
    return {
        "step": row.step,
        "title": row.title,
        "release": row.release,
        "boots": len(row.boots),
        **row.rates,
        "ratio_to_step0": change.median if change else None,
        "ratio_range": list(change.range) if change else None,
        "ratio_interval": list(row.verdict.interval) if row.verdict else None,
        "ratio_by_block": (
            {str(block): r for block, r in zip(change.blocks, change.ratios, strict=True)}
            if change
            else {}
        ),
        "beds": [_on_bed(row.step, found, baseline) for found in row.beds],
        "published_ratio": published / PUBLISHED_PPS[BASELINE] if published else None,
        **{name: row.figure(name) for name in ("list_len_p50", "list_len_p90", "list_len_max")},
        "ip_rcv_per_packet": row.ip_rcv_per_packet,
        "drops": row.drop_shares,
        "drop_packets": row.drop_packets,
        "void_trials": row.void_trials,
        "timed_trials": row.timed_trials,
        "unsaturated_trials": row.unsaturated_trials,
        "measures": {
            name: _beside(row.step, name, found, baseline) for name, found in row.measures.items()
        },
        "functions": {name: asdict(cost) for name, cost in row.functions.items()},
        "stages": [asdict(stage) | {"lengths": list(stage.lengths)} for stage in row.stages],
        "trace_missed": row.trace_missed,
        "traced_stack_rx_pps": traced,
        "traced_to_timed": traced / timed if traced and timed else None,
        "by_boot": [
            {
                "block": boot.boot.block,
                "position": boot.boot.position,
                "bed": boot.bed,
                "turns": boot.turns,
                **boot.rates,
                "trials": [rates[PRIMARY] for rates in boot.trials.values() if PRIMARY in rates],
                "by_trial": [{"index": index, **rates} for index, rates in boot.trials.items()],
                "measures": boot.measures,
            }
            for boot in row.boots
        ],
    }


def _on_bed(step: str, found: OnBed, baseline: str) -> Document:
    return {
        "bed": found.bed,
        "boots": found.boots,
        **found.rates,
        "ratio_to_step0": found.change.median if found.change else None,
        "ratio_range": list(found.change.range) if found.change else None,
        "verdict": _verdict(step, PRIMARY, found.verdict, baseline) if found.verdict else None,
    }


def _beside(step: str, name: str, found: Beside, baseline: str) -> Document:
    verdict, change = found.verdict, found.change
    told = _verdict(step, name, verdict, baseline) if verdict else None
    if told:
        told["verdict"] = _NEUTRAL.get(told["verdict"], told["verdict"])
    return {
        "median": found.median,
        "ratio_to_step0": change.median if change else None,
        "ratio_range": list(change.range) if change else None,
        "verdict": told,
    }


def _of_factors(analysis: Analysis, rows: Sequence[Document]) -> Document:
    """What a document also has where factors were varied; adds to its ``rows``."""
    campaign = analysis.campaign
    for shown, row in zip(rows, analysis.rows, strict=True):
        base = campaign.baseline_of(row.step)
        shown["variant"] = cells.variant_of(row.step)
        shown["levels"] = cells.levels_of(row.step)
        shown["cost"] = _beside(row.step, COST, row.cost, base) if row.cost else None
    return {
        "factors": {key: list(levels) for key, levels in campaign.factors.items()},
        "contrasts": [_contrast(found) for found in analysis.contrasts],
    }


def _contrast(found: Contrast) -> Document:
    verdict, change = found.verdict, found.change
    told = _verdict(found.step, found.metric, verdict, found.baseline) if verdict else None
    if told:
        words = _OF_A_GAIN if found.interaction else {} if found.metric == PRIMARY else _NEUTRAL
        told["verdict"] = words.get(told["verdict"], told["verdict"])
    return {
        "kind": "interaction" if found.interaction else "baseline",
        "metric": found.metric,
        "factor": found.factor,
        "level": found.level,
        "reference": found.reference,
        "step": found.step,
        "baseline": found.baseline,
        "ratio": change.median,
        "ratio_range": list(change.range),
        "interval": list(verdict.interval) if verdict else None,
        "blocks": len(change.ratios),
        "verdict": told,
    }


def _verdict(step: str, metric: str, verdict: Verdict, baseline: str) -> Document:
    return {
        "step": step,
        "baseline": baseline,
        "metric": metric,
        "verdict": verdict.outcome,
        "ratio": verdict.ratio,
        "interval": list(verdict.interval),
        "confidence": verdict.confidence,
        "asked_confidence": 1 - verdict.level,
        "method": "Hodges-Lehmann estimate, exact Wilcoxon signed-rank interval over blocks",
        "blocks": verdict.blocks,
        "p_value": verdict.p_value,
        "p_corrected": verdict.p_corrected,
        "unit": "layout" if verdict.of_layouts else "block",
        "margin": verdict.margin,
        "p_equivalent": verdict.p_equivalent,
        "p_equivalent_corrected": verdict.p_equivalent_corrected,
        "equivalence_interval": list(verdict.equivalence_interval),
        "no_difference_larger_than": verdict.bound,
        "smallest_detectable": verdict.detectable,
        "p_beds": verdict.p_beds,
        "beds_differ": verdict.beds_differ,
    }


def _trend(trend: Trend) -> Document:
    return {
        "steps": list(trend.steps),
        "verdict": ("rises" if trend.rises else "falls") if trend.found else "inconclusive",
        "rises": trend.rises,
        "method": "Page's trend test, two-sided, each block a row",
        "blocks": trend.blocks,
        "unit": "layout" if trend.of_layouts else "block",
        "p_value": trend.p_value,
        "p_corrected": trend.p_corrected,
    }


def _json(report: Document) -> str:
    return json.dumps(report, indent=1, allow_nan=False)


def _html(report: Document) -> str:
    # Imported late: the plotting library takes longer to import than a table to print.
    from harness.report import html

    return html.page(report)


_FORMATS: Mapping[str, Callable[[Document], str]] = MappingProxyType(
    {
        "table": text.table,
        "json": _json,
        "csv": text.csv_rows,
        "markdown": text.markdown,
        "html": _html,
        "junit": exchange.junit,
        "ktap": exchange.ktap,
        "kcidb": exchange.kcidb,
        "google-benchmark": exchange.google_benchmark,
    }
)
FORMATS = tuple(_FORMATS)


def render(report: Document, form: str) -> str:
    """``report`` in one of :data:`FORMATS`, ending without a line break.

    Raises:
        ConfigurationError: no such format.
    """
    try:
        draw = _FORMATS[form]
    except KeyError as error:
        raise ConfigurationError(
            f"no report format is named {form!r}", hint=f"choose one of {', '.join(FORMATS)}"
        ) from error
    return draw(report).rstrip("\n")
