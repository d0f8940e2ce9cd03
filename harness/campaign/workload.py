# SPDX-License-Identifier: MIT
"""Both hosts of a running bed set up, and the loads that are put on them.

An unlimited stream load for rates, the same load paced for CPU time per packet,
single round trips for latency, and bursts of a paced load in search of the
highest rate without loss.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from harness.agent.settings.registry import PLAIN
from harness.base.errors import InfrastructureError, TrialVoidError
from harness.beds.bed import RunningBed
from harness.campaign import ndr
from harness.config import Bed, Load
from harness.plan import NDR_CONFIRMATIONS, NDR_LOSS, Cell

_PORT = 12865
_LONGEST_LOAD_S = 3600
_FRAME_HEADERS_BYTES = 14 + 20 + 8
_PACED_SEND_BUFFER_BYTES = 4096
"""Small, or what waits in the pacer would arrive while the receiver is frozen."""
_DRAIN_S = 0.3
_OFFERED = 0.95
_BUSY_READ_US = 50
_NO_MODERATION = {"adaptive_rx": False, "rx_usecs": 0}


def apply_settings(bed_config: Bed, bed: RunningBed) -> dict[str, Any]:
    """Set both hosts up as hosts.yaml says; returns by role what was and what is."""
    wanted = _settings(bed_config, bed)
    return {role: agents(bed)[role].settings_apply(**wanted[role]) for role in wanted}


def require_free_way(bed: RunningBed, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise an :class:`InfrastructureError` if others stand between a NIC and its stack.

    ``settings`` are what :func:`apply_settings` returned.
    """
    for role, done in settings.items():
        found = [
            *(tap for tap in done.get("packet_taps") or () if tap["in_path"]),
            *(one for one in done.get("in_the_way") or () if one["stops"]),
        ]
        if found:
            raise InfrastructureError(
                f"{agents(bed)[role].host}: packets do not reach the stack in lists, "
                "or not at all: " + "; ".join(str(one["detail"]) for one in found),
                hint="; ".join(str(one["remedy"]) for one in found),
            )


def start_load(
    bed_config: Bed, load: Load, bed: RunningBed, *, paced_pps: float | None = None
) -> None:
    """Start every stream of ``load``; they send until they are ended.

    Together they send ``paced_pps`` packets a second, or all they can.
    """
    if paced_pps:
        pace(bed, load, paced_pps)
    _have_netserver(bed_config, bed)
    bed.generator.netperf_start(
        target=str(bed_config.dut.address.ip),
        port=_PORT,
        streams=load.streams,
        message_bytes=load.message_bytes,
        cpus=bed.netperf_cpus,
        duration_s=_LONGEST_LOAD_S,
        send_buffer_bytes=_PACED_SEND_BUFFER_BYTES if paced_pps else 0,
        nice=bed.netperf_nice,
        command_prefix=bed.netperf_prefix,
    )


def agents(bed: RunningBed) -> dict[str, Any]:
    """By role."""
    return {"dut": bed.dut, "generator": bed.generator}


def pace(bed: RunningBed, load: Load, pps: float | None) -> None:
    """Hold the generator to ``pps`` packets of ``load`` a second, or let it go."""
    frame_bytes = _FRAME_HEADERS_BYTES + load.message_bytes
    _set(bed, "generator", pacing_bytes_per_s=round((pps or 0) * frame_bytes))


def round_trips(
    bed_config: Bed, bed: RunningBed, cell: Cell, *, usual: dict[str, Any], duration_s: float
) -> dict[str, Any]:
    """UDP_RR for ``duration_s`` in one cell; the dut's ``usual`` settings are put back after it.

    Raises:
        TrialVoidError: the dut cannot be brought into this cell.
    """
    moderation, busy_read_us = usual["coalesce"], usual["busy_read_us"]
    try:
        _set(
            bed,
            "dut",
            coalesce=moderation if cell.moderation else _NO_MODERATION,
            busy_read_us=_BUSY_READ_US if cell.busy_poll else 0,
        )
        _have_netserver(bed_config, bed)
        return dict(
            bed.generator.netperf_rr(
                target=str(bed_config.dut.address.ip),
                port=_PORT,
                duration_s=duration_s,
                cpu=bed.netperf_cpus[0] if bed.netperf_cpus else None,
                command_prefix=bed.netperf_prefix,
            )
        )
    finally:
        _set(bed, "dut", coalesce=moderation, busy_read_us=busy_read_us)


def highest_rate(
    load: Load, bed: RunningBed, *, first_pps: float, trial_s: float
) -> tuple[float | None, list[dict[str, Any]]]:
    """The non-drop rate of a bed whose streams have begun, and every rate that was tried.

    Each rate is sent for ``trial_s`` seconds between two rests, in which nothing is
    under way: what was sent and not read by then is lost.
    """
    tried: list[dict[str, Any]] = []

    def passes(pps: float) -> bool:
        pace(bed, load, pps)
        sent, read = _at_rest(bed)
        bed.generator.netperf_resume()
        began_s = time.monotonic()
        time.sleep(trial_s)
        bed.generator.netperf_pause()
        lasted_s = time.monotonic() - began_s
        now = _at_rest(bed)
        sent, read = now[0] - sent, now[1] - read
        row = {"asked_pps": pps, "offered_pps": sent / lasted_s, "sent": sent, "read": read}
        row["passed"] = not _lossy(row) and row["offered_pps"] >= _OFFERED * pps
        tried.append(row)
        return bool(row["passed"])

    bed.generator.netperf_pause()
    return ndr.search(passes, first_pps, confirmations=NDR_CONFIRMATIONS), tried


def why_no_highest_rate(pps: float | None, tried: Sequence[Mapping[str, Any]]) -> str | None:
    """Why what :func:`highest_rate` found says nothing of the dut; ``None``: it does."""
    if pps is None:
        return "not even the lowest rate passed"
    above = [row for row in tried if not row["passed"] and row["asked_pps"] > pps]
    nearest = min(above, key=lambda row: row["asked_pps"], default=None)
    if nearest is None or _lossy(nearest):
        return None
    return (
        f"asked for {nearest['asked_pps']:,.0f} packets/s the generator sent "
        f"{nearest['offered_pps']:,.0f}, and none was lost"
    )


def _lossy(row: Mapping[str, Any]) -> bool:
    return bool(row["sent"] - row["read"] > NDR_LOSS * row["sent"])


def _have_netserver(bed_config: Bed, bed: RunningBed) -> None:
    """On the dut; one that a trial lost is not missing in the next."""
    bed.dut.netserver_start(
        address=str(bed_config.dut.address.ip),
        port=_PORT,
        cpu=bed_config.netserver_cpu,
    )


def _at_rest(bed: RunningBed) -> tuple[int, int]:
    """Packets the generator has sent and the dut's programs have read, once both are still."""
    time.sleep(_DRAIN_S)
    sent = bed.generator.counters(interface=bed.generator_interface)
    read = bed.dut.counters(interface=bed.dut_interface)
    return sent["link"]["tx_packets"], read["snmp"]["Udp"]["InDatagrams"]


def _set(bed: RunningBed, role: str, **wanted: Any) -> None:
    interface = bed.dut_interface if role == "dut" else bed.generator_interface
    done = agents(bed)[role].settings_apply(interface=interface, **wanted)
    if skipped := [f"{one['setting']}: {one['why']}" for one in done["skipped"]]:
        raise TrialVoidError("; ".join(skipped))


def _settings(bed_config: Bed, bed: RunningBed) -> dict[str, dict[str, Any]]:
    """What each role is to be set to, as arguments of the agent's ``settings_apply``."""
    dut_address, generator_address = bed_config.dut.address, bed_config.generator.address
    return {
        "dut": {
            "interface": bed.dut_interface,
            "address": str(dut_address),
            "peer": {"address": str(generator_address.ip), "mac": bed.generator_mac},
            "rx_queues": bed_config.rx_queues if bed_config.steering else None,
            "steering": bed_config.steering,
            "irq_cpu": bed_config.placement.irq_cpu,
            "process_cpus": [bed_config.netserver_cpu],
            **{name: setting.plain for name, setting in PLAIN.items()},
            **bed_config.tuning(),
        },
        "generator": {
            "interface": bed.generator_interface,
            "address": str(generator_address),
            "peer": {"address": str(dut_address.ip), "mac": bed.dut_mac},
            "process_cpus": bed.netperf_cpus,
        },
    }
