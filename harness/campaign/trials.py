# SPDX-License-Identifier: MIT
"""What is measured while boots are up: loads, windows, probes, side by side where boots share
a machine.

A boot ends well, or with the error that its file keeps.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from harness import plan
from harness.agent import drivers
from harness.base.errors import (
    HarnessError,
    HostLostError,
    InfrastructureError,
    KernelError,
    TrialVoidError,
)
from harness.base.progress import Progress
from harness.base.write_ahead import BEGIN, END, WriteAheadLog
from harness.beds.access.channel import Pending, RemoteAgent
from harness.beds.bed import Boots, RunningBed, kernel_death
from harness.campaign import pacing, workload
from harness.config import Bed, Load
from harness.kernels import Image
from harness.results import samples

_LINK_S, _LINK_POLL_S = 15.0, 0.5
_SETTLE_S = 0.3 + drivers.statistics_s()
_RAMP_S = 30
_RAMP_SAMPLES = 8
_RAMP_SAMPLE_S = 0.4
_LAST_PACKETS_S = 0.3
_STEADY = 0.25
_LEAST_PPS = 1000
_ATTACH_S = 240.0
_FIRST_SHARE = 0.5
"""Of what the stack takes, where the search for the rate without loss begins."""
_LEAST_SHARE = 1e-4
"""Of all instructions, for a function to be kept by name."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All that a campaign is made of, resolved."""

    bed: Bed
    load: Load
    plan: plan.Plan
    images: Mapping[str, Sequence[Image]]
    """By step, its layouts; blocks take them in turn."""
    boots: Boots
    others: Sequence[tuple[Bed, Boots]] = ()
    """The beds beside :attr:`bed` and where they are booted, if there are several."""

    def by_bed(self) -> list[Setup]:
        """The same for each bed alone."""
        beds = [(self.bed, self.boots), *self.others]
        return [replace(self, bed=bed, boots=boots, others=()) for bed, boots in beds]


def image_of(setup: Setup, boot: plan.PlannedBoot) -> Image:
    """What ``boot`` runs: all boots of a block have the same layout."""
    layouts = setup.images[boot.step]
    return layouts[(setup.plan.ordinal(boot.block) - 1) % len(layouts)]


class BootUnderWay:
    """One boot under way: its bed while it is up, and what it has measured."""

    def __init__(
        self,
        planned: plan.PlannedBoot,
        *,
        root: Path,
        title: str,
        journal: WriteAheadLog,
        bed: str | None = None,
    ) -> None:
        self.planned = planned
        self._note = functools.partial(journal.note, planned.directory)
        self.title = title
        self.directory = samples.boot_directory(root, planned)
        self.kept: dict[str, Any] = {
            "block": planned.block,
            "position": planned.position,
            "step": planned.step,
            "bed": bed,
            "trials": [],
            "times_s": {},
        }
        self.root = root
        self.taken: pacing.Taken | None = None
        """What its paced loads are shares of."""
        self._up = contextlib.ExitStack()
        self._bed: RunningBed | None = None
        self._started_s = time.monotonic()

    @property
    def bed(self) -> RunningBed:
        assert self._bed is not None
        return self._bed

    @property
    def holdoff_us(self) -> float:
        """The interrupt moderation that was set up."""
        return samples.holdoff_us(self.kept.get("settings", {}))

    @property
    def up(self) -> bool:
        """Is its bed there?"""
        return self._bed is not None

    def bring_up(self, setup: Setup) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self._started_s = time.monotonic()
        image = image_of(setup, self.planned)
        self._note(BEGIN)
        self._bed = self._up.enter_context(setup.boots.boot(image, self.directory, self._note))
        self._took("up")

    def finish(self, error: HarnessError | None = None) -> None:
        """Take the bed down and write what there is; the boot is a good one without ``error``."""
        self.close()
        self._took("all")
        boot = samples.Boot.model_validate(self.kept | {"outcome": "ok"})
        samples.write_boot(self.root, boot.failed(error) if error else boot)
        if not isinstance(error, HostLostError):  # how that ends is not known yet
            self._note(END)

    def close(self) -> None:
        self._bed = None
        self._up.close()

    def _took(self, what: str) -> None:
        self.kept["times_s"][what] = time.monotonic() - self._started_s


def measure_together(
    setup: Setup,
    boots: Sequence[BootUnderWay],
    failed: dict[str, KernelError],
    *,
    progress: Progress,
) -> None:
    """Have all of ``boots`` up at once, measure them side by side, and write each.

    Boots whose kernels die are left out from there on and their steps are added to
    ``failed``; whatever else ends a boot ends all.
    """

    @contextlib.contextmanager
    def blamed(boot: BootUnderWay) -> Iterator[None]:
        try:
            yield
        except HarnessError as error:
            boot.finish(error)
            if not isinstance(error, KernelError):
                raise
            failed[boot.planned.step] = error
            progress.say(f"{boot.title}: {error.message}")

    with contextlib.ExitStack() as up:
        for boot in boots:
            up.callback(boot.close)
            with blamed(boot), progress.task(boot.title):
                boot.bring_up(setup)
                _prepare(setup, boot)
        trials: dict[str, list[plan.PlannedTrial]] = defaultdict(list)
        ordinal = setup.plan.ordinal(boots[0].planned.block)
        for trial in setup.plan.profile.trials_of(ordinal):
            trials["timed" if trial.kind == "warmup" else trial.kind].append(trial)
        if trials["timed"]:
            with progress.task(f"{len(trials['timed'])} trials of {len(boots)} boots"):
                _under_load(setup, boots, trials["timed"], blamed)
        if trials["paced"] or trials["ndr"]:
            _learn_what_is_taken(setup, boots)
        for share, planned in itertools.groupby(trials["paced"], lambda one: one.share):
            name = "paced trials" if share is None else f"trials paced to {share:.0%}"
            these = list(planned)
            with progress.task(f"{len(these)} {name} of {len(boots)} boots"):
                _paced(setup, boots, these, share, blamed)
        for kind, (name, measure) in _ALONE.items():
            for trial, boot in itertools.product(trials[kind], boots):
                if boot.up:
                    title = f"{boot.title}, {name}" + f" {trial.index + 1}" * (
                        len(trials[kind]) > 1
                    )
                    with blamed(boot), _others_frozen(boot, boots), progress.task(title):
                        measure(setup, boot, trial)
        for boot in boots:
            if boot.up:
                with blamed(boot):
                    _put_back(boot)
                    boot.finish()


def _learn_what_is_taken(setup: Setup, boots: Sequence[BootUnderWay]) -> None:
    """Have all boots of a block know the same of what the receiver takes."""
    cpu, up = setup.bed.placement.irq_cpu, [boot for boot in boots if boot.up]
    own = pacing.slowest(
        pacing.taken(boot.kept["trials"], cpu, holdoff_us=boot.holdoff_us) for boot in up
    )
    known = None
    if up and not setup.plan.profile.slice_s:
        planned = [boot.planned for boot in boots]
        known = pacing.kept(up[0].root, setup.plan, planned[0].block, cpu, planned)
    for boot in up:
        boot.taken = known or own


def _paced(
    setup: Setup,
    boots: Sequence[BootUnderWay],
    planned: Sequence[plan.PlannedTrial],
    share: float | None,
    blamed: Callable[[BootUnderWay], AbstractContextManager[None]],
) -> None:
    """Trials at one paced load; all void where it is a share of what nobody knows."""
    up = [boot for boot in boots if boot.up]
    if not up:
        return
    taken = up[0].taken
    if share is None:
        _under_load(setup, up, planned, blamed, setup.bed.paced_pps)
    elif taken is not None:
        of: dict[str, Any] = {
            "paced_share": share,
            "paced_of_pps": taken.pps,
            "paced_of_saturated": taken.saturated,
        }
        _under_load(setup, up, planned, blamed, taken.paced(share), of)
    else:
        void = {"rule": "rate-unknown", "detail": "no timed trial told what the receiver takes"}
        for boot, trial in itertools.product(up, planned):
            head = {"kind": trial.kind, "index": trial.index, "paced_share": share}
            boot.kept["trials"].append(samples.Trial.model_validate(head | {"void": [void]}))


@contextlib.contextmanager
def _others_frozen(boot: BootUnderWay, boots: Sequence[BootUnderWay]) -> Iterator[None]:
    others = [other for other in boots if other.up and other is not boot]
    for other in others:
        other.bed.freeze()
    try:
        yield
    finally:
        for other in others:
            other.bed.thaw()


def _traced(setup: Setup, boot: BootUnderWay, trial: plan.PlannedTrial) -> None:
    dut, interface = boot.bed.dut, boot.bed.dut_interface
    dut.trace_attach(interface=interface)
    _alone_under_load(setup, boot, trial)
    dut.trace_detach()


def _alone_under_load(setup: Setup, boot: BootUnderWay, trial: plan.PlannedTrial) -> None:
    _under_load(setup, [boot], [trial], lambda _: contextlib.nullcontext())


def _executed(setup: Setup, boot: BootUnderWay, trial: plan.PlannedTrial) -> None:
    _alone_under_load(setup, boot, trial)
    measured = boot.kept["trials"].pop()
    if measured.window is not None:
        measured = measured.model_copy(update={"functions": _functions(boot.bed)})
    boot.kept["trials"].append(measured)


def _functions(bed: RunningBed) -> dict[str, samples.Function]:
    """What the emulator counted, by function; those it was hardly in are one."""
    blocks = bed.executed()
    addresses = [block.address for block in blocks]
    found: dict[str, list[int]] = {}
    for block, (name, offset) in zip(blocks, bed.dut.symbols(addresses=addresses), strict=True):
        sums = found.setdefault(name, [0, 0, 0])
        sums[0] += block.runs if offset == 0 else 0
        sums[1] += block.instructions
        sums[2] += block.misses
    least = _LEAST_SHARE * sum(block.instructions for block in blocks)
    kept = {name: sums for name, sums in found.items() if sums[1] >= least}
    rest = [sums for name, sums in found.items() if name not in kept]
    if rest:
        kept["(other)"] = [0, *(sum(sums[which] for sums in rest) for which in (1, 2))]
    return {
        name: samples.Function(calls=calls, instructions=instructions, misses=misses)
        for name, (calls, instructions, misses) in kept.items()
    }


def _round_trips(setup: Setup, boot: BootUnderWay, trial: plan.PlannedTrial) -> None:
    cell, dut = plan.CELLS[trial.index], boot.bed.dut
    found: dict[str, Any] = {"kind": trial.kind, "index": trial.index, "cell": asdict(cell)}
    before = dut.counters(interface=boot.bed.dut_interface)
    try:
        found["round_trips"] = workload.round_trips(
            setup.bed,
            boot.bed,
            cell,
            usual=boot.kept["settings"]["dut"]["after"],
            duration_s=trial.duration_s,
        )
    except TrialVoidError as error:
        found["void"] = [{"rule": "cell-missing", "detail": error.message}]
    after = dut.counters(interface=boot.bed.dut_interface)
    found["whole"] = {"before": before, "after": after}
    boot.kept["trials"].append(samples.Trial.model_validate(found))


def _highest_rate(setup: Setup, boot: BootUnderWay, trial: plan.PlannedTrial) -> None:
    first_pps = setup.bed.paced_pps or (
        boot.taken.paced(_FIRST_SHARE) if boot.taken else pacing.FIRST_PPS
    )
    load = _Load(first_pps)
    _load_up(setup, boot.bed, load)
    found: dict[str, Any] = {"kind": trial.kind, "index": trial.index, "void": load.void}
    if not load.void:
        found["ndr_pps"], found["search"] = workload.highest_rate(
            setup.load, boot.bed, first_pps=first_pps, trial_s=trial.duration_s
        )
        if why := workload.why_no_highest_rate(found["ndr_pps"], found["search"]):
            found["void"] = [{"rule": "rate-not-found", "detail": why}]
        after = boot.bed.dut.counters(interface=boot.bed.dut_interface)
        found["whole"] = {"before": load.before, "after": after}
    list(_load_down(setup, boot.bed, load, []))
    boot.kept["trials"].append(samples.Trial.model_validate(found))


_ALONE: Mapping[str, tuple[str, Callable[[Setup, BootUnderWay, plan.PlannedTrial], None]]] = {
    "trace": ("probes", _traced),
    "icache": ("instructions", _executed),
    "latency": ("round trips", _round_trips),
    "ndr": ("highest rate without loss", _highest_rate),
}
"""What a boot measures while the others of its block are frozen, by kind of trial."""


def _prepare(setup: Setup, boot: BootUnderWay) -> None:
    """Prove what is running, and set both hosts up."""
    image, bed, kept = image_of(setup, boot.planned), boot.bed, boot.kept
    kept["release"], kept["boot_id"] = bed.dut.ready["release"], bed.dut.ready["boot_id"]
    if kept["release"] != image.release:
        raise KernelError(f"the dut runs {kept['release']}, not {image.release}")
    kept["settings"] = workload.apply_settings(setup.bed, bed)
    workload.require_free_way(bed, kept["settings"])
    kept["placement_host"] = bed.placed
    kept["inventory"] = {
        "dut": _with_link(bed.dut, bed.dut_interface),
        "generator": _with_link(bed.generator, bed.generator_interface),
    }
    kept["link_mbps"] = {role: of.get("speed_mbps") for role, of in kept["inventory"].items()}
    _same_netperf(kept["inventory"])
    _same_link(bed, kept["inventory"])


def _put_back(boot: BootUnderWay) -> None:
    """Restore both hosts' settings, and look whether the kernel complained."""
    bed, kept = boot.bed, boot.kept
    bed.dut.netserver_stop()
    kept["settings"]["restored"] = {
        role: agent.settings_restore() for role, agent in workload.agents(bed).items()
    }
    kept["nic_model"] = bed.nic_counters()
    if death := kernel_death(bed.console()):
        raise KernelError(
            f"the dut's kernel complained: {death}",
            hint=f"console: {boot.directory / 'console.log'}",
        )


def _with_link(agent: Any, interface: str) -> Any:
    """The inventory of a host once its link is up: a NIC that was just set up negotiates."""
    until = time.monotonic() + _LINK_S
    while True:
        found = agent.inventory(interface=interface)
        if found.get("link", True) or time.monotonic() > until:
            return found
        time.sleep(_LINK_POLL_S)


def _same_link(bed: RunningBed, inventory: dict[str, Any]) -> None:
    """Refuse a link of another speed than at the boots before: rates would not compare."""
    for role, found in inventory.items():
        speed = found.get("speed_mbps")
        before = bed.speeds_mbps.setdefault(role, speed) if speed else speed
        if speed != before:
            raise InfrastructureError(
                f"the link of the {role} ({found.get('interface')}) came up with {speed} Mbit/s, "
                f"and with {before} at a boot before",
                hint="look at cable, transceiver and the other end, fix the speed on both "
                "(ethtool -s … autoneg off speed …), and go on by --resume",
            )


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
    setup: Setup,
    boots: Sequence[BootUnderWay],
    planned: Sequence[plan.PlannedTrial],
    blamed: Callable[[BootUnderWay], AbstractContextManager[None]],
    paced_pps: int | None = None,
    of: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """One load a boot over the trials of ``planned``: up, steady, windows, down, settled.

    With several boots all but one are frozen at any moment, and they take turns:
    what slows this machine down for a second slows all of them down.
    The trials of a boot share what only the whole of a load can tell: netperf's own
    counts and the balance of the counters before and after, and what a paced load is a share of.
    """
    together = len(boots) > 1
    loads = {boot: _Load(paced_pps, of) for boot in boots if boot.up}
    for boot, load in loads.items():
        with blamed(boot):
            _load_up(setup, boot.bed, load)
            if together:
                boot.bed.freeze()
    for trial in planned:
        pending: dict[BootUnderWay, Pending[dict[str, Any]]] = {}
        for boot, load in loads.items():
            if boot.up and not load.void:
                with blamed(boot):
                    pending[boot] = _open_window(setup, boot.bed, trial, len(boots))
        if together:
            _take_turns(pending, setup.plan.profile.slice_s, blamed)
        for boot, answer in pending.items():
            if boot.up:
                with blamed(boot):
                    try:
                        loads[boot].measured.append({_call_of(trial): answer.result()})
                    except TrialVoidError as error:
                        loads[boot].give_up(error)
    for boot, load in loads.items():
        if boot.up:
            with blamed(boot):
                if together:
                    boot.bed.thaw()
                boot.kept["trials"] += _load_down(setup, boot.bed, load, planned)


class _Load:
    """What one load on one boot has shown so far."""

    def __init__(
        self, paced_pps: int | None = None, of: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self.paced_pps = paced_pps
        self.of = of
        self.before: dict[str, Any] = {}
        self.ramp: dict[str, Any] | None = None
        self.void: list[dict[str, str]] = []
        self.measured: list[dict[str, Any]] = []

    def give_up(self, error: TrialVoidError) -> None:
        """There is nothing to measure; all its trials are void."""
        self.void = [{"rule": "no-load", "detail": error.message}]


def _load_up(setup: Setup, bed: RunningBed, load: _Load) -> None:
    load.before = bed.dut.counters(interface=bed.dut_interface)
    workload.start_load(setup.bed, setup.load, bed, paced_pps=load.paced_pps)
    try:
        load.ramp = _ramp_up(bed, setup.load.streams)
    except TrialVoidError as error:
        load.give_up(error)


def _call_of(trial: plan.PlannedTrial) -> str:
    return "trace" if trial.kind == "trace" else "window"


def _open_window(
    setup: Setup, bed: RunningBed, trial: plan.PlannedTrial, boots: int
) -> Pending[dict[str, Any]]:
    """Begin ``trial``, which lasts as much longer as ``boots`` share the machine."""
    within_s = (trial.duration_s + 60) * boots
    if trial.kind == "trace":
        return bed.dut.begin(
            RemoteAgent.trace,
            within_s,
            interface=bed.dut_interface,
            duration_s=trial.duration_s,
        )
    return bed.dut.begin(
        RemoteAgent.window,
        within_s,
        interface=bed.dut_interface,
        duration_s=trial.duration_s,
        netserver=True,
        pmu_cpu=setup.bed.placement.irq_cpu,
        emulated=trial.kind == "icache",
    )


def _take_turns(
    pending: Mapping[BootUnderWay, Pending[dict[str, Any]]],
    slice_s: float,
    blamed: Callable[[BootUnderWay], AbstractContextManager[None]],
) -> None:
    """Let each boot run for ``slice_s`` in turn, there and back, until all have answered."""
    turn = list(pending)
    waiting = bool(turn)
    while waiting:
        for boot in turn:
            with blamed(boot):
                boot.bed.thaw()
                time.sleep(slice_s)
                boot.bed.freeze()
        turn = [boot for boot in reversed(turn) if boot.up]
        waiting = False
        for boot in turn:
            with blamed(boot):
                waiting |= not pending[boot].arrived()


def _load_down(
    setup: Setup, bed: RunningBed, load: _Load, planned: Sequence[plan.PlannedTrial]
) -> Iterator[samples.Trial]:
    if load.paced_pps:
        workload.pace(bed, setup.load, None)
    bed.generator.netperf_end()
    time.sleep(_LAST_PACKETS_S)
    bed.dut.netserver_end()
    shared: dict[str, Any] = {
        "void": load.void,
        "ramp": load.ramp,
        "paced_pps": load.paced_pps,
        **load.of,
    }
    shared["netperf"] = bed.generator.netperf_wait(timeout_s=30)
    time.sleep(_SETTLE_S)
    after = bed.dut.counters(interface=bed.dut_interface)
    shared["whole"] = {"before": load.before, "after": after}
    for number, trial in enumerate(planned):
        result = load.measured[number] if number < len(load.measured) else {}
        head = {"kind": trial.kind, "index": trial.index}
        yield samples.Trial.model_validate(head | shared | result)


def _ramp_up(bed: RunningBed, streams: int) -> dict[str, Any]:
    """Wait until all streams send and packets arrive at a steady rate.

    Returns the rates seen, in packets/s, and whether the last two were alike.

    Raises:
        TrialVoidError: not all streams send, or no packets arrive.
    """
    deadline = time.monotonic() + _RAMP_S
    rates: list[float] = []
    sending = 0
    last = bed.dut.counters(interface=bed.dut_interface)
    while time.monotonic() < deadline:
        time.sleep(_RAMP_SAMPLE_S)
        sending = bed.generator.netperf_sending()["streams"]
        now = bed.dut.counters(interface=bed.dut_interface)
        packets = now["snmp"]["Ip"]["InReceives"] - last["snmp"]["Ip"]["InReceives"]
        rates.append(packets / (now["monotonic_ns"] - last["monotonic_ns"]) * 1e9)
        last = now
        if sending == streams and len(rates) > 1 and rates[-1] >= _LEAST_PPS:
            steady = abs(rates[-1] - rates[-2]) <= _STEADY * rates[-1]
            if steady or len(rates) >= _RAMP_SAMPLES:
                return {"rates_pps": rates, "steady": steady}
    if sending < streams:
        raise TrialVoidError(f"{sending} of {streams} streams send after {_RAMP_S} s")
    raise TrialVoidError("no packets arrive though every stream has begun")
