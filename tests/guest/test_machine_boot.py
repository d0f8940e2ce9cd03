# SPDX-License-Identifier: MIT
"""A kernel on a machine with a disk and GRUB: installed, booted, hit by faults, removed.

The commands are those an operator gives, from two files of his to a clean machine. In
this order: a test finds the machine as the one before it left it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import config, kernels
from harness.beds.access.channel import RemoteAgent
from harness.beds.access.ssh import UPLOADS, SshTarget
from harness.selftest import faults
from harness.selftest.faults import Fault
from harness.selftest.image import MACHINE_USER
from harness.selftest.machine import INTERFACE, Machine
from harness.selftest.rack import Rack
from harness.selftest.strikes import FAULTS

pytestmark = pytest.mark.guest

LONG_S = 900  # a machine with other emulators beside it takes minutes to boot
ADDED = ["panic=10", "oops=panic"]
# What every system rewrites by itself as it runs.
OTHERS = (
    "/var/log/", "/var/lib/systemd/", "/var/cache/", "/var/lib/private", "/var/lib/dbus",
    "/var/tmp/", "/var/lib/apt/", "/etc/resolv.conf",  # noqa: S108
)  # fmt: skip


@dataclass(frozen=True)
class Operator:
    """What he has: a hosts file, an ssh agent, and a machine that is up."""

    hosts: Path
    environment: dict[str, str]
    machine: Machine
    known_good: str
    found: set[str]
    """Its :meth:`files` when it was met."""

    def harness(self, *words: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "harness", *words, "--hosts", str(self.hosts)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextlib.contextmanager
    def agent(self, log: Path) -> Iterator[RemoteAgent]:
        started = self.machine.ssh.start_agent(host="dut", log=log)
        with contextlib.closing(started):
            yield started


def files(machine: Machine) -> set[str]:
    """All files on the disk that could be left behind, by path, size and owner."""
    where = ["/boot", "/usr/lib/modules", "/etc", "/var", "/home", "/usr/local"]
    shown = machine.run("sudo", "-n", "find", *where, "-xdev", "-printf", r"%p %y %u %m %s\n")
    # A directory's size says which names it once had.
    lines = {
        " ".join(words[:-1] if words[1] == "d" else words)
        for words in map(str.split, shown.splitlines())
    }
    return {line for line in lines if not line.startswith(OTHERS)}


@pytest.fixture(scope="module")
def operator(rack: Rack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    home = tmp_path_factory.mktemp("operator")
    rack.switch_on()
    machine = rack.dut
    # Whoever writes the menu anew does the same each time.
    machine.run("sudo", "-n", "update-grub", timeout_s=300)
    # He knows no host keys yet.
    without = {"known_hosts": None}
    hosts = rack.hosts_yaml(home / "hosts.yaml", dut=without, generator=without)
    with rack.ssh_agent() as environment:
        environment |= {"XDG_CONFIG_HOME": str(home / "config")}
        known_good = machine.run("uname", "-r").strip()
        yield Operator(hosts, environment, machine, known_good, files(machine))


@pytest.fixture(scope="module")
def kernel(built: dict[str, kernels.Image]) -> tuple[str, Path]:
    """A kernel of the series, as it is sent."""
    return built["8"].release, kernels.packed(built["8"])


def test_a_machine_is_enrolled_and_examined(operator: Operator) -> None:
    refused = operator.harness("doctor", "dut", status=3)
    assert "harness hosts enroll dut" in refused
    shown = operator.harness("hosts", "enroll", "dut", "--yes")
    fingerprint = shown.split("SHA256:")[1].split()[0]
    key = "/etc/ssh/ssh_host_ed25519_key"
    assert fingerprint in operator.machine.run("sudo", "-n", "ssh-keygen", "-lf", key)
    assert "already pinned" in operator.harness("hosts", "enroll", "dut")
    done = subprocess.run(
        [sys.executable, "-m", "harness", "doctor", "dut", "--format", "json",
         "--hosts", str(operator.hosts)],
        env=operator.environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    rows = {row["check"]: row for row in json.loads(done.stdout)["dut"]}
    lacking = [row for row in rows.values() if row["needed"] and not row["ok"]]
    assert (done.returncode, lacking) == (0, []), done.stderr
    assert all(row["remedy"] for row in rows.values() if not row["ok"])
    assert rows["NIC"]["detail"].startswith("1924:")
    assert rows["boot loader"]["detail"] == "grub"
    assert rows["power"]["detail"] == "is on"


def test_another_host_key_is_refused(operator: Operator) -> None:
    home = Path(operator.environment["XDG_CONFIG_HOME"])
    [pinned] = home.glob("receive-batching/known_hosts/*")
    kept = pinned.read_text()
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / "other"], check=True
    )
    other = (home / "other.pub").read_text().split()[1]
    pinned.write_text(" ".join([*kept.split()[:2], other]) + "\n")
    try:
        told = operator.harness("restore", "dut", status=3)
        assert "host key is not the pinned one" in told
        assert "a different key was pinned" in operator.harness("hosts", "enroll", "dut", status=3)
        operator.harness("hosts", "enroll", "dut", "--replace", "--yes")
        assert pinned.read_text() == kept
    finally:
        pinned.write_text(kept)


def test_one_connection_is_shared_until_it_is_forgotten(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSH_AUTH_SOCK", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, operator.environment[name])
    host = config.host(config.load(operator.hosts), "dut")
    assert isinstance(host, config.SshHost)
    ssh = SshTarget.of(host)

    def port() -> bytes:
        return ssh.run(["sh", "-c", "echo $SSH_CONNECTION"]).stdout.split()[1]

    first = port()
    assert port() == first
    with subprocess.Popen(
        ssh.argv(["cat"]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        time.sleep(5)
        ssh.forget()
        assert port() != first
        assert running.communicate(b"goes on", timeout=60)[0] == b"goes on"


def _boot(operator: Operator, log: Path, release: str, method: str) -> dict[str, Any]:
    before = operator.machine.boot_id()
    with operator.agent(log) as agent:
        agent.boot_prepare(release=release, method=method)
        armed = agent.boot_state()
        assert armed["default_untouched"] is True
        assert armed["one_shot_pending"] == (release if method == "one-shot" else None)
        agent.boot_go(method=method)
    assert operator.machine.wait_for_boot(before, within_s=LONG_S) == release
    with operator.agent(log) as agent:
        state = agent.boot_state()
    assert (state["ours"], state["missed"], state["one_shot_pending"]) == (True, None, None)
    assert state["default_untouched"] is True
    assert set(ADDED) <= set(operator.machine.run("cat", "/proc/cmdline").split())
    return state


def test_booted_once_by_the_boot_loader(
    operator: Operator, kernel: tuple[str, Path], tmp_path: Path
) -> None:
    machine, (release, upload), log = operator.machine, kernel, tmp_path / "log"
    known_good = operator.known_good
    line = machine.run("cat", "/proc/cmdline")
    grub_cfg = machine.run("sudo", "-n", "cat", "/boot/grub/grub.cfg")

    machine.ssh.send(upload, f"{UPLOADS}/{release}")
    with operator.agent(log) as agent:
        can = agent.boot_can()
        assert (can["kexec"], can["loader"]) == (True, "grub"), can
        directory = f"/home/{MACHINE_USER}/{UPLOADS}/{release}"
        agent.kernel_install(release=release, directory=directory, cmdline_add=ADDED,
        )  # fmt: skip
    # It does not take ours for one of the distribution's.
    machine.run("sudo", "-n", "update-grub", timeout_s=300)
    assert machine.run("sudo", "-n", "cat", "/boot/grub/grub.cfg") == grub_cfg

    _boot(operator, log, release, "one-shot")
    told = operator.harness("restore", "dut")
    assert f"runs {release}; a reboot returns to {known_good}" in told
    assert "is running" in operator.harness("hosts", "clean", "dut", status=3)
    first = machine.boot_id()
    operator.harness("restore", "dut", "--reboot")
    assert machine.wait_for_boot(first, within_s=LONG_S) == known_good
    assert machine.run("cat", "/proc/cmdline") == line


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.fast], ids=lambda f: f.name)
def test_the_fast_part_of_the_fault_suite(
    operator: Operator, rack: Rack, fault: Fault, tmp_path: Path
) -> None:
    # By kexec, and so a kernel that dies falls back to the machine's own.
    [outcome] = faults.run(faults.Scene(rack, tmp_path, operator.environment), [fault])
    assert outcome.wrong == (), outcome


def test_nothing_is_left(operator: Operator, kernel: tuple[str, Path], tmp_path: Path) -> None:
    release, _ = kernel
    with operator.agent(tmp_path / "log") as agent:
        agent.boot_prepare(release=release, method="one-shot")
    assert f"boot cancelled: {release}" in operator.harness("restore", "dut")
    assert f"removed: {release}" in operator.harness("hosts", "clean", "dut")
    left = files(operator.machine)
    assert left - operator.found == set()
    # The agents that tests before this one left there go as well, and the directory with them.
    gone = {line for line in operator.found - left if "/.cache" not in line}
    assert gone == set()


def test_what_a_killed_harness_left_is_put_back(operator: Operator, tmp_path: Path) -> None:
    machine = operator.machine
    up = ["cat", f"/sys/class/net/{INTERFACE}/flags"]
    flags = machine.run(*up)
    with operator.agent(tmp_path / "log") as agent:
        agent.settings_apply(interface=INTERFACE, address="198.18.1.2/24")
        assert machine.run(*up) != flags
        busy = operator.harness("restore", "dut", status=3)
        assert "another agent is at work" in busy
        # Its controller is gone, and nobody has told it.
        machine.run("sudo", "-n", "kill", "-STOP", str(agent.pid))
        told = operator.harness("restore", "dut", "--end-others")
    assert f"{INTERFACE} addresses" in told
    assert machine.run(*up) == flags


def test_sudo_for_the_agent_alone(operator: Operator, tmp_path: Path) -> None:
    """With what the harness prints, the user may start the agent as root, and nothing else."""
    machine = operator.machine
    rights, away, back = f"/etc/sudoers.d/{MACHINE_USER}", "/root/rights", "/tmp/give-back"  # noqa: S108
    script = operator.harness("hosts", "sudoers", "dut", "--script").encode()
    until_told = (
        f"mv {rights} {away}; (until test -e {back}; do sleep 1; done; mv {away} {rights}; sync)"
    )
    machine.run("sudo", "-n", "sh", "-c", f"{until_told} >/dev/null 2>&1 &")
    told = operator.harness("doctor", "dut", status=3)
    assert "the agent was not started: sudo: a password is required" in told
    assert "`harness hosts sudoers dut` prints" in told
    machine.run("touch", back)
    machine.run("sh", "-c", "until sudo -n true 2>/dev/null; do sleep 1; done", timeout_s=120)

    done = machine.ssh.run(["sudo", "-n", "sh", "-s"], stdin=script)
    assert done.returncode == 0, done.stderr
    machine.run("rm", back)
    machine.run("sudo", "-n", "sh", "-c", f"{until_told} >/dev/null 2>&1 &")
    for command in (["true"], ["/usr/bin/python3", "-c", "1"], ["sh"]):
        assert machine.ssh.run(["sudo", "-n", *command]).returncode == 1
    with operator.agent(tmp_path / "log") as agent:
        assert agent.inventory()["cpus"] == 2
    assert machine.ssh.run(["test", "-w", "/usr/local/lib/receive-batching"]).returncode == 1
    told = operator.harness("hosts", "clean", "dut")
    assert "kept, installed by root: /etc/sudoers.d/receive-batching" in told
    machine.run("touch", back)
