# SPDX-License-Identifier: MIT
"""A result directory reduced to one row per step, with verdicts.

Reads one boot after the other and keeps only its figures, so memory does not grow with
the raw counters. An incomplete campaign gets rows but no verdict.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness import cells
from harness.plan import (
    DESIGN,
    SHIPPED,
    SINGLY_BEFORE,
    PlannedBoot,
    step_number,
)
from harness.results.figures import (
    BootFigures,
    BootRead,
    median,
    read,
    recorded_tolerances,
)
from harness.results.judged import Judged, judge_campaign
from harness.results.rows import (
    COST,
    PRIMARY,
    Analysis,
    Beside,
    Look,
    OnBed,
    Row,
    list_lengths,
    primary_of,
)
from harness.results.samples import Boot, Campaign, ResultDirectory
from harness.results.spread import spread_of
from harness.results.stats import Paired, Verdict
from harness.trials import MEASURES, RATES, loads
from harness.trials.kind import FunctionCost
from harness.trials.readings import Stage, Trace, Void
from harness.trials.receive_path import LIST_RULE


@dataclass
class _Gathered:
    """What has been read of one step so far."""

    boots: list[BootFigures] = field(default_factory=list)
    stages: dict[str, Stage] = field(default_factory=dict)
    per_skb: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    missed: int = 0
    traced_pps: list[float] = field(default_factory=list)
    void_trials: int = 0
    absent: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    functions: list[Mapping[str, FunctionCost]] = field(default_factory=list)

    def add(self, boot: BootRead) -> None:
        """Add one boot of this step."""
        self.boots.append(boot.figures)
        self.void_trials += sum(not trial.rates_only for trial in boot.void)
        self.functions += boot.functions
        self.traced_pps += boot.traced_pps
        for trace in boot.traces:
            _add_trace(trace, self)
        for name, why in boot.absent.items():
            self.absent[name] |= why


_DELIVERED, _TAKEN = "repeat_delivered", "repeat_taken"
"""Counters of the NIC model: frames delivered, and frames taken from the wire."""


def analyse(result: ResultDirectory) -> Analysis:
    """Read every boot of ``result`` and compare the steps.

    A campaign with looks ends at the first at which its primary comparison is decided; boots
    after that are not read. If blocks are missing, it is analysed up to the look that they
    belong to.

    Raises:
        ConfigurationError: a boot of another format or campaign.
    """
    looks = result.campaign.looks
    for blocks, level in looks:
        part = ResultDirectory(result.root, result.campaign.until(blocks))
        found = _analyse(part, look=level)
        primary = primary_of(found.campaign)
        if primary is None:
            break
        verdict = found.row(primary).verdict
        decided = verdict is not None and verdict.outcome != "inconclusive"
        if decided or not found.complete or blocks == looks[-1][0]:
            look = Look(
                declared=tuple(blocks for blocks, _ in looks),
                blocks=blocks,
                level=level,
                primary=primary,
                decided=decided,
            )
            return replace(found, look=look)
    return _analyse(result)


def _analyse(result: ResultDirectory, *, look: float | None = None) -> Analysis:
    campaign = result.campaign
    tolerances = recorded_tolerances(campaign)
    gathered: dict[str, _Gathered] = {step: _Gathered() for step in campaign.steps}
    boots: list[BootRead] = []
    done = 0
    first: dict[tuple[str | None, str], Boot] = {}
    varied: set[str] = set()
    repeated: Counter[str] = Counter()
    for boot in result.boots():
        if boot.outcome == "ok":
            model = boot.nic_model or {}
            repeated.update({name: model.get(name, 0) for name in (_DELIVERED, _TAKEN)})
            done += 1
            # What a factor varies is no difference.
            where = (boot.bed, cells.at(cells.levels_of(boot.step)))
            one = first.setdefault(where, boot.model_copy(update={"trials": []}))
            varied |= _differences(one.settings, boot.settings)
            boots.append(read(boot, campaign, tolerances))
    boots = _void_by_path(boots)
    for found in boots:
        gathered[found.figures.boot.step].add(found)
    problems = (*result.problems, *_links_differ(boots), *_share_alone(campaign))
    judged = judge_campaign(
        campaign,
        {step: found.boots for step, found in gathered.items()},
        complete=not problems,
        look=look,
    )
    shown = _shown(campaign, first)
    return Analysis(
        campaign=campaign,
        rows=tuple(_row(step, campaign, gathered[step], judged) for step in campaign.steps),
        trend=judged.trend,
        contrasts=judged.contrasts,
        spread=spread_of({step: found.boots for step, found in gathered.items()}, PRIMARY),
        absent=_absent(gathered.values()),
        void=tuple(trial for boot in boots for trial in boot.void),
        problems=problems,
        notes=tuple(_notes(campaign, boots)),
        boots_done=done,
        boots_planned=sum(1 for _ in campaign.planned()),
        settings=_by_bed({bed: boot.settings for bed, boot in shown.items()}),
        settings_varied=tuple(sorted(varied)),
        inventory=_by_bed({bed: boot.inventory for bed, boot in shown.items()}),
        repetition=repeated[_DELIVERED] / repeated[_TAKEN] if repeated[_TAKEN] else None,
    )


def _shown(campaign: Campaign, first: dict[tuple[str | None, str], Boot]) -> dict[str | None, Boot]:
    """By bed, the first boot at the first levels: the same levels in every campaign like this."""
    found: dict[str | None, Boot] = {}
    for levels in (*cells.by_levels(campaign.steps), *(at for _, at in first)):
        for (bed, at), boot in first.items():
            if at == levels:
                found.setdefault(bed, boot)
    return found


def _void_by_path(boots: Sequence[BootRead]) -> list[BootRead]:
    """``boots``; those whose packets did not take the path of their step are made void.

    A boot without a traced trial is judged by the traced boots of its step on its bed. What
    removes packets from a list in step 6 is visible only from step 7 on.
    """
    wrong = [one for one in boots if one.path]

    def evidence(one: BootRead) -> Iterable[BootRead]:
        boot, number = one.figures.boot, step_number(one.figures.boot.step)
        for other in wrong:
            step = other.figures.boot.step
            same = one.path is None and step == boot.step
            later = number == SINGLY_BEFORE - 1 and (step_number(step) or 0) >= SINGLY_BEFORE
            if other.figures.bed == one.figures.bed and (same or later):
                yield other

    judged = []
    for one in boots:
        reasons = one.path or tuple(
            Void(
                rule=LIST_RULE,
                detail=f"block {other.figures.boot.block}, step {other.figures.boot.step}: "
                f"{void.detail}",
            )
            for other in evidence(one)
            for void in other.path or ()
        )
        judged.append(one.voided(reasons[:1]) if reasons else one)
    return judged


def _share_alone(campaign: Campaign) -> list[str]:
    """Why a shard has no verdict."""
    if campaign.shard is None:
        return []
    return [f"shard {campaign.shard} is a part of a campaign: `harness merge` joins the shards"]


def _links_differ(boots: Sequence[BootRead]) -> list[str]:
    """A line for each bed and host whose link speed was not the same in all boots."""
    speeds: dict[tuple[str | None, str], dict[int, list[PlannedBoot]]] = {}
    for boot in boots:
        for role, seen in boot.link_mbps.items():
            found = speeds.setdefault((boot.figures.bed, role), {})
            for mbps in seen:
                found.setdefault(mbps, []).append(boot.figures.boot)
    lines = []
    for (bed, role), found in speeds.items():
        if len(found) > 1:
            told = ", ".join(
                f"{mbps} Mbit/s in {len(where)} boots (for example {where[0].directory})"
                for mbps, where in sorted(found.items(), key=lambda one: -len(one[1]))
            )
            where = f" of bed {bed}" if bed else ""
            lines.append(f"the link speed of the {role}{where} was not constant: {told}")
    return lines


def _notes(campaign: Campaign, boots: Sequence[BootRead]) -> Iterable[str]:
    """Remarks that qualify the figures of the whole campaign."""
    if campaign.design != DESIGN:
        planned = f"by design {campaign.design}" if campaign.design else "before designs had names"
        yield f"planned {planned}; its words are judged by design {DESIGN}"
    pauses: dict[str | None, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for boot in boots:
        for way, frames in boot.figures.pauses.items():
            pauses[boot.figures.bed][way] += frames
    for bed, ways in pauses.items():
        told = " and ".join(f"{way} {frames:,}" for way, frames in sorted(ways.items()))
        yield (
            f"pause frames{f' on bed {bed}' if bed else ''} during the timed trials: the dut's "
            f"port {told}; pausing the sender hides drops"
        )
    if any("interrupts" in boot.figures.judged_by for boot in boots):
        yield (
            "saturation was judged by interrupts per packet, because CPU times were not read; "
            "with interrupt moderation that rule is not reliable"
        )
    if any("nothing" in boot.figures.judged_by for boot in boots):
        yield (
            "for some trials it is not known whether the receiver was saturated: neither CPU "
            "times nor interrupts were read"
        )
    if any(boot.unlike_loads for boot in boots):
        yield (
            "paced loads are shares of a rate at which the receiver was not saturated, "
            "so of the rate of the load"
        )
    for step in campaign.steps:
        of_step = [boot for boot in boots if boot.figures.boot.step == step]
        lacking = dict.fromkeys(name for boot in of_step for name in boot.unproven)
        if lacking:
            where = ", ".join(lacking)
            yield f"step {step}: no probe at {where}, so it is not known whether lists came there"


def _typical(boots: Sequence[Mapping[str, FunctionCost]]) -> dict[str, FunctionCost]:
    """Medians over boots; a function that a boot does not list has cost 0 there."""
    nothing = FunctionCost(calls=0.0, instructions=0.0, misses=0.0)
    names = {name for boot in boots for name in boot}
    found = {}
    for name in names:
        costs = [boot.get(name, nothing) for boot in boots]
        found[name] = FunctionCost(
            calls=statistics.median(cost.calls for cost in costs),
            instructions=statistics.median(cost.instructions for cost in costs),
            misses=statistics.median(cost.misses for cost in costs),
        )
    return dict(sorted(found.items(), key=lambda one: (-one[1].instructions, one[0])))


def _absent(gathered: Iterable[_Gathered]) -> dict[str, tuple[str, ...]]:
    reasons: dict[str, set[str]] = defaultdict(set)
    for found in gathered:
        for name, why in found.absent.items():
            reasons[name] |= why
    return {name: tuple(sorted(reasons[name])) for name in MEASURES if name in reasons}


def _add_trace(trace: Trace, into: _Gathered) -> None:
    into.missed += trace.missed
    for name, count in trace.per_skb.items():
        into.per_skb[name] += count
    for stage in trace.stages:
        known = into.stages.get(stage.name)
        into.stages[stage.name] = stage if known is None else _joined(known, stage)


def _joined(one: Stage, other: Stage) -> Stage:
    lengths = [sum(pair) for pair in itertools.zip_longest(one.lengths, other.lengths, fillvalue=0)]
    longest = [stage.max for stage in (one, other) if stage.max is not None]
    return Stage(
        name=one.name,
        function=one.function,
        attach=one.attach,
        calls=one.calls + other.calls,
        packets=one.packets + other.packets,
        lengths=lengths,
        overflow=one.overflow + other.overflow,
        max=max(longest, default=None),
    )


def _row(step: str, campaign: Campaign, found: _Gathered, judged: Judged) -> Row:
    usable = [boot for boot in found.boots if boot.trials]
    beds = {bed: [boot for boot in usable if boot.bed == bed] for bed in campaign.beds}
    seen = found.per_skb.get("tracepoint_netif_receive_skb", 0)
    return Row(
        step=step,
        title=_title(campaign, step),
        release=next((boot.release for boot in found.boots), None),
        measured=tuple(found.boots),
        rates=dict.fromkeys(RATES) if beds else _rates_over(usable),
        beds=tuple(
            OnBed(
                bed=bed,
                boots=len(boots),
                rates=_rates_over(boots),
                change=judged.on_beds[bed][step][0],
                verdict=judged.on_beds[bed][step][1],
            )
            for bed, boots in beds.items()
        ),
        change=judged.primary[step][0],
        verdict=judged.primary[step][1],
        stages=tuple(
            lengths for stage in found.stages.values() if (lengths := list_lengths(stage))
        ),
        ip_rcv_per_packet=found.per_skb["ip_rcv"] / seen
        if seen and "ip_rcv" in found.per_skb and not loads.named(campaign.load_kind).unprobed
        else None,
        traced_pps=median(found.traced_pps),
        trace_missed=found.missed,
        drop_shares=_drop_shares(usable),
        drop_packets=_drop_packets(usable),
        void_trials=found.void_trials,
        measures={
            name: Beside(median=middle, change=by_step[step][0], verdict=by_step[step][1])
            for name, by_step in judged.measures.items()
            if (middle := median(median(b.of(name).values()) for b in found.boots)) is not None
        },
        cost=_cost(usable, *judged.cost[step]) if judged.cost else None,
        functions=_typical([costs for costs in found.functions if costs]),
    )


def _cost(
    boots: Sequence[BootFigures], change: Paired | None, verdict: Verdict | None
) -> Beside | None:
    middle = _rates_over(boots)[COST]
    return None if middle is None else Beside(median=middle, change=change, verdict=verdict)


def _rates_over(boots: Sequence[BootFigures]) -> dict[str, float | None]:
    return {name: median(boot.rates.get(name) for boot in boots) for name in RATES}


def _by_bed(found: dict[str | None, dict[str, Any]]) -> dict[str, Any]:
    """``found`` by bed; with a single bed, its content only."""
    if found.keys() <= {None}:
        return found.get(None, {})
    return {bed: about for bed, about in found.items() if bed}


def _drop_packets(boots: Sequence[BootFigures]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for boot in boots:
        for place, packets in boot.drops.items():
            total[place] += packets
    return {place: packets for place, packets in total.items() if packets}


def _drop_shares(boots: Sequence[BootFigures]) -> dict[str, float]:
    offered = [boot for boot in boots if boot.offered > 0]
    shares = {
        place: median(boot.drops.get(place, 0) / boot.offered for boot in offered)
        for place in _drop_packets(offered)
    }
    return {place: share for place, share in shares.items() if share is not None}


def _differences(one: Any, other: Any, name: str = "") -> set[str]:
    """Dotted names of the settings during a run that differ."""
    if one == other:
        return set()
    if name.rpartition(".")[2] in ("irq_affinity", "irq_effective_affinity"):
        # Interrupt numbers change with a boot, their order does not.
        one, other = ([*each.values()] if isinstance(each, dict) else each for each in (one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return {
            found
            for key in one.keys() & other.keys()  # what a kernel has not, cannot be set
            if key not in ("before", "restored")  # the original settings may differ
            for found in _differences(one.get(key), other.get(key), f"{name}.{key}".strip("."))
        }
    return set() if one == other else {name}


def _title(campaign: Campaign, step: str) -> str | None:
    """What the last patch of a step does, from its file name."""
    if cells.variant_of(step) == SHIPPED:
        return "the tree as it ships"
    if subject := campaign.variants.get(step, {}).get("subject"):
        return str(subject)
    patches = campaign.variants.get(step, {}).get("patches") or []
    if not patches:
        return None
    return re.sub(r"^\d+-|\.patch$", "", str(patches[-1])).replace("-", " ")
