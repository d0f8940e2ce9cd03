# SPDX-License-Identifier: MIT
"""How a boot of a machine can end, and how it is classified; the guest tier boots real guests."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness import config
from harness.base.errors import (
    ConfigurationError,
    DiedLeavingError,
    HarnessError,
    HostLostError,
    HostRefusedError,
    InfrastructureError,
    KernelError,
)
from harness.base.progress import Progress
from harness.beds.machine import machine as machines
from harness.beds.machine import power
from harness.beds.machine.machine import Machine
from harness.beds.machine.machines import MachineBoots
from tests.unit.fake_agent import FakeAgent

pytestmark = pytest.mark.unit

OWN, OURS = "6.12-own", "6.12-step8"


class Host:
    """A machine as seen by ssh: what runs, what boots next, when it answers."""

    def __init__(self) -> None:
        self.release, self.boot = OWN, 1
        self.comes_up: str | None = OURS
        self.installed: set[str] = set()
        self.calls: list[str] = []
        self.can = {"kexec": True, "kexec_why": None, "loader": "grub", "loader_why": None}
        self.pending: str | None = None
        self.taken: str | None = None
        self.untouched = True
        self.has_nic = True
        self.ours: bool | None = None
        self.left: dict[str, str] | None = None
        self.refuses: HarnessError | None = None
        self.says = ""
        self.cycles = 0
        self.token = ""
        self.added: list[str] = []
        self.closed: list[str] = []
        """What ran when the connection to an agent was closed."""

    def start_agent(self, **_: Any) -> Any:
        if self.refuses:
            raise self.refuses
        ready = {"release": self.release, "boot_id": str(self.boot)}
        return FakeAgent(self.call, ready=ready, closes=lambda: self.closed.append(self.release))

    def run(self, _command: list[str]) -> None:
        if self.refuses:
            raise self.refuses

    def call(self, name: str, /, **arguments: Any) -> Any:
        self.calls.append(name)
        if name == "inventory" and not self.has_nic:
            raise ConfigurationError(f"rx: no interface {arguments['interface']} on this host")
        if name == "boot_prepare":
            self.token = arguments["token"]
        if name == "kernel_install":
            self.added = arguments["cmdline_add"]
        if name == "boot_go":
            self.boot += 1
            coming = OWN if arguments["method"] == "known-good" else self.comes_up
            if coming is None:
                self.refuses = HostLostError("no answer")
            else:
                self.release = coming
        if name == "kernel_install":
            self.installed.add(arguments["release"])
        answers: dict[str, Any] = {
            "boot_can": self.can,
            "kernel_list": [
                {"release": release, "complete": True} for release in sorted(self.installed)
            ],
            "boot_state": {
                "known_good": OWN,
                "ours": self.release in self.installed if self.ours is None else self.ours,
                "left": self.left,
                "one_shot_pending": self.pending,
                "one_shot_taken": self.taken,
                "default_untouched": self.untouched,
            },
        }
        return answers.get(name, {})

    def cycle(self) -> None:
        self.cycles += 1
        self.refuses, self.release, self.boot = None, OWN, self.boot + 1


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def made(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    monkeypatch.setattr(machines, "packed", lambda _: tmp_path)
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(power, "connect", lambda *_: host)

    def make(*, power: bool = True, **boot: Any) -> Machine:
        entry = config.SshHost.model_validate(
            {
                "kind": "ssh",
                "hostname": "rx",
                "interface": "eth1",
                "address": "198.18.1.2/24",
                "boot": boot,
                "power": {"command": ("button",)} if power else None,
            },
            strict=False,
        )
        machine = Machine("rx", entry, tmp_path, Progress())
        machine.ssh = SimpleNamespace(  # type: ignore[assignment]
            start_agent=host.start_agent,
            run=host.run,
            send=lambda *_: "/home/bench/x",
            forget=lambda: None,
        )
        return machine

    return make


IMAGE: Any = SimpleNamespace(release=OURS)


def boot(machine: Machine) -> tuple[Any, list[str]]:
    notes: list[str] = []
    up = machine.boot(machine.reached(), IMAGE, lambda event, **_: notes.append(event))
    return up, notes


def test_installed_once_booted_and_taken_back(host: Host, made: Callable[..., Machine]) -> None:
    machine = made()
    machine.meet()
    agent, notes = boot(machine)
    assert (agent.ready["release"], notes) == (OURS, ["leaving", "up"])
    boot(machine)
    assert host.calls.count("kernel_install") == 1
    agent = machine.reached()
    assert not machine.runs_its_own(agent)
    machine.back_to_known_good(agent)
    assert machine.runs_its_own(machine.reached())
    assert host.release == OWN
    assert host.cycles == 0


def test_a_boot_is_noted_before_the_machine_is_told(
    host: Host, made: Callable[..., Machine]
) -> None:
    gone: dict[str, bool] = {}
    machine = made()
    machine.boot(
        machine.reached(), IMAGE, lambda event, **_: gone.update({event: "boot_go" in host.calls})
    )
    assert gone == {"leaving": False, "up": True}


def test_the_agent_of_the_dut_ends_with_its_boot(
    host: Host, made: Callable[..., Machine], tmp_path: Path
) -> None:
    dut, generator, sender = made(), made(), Host()
    generator.ssh = SimpleNamespace(  # type: ignore[assignment]
        start_agent=sender.start_agent, run=sender.run, forget=lambda: None
    )
    dut.meet()
    idle = SimpleNamespace(still_mine=lambda: None, check=lambda: None)
    placement = SimpleNamespace(netperf_cpus="auto")
    bed = SimpleNamespace(dut=dut.config, generator=generator.config, placement=placement)
    place = SimpleNamespace(bed=bed, **vars(idle))
    leases = SimpleNamespace(rebooting=lambda *_, **__: nullcontext(), **vars(idle))
    for one in (dut, generator):
        vars(one)["interface"] = lambda _: ("eth1", "02:00:00:00:00:01")
    boots = MachineBoots(cast("Any", place), dut, generator, cast("Any", leases))
    with boots.boot(IMAGE, tmp_path / "boot", lambda *_, **__: None) as up:
        assert up.dut.ready["release"] == host.release == OURS
        host.closed.clear()
    assert (host.closed, sender.closed) == ([OURS], [])
    boots.close()
    assert (host.release, sender.closed) == (OWN, [OWN])


@pytest.mark.parametrize(("wanted", "loader", "why"), [
    ("kexec", "grub", "kexec: locked down"),
    ("auto", None, "kexec: locked down; one-shot: no loader"),
])  # fmt: skip
def test_no_way_to_boot_is_told(
    host: Host, made: Callable[..., Machine], wanted: str, loader: str | None, why: str
) -> None:
    host.can = {
        "kexec": False, "kexec_why": "locked down", "loader": loader, "loader_why": "no loader"
    }  # fmt: skip
    with pytest.raises(InfrastructureError, match=why):
        boot(made(method=wanted))
    assert "boot_go" not in host.calls


def test_another_kernel_is_not_measured(host: Host, made: Callable[..., Machine]) -> None:
    host.comes_up = OWN
    with pytest.raises(KernelError, match=f"{OURS} is gone and {OWN} runs"):
        boot(made())


@pytest.mark.parametrize("fault", ["pending", "default"])
def test_a_boot_that_would_repeat_itself_stops_everything(
    host: Host, made: Callable[..., Machine], fault: str
) -> None:
    host.pending = OURS if fault == "pending" else None
    host.untouched = fault != "default"
    with pytest.raises(InfrastructureError, match="would be booted again"):
        boot(made())


def test_a_kernel_that_does_not_come_up_is_left_by_a_power_cycle(
    host: Host, made: Callable[..., Machine]
) -> None:
    host.comes_up = None
    with pytest.raises(KernelError, match="after a power cycle the host is back"):
        boot(made(timeout_s=30))
    assert (host.cycles, host.release) == (1, OWN)


def test_without_power_it_is_told_what_to_do(host: Host, made: Callable[..., Machine]) -> None:
    host.comes_up = None
    with pytest.raises(InfrastructureError, match="rx has no power in hosts") as caught:
        boot(made(power=False, timeout_s=30))
    assert "by hand" in (caught.value.hint or "")


def test_a_host_that_refuses_is_neither_waited_for_nor_cycled(
    host: Host, made: Callable[..., Machine]
) -> None:
    host.refuses = HostRefusedError("its host key is another")
    with pytest.raises(HostRefusedError):
        made().meet()
    assert host.cycles == 0


def test_what_was_lost_is_told_apart(host: Host, made: Callable[..., Machine]) -> None:
    machine = made()
    boot(machine)
    assert machine.became() is None
    host.boot, host.release = host.boot + 1, OWN
    assert "is gone and" in str(machine.became())


def test_a_line_lost_before_the_host_was_told_to_boot_is_no_kernel_s_fault(
    host: Host, made: Callable[..., Machine]
) -> None:
    machine = made()
    host.can = {"kexec": False, "kexec_why": "", "loader": None, "loader_why": ""}
    with pytest.raises(InfrastructureError):
        boot(machine)
    assert machine.became() is None


@pytest.mark.parametrize(("taken", "ours", "error"), [
    (None, None, "was never booted.*does not show"),
    (OURS, None, f"{OURS} is gone"),
    (OURS, True, "was never booted.*started instead"),
])  # fmt: skip
def test_whether_a_kernel_of_which_nothing_was_seen_was_booted(
    host: Host, made: Callable[..., Machine], taken: str | None, ours: bool | None, error: str
) -> None:
    host.comes_up, host.taken, host.ours = OWN, taken, ours
    machine = made()
    machine._console = cast("Any", Console(f"{BANNER} {OWN} (x)\n"))
    with pytest.raises(HarnessError, match=error) as raised:
        boot(machine)
    assert isinstance(raised.value, KernelError) == error.endswith("is gone")


BANNER = "[    0.000000] Linux version"
PANIC = "[   99.000000] Kernel panic - not syncing: Fatal exception\n"


@pytest.mark.parametrize("comes_up", [OWN, None])
def test_a_kernel_that_dies_on_its_way_out_is_not_the_next_one_s_fault(
    host: Host, made: Callable[..., Machine], comes_up: str | None
) -> None:
    machine = made(timeout_s=30)
    boot(machine)
    host.comes_up = comes_up
    machine._console = cast("Any", Console(f"{PANIC}{BANNER} {OWN} (x)\n"))
    with pytest.raises(DiedLeavingError, match=f"{OURS} died when it was told to") as died:
        machine.boot(machine.reached(), cast("Any", SimpleNamespace(release="other")), ignored)
    assert died.value.release == OURS
    assert host.release == OWN


def test_a_kernel_that_dies_on_the_way_to_the_known_good_one(
    host: Host, made: Callable[..., Machine]
) -> None:
    machine = made()
    machine.meet()
    boot(machine)
    machine._console = cast("Any", Console(f"{PANIC}{BANNER} {OWN} (x)\n"))
    with pytest.raises(KernelError, match=f"{OURS} died"):
        machine.back_to_known_good(machine.reached())
    assert host.release == OWN


def test_what_a_kernel_says_after_its_start_is_its_own(made: Callable[..., Machine]) -> None:
    machine = made()
    machine._console = cast("Any", Console(f"systemd: goodbye\n{BANNER} {OURS} (x)\n{PANIC}"))
    assert machine.said_since_start().startswith("Linux version")
    with pytest.raises(KernelError, match="the kernel died: Kernel panic"):
        machine.check()


class Console:
    """One that has said ``text``."""

    position = silence_s = 0

    def __init__(self, text: str) -> None:
        self._text = text

    def text(self, since: int) -> str:
        return self._text


def ignored(_event: str, **_: Any) -> None:
    """Of the journal."""


def test_whose_kernel_it_is_met_with(host: Host, made: Callable[..., Machine]) -> None:
    host.release, host.installed = OURS, {OURS}
    machine = made()
    machine.meet()
    assert machine.known_good == OWN


def test_its_own_kernel_in_a_boot_of_ours_is_not_as_it_was_met(
    host: Host, made: Callable[..., Machine]
) -> None:
    machine = made()
    machine.meet()
    host.ours = True
    assert not machine.runs_its_own(machine.reached())
    host.ours = False
    assert machine.runs_its_own(machine.reached())


def test_a_way_back_that_takes_the_power_button_is_a_way_back(
    host: Host, made: Callable[..., Machine]
) -> None:
    machine = made()
    machine.meet()
    boot(machine)
    agent = machine.reached()
    cast("Any", machine.ssh).start_agent = _silent_until_cycled(host)
    machine.back_to_known_good(agent)
    assert (host.release, host.cycles) == (OWN, 1)


def _silent_until_cycled(host: Host) -> Callable[..., Any]:
    def start_agent(**arguments: Any) -> Any:
        if not host.cycles:
            raise HostLostError("no answer")
        return Host.start_agent(host, **arguments)

    return start_agent


@pytest.mark.parametrize(
    ("noted", "left", "went_well"),
    [
        ({"leaving": "1", "up": "2"}, None, False),
        ({"leaving": "1", "up": "2"}, {"release": OURS, "boot_id": "2"}, True),
        ({"leaving": "1", "up": "2"}, {"release": OURS, "boot_id": "0"}, False),
        ({"leaving": "1"}, {"release": OURS, "boot_id": "2"}, True),
        ({"leaving": "1"}, None, False),
        ({"leaving": "3"}, None, True),
        ({}, None, True),
    ],
)
def test_a_boot_that_was_told_to_end_took_no_host_along(
    host: Host, made: Callable[..., Machine], noted: dict[str, str],
    left: dict[str, str] | None, went_well: bool,
) -> None:  # fmt: skip
    host.boot, host.left = 3, left
    notes = {event: {"boot_id": boot_id, "release": OURS} for event, boot_id in noted.items()}
    bed = SimpleNamespace(bed=None)
    boots = MachineBoots(cast("Any", bed), made(), cast("Any", None), cast("Any", None))
    assert (boots.crashed(notes) is None) == went_well


def test_an_interface_that_is_not_there_before_the_boot_and_after_it(
    host: Host, made: Callable[..., Machine]
) -> None:
    machine = made()
    host.has_nic = False
    with pytest.raises(ConfigurationError, match="no interface eth1"):
        machine.meet()
    with pytest.raises(InfrastructureError, match="there was one before"):
        machine.interface(machine.reached())
