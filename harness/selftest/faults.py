# SPDX-License-Identifier: MIT
"""Faults, done to a campaign on the rack, and whether they were borne.

Afterwards the exit code has to be that of its class, and the machines have to be as
they were: leases free, settings back, the known-good kernel running, nothing of the
harness at work there.
"""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from harness.base.errors import InfrastructureError
from harness.base.write_ahead import WriteAheadLog
from harness.beds.access.ssh import UPLOADS
from harness.selftest.machine import INTERFACE, Machine
from harness.selftest.rack import Rack

_RUN_S = 1200.0
BACK_S = 600.0
_POLL_S = 0.3
_WHOLE_S = 240.0
"""About so long a campaign of one boot takes."""
_BOOT_S = 150
"""Within so long a machine of the rack boots, on a machine with other things to do."""


@dataclass(frozen=True)
class Fault:
    """One fault: when and how it strikes, and what has to come of it."""

    name: str
    strike: Callable[[Scene], None]
    exit_code: int
    says: str
    """A pattern of what the harness tells."""
    after: str | None = "up"
    """The event in the journal after which it strikes; ``None``: before the campaign."""
    method: str = "kexec"
    mend: Callable[[Scene], None] = lambda _: None
    """What an operator has to do before the machines can be as they were."""
    dut: Mapping[str, Any] = field(default_factory=dict)
    """What hosts.yaml says of the dut in this campaign."""
    unmet: bool = False
    """Whether the machines cannot be left as they were met."""
    resumes: bool = False
    """Does the campaign continue with ``--resume`` after it?"""
    resume_exit_code: int = 0
    kills: int = 0
    """So often the harness is killed instead, each time at a random moment, and resumed."""
    installed: bool = False
    """Whether the kernel has to be on the dut before the campaign."""
    fast: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a fault."""

    fault: str
    exit_code: int
    said: str
    wrong: tuple[str, ...]
    took_s: float


@dataclass
class Scene:
    """The rack, and a campaign on it."""

    rack: Rack
    directory: Path
    environment: dict[str, str]
    dut: Mapping[str, Any] = field(default_factory=dict)
    """What hosts.yaml says of the dut, faults apart."""
    settings: dict[str, Any] = field(default_factory=dict)
    known_good: Mapping[str, Any] = field(default_factory=dict)
    """The dut's boot before the first fault."""
    number: str = "0"
    process: subprocess.Popen[str] | None = None
    """The campaign that is to be struck."""
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """The result directory of the campaign."""
        return self.directory / f"result-{self.number}"

    def hosts(self, fault: Fault | None = None) -> Path:
        """The hosts file of a campaign with ``fault``."""
        boot = {"method": fault.method if fault else "kexec", "timeout_s": _BOOT_S}
        return self.rack.hosts_yaml(
            self.directory / f"hosts-{self.number}.yaml",
            dut={"boot": boot, **self.dut, **(fault.dut if fault else {})},
            generator={"boot": {"timeout_s": _BOOT_S}},
            top={"kernel": {"config": "benchmark"}},
        )

    def harness(self, *words: str) -> subprocess.Popen[str]:
        """``harness WORDS``, under way."""
        started = subprocess.Popen(
            # Also from a suite in the background, where interruptions are ignored.
            ["env", "--default-signal=INT", sys.executable, "-m", "harness", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self.started.append(started)
        return started

    def campaign(self, fault: Fault | None = None, *more: str) -> subprocess.Popen[str]:
        """The campaign that ``fault`` strikes, under way: one boot of step 8."""
        return self.harness(
            "run", "--hosts", str(self.hosts(fault)), "--profile", "smoke", "--steps", "8",
            "--out", str(self.out), *more,
        )  # fmt: skip

    def resumed(self, fault: Fault) -> subprocess.Popen[str]:
        """The same campaign again; it goes on with what there is."""
        there = (self.out / "campaign.json").exists()
        return self.campaign(fault, *(["--resume"] if there else []))

    def end(self, *words: str) -> tuple[int, str]:
        """``harness WORDS``, to its end: exit code and what it said."""
        return ended(self.harness(*words))

    def has_come_to(self, event: str) -> bool:
        """Is ``event`` in the campaign's journal?"""
        return any(noted["event"] == event for noted in WriteAheadLog(self.out).noted())


def run(scene: Scene, faults: Sequence[Fault]) -> Iterator[Outcome]:
    """Strike with each of ``faults`` in turn."""
    scene.known_good = _boot(scene.rack.dut)
    scene.settings = _settings(scene)
    try:
        yield from _each(scene, faults)
    finally:
        for process in scene.started:
            process.kill()


def _each(scene: Scene, faults: Sequence[Fault]) -> Iterator[Outcome]:
    for number, fault in enumerate(faults, start=1):
        scene.number = str(number)
        began = time.monotonic()
        if fault.installed and not _ask(scene.rack.dut, "kernel_list"):
            scene.number = f"{number}-before"
            ended(scene.campaign())
            scene.number = str(number)
        try:
            status, said, wrong = _borne(scene, fault)
        except Exception as error:  # noqa: BLE001 - the other rows tell something all the same
            status, said, wrong = -1, "", [f"it could not be tried: {error}"]
        last = [line for line in said.splitlines() if line.startswith("error:")]
        yield Outcome(
            fault.name,
            status,
            last[-1] if last else "",
            tuple(wrong),
            time.monotonic() - began,
        )


def _write_log(scene: Scene, said: str) -> None:
    scene.out.with_suffix(".log").write_text(said, encoding="utf-8")


def _borne(scene: Scene, fault: Fault) -> tuple[int, str, list[str]]:
    """The exit code after one fault, what was said, and what is wrong with either or after it."""
    status, said, wrong = _killed_often(scene, fault) if fault.kills else _struck(scene, fault)
    _write_log(scene, said)
    if status != fault.exit_code:
        wrong.append(f"exit code {status}, not {fault.exit_code}")
    if "not left as it was met" in said and not fault.unmet:
        wrong.append("it could not leave the machines as they were met")
    if not re.search(fault.says, said):
        wrong.append(f"does not say {fault.says!r}")
    fault.mend(scene)
    if fault.resumes and not fault.kills:
        _, report = scene.end("report", str(scene.out))
        if "INCOMPLETE" not in report:
            wrong.append("the report does not say that the campaign is incomplete")
    if fault.resumes:
        resumed, more = ended(scene.resumed(fault))
        said += more
        _write_log(scene, said)
        if resumed != fault.resume_exit_code:
            wrong.append(f"--resume ended with {resumed}")
    return status, said, wrong + _not_as_before(scene)


def shown(outcomes: Sequence[Outcome], form: str) -> str:
    """``outcomes`` as ``table``, ``markdown`` or ``json``."""
    if form == "json":
        return json.dumps([asdict(outcome) for outcome in outcomes], indent=1)
    rows = [
        {
            "fault": outcome.fault,
            "exit code": outcome.exit_code,
            "what the harness says": outcome.said.removeprefix("error: ") or "—",
            "machines": "; ".join(outcome.wrong) or "as they were",
        }
        for outcome in outcomes
    ]
    return tabulate(rows, headers="keys", tablefmt="github" if form == "markdown" else "simple")


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code of ``process``, and what it said; one that does not end is interrupted."""
    try:
        said, _ = process.communicate(timeout=_RUN_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=BACK_S)
        said += "\nharness selftest: it did not end by itself\n"
    return process.returncode, said


def _struck(scene: Scene, fault: Fault) -> tuple[int, str, list[str]]:
    if fault.after is None:
        fault.strike(scene)
    scene.process = scene.campaign(fault)
    if fault.after is None:
        return *ended(scene.process), []
    deadline = time.monotonic() + _RUN_S
    while scene.process.poll() is None and time.monotonic() < deadline:
        if scene.has_come_to(fault.after):
            fault.strike(scene)
            return *ended(scene.process), []
        time.sleep(_POLL_S)
    return *ended(scene.process), ["it had ended before the fault struck"]


def _killed_often(scene: Scene, fault: Fault) -> tuple[int, str, list[str]]:
    """The last kill's exit code; a campaign that is finished before it is followed by another."""
    moments = random.Random(fault.name)  # noqa: S311
    wrong: list[str] = []
    told: list[str] = []
    number, more, kills = scene.number, 0, 0
    while kills < fault.kills and not wrong:
        process = scene.resumed(fault)
        try:
            said, _ = process.communicate(timeout=moments.uniform(0, _WHOLE_S))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
            said, _ = process.communicate()
        status = process.returncode
        told.append(said)
        if status not in (0, -signal.SIGKILL):
            wrong.append(f"resumed after kill {kills}: exit code {status}")
        wrong += _report_of(scene)
        if status == 0:
            more += 1
            scene.number = f"{number}-{more}"
    return status, "\n".join(told), wrong


def _not_as_before(scene: Scene) -> list[str]:
    wrong = []
    for machine in scene.rack.machines:
        machine.wait_for_ssh(within_s=BACK_S)
        state = _ask(machine, "lease_state")
        if state.get("owner"):
            wrong.append(f"{machine.name} is held by {state['owner']}")
        at_work = machine.run(
            "sh", "-c", "pgrep -af 'net[s]erver|net[p]erf|[r]eceive-batching-agent' || true"
        ).strip()
        if at_work:
            wrong.append(f"{machine.name} runs {at_work}")
    wrong += _differences("dut", scene.known_good, _boot(scene.rack.dut))
    now = _settings(scene)
    for name, before in scene.settings.items():
        wrong += _differences(name, before, now[name])
    return wrong + _report_of(scene)


def _differences(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {key} is {now.get(key)!r}, was {value!r}"
        for key, value in before.items()
        if now.get(key) != value
    ]


def _boot(machine: Machine) -> dict[str, Any]:
    """What runs, on which command line, and what would be booted next."""
    state = _ask(machine, "boot_state")
    found = {"cmdline": machine.run("cat", "/proc/cmdline").strip()}
    for name in ("release", "ours", "default", "one_shot_pending", "kexec_loaded", "armed"):
        found[name] = state[name]
    return found


def _report_of(scene: Scene) -> list[str]:
    """What is wrong with the report of the campaign, as far as that has come."""
    if not (scene.out / "campaign.json").exists():
        return []
    status, said = scene.end("report", str(scene.out))
    return [] if status == 0 else [f"the report cannot be read: {said}"]


_COMPARED = ("addresses", "up", "coalesce", "irq_affinity", "rps", "rx_queues", "neighbours")


def _settings(scene: Scene) -> dict[str, Any]:
    found = {}
    for machine in scene.rack.machines:
        read = _ask(machine, "settings_read", interface=INTERFACE)
        found[machine.name] = {name: read[name] for name in _COMPARED}
        # Interrupts have other numbers after another boot.
        found[machine.name]["irq_affinity"] = [*read["irq_affinity"].values()]
        sent = machine.run("sh", "-c", f'ls -A "{UPLOADS}" 2> /dev/null || true')
        found[machine.name]["uploads"] = sent.split()
    return found


def _ask(machine: Machine, call: str, **arguments: Any) -> Any:
    deadline = time.monotonic() + BACK_S
    while True:
        try:
            return machine.ssh.ask(call, arguments, host=machine.name, within_s=60)
        except InfrastructureError:
            if time.monotonic() > deadline:
                raise
            time.sleep(2)
