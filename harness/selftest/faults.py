# SPDX-License-Identifier: MIT
"""What goes wrong with machines, done to the rack, and what the harness makes of it.

Each fault strikes a campaign that is under way. Afterwards the exit code has to be that
of its class, and the machines have to be as they were: leases free, settings back, the
known-good kernel running, nothing of the harness at work there.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from harness.errors import HarnessError, InfrastructureError
from harness.journal import Journal
from harness.selftest.machine import INTERFACE, Machine
from harness.selftest.rack import Rack

_RUN_S = 1200.0
_BACK_S = 600.0
_POLL_S = 0.3
_NOT_STRUCK = "harness selftest: it had ended before the fault struck"
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
    unmet: bool = False
    """Whether the machines cannot be left as they were met."""
    resumes: bool = False
    """Whether the campaign is finished by ``--resume`` after it."""
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
    settings: dict[str, Any] = field(default_factory=dict)
    known_good: str = ""
    number: int = 0
    process: subprocess.Popen[str] | None = None

    @property
    def out(self) -> Path:
        """The result directory of the campaign."""
        return self.directory / f"result-{self.number}"

    def hosts(self, method: str) -> Path:
        """A hosts file in which kernels are booted by ``method``."""
        return self.rack.hosts_yaml(
            self.directory / f"hosts-{method}.yaml",
            dut={"boot": {"method": method, "timeout_s": _BOOT_S}},
            generator={"boot": {"timeout_s": _BOOT_S}},
            top={"kernel": {"config": "benchmark"}},
        )

    def root(self, *command: str) -> None:
        """Run ``command`` as root on the dut; it may take the machine along."""
        with contextlib.suppress(HarnessError):
            self.rack.dut.run("sudo", "-n", *command, timeout_s=20)

    def harness(self, *words: str) -> subprocess.Popen[str]:
        """``harness WORDS``, under way."""
        return subprocess.Popen(
            [sys.executable, "-m", "harness", *words],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def has_come_to(self, event: str) -> bool:
        """Is ``event`` in the campaign's journal?"""
        return any(noted["event"] == event for noted in Journal(self.out).noted())


def run(scene: Scene, faults: Sequence[Fault]) -> Iterator[Outcome]:
    """Strike with each of ``faults`` in turn.

    Raises:
        InfrastructureError: the rack itself does not come back.
    """
    scene.known_good = scene.rack.dut.run("uname", "-r").strip()
    scene.settings = _settings(scene)
    for scene.number, fault in enumerate(faults, start=1):
        began = time.monotonic()
        status, said = _struck(scene, fault)
        wrong = []
        if _NOT_STRUCK in said:
            wrong.append(_NOT_STRUCK)
        if status != fault.exit_code:
            wrong.append(f"exit code {status}, not {fault.exit_code}")
        if "not left as it was met" in said and not fault.unmet:
            wrong.append("it could not leave the machines as they were met")
        if not re.search(fault.says, said):
            wrong.append(f"does not say {fault.says!r}")
        fault.mend(scene)
        if fault.resumes:
            resumed, more = _end(
                scene.harness("run", "--hosts", str(scene.hosts(fault.method)), "--resume",
                              "--out", str(scene.out))
            )  # fmt: skip
            said += more
            if resumed != 0:
                wrong.append(f"--resume ended with {resumed}")
        wrong += _not_as_before(scene)
        last = [line for line in said.splitlines() if line.startswith("error:")]
        yield Outcome(
            fault.name,
            status,
            last[-1] if last else "",
            tuple(wrong),
            time.monotonic() - began,
        )
        (scene.out.with_suffix(".log")).write_text(said)


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


def _struck(scene: Scene, fault: Fault) -> tuple[int, str]:
    if fault.after is None:
        fault.strike(scene)
    scene.process = scene.harness(
        "run", "--hosts", str(scene.hosts(fault.method)), "--profile", "smoke",
        "--steps", "8", "--out", str(scene.out),
    )  # fmt: skip
    if fault.after is not None:
        deadline = time.monotonic() + _RUN_S
        while scene.process.poll() is None and time.monotonic() < deadline:
            if scene.has_come_to(fault.after):
                fault.strike(scene)
                break
            time.sleep(_POLL_S)
        else:
            status, said = _end(scene.process)
            return status, f"{said}\n{_NOT_STRUCK}\n"
    return _end(scene.process)


def _end(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        said, _ = process.communicate(timeout=_RUN_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=_BACK_S)
        said += "\nharness selftest: it did not end by itself\n"
    return process.returncode, said


def _not_as_before(scene: Scene) -> list[str]:
    wrong = []
    for machine in scene.rack.machines:
        machine.wait_for_ssh(within_s=_BACK_S)
        state = _ask(machine, "lease_state")
        if state.get("owner"):
            wrong.append(f"{machine.name} is held by {state['owner']}")
        at_work = machine.run(
            "sh", "-c", "pgrep -af 'net[s]erver|net[p]erf|[r]eceive-batching-agent' || true"
        ).strip()
        if at_work:
            wrong.append(f"{machine.name} runs {at_work}")
    running = scene.rack.dut.run("uname", "-r").strip()
    if running != scene.known_good:
        wrong.append(f"dut runs {running}")
    boot = _ask(scene.rack.dut, "boot_state")
    if boot["one_shot_pending"] or not boot["default_untouched"]:
        wrong.append(f"dut would boot otherwise: {boot}")
    now = _settings(scene)
    for name, before in scene.settings.items():
        wrong += [
            f"{name}: {key} is {now[name].get(key)!r}, was {value!r}"
            for key, value in before.items()
            if now[name].get(key) != value
        ]
    if (scene.out / "campaign.json").exists():
        shown = scene.harness("report", str(scene.out))
        status, said = _end(shown)
        if status != 0:
            wrong.append(f"the report cannot be read: {said}")
    return wrong


_AT_WORK = "pgrep -af 'net[s]erver|net[p]erf|[r]eceive-batching-agent' || true"
_COMPARED = ("addresses", "up", "coalesce", "irq_affinity", "rps", "rx_queues", "neighbours")


def _settings(scene: Scene) -> dict[str, Any]:
    found = {}
    for machine in scene.rack.machines:
        read = _ask(machine, "settings_read", interface=INTERFACE)
        found[machine.name] = {name: read[name] for name in _COMPARED}
    return found


def _ask(machine: Machine, call: str, **arguments: Any) -> dict[str, Any]:
    deadline = time.monotonic() + _BACK_S
    while True:
        try:
            return dict(machine.ssh.ask(call, arguments, host=machine.name, within_s=60))
        except InfrastructureError:
            if time.monotonic() > deadline:
                raise
            time.sleep(2)


def _sysrq(key: str) -> Callable[[Scene], None]:
    def strike(scene: Scene) -> None:
        scene.root("sh", "-c", f"echo {key} > /proc/sysrq-trigger")

    return strike


def _cut(seconds: float | None) -> Callable[[Scene], None]:
    def strike(scene: Scene) -> None:
        scene.rack.dut.cut(off=True)
        if seconds is not None:
            time.sleep(seconds)
            scene.rack.dut.cut(off=False)

    return strike


def _killed(scene: Scene) -> None:
    assert scene.process is not None
    scene.process.kill()


def _clock(days: int) -> Callable[[Scene], None]:
    def strike(scene: Scene) -> None:
        before = int(scene.rack.dut.run("date", "+%s"))
        scene.rack.dut.run("sudo", "-n", "date", "-s", f"@{before + days * 86400}")

    return strike


def _clock_right(scene: Scene) -> None:
    scene.rack.dut.run("sudo", "-n", "date", "-s", f"@{time.time():.0f}")


def _plug_in(scene: Scene) -> None:
    """The cable is back, and the machine starts as it always does."""
    with contextlib.suppress(HarnessError):
        scene.rack.dut.cut(off=False)
    scene.rack.dut.cycle()
    scene.rack.dut.wait_for_ssh(within_s=_BACK_S)
    _release(scene)


def _no_root(scene: Scene) -> None:
    """What is kept of the kernel's parameters names a root that is not there."""
    kept = "/var/lib/receive-batching/kernels.json"
    scene.root("sed", "-i", 's#"root=[^"]*"#"root=/dev/gone"#g', kept)


def _break_lease(scene: Scene) -> None:
    words = ("hosts", "release", "dut", "--break", "--hosts", str(scene.hosts("kexec")))
    _end(scene.harness(*words))


def _replaced(scene: Scene) -> None:
    """The harness has to forget its kernels, and there is no room for another."""
    _clean(scene)
    scene.root(
        "sh", "-c", "fallocate -l $(($(df --output=avail -B1 / | tail -n 1) - 9999999)) /full"
    )


def _clean(scene: Scene) -> None:
    scene.root("rm", "-f", "/full")
    _end(scene.harness("hosts", "clean", "dut", "--hosts", str(scene.hosts("kexec"))))


def _interrupted(scene: Scene) -> None:
    assert scene.process is not None
    scene.process.send_signal(signal.SIGINT)


def _release(scene: Scene) -> None:
    _end(scene.harness("hosts", "release", "dut", "--hosts", str(scene.hosts("kexec"))))


FAULTS = (
    Fault("none, by kexec", lambda _: None, 0, "results: ", fast=True),
    Fault("none, by one-shot entry", lambda _: None, 0, "results: ", method="one-shot"),
    Fault("panic", _sysrq("c"), 4, "kernel died: Kernel panic", fast=True),
    Fault("silent reset", lambda scene: scene.rack.dut.cycle(), 4, "is gone and .* runs"),
    Fault("hang", lambda scene: scene.rack.dut.freeze(), 4, "after a power cycle"),
    Fault("kernel that mounts no root", _no_root, 4, "is gone", after=None, mend=_clean),
    Fault("ssh lost for 30 s", _cut(30), 0, "results: "),
    Fault("ssh lost for ever", _cut(None), 3, "did not come up", mend=_plug_in, unmet=True),
    Fault("generator loses power", lambda scene: scene.rack.generator.cycle(), 0, "lost: "),
    Fault("netserver killed", lambda scene: scene.root("pkill", "-KILL", "netserver"), 0, "void"),
    Fault("lease broken", _break_lease, 3, "lease of dut was lost", mend=_plug_in, unmet=True),
    Fault("clock set back a day", _clock(-1), 0, "results: ", mend=_clock_right),
    Fault("clock set ahead a day", _clock(1), 0, "results: ", mend=_clock_right),
    Fault("disk full on the dut", _replaced, 3, "no room", after=None, mend=_clean),
    Fault("harness killed, kernel up", _killed, -9, "", resumes=True),
    Fault("harness killed, dut leaving", _killed, -9, "", after="leaving", resumes=True),
    Fault("harness interrupted", _interrupted, 130, "interrupted"),
)
"""In the order in which they strike."""
