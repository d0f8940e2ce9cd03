# SPDX-License-Identifier: MIT
"""A campaign: every boot of a plan, its trials, and what they left on disk.

Joins kernels, hosts, settings, workload and probes to samples. Each boot is
written when it is finished, so whatever ends a campaign, the boots before it
stay and a later call with the same directory goes on after them.
"""

from __future__ import annotations

import platform
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from harness import __version__, plan, samples
from harness.config import Bed, Load
from harness.errors import (
    ConfigurationError,
    HarnessError,
    InfrastructureError,
    KernelError,
    TrialVoidError,
)
from harness.hosts.bed import Equipment, RunningBed, virtual_bed
from harness.hosts.qemu import kernel_death
from harness.kernels.build import Image
from harness.progress import Progress

_PORT = 12865
_SETTLE_S = 1.3  # the NIC's statistics reach the driver once a second
_RAMP_S = 3
_RAMP_SAMPLE_S = 0.4
_BETWEEN_S = 0.5
_RAMP_MARGIN_S = 0.6
_STEADY = 0.25
_LEAST_PPS = 1000
_ATTACH_S = 240.0
_FREE_BYTES = 200 << 20


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All that a campaign is made of, resolved."""

    bed: Bed
    load: Load
    plan: plan.Plan
    images: Mapping[str, Image]
    equipment: Equipment


def run(setup: Setup, directory: Path, *, progress: Progress) -> None:
    """Do every boot of the plan that ``directory`` does not hold yet.

    A boot whose kernel dies is recorded and its step not booted again; the other
    steps go on.

    Raises:
        KernelError: at the end, if a step failed.
        HarnessError: whatever else ended the campaign; finished boots are kept.
    """
    if shutil.disk_usage(directory).free < _FREE_BYTES:
        raise InfrastructureError(f"less than {_FREE_BYTES >> 20} MiB are free for {directory}")
    failed: dict[str, HarnessError] = {}
    boots = list(setup.plan.boots())
    with progress.task("campaign", total=len(boots)) as task:
        for number, planned in enumerate(boots, start=1):
            where = samples.boot_directory(directory, planned)
            title = f"boot {number}/{len(boots)}: step {planned.step}, block {planned.block}"
            if _finished(where):
                progress.say(f"{title}: kept")
            elif planned.step not in failed:
                try:
                    _boot(setup, planned, directory, title=title, progress=progress)
                except KernelError as error:
                    failed[planned.step] = error
                    progress.say(f"{title}: {error.message}")
            task.advance()
    if failed:
        step, cause = next(iter(failed.items()))
        raise KernelError(f"step {step}: {cause.message}", hint=cause.hint) from cause


def record(setup: Setup, *, profile: str) -> samples.Campaign:
    """``campaign.json`` for a campaign that is about to begin."""
    chosen = setup.plan.profile
    trial = asdict(chosen)
    return samples.Campaign(
        id=secrets.token_hex(8),
        created=datetime.now(tz=UTC).isoformat(timespec="seconds"),
        profile=profile,
        seed=setup.plan.seed,
        bed=setup.bed.name,
        bed_kind=setup.bed.kind,
        accelerator=setup.equipment.accelerator,
        steps=list(setup.plan.steps),
        blocks=chosen.blocks,
        order=[list(block) for block in setup.plan.order],
        trial=trial,
        load=setup.load.model_dump(mode="json"),
        placement={
            "irq_cpu": setup.bed.placement.irq_cpu,
            "netserver_cpu": setup.bed.netserver_cpu,
            "rx_queues": setup.bed.rx_queues,
        },
        variants={step: image.provenance() for step, image in setup.images.items()},
        provenance={
            "harness": __version__,
            "python": platform.python_version(),
            "host_kernel": platform.release(),
            "host_cpus": psutil.cpu_count(),
            "cpu_model": _cpu_model(),
            "void_rules": plan.void_rules_record(),
        },
    )


def require_same(kept: samples.Campaign, wanted: samples.Campaign) -> None:
    """Refuse to go on with a campaign whose kernels, bed or load are others now.

    Raises:
        ConfigurationError: it names what differs.
    """
    was, now = kept.model_dump(mode="json"), wanted.model_dump(mode="json")
    for name in ("bed", "accelerator", "load", "placement", "variants", "order"):
        if was[name] != now[name]:
            raise ConfigurationError(
                f"the campaign cannot be gone on with: its {name} was another",
                hint="start a new one in another directory",
            )


def _boot(
    setup: Setup, planned: plan.PlannedBoot, root: Path, *, title: str, progress: Progress
) -> None:
    directory = samples.boot_directory(root, planned)
    shutil.rmtree(directory, ignore_errors=True)
    kept: dict[str, Any] = {
        "block": planned.block,
        "position": planned.position,
        "step": planned.step,
        "trials": [],
    }
    times: dict[str, float] = {}
    kept["times_s"] = times
    started = time.monotonic()
    try:
        with (
            progress.task(title),
            virtual_bed(setup.bed, setup.images[planned.step], setup.equipment, directory) as bed,
        ):
            times["up"] = time.monotonic() - started
            _measure(setup, planned, bed, kept)
            kept["nic_model"] = bed.nic.counters()
            if death := kernel_death(bed.guest.console()):
                raise KernelError(
                    f"the guest's kernel complained: {death}",
                    hint=f"console: {directory / 'console.log'}",
                )
    except HarnessError as error:
        kept["error"] = {"class": type(error).__name__, "message": error.message}
        kept["outcome"] = "failed"
        samples.write_boot(root, samples.Boot.model_validate(kept))
        raise
    times["all"] = time.monotonic() - started
    kept["outcome"] = "ok"
    samples.write_boot(root, samples.Boot.model_validate(kept))


def _measure(
    setup: Setup, planned: plan.PlannedBoot, bed: RunningBed, kept: dict[str, Any]
) -> None:
    """Set both hosts up, prove what is running, do the trials, put everything back."""
    image = setup.images[planned.step]
    kept["release"], kept["boot_id"] = bed.dut.ready["release"], bed.dut.ready["boot_id"]
    if kept["release"] != image.release:
        raise KernelError(f"the dut runs {kept['release']}, not {image.release}")
    wanted = _settings(setup.bed, bed)
    applied = {
        role: _agents(bed)[role].call("settings_apply", within_s=60, **wanted[role])
        for role in wanted
    }
    kept["settings"] = applied
    kept["placement_host"] = bed.placed
    kept["inventory"] = {
        "dut": bed.dut.call("inventory", interface=bed.dut_interface, within_s=60),
        "generator": bed.generator.call(
            "inventory", interface=bed.generator_interface, within_s=60
        ),
    }
    _same_netperf(kept["inventory"])
    address = str(setup.bed.dut.address.ip)
    bed.dut.call(
        "netserver_start", address=address, port=_PORT, cpu=setup.bed.netserver_cpu, within_s=60
    )
    trials = list(setup.plan.profile.trials_of(planned.block))
    kept["trials"] += _under_load(setup, bed, [trial for trial in trials if trial.kind != "trace"])
    if traced := [trial for trial in trials if trial.kind == "trace"]:
        bed.dut.call("trace_attach", interface=bed.dut_interface, within_s=_ATTACH_S)
        kept["trials"] += _under_load(setup, bed, traced)
        bed.dut.call("trace_detach", within_s=60)
    bed.dut.call("netserver_stop")
    kept["settings"]["restored"] = {
        role: agent.call("settings_restore", within_s=60) for role, agent in _agents(bed).items()
    }


def _agents(bed: RunningBed) -> dict[str, Any]:
    return {"dut": bed.dut, "generator": bed.generator}


def _settings(bed_config: Bed, bed: RunningBed) -> dict[str, dict[str, Any]]:
    """What each role is to be set to, as arguments of the agent's ``settings_apply``."""
    dut_address, generator_address = bed_config.dut.address, bed_config.generator.address
    return {
        "dut": {
            "interface": bed.dut_interface,
            "address": str(dut_address),
            "peer": {"address": str(generator_address.ip), "mac": bed.generator_mac},
            "rx_queues": bed_config.rx_queues,
            "irq_cpu": bed_config.placement.irq_cpu,
            "coalesce": bed_config.coalesce.model_dump() if bed_config.coalesce else None,
            "rps": False,
            "irqbalance": False if bed_config.irqbalance == "off" else None,
            "governor": bed_config.governor,
        },
        "generator": {
            "interface": bed.generator_interface,
            "address": str(generator_address),
            "peer": {"address": str(dut_address.ip), "mac": bed.dut_mac},
        },
    }


def _same_netperf(inventory: dict[str, Any]) -> None:
    """Refuse a pair of netperf and netserver of different versions, which can not talk."""
    netserver = inventory["dut"]["versions"].get("netserver")
    netperf = inventory["generator"]["versions"].get("netperf")
    if not netserver:
        raise InfrastructureError(
            "netserver is missing on the dut", hint="install the package netperf there"
        )
    if netperf and netperf != netserver:
        raise InfrastructureError(
            f"netperf {netperf} on the generator cannot talk to netserver {netserver} on the dut",
            hint="install the same version of netperf on both",
        )


def _under_load(
    setup: Setup, bed: RunningBed, planned: Sequence[plan.PlannedTrial]
) -> Iterator[samples.Trial]:
    """One load over the trials of ``planned``: up, steady, a window for each, down, settled.

    The trials share what only the whole of a load can tell: netperf's own counts
    and the balance of the counters before and after.
    """
    before = bed.dut.call("counters", interface=bed.dut_interface)
    duration_s = _RAMP_S + sum(trial.duration_s + _BETWEEN_S for trial in planned)
    bed.generator.call(
        "netperf_start",
        target=str(setup.bed.dut.address.ip),
        port=_PORT,
        streams=setup.load.streams,
        message_bytes=setup.load.message_bytes,
        cpus=bed.netperf_cpus,
        duration_s=duration_s,
        nice=bed.netperf_nice,
        command_prefix=bed.netperf_prefix,
        within_s=90,
    )
    shared: dict[str, Any] = {}
    measured: list[dict[str, Any]] = []
    try:
        shared["ramp"] = _ramp_up(bed)
        for trial in planned:
            call = "trace" if trial.kind == "trace" else "window"
            arguments = {"interface": bed.dut_interface, "duration_s": trial.duration_s}
            if call == "window":
                arguments["netserver"] = True
            measured.append({call: bed.dut.call(call, within_s=trial.duration_s + 60, **arguments)})
    except TrialVoidError as error:
        shared["void"] = [{"rule": "no-load", "detail": error.message}]
    shared["netperf"] = bed.generator.call(
        "netperf_wait", timeout_s=duration_s + 30, within_s=duration_s + 60
    )
    time.sleep(_SETTLE_S)
    after = bed.dut.call("counters", interface=bed.dut_interface)
    shared["whole"] = {"before": before, "after": after}
    measured += [{}] * (len(planned) - len(measured))
    for trial, result in zip(planned, measured, strict=True):
        head = {"kind": trial.kind, "index": trial.index}
        yield samples.Trial.model_validate(head | shared | result)


def _ramp_up(bed: RunningBed) -> dict[str, Any]:
    """Wait until packets arrive at a steady rate, or as long as the load can spare.

    Returns the rates seen, in packets/s, and whether the last two were alike.

    Raises:
        TrialVoidError: no packets arrive.
    """
    deadline = time.monotonic() + _RAMP_S - _RAMP_MARGIN_S
    rates: list[float] = []
    last = bed.dut.call("counters", interface=bed.dut_interface)
    while time.monotonic() < deadline:
        time.sleep(_RAMP_SAMPLE_S)
        now = bed.dut.call("counters", interface=bed.dut_interface)
        packets = now["snmp"]["Ip"]["InReceives"] - last["snmp"]["Ip"]["InReceives"]
        rates.append(packets / (now["monotonic_ns"] - last["monotonic_ns"]) * 1e9)
        last = now
        if len(rates) > 1 and abs(rates[-1] - rates[-2]) <= _STEADY * rates[-1]:
            return {"rates_pps": rates, "steady": True}
    if not rates or rates[-1] < _LEAST_PPS:
        raise TrialVoidError("no packets arrive though every stream has begun")
    return {"rates_pps": rates, "steady": False}


def _finished(directory: Path) -> bool:
    path = directory / "boot.json"
    return path.is_file() and samples.read_boot(path).outcome == "ok"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
