# SPDX-License-Identifier: MIT
"""The agent as its controller meets it: a process, in a network namespace of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import harness.agent
from harness import images
from harness.agent.faults import AgentError
from harness.agent.settings import journal
from harness.base.progress import Progress
from harness.beds.access.channel import Asked

pytestmark = pytest.mark.unit

ROOT = Path(harness.agent.__file__).parents[2]
# One end is measured, the other has the address that netperf's resolver asks for.
SET_UP = """
ip link set lo up
ip link add gen type veth peer name dut
ip address add 10.9.9.1/24 dev gen
ip link set gen up
"""
# Listens as netserver does and starts a process for a connection that nobody asked for.
STAND_IN = """#!{python}
import os, socket, sys, time
at = sys.argv
with socket.create_server((at[at.index("-L") + 1], int(at[at.index("-p") + 1]))):
    os.fork()
    time.sleep(60)
"""


def _namespaces_missing() -> str | None:
    for tool in ("unshare", "ip"):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    made = subprocess.run(["unshare", "-Urn", "ip", "link", "add", "type", "veth"], check=False)
    return None if made.returncode == 0 else "needs user namespaces and veth"


MISSING = _namespaces_missing()
in_namespace = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


class Agent(Asked):
    def __init__(self, command: list[str], **more: Any) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            **more,
        )
        self.ready = self._line()["ready"]

    def call(self, name: str, arguments: Mapping[str, Any], within_s: float = 0.0) -> Any:
        answer = self.ask(name, **arguments)
        assert "error" not in answer, answer
        return answer["result"]

    def ask(self, name: str, **arguments: Any) -> Any:
        self.send({"id": 7, "call": name, "args": arguments})
        answer = self._line()
        assert answer["id"] == 7
        return answer

    def send(self, message: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(message if isinstance(message, str) else json.dumps(message))
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        """Its status and what it said on stderr, once stdin has ended."""
        stdout, stderr = self.process.communicate(timeout=20)
        assert stdout == "", "nothing but answers on stdout"
        return self.process.returncode, stderr

    def _line(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())


@pytest.fixture
def agent(request: pytest.FixtureRequest) -> Iterator[Callable[..., Agent]]:
    started: list[Agent] = []

    def start(*, set_up: str = SET_UP, path: Path | None = None) -> Agent:
        env = os.environ | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
        script = f"set -e\n{set_up}\nexec {sys.executable} -m harness.agent"
        started.append(Agent(["unshare", "-Urn", "sh", "-c", script], env=env))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """A directory for PATH with something that listens under netserver's name."""
    program = tmp_path / "netserver"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    return tmp_path


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _gone(pids: list[int], within_s: float = 5.0) -> bool:
    end_s = time.monotonic() + within_s
    while any(map(_alive, pids)) and time.monotonic() < end_s:
        time.sleep(0.02)
    return not any(map(_alive, pids))


def test_protocol_errors_are_answers() -> None:
    one = Agent([sys.executable, "-m", "harness.agent"])
    assert one.ready["protocol"] == 1
    assert one.ready["release"] == os.uname().release
    for name, arguments, told in (
        ("reboot", {}, "no call 'reboot'"),
        ("counters", {}, "'interface'"),
        ("counters", {"interface": "nosuch0"}, "no interface nosuch0"),
        ("inventory", {"mac": "02:00:00:00:00:99"}, "02:00:00:00:00:99"),
        ("settings_apply", {"interface": "lo", "rps": True}, "only be switched off"),
        (
            "netserver_start",
            {"address": "127.0.0.1", "port": 9, "command_prefix": ["/x/y"]},
            "/x/y",
        ),
    ):
        error = one.ask(name, **arguments)["error"]
        assert told in error["message"]
        assert error["kind"] in ("configuration", "infrastructure")
    one.send("{not json")
    assert "not a request" in one._line()["error"]["message"]
    one.send("[1]")
    assert "not a request" in one._line()["error"]["message"]
    assert one.inventory()["versions"]["kernel"] == os.uname().release
    assert one.end() == (0, "")


def test_from_a_zipapp(tmp_path: Path) -> None:
    archive = tmp_path / "agent.pyz"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("__main__.py", "from harness.agent.__main__ import main\n\nmain()\n")
        packed.writestr("harness/__init__.py", "")
        for path in (ROOT / "harness" / "agent").rglob("*.py"):
            packed.write(path, path.relative_to(ROOT))
        packed.write(ROOT / "probes" / "receive_lists.bpf.c", "probes/receive_lists.bpf.c")
    script = """
from harness.agent.tracing.compiler import probe_source
print(len(probe_source("receive_lists.bpf.c", None)))
"""
    found = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(archive), "PYTHONSAFEPATH": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout) == len((ROOT / "probes" / "receive_lists.bpf.c").read_text())
    one = Agent([sys.executable, str(archive)])
    assert one.inventory()["cpus"] == os.cpu_count()
    assert one.end()[0] == 0


@in_namespace
def test_settings_are_changed_proven_and_put_back(agent: Callable[..., Agent]) -> None:
    one = agent()
    wanted: dict[str, Any] = {
        "interface": "dut",
        "address": "10.0.0.2/24",
        "peer": {"address": "10.0.0.1", "mac": "02:00:00:00:00:0A"},
        "rx_queues": 1,
        "irq_cpu": 0,
        "coalesce": {"adaptive_rx": False, "rx_usecs": 0},
        "rps": False,
        "irqbalance": None,
        "governor": None,
    }
    untouched = one.settings_read(interface="dut")
    applied = one.settings_apply(**wanted)
    assert applied["before"] == untouched
    after = applied["after"]
    assert after == one.settings_read(interface="dut")
    assert after["up"] is True
    assert after["addresses"] == ["10.0.0.2/24"]
    assert after["neighbours"] == {"10.0.0.1": "02:00:00:00:00:0a"}
    assert after["rx_queues"]["in_use"] == 1
    assert after["ipv6_off"] in (1, None)
    skipped = {row["setting"]: row["why"] for row in applied["skipped"]}
    assert {"coalesce", "irq_affinity"} <= set(skipped), "a veth has neither"
    assert all(skipped.values())

    again = one.settings_apply(**wanted)
    assert (again["before"], again["after"]) == (untouched, after)

    restored = one.settings_restore()
    assert restored["failed"] == []
    assert {"neighbours", "up", "addresses"} <= set(restored["restored"])
    assert one.settings_read(interface="dut") == untouched
    assert one.settings_restore() == {"restored": [], "failed": []}
    assert one.end()[0] == 0


@in_namespace
def test_a_setting_that_is_refused_leaves_nothing_changed(agent: Callable[..., Agent]) -> None:
    one = agent()
    untouched = one.settings_read(interface="dut")
    peer = {"address": "10.0.0.1", "mac": "not a mac address"}
    error = one.ask("settings_apply", interface="dut", address="10.0.0.2/24", peer=peer)["error"]
    assert error["message"]
    assert one.settings_read(interface="dut") == untouched


@in_namespace
def test_queues_go_down_to_one_and_come_back(agent: Callable[..., Agent]) -> None:
    two = "numrxqueues 2 numtxqueues 2"
    one = agent(
        set_up=f"ip link add gen {two} type veth peer name dut {two}\n"
        "ethtool -L dut rx 2 tx 2 || true"
    )
    before = one.settings_read(interface="dut")["rx_queues"]
    if before["in_use"] != 2:
        pytest.skip("needs a veth with two queues")
    after = one.settings_apply(interface="dut", rx_queues=1)["after"]["rx_queues"]
    assert after["in_use"] == 1
    one.settings_restore()
    assert one.settings_read(interface="dut")["rx_queues"] == before


@in_namespace
def test_the_interfaces_are_those_of_its_namespace(agent: Callable[..., Agent]) -> None:
    one = agent()
    mac = one.inventory(interface="dut")["mac"]
    found = one.inventory(mac=mac.upper())
    assert (found["interface"], found["driver"], found["rx_queues"]) == ("dut", "veth", 1)


@in_namespace
def test_a_window_counts_what_arrived(agent: Callable[..., Agent]) -> None:
    one = agent()
    one.settings_apply(interface="dut", address="10.0.0.2/24")
    window = one.window(interface="dut", duration_s=0.5, sample_s=0.1)
    start, end = window["start"], window["end"]
    taken_s = (end["monotonic_ns"] - start["monotonic_ns"]) / 1e9
    assert 0.45 < taken_s < 1.0
    assert len(window["samples"]) == 4
    assert end["snmp"]["Ip"]["InReceives"] >= start["snmp"]["Ip"]["InReceives"]
    assert set(end["link"]) >= {"rx_packets", "rx_dropped", "rx_missed_errors"}
    own = [row for row in window["placement"]["processes"] if row["pid"] == one.ready["pid"]]
    assert sum(own[0]["cpus"].values()) == 4
    times_ns = {row["pid"]: row["cpu_ns"] for row in end["processes"]}
    assert times_ns[one.ready["pid"]] > 0


@in_namespace
def test_a_window_without_a_stream_is_void(agent: Callable[..., Agent]) -> None:
    error = agent().ask("window", interface="dut", duration_s=0.1, netserver=True)["error"]
    assert error["kind"] == "void"


@in_namespace
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL, None])
def test_what_it_started_ends_with_it(
    agent: Callable[..., Agent], stand_in: Path, end: signal.Signals | None
) -> None:
    one = agent(path=stand_in)
    pid = one.netserver_start(address="127.0.0.1", port=4711, cpu=0)["pid"]
    counted = one.counters(interface="dut")["processes"]
    mine = [row["pid"] for row in counted if row["name"].startswith(("netserver", "python"))]
    children = [child for child in mine if child != one.ready["pid"]]
    assert pid in children
    assert len(children) == 2, "the one it forked as well"
    assert {frozenset(os.sched_getaffinity(child)) for child in children} == {frozenset({0})}

    # In the middle of a call, and within less than the call would take.
    one.send({"id": 1, "call": "window", "args": {"interface": "dut", "duration_s": 60}})
    time.sleep(0.2)
    began_s = time.monotonic()
    if end is None:
        assert one.process.stdin
        one.process.stdin.close()
        one.process.wait(timeout=20)
    else:
        os.kill(one.ready["pid"], end)
        status = one.process.wait(timeout=20)
        assert status == (-signal.SIGKILL if end == signal.SIGKILL else 0)
    assert time.monotonic() - began_s < 10
    assert _gone(children)


@in_namespace
def test_netserver_is_started_again_only_if_it_is_gone(
    agent: Callable[..., Agent], stand_in: Path
) -> None:
    one = agent(path=stand_in)
    first = one.netserver_start(address="127.0.0.1", port=4711)["pid"]
    assert one.netserver_start(address="127.0.0.1", port=4711)["pid"] == first
    os.kill(first, signal.SIGKILL)
    assert _gone([first])
    second = one.netserver_start(address="127.0.0.1", port=4711)["pid"]
    assert second != first
    assert "netserver" in Path(f"/proc/{second}/cmdline").read_text()


@in_namespace
def test_settings_are_put_back_when_the_controller_goes(
    agent: Callable[..., Agent], tmp_path: Path
) -> None:
    # The namespace has to outlive the agent for anybody to look at it.
    script = f"{sys.executable} -m harness.agent\nip -o address show dev dut"
    one = Agent(["unshare", "-Urn", "sh", "-c", f"{SET_UP}\n{script}"])
    one.settings_apply(interface="dut", address="10.0.0.2/24")
    assert one.process.stdin
    one.process.stdin.close()
    assert one.process.stdout
    assert "10.0.0.2" not in one.process.stdout.read()
    one.process.wait(timeout=20)


@in_namespace
def test_a_port_already_taken(agent: Callable[..., Agent], stand_in: Path) -> None:
    one = agent(path=stand_in, set_up=f"{SET_UP}\nnetserver -L 127.0.0.1 -p 4711 &\nsleep 0.5")
    error = one.ask("netserver_start", address="127.0.0.1", port=4711)["error"]
    assert "4711" in error["message"]
    assert error["hint"]


@pytest.fixture(scope="module")
def netperf_prefix() -> list[str]:
    """What goes before the real netperf, which the generator of a virtual bed runs."""
    with Progress(bars=False) as progress:
        return images.tools(progress).netperf_prefix()


@in_namespace
@pytest.mark.guest
def test_ten_netperf_streams(agent: Callable[..., Agent], netperf_prefix: list[str]) -> None:
    one = agent()
    prefix: dict[str, Any] = {"command_prefix": netperf_prefix}
    one.netserver_start(address="10.9.9.1", port=4711, cpu=0, **prefix)
    load: dict[str, Any] = {
        "target": "10.9.9.1",
        "port": 4711,
        "streams": 10,
        "cpus": [0],
        **prefix,
    }
    started = one.netperf_start(**load, message_bytes=1, duration_s=600, nice=5)
    assert len(started["pids"]) == 10
    window = one.window(interface="gen", duration_s=0.5, netserver=True)
    # Run by a loader of its own, a program has the loader's name.
    names = {"netserver", "ld-linux-x86-64"}
    servers = [
        row
        for row in window["placement"]["processes"]
        if row["name"] in names and row["pid"] not in started["pids"]
    ]
    assert len(servers) == 11
    assert all(row["affinity"] == [0] for row in servers)
    ends_s = time.monotonic() + 20
    while one.netperf_sending()["streams"] < 10:
        assert time.monotonic() < ends_s
    one.netperf_pause()
    time.sleep(0.2)  # what is on its way arrives
    quiet = [one.counters(interface="gen")["snmp"]["Udp"] for _ in range(2)]
    assert quiet[0]["InDatagrams"] == quiet[1]["InDatagrams"]
    time.sleep(1)
    one.netperf_resume()
    again = one.window(interface="gen", duration_s=0.3, netserver=True)["end"]["snmp"]
    assert again["Udp"]["InDatagrams"] > quiet[1]["InDatagrams"]
    assert len(one.netperf_end()["pids"]) == 10
    one.netserver_end()
    ended_s = time.monotonic()
    rows = one.netperf_wait(timeout_s=15)
    assert time.monotonic() - ended_s < 5
    assert [row["stream"] for row in rows] == list(range(10))
    for row in rows:
        assert row["status"] == 0, row
        assert not row["ended_early"]
        assert 0 < row["messages_received"] <= row["messages_sent"]
        assert row["send_pps"] > 1.2 * row["messages_sent"] / row["elapsed_s"]
    udp = one.counters(interface="gen")["snmp"]["Udp"]
    received = sum(row["messages_received"] for row in rows)
    assert udp["InDatagrams"] >= received > 0.99 * udp["InDatagrams"]
    assert one.end()[0] == 0


@in_namespace
@pytest.mark.guest
def test_round_trips(agent: Callable[..., Agent], netperf_prefix: list[str]) -> None:
    one = agent()
    prefix: dict[str, Any] = {"command_prefix": netperf_prefix}
    one.netserver_start(address="10.9.9.1", port=4711, **prefix)
    found = one.netperf_rr(target="10.9.9.1", port=4711, duration_s=1, cpu=0, **prefix)
    assert 0 < found["min_us"] <= found["p50_us"] <= found["p90_us"] <= found["p99_us"]
    assert found["transactions_per_s"] * found["mean_us"] == pytest.approx(1e6, rel=0.1)
    assert one.end()[0] == 0


@in_namespace
@pytest.mark.guest
def test_netperf_without_a_netserver(
    agent: Callable[..., Agent], netperf_prefix: list[str]
) -> None:
    one = agent()
    load: dict[str, Any] = {"target": "10.9.9.1", "port": 4711, "cpus": [], "duration_s": 1}
    load |= {"command_prefix": netperf_prefix}
    error = one.ask("netperf_start", **load)["error"]
    assert "nothing answers on TCP port 4711 of 10.9.9.1" in error["hint"]


def test_what_a_killed_agent_changed_is_known_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_JOURNALS", tmp_path / "run")
    monkeypatch.setattr(journal, "in_first_namespace", lambda: True)
    first = journal.Journal("lo")
    assert first.left == []
    first.start()
    first.add("irq_affinity", {"24": "0-1"})
    first.add("up", False)
    with pytest.raises(AgentError, match="another agent is at work on lo"):
        journal.Journal("lo")
    # Killed: the lock is gone with the process, the file is not; its last line is cut short.
    first.close(keep=True)
    path = tmp_path / "run" / "settings-lo.jsonl"
    path.write_text(path.read_text() + '["addresses", ["10.0')
    second = journal.Journal("lo")
    assert second.left == [("irq_affinity", {"24": "0-1"}), ("up", False)]
    second.start()
    second.close(keep=False)
    assert not path.exists()
    # Of an interface that only has the same name nothing is taken over.
    path.write_text('{"index": 99, "mac": "02:00:00:00:00:01"}\n["up", true]\n')
    third = journal.Journal("lo")
    assert third.left == []
    third.close(keep=False)
