# SPDX-License-Identifier: MIT
"""Which kernel's death a console shows: each boot has its own mark, also under quiet."""

from __future__ import annotations

import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.agent.boot import cmdline
from harness.agent.faults import AgentError
from harness.base.errors import DiedLeavingError, HostLostError, KernelError
from harness.beds.machine import firmware_time
from harness.beds.machine import machine as machines
from harness.beds.machine.machine import Machine
from tests.unit.test_machine import IMAGE, OURS, OWN, PANIC, Host, boot, host, ignored, made

__all__ = ["host", "made"]

pytestmark = pytest.mark.unit

OTHER: Any = SimpleNamespace(release="6.12-step2")
SOURCE = Path("/usr/src/linux-source-6.12.tar.xz")


class Said:
    """A console that prints ``text``, with TOKEN replaced by the token of the boot ``of``."""

    silence_s = 0

    def __init__(self, of: Host, text: str) -> None:
        self._of, self._text = of, text

    @property
    def position(self) -> int:
        return len(self._said())

    def text(self, since: int) -> str:
        return self._said()[since:] if since < self.position else ""

    def _said(self) -> str:
        return self._text.replace("TOKEN", self._of.token or "none")


def began(release: str, *, ours: bool = True) -> str:
    mark = f" {cmdline.TOKEN}=TOKEN" if ours else ""
    return (
        f"[    0.000000] Linux version {release} (x)\n"
        f"[    0.000000] Command line: root=/dev/sda1{mark}\n"
    )


def from_step_8(made: Callable[..., Machine], host: Host, text: str, **more: Any) -> Machine:
    """A machine that runs step 8, whose console will print ``text``."""
    machine = made(timeout_s=30, **more)
    boot(machine)
    machine._console = cast("Any", Said(host, text))
    machine._console = cast("Any", Late(machine._console))
    return machine


class Late:
    """The same; what it says comes after the mark that is made on leaving."""

    silence_s = 0

    def __init__(self, said: Any) -> None:
        self._said, self._marked = said, False

    @property
    def position(self) -> int:
        if not self._marked:
            self._marked = True
            return 0
        return int(self._said.position)

    def text(self, since: int) -> str:
        return str(self._said.text(since))


def leave(machine: Machine, image: Any = OTHER) -> Any:
    agent = machine.reached()
    cast("Any", machine._console)._marked = False
    return machine.boot(agent, image, ignored)


@pytest.mark.parametrize("then", ["", "[    1.0] sd 0:0:0:0: [sda] No Caching mode page found\n"])
def test_a_death_on_the_way_out_while_the_hosts_own_kernel_boots_quiet(
    host: Host, made: Callable[..., Machine], then: str
) -> None:
    # The kernel that was left dies; the next one never begins, and the host's own says nothing.
    machine = from_step_8(made, host, PANIC + then)
    host.comes_up = OWN
    with pytest.raises(DiedLeavingError, match=f"{OURS} died when it was told to") as died:
        leave(machine)
    assert died.value.release == OURS


def test_a_death_after_its_own_mark_is_the_new_ones(
    host: Host, made: Callable[..., Machine]
) -> None:
    machine = from_step_8(made, host, began(OTHER.release) + PANIC)
    host.comes_up = OWN
    with pytest.raises(KernelError, match=f"{OTHER.release} is gone.*Kernel panic"):
        leave(machine)


def test_the_same_release_again_is_told_by_its_mark(
    host: Host, made: Callable[..., Machine]
) -> None:
    # What the kernel that is left said of itself may come late.
    old = began(OURS, ours=False)
    machine = from_step_8(made, host, old + PANIC + began(OURS) + "[    9.0] up\n")
    with pytest.raises(DiedLeavingError):
        leave(machine, IMAGE)


def test_a_death_on_the_way_to_a_quiet_own_kernel(host: Host, made: Callable[..., Machine]) -> None:
    machine = from_step_8(made, host, PANIC)
    machine.known_good = OWN
    agent = machine.reached()
    cast("Any", machine._console)._marked = False
    with pytest.raises(KernelError, match=f"{OURS} died"):
        machine.back_to_known_good(agent)


def test_one_whose_beginning_was_not_seen_can_still_be_seen_to_die(
    host: Host, made: Callable[..., Machine]
) -> None:
    said = Said(host, "goodbye\n")
    machine = from_step_8(made, host, "")
    cast("Any", machine._console)._said = said
    host.comes_up = OTHER.release
    leave(machine)
    machine.check()
    said._text += PANIC
    with pytest.raises(KernelError, match="the kernel died"):
        machine.check()


# The command line


def composed(known: str) -> list[str]:
    return cmdline.composed(cmdline.known_good(known), machines._CMDLINE, "r")


@pytest.mark.parametrize(
    "own",
    ["quiet", "loglevel=3", "quiet loglevel=0", "nowatchdog", "nosoftlockup", "watchdog_thresh=0",
     "nmi_watchdog=0", "nmi_watchdog=0,nopanic", "panic=0", "panic=-1", "softlockup_panic=0",
     "console=null", "console=", "console=ttynull", "systemd.watchdog_sec=0"],
)  # fmt: skip
def test_what_the_host_has_against_it_goes(own: str) -> None:
    words = composed(f"root=/dev/sda1 {own} ro console=tty0 console=ttyS0,115200n8")
    assert not set(own.split()) & set(words)
    assert set(machines._CMDLINE) <= set(words)
    assert [w for w in words if "console" in w] == ["console=tty0", "console=ttyS0,115200n8"]


def test_the_rest_of_the_hosts_own_stays() -> None:
    kept = "root=/dev/sda1 ro nokaslr isolcpus=2-5 crashkernel=256M mitigations=off splash"
    assert composed(kept)[: len(kept.split())] == kept.split()


def test_a_serial_console_is_added_where_hosts_yaml_names_one(
    host: Host, made: Callable[..., Machine]
) -> None:
    boot(made(console="ttyS1,115200n8"))
    assert "console=ttyS1,115200n8" in host.added
    assert "console=ttyS1,115200n8" in cmdline.composed(["console=tty0"], host.added, "r")


def test_each_boot_has_a_mark_of_its_own(host: Host, made: Callable[..., Machine]) -> None:
    machine = made()
    tokens = set()
    for _ in range(3):
        boot(machine)
        tokens.add(host.token)
    assert len(tokens) == 3
    words = cmdline.marked(["ro", "--", "single"], "0a1b2c3d")
    assert words == ["ro", f"{cmdline.TOKEN}=0a1b2c3d", "--", "single"]
    assert cmdline.marked(words, "ffffffff")[1] == f"{cmdline.TOKEN}=ffffffff"
    assert cmdline.known_good(" ".join(words)) == ["ro", "--", "single"]


@given(st.text(max_size=40) | st.none() | st.integers())
def test_a_mark_is_one_or_refused(token: Any) -> None:
    try:
        words = cmdline.marked(["ro"], token)
    except AgentError:
        return
    assert cmdline.words(" ".join(words)) == words


@pytest.mark.skipif(not SOURCE.exists(), reason=f"needs {SOURCE} (linux-source-6.12)")
def test_every_parameter_is_one_of_the_kernels() -> None:
    """Of systemd's own ones the kernel's documentation says nothing."""
    with tarfile.open(SOURCE, "r|xz") as tar:
        for member in tar:
            if member.name.endswith("Documentation/admin-guide/kernel-parameters.txt"):
                text = cast("Any", tar.extractfile(member)).read().decode()
                break
    told = [line for line in text.splitlines() if line[:1] == "\t" and line[1:2].isalpha()]
    documented = {line.split()[0].partition("=")[0] for line in told}
    ours = {word.partition("=")[0] for word in machines._CMDLINE if "systemd." not in word}
    assert ours <= documented
    assert "hardlockup_panic" not in documented


# How long it is waited for


def test_firmware_is_not_the_kernels_time(host: Host, made: Callable[..., Machine]) -> None:
    host.can["kexec"] = False
    machine = made(timeout_s=30, method="one-shot")
    agent = machine.reached()
    clock = time.monotonic
    start_agent, until = host.start_agent, clock() + 50.0

    def slow(**arguments: Any) -> Any:
        if clock() < until:
            raise HostLostError("still in its firmware")
        return start_agent(**arguments)

    cast("Any", machine.ssh).start_agent = slow
    assert machine.boot(agent, IMAGE, ignored).ready["release"] == OURS
    assert host.cycles == 0
    assert firmware_time.measured("rx") == pytest.approx(50.0, abs=5)
    assert machine._firmware_s == pytest.approx(1.5 * 50, abs=8)


@pytest.mark.parametrize("begins", [True, False])
def test_once_the_kernel_was_seen_to_begin_its_own_time_counts(
    host: Host, made: Callable[..., Machine], begins: bool
) -> None:
    host.can["kexec"], host.comes_up = False, None
    machine = made(timeout_s=30, method="one-shot")
    machine._console = cast("Any", Late(Said(host, began(OURS) if begins else "POST\n")))
    clock, before = time.monotonic, time.monotonic()
    cycled: list[float] = []

    def cycle() -> None:
        cycled.append(clock())
        Host.cycle(host)

    cast("Any", machine._power).cycle = cycle
    agent = machine.reached()
    cast("Any", machine._console)._marked = False
    with pytest.raises(KernelError):
        machine.boot(agent, IMAGE, ignored)
    assert cycled[0] - before == pytest.approx(32 if begins else 62, abs=4)


def test_a_hang_is_not_waited_for_as_a_boot_is(host: Host, made: Callable[..., Machine]) -> None:
    machine = made(timeout_s=30)
    boot(machine)
    clock, before = time.monotonic, time.monotonic()
    cycled: list[float] = []

    def cycle() -> None:
        cycled.append(clock())
        Host.cycle(host)

    cast("Any", machine._power).cycle = cycle
    host.refuses = HostLostError("no answer")
    assert "is gone" in str(machine.became())
    assert cycled[0] - before == pytest.approx(32, abs=4)
    # One whose way through its firmware is known may be on it: nobody saw it reset.
    firmware_time.keep("rx", 100)
    boot(machine)
    host.refuses, before = HostLostError("no answer"), clock()
    assert "is gone" in str(machine.became())
    assert cycled[1] - before == pytest.approx(182, abs=4)


@pytest.mark.parametrize("kept", ["", "[]", "{}", '{"firmware_s": "x"}', '{"firmware_s": -1}',
                                  '{"firmware_s": NaN}', "\0"])  # fmt: skip
def test_what_was_kept_and_is_broken_is_not_known(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECEIVE_BATCHING_CACHE", str(tmp_path))
    (tmp_path / "hosts").mkdir()
    (tmp_path / "hosts/rx.boot.json").write_text(kept)
    assert firmware_time.measured("rx") is None
    firmware_time.keep("rx", 70)
    assert firmware_time.measured("rx") == 70


# Whatever a console says


@given(
    st.lists(
        st.binary(max_size=30)
        | st.sampled_from([b"Linux version ", OURS.encode(), b"TOKEN", b"\n", PANIC.encode(),
                           b"Kernel panic - not syncing", b"\x1b[2J", b"\xff\xfe", b"\r"]),
        max_size=12,
    ),
    st.booleans(),
)  # fmt: skip
def test_whatever_a_console_says_is_of_one_kernel_or_the_other(
    chunks: list[bytes], left: bool
) -> None:
    from harness.base import process

    text = process.harmless(b"".join(chunks).decode(errors="replace"))
    machine = Machine.__new__(Machine)
    machine._console = cast("Any", SimpleNamespace(text=lambda since: text[since:]))
    machine._since, machine._own_from = 0, None
    machine._left_behind, machine._token, machine.release = left, "TOKEN", OURS
    before, begun = machine._parted()
    assert before + begun == text
    if left and "TOKEN" in text:
        assert "TOKEN" not in before
    assert isinstance(machine.said_since_start(), str)
