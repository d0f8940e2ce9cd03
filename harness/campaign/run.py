# SPDX-License-Identifier: MIT
"""A campaign: all boots of a plan, measured and written to disk.

Each boot is written when its block is finished. So whatever ends a campaign, finished
blocks are kept, and a later call with the same directory continues after them.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from harness import __version__, plan, trials
from harness.base.errors import (
    ConfigurationError,
    DiedLeavingError,
    HarnessError,
    HostLostError,
    InfrastructureError,
    KernelError,
)
from harness.base.progress import Progress, Task
from harness.base.write_ahead import WriteAheadLog
from harness.beds import registry
from harness.beds.local.nic_model import data_path
from harness.campaign.boots import BootUnderWay, Setup, measure_together
from harness.kernels import Image
from harness.results import samples

__all__ = ["Setup", "record", "require_same", "run"]

_ATTEMPTS = 3
_FREE_BYTES = 200 << 20
_INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM)
_LOOK_EVERY_S = 0.5
_SAME_TO_RESUME = (
    "baseline", "bed", "accelerator",
    "trial", "load", "placement", "variants", "order", "block_beds", "shard",
)  # fmt: skip


def run(setup: Setup, directory: Path, *, progress: Progress, retry_failed: bool = False) -> None:
    """Do every boot of the plan that ``directory`` does not hold yet, on all beds in parallel.

    If a kernel dies, the boot is recorded and its step is not booted again on any bed, nor
    by a later run without ``retry_failed``; the other steps continue. If a bed is lost, the
    other beds continue.

    Raises:
        KernelError: at the end, if a step failed.
        HarnessError: any other error that ended the campaign; finished blocks are kept.
    """
    if shutil.disk_usage(directory).free < _FREE_BYTES:
        raise InfrastructureError(
            f"less than {_FREE_BYTES >> 20} MiB are free for {directory}", hint="free some space"
        )
    journal = WriteAheadLog(directory)
    setups = setup.by_bed()
    failed: dict[str, KernelError] = {}
    for one in setups:
        failed |= _failed_before(one, directory, journal, again=retry_failed)
    for step, error in failed.items():
        progress.say(f"step {step} is not booted again: {error.message}")
    total = sum(len(group) for group in setup.plan.groups())
    with progress.task("campaign", total=total) as task:

        def run_bed(one: Setup) -> None:
            named = progress.of(one.bed.name) if len(setups) > 1 else progress
            _run_bed(one, directory, journal, failed, named, task)

        if len(setups) == 1:
            run_bed(setup)
        else:
            _run_beds(setups, run_bed, progress)
    if failed:
        step, cause = next(iter(failed.items()))
        raise KernelError(f"step {step}: {cause.message}", hint=cause.hint) from cause


def _run_beds(beds: Sequence[Setup], run_bed: Callable[[Setup], None], progress: Progress) -> None:
    """Run each bed in its own thread, until all have ended.

    Raises:
        HarnessError: the worst error of any bed.
        KeyboardInterrupt: all beds were interrupted.
    """
    working: set[int] = set()
    interruptions: list[int] = []

    def run_one(bed: Setup) -> None:
        working.add(threading.get_ident())
        try:
            if not interruptions:
                run_bed(bed)
        except Exception as error:
            progress.of(bed.bed.name).say(f"ended, the other beds continue: {error}")
            raise
        finally:
            working.discard(threading.get_ident())

    def interrupt(number: int, _frame: object) -> None:
        # Only the main thread gets a signal, and it only waits; make the others unwind.
        interruptions.append(number)
        for ident in tuple(working):
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(ident), ctypes.py_object(KeyboardInterrupt)
            )

    before = {number: signal.signal(number, interrupt) for number in _INTERRUPTIONS}
    try:
        with ThreadPoolExecutor(len(beds)) as pool:
            under_way = [pool.submit(run_one, bed) for bed in beds]
            while wait(under_way, _LOOK_EVERY_S).not_done:
                pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interruptions:
        raise KeyboardInterrupt
    if ended := [error for one in under_way if (error := one.exception())]:
        raise min(ended, key=lambda e: e.exit_code if isinstance(e, HarnessError) else 0)


def _run_bed(
    setup: Setup,
    directory: Path,
    journal: WriteAheadLog,
    failed: dict[str, KernelError],
    progress: Progress,
    task: Task,
) -> None:
    """Do every boot of one bed; other beds may add to ``failed`` at the same time."""
    numbers = {planned: number for number, planned in enumerate(setup.plan.boots(), start=1)}
    for group in setup.plan.groups(setup.bed.name):
        titles = {}
        for planned in group:
            title = (
                f"boot {numbers[planned]}/{len(numbers)}: "
                f"step {planned.step}, block {planned.block}"
            )
            if _finished(samples.boot_directory(directory, planned)):
                progress.say(f"{title}: kept")
            else:
                titles[planned] = title
        _measure(setup, directory, journal, titles, failed, progress)
        task.advance(len(group))


def _measure(
    setup: Setup,
    directory: Path,
    journal: WriteAheadLog,
    titles: Mapping[plan.PlannedBoot, str],
    failed: dict[str, KernelError],
    progress: Progress,
) -> None:
    """Boot and measure a group; if its host is lost, repeat the group a few times."""
    for attempt in range(1, _ATTEMPTS + 1):
        boots = [
            _boot(setup, planned, directory, journal, title)
            for planned, title in titles.items()
            if planned.step not in failed
        ]
        if not boots:
            return
        if len(boots) > 1:
            turns = secrets.token_hex(4)
            for boot in boots:
                boot.turns = turns
        try:
            measure_together(setup, boots, failed, progress=progress)
        except HostLostError as error:
            if attempt == _ATTEMPTS:
                raise
            progress.say(f"{boots[0].title}: lost: {error.message}")
            if isinstance(error, DiedLeavingError):
                failed |= _failed_after_all(setup, directory, error)
            try:
                setup.boots.lost(error)
            except KernelError as death:
                for boot in boots:
                    boot.finish(death)
                    failed[boot.planned.step] = death
            else:
                continue
        return


def _failed_after_all(
    setup: Setup, directory: Path, died: DiedLeavingError
) -> dict[str, KernelError]:
    """Mark the latest boot of the kernel that died as failed; returns its step and error.

    Empty if the kernel is not one of the campaign's.
    """
    planned = itertools.chain.from_iterable(setup.plan.groups(setup.bed.name))
    paths = [samples.boot_directory(directory, boot) / "boot.json" for boot in planned]
    latest = sorted(
        (path for path in paths if path.is_file()), key=lambda path: path.stat().st_mtime
    )
    for boot in map(samples.read_boot, reversed(latest)):
        if (boot.release, boot.outcome) == (died.release, "ok"):
            error = KernelError(died.message, hint=died.hint)
            samples.write_boot(directory, boot.failed(error))
            return {boot.step: error}
    return {}


def _boot(
    setup: Setup, planned: plan.PlannedBoot, directory: Path, journal: WriteAheadLog, title: str
) -> BootUnderWay:
    bed = setup.plan.bed_of(planned.block)
    return BootUnderWay(planned, root=directory, title=title, journal=journal, bed=bed)


def _failed_before(
    setup: Setup, directory: Path, journal: WriteAheadLog, *, again: bool
) -> dict[str, KernelError]:
    """The steps whose kernel is known to have died in an earlier run of this campaign.

    A boot during which the harness was interrupted counts if the host crashed in it.
    """
    unfinished = journal.unfinished()
    failed: dict[str, KernelError] = {}
    for planned in itertools.chain.from_iterable(setup.plan.groups(setup.bed.name)):
        where = samples.boot_directory(directory, planned)
        notes = unfinished.get(planned.directory)
        if notes and not _finished(where) and not again and (why := setup.boots.crashed(notes)):
            boot = _boot(setup, planned, directory, journal, planned.directory)
            boot.finish(KernelError(why))
        if again or not (where / "boot.json").is_file():
            continue
        error = samples.read_boot(where / "boot.json").error
        if error and error.kind == KernelError.__name__:
            failed[planned.step] = KernelError(
                error.message, hint="boot it again with --resume --retry-failed"
            )
    return failed


def record(
    setup: Setup,
    *,
    profile: str,
    id_: str | None = None,
    options: samples.Options | None = None,
) -> samples.Campaign:
    """``campaign.json`` for a campaign that is about to begin."""
    return samples.Campaign(
        design=plan.DESIGN,
        id=id_ or secrets.token_hex(8),
        created=datetime.now(tz=UTC).isoformat(timespec="seconds"),
        profile=profile,
        seed=setup.plan.seed,
        bed="+".join(one.bed.name for one in setup.by_bed()),
        bed_kind=setup.bed.kind,
        bed_label=registry.of(setup.bed).label(setup.boots.accelerator),
        accelerator=setup.boots.accelerator,
        steps=list(setup.plan.steps),
        baseline=setup.plan.baseline,
        ranged=setup.plan.ranged,
        blocks=setup.plan.profile.blocks,
        order=[list(block) for block in setup.plan.order],
        block_beds=list(setup.plan.block_beds),
        shard=setup.plan.shard,
        trial=asdict(setup.plan.profile),
        load=setup.load.record(),
        placement={
            "irq_cpu": setup.bed.placement.irq_cpu,
            "netserver_cpu": setup.bed.netserver_cpu,
            "rx_queues": setup.bed.rx_queues if setup.bed.steering else None,
        },
        variants={
            step: _provenance([setup.varied.image(image, step) for image in layouts])
            for step, layouts in setup.images.items()
        },
        provenance={
            "harness": __version__,
            "python": platform.python_version(),
            "host_kernel": platform.release(),
            "host_cpus": psutil.cpu_count(),
            "cpu_model": _cpu_model(),
            **({"nic_data_path": data_path()[1]} if registry.of(setup.bed).here else {}),
            "void_rules": trials.void_rules_record(),
            **({"machine": _machine(setup)} if setup.plan.shard else {}),
        },
        options=options or samples.Options(),
    )


def _machine(setup: Setup) -> str:
    """The name of the machine that is measured."""
    return platform.node() if registry.of(setup.bed).here else setup.bed.dut_name


def _provenance(layouts: Sequence[Image]) -> dict[str, Any]:
    """The common provenance of a step's kernels, and release and image of each layout."""
    told = [image.provenance() for image in layouts]
    own = ("layout", "release", "image_sha256")
    shared = {name: value for name, value in told[0].items() if name not in own}
    return shared | {"layouts": [{name: one[name] for name in own} for one in told]}


def require_same(kept: samples.Campaign, wanted: samples.Campaign) -> None:
    """Raise if the kernels, the bed or the load of a campaign to resume have changed.

    Raises:
        ConfigurationError: names what differs.
    """
    was, now = kept.model_dump(mode="json"), wanted.model_dump(mode="json")
    for one in (was, now):
        for name in ("blocks", "layouts"):  # order and variants have them
            one["trial"].pop(name, None)
    for name in _SAME_TO_RESUME:
        if was[name] != now[name]:
            raise ConfigurationError(
                f"the campaign cannot be resumed: its {name} has changed",
                hint="use the options of its first run, or start a new one in another directory",
            )


def _finished(directory: Path) -> bool:
    path = directory / "boot.json"
    return path.is_file() and samples.read_boot(path).outcome == "ok"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
