# SPDX-License-Identifier: MIT
"""The report as a table for a terminal, as markdown and as CSV.

Uses only the report document. The lines below a table (what is void, why there is no
verdict) belong to it; only CSV, which is for programs, leaves them out.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from tabulate import tabulate

from harness.agent.settings.registry import DECLARED
from harness.cells import variant_of
from harness.plan import BASELINE
from harness.report import levels
from harness.report.verdicts import percent, sentences, verdict_lines
from harness.results.expect import ExpectationResult

Document = dict[str, Any]

HEADERS = (
    "step",
    "list length\np50/p90/max",
    "stack\npackets/s",
    "delivered\npackets/s",
    "change over baseline\nmedian (range of blocks)",
    "on\nhardware*",
    "ip_rcv\n/packet",
    "drops, share of\nframes at the NIC",
    "boots",
)
BED_HEADERS = ("bed", "step", *HEADERS[2:5], "boots")
_ALIGN = ("left", "right", "right", "right", "left", "right", "right", "left", "right")
PLACES: Mapping[str, str] = MappingProxyType(
    {
        "nic_ring": "ring",
        "nic_other": "nic",
        "driver": "driver",
        "softnet": "backlog",
        "core": "core",
        "other_host": "other host",
        "ip": "ip",
        "udp_rcvbuf": "socket",
        "udp_memory": "udp memory",
        "udp_noport": "no port",
        "udp_checksum": "checksum",
    }
)
_JUDGED = ("verdict", "p_value", "p_corrected", "p_equivalent_corrected")
_NONE = "—"
_FUNCTIONS = 12
_DIFFERS = 2.0
"""Instructions per packet; smaller differences come from timers and the like."""
_COUNTED_LENGTH = 64


def table(report: Document) -> str:
    """For a terminal: header, table, then the lines that qualify it."""
    drawn = tabulate(
        cells(report), headers=HEADERS, tablefmt="simple", disable_numparse=True, colalign=_ALIGN
    )
    more = _more(report, "simple")
    head = [*head_lines(report), "", *sentences(report), ""]
    return "\n".join([*head, drawn, "", *more, *below_lines(report)])


def markdown(report: Document) -> str:
    """For a web page or a mail: the same lines as :func:`table`."""
    headers = [_escaped(header.replace("\n", " ")) for header in HEADERS]
    drawn = tabulate(
        cells(report), headers=headers, tablefmt="github", disable_numparse=True, colalign=_ALIGN
    )
    head = [
        f"**{line}**  " if index == 0 else f"{line}  "
        for index, line in enumerate(head_lines(report))
    ]
    below = [f"- {_escaped(line.strip())}" for line in below_lines(report)]
    more = _more(report, "github")
    first = [f"- **{_escaped(line)}**" for line in sentences(report)]
    return "\n".join([*head, "", *first, "", drawn, "", *more, *below])


def _more(report: Document, tablefmt: str) -> list[str]:
    """The tables below the first."""
    drawn = (levels.tables, _by_bed, _beside, _functions)
    return [line for table in drawn for line in table(report, tablefmt)]


def _by_bed(report: Document, tablefmt: str) -> list[str]:
    """The table of :func:`bed_cells`, where there are several beds."""
    if not report["campaign"]["beds"]:
        return []
    headers = BED_HEADERS if tablefmt == "simple" else [h.replace("\n", " ") for h in BED_HEADERS]
    drawn = tabulate(
        bed_cells(report),
        headers=headers,
        tablefmt=tablefmt,
        disable_numparse=True,
        colalign=("left", "left", "right", "right", "left", "right"),
    )
    return [drawn, ""]


def _beside(report: Document, tablefmt: str) -> list[str]:
    """A table of the other measures by step, if there are any."""
    rows = measure_cells(report)
    if not rows:
        return []
    steps = [f"step {row['step']}" for row in report["rows"]]
    drawn = tabulate(
        rows,
        headers=["other measures" + ", all beds" * bool(report["campaign"]["beds"]), *steps],
        tablefmt=tablefmt,
        disable_numparse=True,
        colalign=("left", *("right" for _ in steps)),
    )
    return [drawn, ""]


def _functions(report: Document, tablefmt: str) -> list[str]:
    """A table of :func:`function_cells`, where an emulator counted."""
    rows = function_cells(report, most=_FUNCTIONS)
    if not rows:
        return []
    steps = [f"step {row['step']}" for row in report["rows"]]
    drawn = tabulate(
        rows,
        headers=["instructions per packet, by function", *steps],
        tablefmt=tablefmt,
        disable_numparse=True,
        colalign=("left", *("right" for _ in steps)),
    )
    return [drawn, ""]


def function_cells(report: Document, *, most: int | None = None) -> list[list[str]]:
    """Functions whose instructions per packet differ between steps, largest difference first.

    One row for each: its name, and its instructions after each step.
    """
    costs = [
        {name: cost["instructions"] for name, cost in row["functions"].items()}
        for row in report["rows"]
    ]
    spread: dict[str, float] = {}
    for name in dict.fromkeys(name for found in costs for name in found):
        values = [found.get(name, 0.0) for found in costs if found]
        spread[name] = max(values) - min(values)
    names = sorted((name for name in spread if spread[name] >= _DIFFERS), key=lambda n: -spread[n])
    return [
        [name, *(f"{found.get(name, 0.0):,.1f}" if found else _NONE for found in costs)]
        for name in names[:most]
    ]


def measure_cells(report: Document) -> list[list[str]]:
    """Each measure that has no column of its own: title and unit, then a cell for each step."""
    return [
        [f"{about['title']}, {about['unit']}", *(measure_cell(row, name) for row in report["rows"])]
        for name, about in report["measures"].items()
        if name not in report["rates"]
    ]


def measure_cell(row: Document, name: str) -> str:
    """One measure of one step, and its change over step 0."""
    found = row["measures"].get(name)
    if found is None:
        return _NONE
    value = f"{found['median']:,.{0 if found['median'] >= 1000 else 1}f}"
    ratio = found["ratio_to_step0"]
    return value if ratio in (None, 1.0) else f"{value} ({percent(ratio)})"


def csv_rows(report: Document) -> str:
    """For programs: one line for each step, plain numbers, empty where there is no value."""
    flat = list(_flat_rows(report))
    names = list(dict.fromkeys(name for row in flat for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()


def _flat_rows(report: Document) -> Iterator[Document]:
    """One row for each step; with several beds also one for each step on each bed."""
    for row in report["rows"]:
        flat = _flat(report, row)
        yield {"bed": "all", **flat} if row["beds"] else flat
        for found in row["beds"]:
            verdict = found["verdict"] or {}
            own = {name: found[name] for name in found if name in flat}
            ends = (("range", found["ratio_range"]), ("interval", verdict.get("interval")))
            for name, pair in ends:
                low, high = pair or (None, None)
                own |= {f"ratio_{name}_low": low, f"ratio_{name}_high": high}
            own |= {"step": row["step"], **{name: verdict.get(name) for name in _JUDGED}}
            yield (
                own
                | {"complete": flat["complete"], "virtual": flat["virtual"]}
                | {"bed": found["bed"]}
            )


def _flat(report: Document, row: Document) -> Document:
    nested = ("drops", "drop_packets", "stages", "by_boot", "ratio_by_block", "measures", "beds",
              "functions", "levels", "cost")  # fmt: skip
    flat = {name: value for name, value in row.items() if name not in nested}
    for name in ("ratio_range", "ratio_interval"):
        low, high = flat.pop(name) or (None, None)
        flat |= {f"{name}_low": low, f"{name}_high": high}
    flat |= {name: found["median"] for name, found in row["measures"].items()}
    flat |= {f"drops_{place}": row["drops"].get(place, 0.0) for place in PLACES}
    verdicts = {verdict["step"]: verdict for verdict in report["verdicts"]}
    flat |= {name: verdicts.get(row["step"], {}).get(name) for name in _JUDGED}
    flat |= levels.flat(row)
    flat["complete"] = report["complete"]
    flat["virtual"] = report["virtual"]
    return flat


def head_lines(report: Document) -> list[str]:
    """What was measured, how reliable it is, and whether it is complete."""
    campaign = report["campaign"]
    layouts = max((len(v.get("layouts", [])) for v in campaign["variants"].values()), default=1)
    slice_s = campaign["trial"].get("slice_s")
    facts = [
        f"beds {', '.join(campaign['beds'])}" if campaign["beds"] else f"bed {campaign['bed']}",
        campaign["accelerator"].upper() if campaign["accelerator"] else None,
        f"kernel {campaign['kernel']}" if campaign["kernel"] else None,
        f"profile {campaign['profile']}",
        f"boots of a block time-sliced ({slice_s:g} s)" if slice_s else None,
        f"{layouts} layouts of each kernel" if layouts > 1 else None,
        _load(campaign["load"]),
        f"seed {campaign['seed']}",
        campaign["created"],
    ]
    lines = [" · ".join(fact for fact in facts if fact)]
    if report["virtual"]:
        lines.append(report["label"])
    if report["repetition"]:
        times = f"{report['repetition']:,.1f} times"
        lines.append(f"the wire repeats frames: each frame of netperf was delivered {times}")
    if look := look_line(report):
        lines.append(look)
    if machines := machines_line(report):
        lines.append(machines)
    if report["boots_done"] < report["boots_planned"]:
        lines.append(
            f"INCOMPLETE: {report['boots_done']} of {report['boots_planned']} boots are finished"
        )
    elif shard := campaign.get("shard"):
        lines.append(f"SHARD {shard}: `harness merge` joins the shards to one campaign")
    elif not report["complete"]:
        lines.append("NOT COMPARABLE: conditions differed between boots")
    return lines


def _load(load: Mapping[str, Any]) -> str | None:
    """What was sent, if it is not the usual ten streams of one byte over IPv4."""
    kind, streams, octets = (
        load.get(name, usual)
        for name, usual in (("kind", "udp"), ("streams", 10), ("message_bytes", 1))
    )
    if (kind, streams, octets) == ("udp", 10, 1):
        return None
    return f"load {kind}: {streams} streams of {octets} byte{'s' * (octets > 1)}"


def machines_line(report: Document) -> str | None:
    """Which machine measured which blocks, if the campaign was merged from shards."""
    blocks: dict[str, list[int]] = {}
    for shard in report["campaign"]["provenance"].get("shards") or ():
        blocks.setdefault(shard["machine"], []).extend(shard["blocks"])
    if not blocks:
        return None
    told = [
        f"{machine} (block{'s' * (len(numbers) > 1)} {', '.join(map(str, sorted(numbers)))})"
        for machine, numbers in blocks.items()
    ]
    return f"merged from shards measured on {', '.join(told)}"


def look_line(report: Document) -> str | None:
    """Where a campaign with declared looks is, or ended."""
    look = report["look"]
    if not look:
        return None
    declared = f"looks after {', '.join(map(str, look['declared']))} blocks"
    if not report["complete"]:
        return f"{declared}; on its way to the look after {look['blocks']}"
    last = "last look, " if look["blocks"] == look["declared"][-1] else "look "
    word = "was decided" if look["decided"] else "is still open"
    return f"{declared}; ended at the {last}after {look['blocks']}: step {look['primary']} {word}"


def cells(report: Document) -> list[list[str]]:
    """The table's cells under :data:`HEADERS`, as text."""
    differ = {verdict["step"] for verdict in report["verdicts"] if verdict["beds_differ"]}
    return [
        [
            row["step"],
            _lengths(row),
            _rate(row["stack_rx_pps"]),
            _rate(row["delivered_pps"]),
            "beds differ" if row["step"] in differ else _change(report, row),
            _hardware(report, row),
            _NONE if row["ip_rcv_per_packet"] is None else f"{row['ip_rcv_per_packet']:.3f}",
            _drops(row["drops"]),
            str(row["boots"]),
        ]
        for row in report["rows"]
    ]


def bed_cells(report: Document) -> list[list[str]]:
    """The cells of the table by bed, under :data:`BED_HEADERS`, as text."""
    return [
        [
            bed,
            row["step"],
            _rate(found["stack_rx_pps"]),
            _rate(found["delivered_pps"]),
            _change(report, found | {"step": row["step"]}),
            str(found["boots"]),
        ]
        for index, bed in enumerate(report["campaign"]["beds"])
        for row in report["rows"]
        for found in [row["beds"][index]]
    ]


def _lengths(row: Document) -> str:
    if row["list_len_p50"] is None:
        return _NONE
    shown = [
        f">{_COUNTED_LENGTH}" if row[name] > _COUNTED_LENGTH else str(row[name])
        for name in ("list_len_p50", "list_len_p90")
    ]
    return "/".join([*shown, str(row["list_len_max"])])


def _change(report: Document, row: Document) -> str:
    if row["ratio_to_step0"] is None:
        return _NONE
    if variant_of(row["step"]) == report["baseline"]:
        return "baseline"
    low, high = row["ratio_range"]
    return f"{percent(row['ratio_to_step0'])} ({percent(low)} … {percent(high)})"


def _hardware(report: Document, row: Document) -> str:
    if row["published_ratio"] is None or row["step"] == report["baseline"]:
        return _NONE
    return percent(row["published_ratio"])


def _drops(shares: Mapping[str, float]) -> str:
    worst = sorted(shares.items(), key=lambda item: -item[1])
    shown = [f"{PLACES.get(place, place)} {share:.1%}" for place, share in worst if share >= 5e-4]
    return ", ".join(shown) or ("none" if not shares else "under 0.1%")


def _rate(pps: float | None) -> str:
    return _NONE if pps is None else f"{pps:,.0f}"


def below_lines(report: Document) -> Iterator[str]:
    """The lines that qualify the table; everything that was left out is mentioned."""
    missing = report["boots_done"] < report["boots_planned"]
    # Of a shard the last one says what it is, as the head does.
    for problem in report["problems"][: -1 if report["campaign"].get("shard") else None]:
        yield f"{'not measured' if missing else 'not comparable'}: {problem}"
    yield from _of_the_nic(report)
    yield from _absent(report)
    for void in report["void"]:
        reasons = "; ".join(f"{reason['rule']}: {reason['detail']}" for reason in void["reasons"])
        if not void["rates_only"]:
            yield (
                f"void: block {void['block']}, step {void['step']}, "
                f"{void['kind']} trial {void['index'] + 1}: {reasons}"
            )
    yield from _void_for_rates(report)
    yield from (f"note: {note}" for note in report["notes"])
    if report["settings_varied"]:
        yield f"settings that differed between boots: {', '.join(report['settings_varied'])}"
    for row in report["rows"]:
        if row["trace_missed"]:
            yield f"step {row['step']}: the probes missed {row['trace_missed']} events"
    cost = [
        f"{row['step']}: {100 * (row['traced_to_timed'] - 1):+.0f}%"
        for row in report["rows"]
        if row["traced_to_timed"]
    ]
    if cost:
        yield (
            "stack packets/s with probes attached, compared with the timed trials: "
            f"{', '.join(cost)}"
        )
    if report["spread"]:
        yield _spread(report["spread"])
    yield from verdict_lines(report)
    if report["campaign"]["beds"] and any(v["p_beds"] is None for v in report["verdicts"]):
        yield (
            "the verdicts assume that a step has the same effect on every bed: "
            "there are too few blocks to test this"
        )
    for found in report["expectations"]:
        yield str(ExpectationResult(**found))
    if report["baseline"] != BASELINE:
        yield from (f"variant {row['step']}: {row['title']}" for row in report["rows"])
        return
    if not any(row["published_ratio"] for row in report["rows"]):
        return
    published = report["published"]
    rates = " / ".join(f"{pps / 1e6:.2f}" for pps in published["stack_rx_pps"].values())
    steps = ", ".join(published["stack_rx_pps"])
    yield f"* {published['source']}; {rates} Mpps after steps {steps}"


def _spread(spread: Document) -> str:
    """Where the noise of the rate comes from."""
    alone = spread["layout"] is not None
    parts = [
        ("block", "between blocks, which pairing removes"),
        ("layout", "between layouts"),
        ("boot", "between boots" if alone else "between boots and their layouts"),
        ("trial", "between trials"),
    ]
    shown = [f"{spread[name]:.1%} {what}" for name, what in parts if spread[name] is not None]
    return f"spread of the rate of a step (standard deviation): {'; '.join(shown)}"


def _void_for_rates(report: Document) -> Iterator[str]:
    """How many trials did not saturate the receiver, by step, with one example."""
    waited = [
        f"{row['step']}: {row['unsaturated_trials']} of {row['timed_trials']}"
        for row in report["rows"]
        if row["unsaturated_trials"]
    ]
    if not waited:
        return
    first = next(void for void in report["void"] if void["rates_only"])
    yield (
        "rates void because the receiver was not saturated (the load limited them, not the "
        f"kernel): timed trials of step {', '.join(waited)}; costs per packet count; "
        f"for example block {first['block']}, step {first['step']}, trial {first['index'] + 1}: "
        f"{first['reasons'][0]['detail']}"
    )


def _of_the_nic(report: Document) -> Iterator[str]:
    """How the NIC differs from the NIC of the series, and settings it did not accept."""
    nic = (report["inventory"].get("dut") or {}).get("nic") or {}
    yield from (f"the dut's NIC: {warning}" for warning in nic.get("warnings", ()))
    for row in (report["settings"].get("dut") or {}).get("skipped", ()):
        declared = DECLARED.get(row["setting"].partition(".")[0])
        if declared and declared.of_nic:
            yield f"not set on the dut: {row['setting']}: {row['why']}"


def _absent(report: Document) -> Iterator[str]:
    """What could not be measured, one line for each reason."""
    titles: dict[str, list[str]] = {}
    for about in report["absent"].values():
        for reason in about["reasons"]:
            titles.setdefault(reason, []).append(about["title"])
    measured = [about["title"] for about in report["measures"].values()]
    for reason, absent in titles.items():
        where = " in some trials" if any(title in measured for title in absent) else ""
        yield f"not available{where}: {', '.join(absent)}: {reason}"


def _escaped(line: str) -> str:
    return re.sub(r"([*|_`\\[\]])", r"\\\1", line).replace("<", "&lt;")
