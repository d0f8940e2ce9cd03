# SPDX-License-Identifier: MIT
"""Leases: of one host through reboots and clock jumps, and of a bed while its holder lives."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import harness.agent.lease as on_host
from harness import config
from harness.agent.faults import AgentError
from harness.base.errors import HostLostError, InfrastructureError, LeaseLostError
from harness.base.write_ahead import WriteAheadLog
from harness.beds.access.channel import Asked
from harness.beds.access.ssh import SshTarget
from harness.beds.machine import lease
from harness.cli import cli

pytestmark = pytest.mark.unit


class Machine:
    """A host's clocks, as the agent on it reads them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.boot_id, self.boot_s, self.wall_s = "one", 100.0, 1.8e9
        monkeypatch.setattr(on_host, "_boot_id", lambda: self.boot_id)
        monkeypatch.setattr(time, "time", lambda: self.wall_s)
        monkeypatch.setattr(time, "clock_gettime", lambda _: self.boot_s)
        self.lease = on_host.Lease(path)

    def passes(self, duration_s: float) -> None:
        self.boot_s += duration_s
        self.wall_s += duration_s

    def reboots(self, took_s: float, *, wall_jump_s: float = 0.0) -> None:
        self.boot_id += "+"
        self.boot_s = 20.0
        self.wall_s += took_s + wall_jump_s

    def take(self, holder: str = "h1", ttl_s: float = 600) -> dict[str, Any]:
        return self.lease.take(owner=f"{holder}@desk", holder=holder, ttl_s=ttl_s, campaign="c7")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path / "var" / "lease.json")


def test_a_held_lease_is_refused_naming_who_and_for_how_long(machine: Machine) -> None:
    assert machine.take()["left_s"] == 600
    machine.passes(90)
    with pytest.raises(AgentError, match=r"held by h1@desk \(campaign c7\) for 510 s") as caught:
        machine.take("h2")
    assert caught.value.kind == "busy"
    assert "--break" in str(caught.value.hint)
    assert machine.take()["left_s"] == 600  # who goes on with a campaign has it already


def test_it_ends_by_itself_and_then_its_holder_knows(machine: Machine) -> None:
    machine.take()
    machine.passes(601)
    assert machine.lease.state()["owner"] is None
    assert machine.take("h2")["owner"] == "h2@desk"
    found = machine.lease.refresh(holder="h1", ttl_s=600)
    assert (found["held"], found["owner"]) == (False, "h2@desk")
    with pytest.raises(AgentError, match="not yours: held by h2@desk"):
        machine.lease.free(holder="h1")
    assert machine.lease.free(holder="h2") == {"freed": True}
    assert machine.lease.free(holder="h2") == {"freed": False}
    assert machine.lease.refresh(holder="h2", ttl_s=600)["held"] is False


def test_one_that_ran_out_and_nobody_took_is_had_again(machine: Machine) -> None:
    machine.take()
    machine.passes(5000)
    assert machine.lease.refresh(holder="h1", ttl_s=600) == machine.lease.state() | {"held": True}


@pytest.mark.parametrize("jump_s", [-1e9, -3600, 3600, 1e9])
def test_a_clock_jump_changes_nothing(machine: Machine, jump_s: float) -> None:
    machine.take()
    machine.passes(100)
    machine.wall_s += jump_s
    assert machine.lease.state()["left_s"] == 500


def test_it_outlives_a_reboot(machine: Machine) -> None:
    machine.take()
    machine.reboots(200)
    assert machine.lease.state()["left_s"] == 400
    with pytest.raises(AgentError, match="for 400 s"):
        machine.take("h2")
    assert machine.lease.refresh(holder="h1", ttl_s=600)["left_s"] == 600
    machine.passes(10)
    assert machine.lease.state()["left_s"] == 590


@pytest.mark.parametrize("jump_s", [-1e9, -3600, -200])
def test_a_clock_set_back_at_a_reboot_makes_no_lease_eternal(
    machine: Machine, jump_s: float
) -> None:
    machine.take()
    machine.reboots(200, wall_jump_s=jump_s)
    assert machine.lease.state()["left_s"] == 580
    machine.passes(581)
    assert machine.lease.state()["owner"] is None


def test_an_operator_may_break_one(machine: Machine) -> None:
    machine.take()
    assert machine.lease.broken()["owner"] == "h1@desk"
    assert machine.lease.refresh(holder="h1", ttl_s=600)["held"] is False
    assert machine.take("h2")["owner"] == "h2@desk"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"holder": 1}', "\x00" * 9])
def test_a_file_that_is_no_lease_is_refused_until_broken(machine: Machine, text: str) -> None:
    machine.take()
    path = machine.lease._path
    path.write_text(text)
    with pytest.raises(AgentError, match=r"cannot be read") as caught:
        machine.take("h2")
    assert "--break" in str(caught.value.hint)
    machine.lease.broken()
    machine.take("h2")


@pytest.mark.parametrize("ttl_s", [0, -1, 1e9, float("nan")])
def test_no_lease_is_endless(machine: Machine, ttl_s: float) -> None:
    with pytest.raises(AgentError, match="expected 1 to"):
        machine.take(ttl_s=ttl_s)


def test_a_name_cannot_steer_anothers_terminal(machine: Machine) -> None:
    machine.lease.take(owner="a\x1b[2J\nb" + "c" * 999, holder="h", ttl_s=60)
    told = machine.lease.state()["owner"]
    assert told.startswith("a?[2J?bc")
    assert len(told) == 200


def test_what_cannot_be_written_takes_nothing(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "var").write_text("in the way")
    with pytest.raises(AgentError, match="no lease can be kept in"):
        machine.take()


def test_of_many_at_once_one_has_it(tmp_path: Path) -> None:
    won: list[str] = []
    start = threading.Barrier(8)

    def run(holder: str) -> None:
        start.wait()
        try:
            on_host.Lease(tmp_path / "lease.json").take(owner=holder, holder=holder, ttl_s=60)
        except AgentError:
            return
        won.append(holder)

    threads = [threading.Thread(target=run, args=(f"h{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [on_host.Lease(tmp_path / "lease.json").state()["holder"]] == won


class OnHost(Asked):
    """The agent's leases of one host of a bed."""

    def __init__(self, bed: Bed, name: str) -> None:
        self._bed, self._name = bed, name

    def call(self, name: str, arguments: Mapping[str, Any], within_s: float) -> Any:
        self._bed.asked.append((self._name, name))
        if self._name in self._bed.cut:
            raise HostLostError(f"{self._name}: ssh failed")
        try:
            return getattr(self._bed.on[self._name], name.removeprefix("lease_"))(**arguments)
        except AgentError as error:
            raise InfrastructureError(f"{self._name}: {error}", hint=error.hint) from error


class Bed:
    """Hosts with the agent's leases; the connection to each can be cut."""

    def __init__(self, tmp_path: Path, *names: str) -> None:
        self.on = {name: on_host.Lease(tmp_path / name / "lease.json") for name in names}
        self.cut: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.agents = {name: OnHost(self, name) for name in names}

    def leases(self, **more: Any) -> lease.Leases:
        return lease.Leases(self.agents, campaign="c7", **more)

    def owners(self) -> list[str | None]:
        return [self.on[name].state()["owner"] for name in self.on]


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path, "tx", "rx")


def until(holds: Callable[[], bool], within_s: float = 20) -> None:
    end_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_all_are_taken_in_one_order_and_freed(bed: Bed) -> None:
    with bed.leases() as held:
        held.still_mine()
        assert bed.owners() == [lease.owner()] * 2
        assert bed.asked == [("rx", "lease_take"), ("tx", "lease_take")]  # and none refreshed yet
    assert bed.owners() == [None, None]


def test_what_a_killed_harness_left_in_a_hang_is_revived_while_it_is_ours(
    bed: Bed, tmp_path: Path
) -> None:
    journal = WriteAheadLog(tmp_path)
    bed.cut.add("rx")
    revived = []

    def revive(host: str, _lost: HostLostError) -> None:
        revived.append(host)
        bed.cut.discard(host)

    def leases() -> lease.Leases:
        return bed.leases(revive=revive, journal=journal, ttl_s=60, wait_s=0.1)

    with pytest.raises(HostLostError), leases():
        pass
    journal.note_lease("rx", 60)
    with leases():
        assert revived == ["rx"]
        assert journal.holds("rx")
        assert journal.holds("tx")
        bed.cut.add("tx")  # and cannot be freed
    assert not journal.holds("rx")
    assert journal.holds("tx")


def test_all_or_nothing(bed: Bed) -> None:
    bed.on["tx"].take(owner="eve@lab", holder="x", ttl_s=60)
    with pytest.raises(InfrastructureError, match=r"tx: held by eve@lab for \d+ s"), bed.leases():
        pass
    assert bed.owners() == ["eve@lab", None]
    bed.on["tx"].broken()
    bed.cut.add("tx")
    with pytest.raises(HostLostError), bed.leases():
        pass
    assert bed.owners() == [None, None]


def test_a_host_that_is_still_rebooting_is_waited_for(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_ASK_AGAIN_S", 0.01)
    bed.cut.add("rx")
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        bed.cut.clear()

    with bed.leases(wait_s=60, say=say):
        assert bed.owners() == [lease.owner()] * 2
    assert said == ["rx: ssh failed; waiting for it, 60 s at most"]
    bed.cut.add("rx")
    with pytest.raises(HostLostError), bed.leases(wait_s=0.05):
        pass


def test_they_are_refreshed_during_long_acts_and_between_short_ones(bed: Bed) -> None:
    with bed.leases(ttl_s=4) as held:
        time.sleep(6)
        held.check()
        assert bed.owners() == [lease.owner()] * 2
        before = len(bed.asked)
        held.still_mine()
        held.still_mine()
        assert len(bed.asked) - before <= 2


def test_agents_that_are_up_are_asked_on_their_own_lines(bed: Bed) -> None:
    other = Bed(bed.on["rx"]._path.parents[1], "rx", "tx")
    with bed.leases(ttl_s=8) as held:
        time.sleep(3.5)
        held.still_mine({"rx": other.agents["rx"]})
        assert other.asked == [("rx", "lease_refresh")]
        assert bed.asked[2:] == [("tx", "lease_refresh")]


@pytest.mark.parametrize("how", ["taken", "ended"])
def test_a_refused_refresh_loses_the_bed(bed: Bed, how: str) -> None:
    with bed.leases(ttl_s=8) as held:
        bed.on["rx"].broken()
        if how == "taken":
            bed.on["rx"].take(owner="eve@lab", holder="x", ttl_s=60)
        until(lambda: held._lost is not None)
        told = "rx was lost: it is held by eve@lab now" if how == "taken" else "somebody broke it"
        for look in (held.check, held.still_mine):
            with pytest.raises(LeaseLostError, match=told):
                look()
        asked = len(bed.asked)
        time.sleep(1)
        assert len(bed.asked) == asked  # a lost lease is asked for no more
    assert bed.owners() == [None, "eve@lab" if how == "taken" else None]


def test_a_line_that_is_down_for_a_while_loses_nothing(bed: Bed) -> None:
    with bed.leases(ttl_s=6) as held:
        bed.cut.add("rx")
        time.sleep(4)
        held.still_mine()
        bed.cut.clear()
        time.sleep(3)
        held.still_mine()


def test_a_line_that_stays_down_loses_the_bed_before_others_can_have_it(bed: Bed) -> None:
    with bed.leases(ttl_s=10) as held:
        bed.cut.add("rx")
        until(lambda: held._lost is not None)
        assert bed.on["rx"].state()["owner"] == lease.owner()
        with pytest.raises(LeaseLostError, match="not be refreshed in time: rx: ssh failed"):
            held.still_mine()
    assert bed.owners()[0] is None


def test_a_host_that_reboots_is_kept_for_so_long(bed: Bed) -> None:
    with bed.leases(ttl_s=3) as held:
        with held.rebooting("rx", within_s=60):
            bed.cut.add("rx")
            time.sleep(4)
            held.still_mine()
            assert bed.on["rx"].state()["left_s"] > 30
            bed.cut.clear()
        assert bed.on["rx"].state()["left_s"] < 4
        bed.cut.add("rx")
        with pytest.raises(InfrastructureError, match="rx could not be extended for a reboot"):
            with held.rebooting("rx", within_s=60):
                raise AssertionError


@pytest.mark.parametrize(
    "answer", [None, [], {"held": True}, {"held": 1, "left_s": "x"}, "\x1b[2J"]
)
def test_garbage_is_no_lease(answer: Any) -> None:
    said = {"lease_take": {}, "lease_refresh": answer, "lease_free": answer}

    class Garbled(Asked):
        def call(self, name: str, arguments: Mapping[str, Any], within_s: float) -> Any:
            return said[name]

    with lease.Leases({"rx": Garbled()}, campaign="c", ttl_s=1) as held:
        until(lambda: held._lost is not None)
        with pytest.raises(LeaseLostError, match="not the state of a lease"):
            held.check()


def test_who_goes_on_with_a_campaign_has_its_leases(bed: Bed) -> None:
    killed = bed.leases().__enter__()
    with bed.leases(holder=killed.holder) as held:
        held.still_mine()
    killed._ended.set()
    assert bed.owners() == [None, None]


SSH = """#!/bin/sh
for last; do :; done
export last
cd {home} && exec unshare -Urm sh -c 'mount --bind {var} /var/lib && exec sh -c "$last"'
"""
SUDO = """#!/bin/sh
shift 2  # -n /usr/bin/python3
exec {python} "$@"
"""
HOSTS = """\
version: 1
default_bed: rack
beds: {rack: {dut: rx, generator: tx}}
hosts:
  rx:
    kind: ssh
    hostname: rx.lab.example
    interface: eth1
    address: 198.18.1.2/24
    power: {command: ["true"]}
  tx: {kind: ssh, hostname: tx.lab.example, interface: eth1, address: 198.18.1.1/24}
"""


@pytest.fixture
def here_as_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.SshHost:
    """This machine, reached by an ssh and a sudo that stay on it."""
    if subprocess.run(["unshare", "-Urm", "true"], check=False).returncode != 0:
        pytest.skip("needs unshare and user namespaces")
    for name, script in (("ssh", SSH), ("sudo", SUDO)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            script.format(home=tmp_path / "home", var=tmp_path / "var", python=sys.executable)
        )
        path.chmod(0o755)
    (tmp_path / "home").mkdir()
    (tmp_path / "var").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    (tmp_path / "hosts.yaml").write_text(HOSTS)
    monkeypatch.chdir(tmp_path)
    found = config.host(config.load(Path("hosts.yaml")), "rx")
    assert isinstance(found, config.SshHost)
    return found


def test_the_agent_is_asked_by_ssh(here_as_host: config.SshHost, tmp_path: Path) -> None:
    agent = lease.agent_of("rx", here_as_host)
    assert agent.lease_take(owner="me", holder="h1", ttl_s=60)["left_s"] > 50
    assert (tmp_path / "var/receive-batching/lease.json").exists()
    with pytest.raises(InfrastructureError, match=r"rx: held by me for \d+ s"):
        agent.lease_take(owner="you", holder="h2", ttl_s=60)
    shutil.rmtree(tmp_path / "home" / ".cache")  # the agent is sent again
    assert agent.lease_free(holder="h1") == {"freed": True}


def test_no_answer_is_a_lost_host(here_as_host: config.SshHost, tmp_path: Path) -> None:
    (tmp_path / "bin/sudo").write_text("#!/bin/sh\necho '{\"id\": 7}'; echo a password >&2; exit 1")
    with pytest.raises(HostLostError, match="no answer to lease_state\n  \\| a password"):
        SshTarget.of(here_as_host).ask("lease_state", {}, host="rx")


def test_the_commands(here_as_host: config.SshHost) -> None:
    agent = lease.agent_of("rx", here_as_host)

    def run(*words: str, group: tuple[str, ...] = ("hosts",)) -> tuple[str, BaseException | None]:
        done = CliRunner().invoke(cli, [*group, *words])
        return done.output, done.exception

    assert run("lease", "rx") == ("rx: free\n", None)
    agent.lease_take(owner="eve@lab", holder="h1", ttl_s=60, campaign="c7")
    told, _ = run("lease", "rx")
    assert told.startswith("rx: held by eve@lab (campaign c7), for ")
    _, error = run("release", "rx")
    assert isinstance(error, InfrastructureError)
    assert "harness hosts release rx --break" in str(error)
    for words, group in (
        (("clean", "rx"), ("hosts",)),
        (("power", "rx", "cycle", "--yes"), ("hosts",)),
        (("restore", "rx"), ()),
    ):
        assert "held by eve@lab" in str(run(*words, group=group)[1])
    assert run("release", "rx", "--break") == ("rx: free; was held by eve@lab\n", None)
    agent.lease_take(owner=lease.owner(), holder="h1", ttl_s=60)
    assert run("release", "rx") == (f"rx: free; was held by {lease.owner()}\n", None)
    assert run("release", "rx") == ("rx: free\n", None)
    assert "no host is named 'ry'" in str(run("lease", "ry")[1])
