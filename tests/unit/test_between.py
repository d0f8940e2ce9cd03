# SPDX-License-Identifier: MIT
"""The doctor on both machines of a bed: real agents in two namespaces with a cable between."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from harness import config
from harness.beds.access.channel import RemoteAgent
from harness.beds.machine import between, lease
from harness.beds.machine.doctor import Finding
from harness.cli import cli
from tests.unit.test_agent_process import in_namespace

pytestmark = pytest.mark.unit

NFT = shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
ROOT = Path(__file__).parents[2]
INTERFACES = {"rx": "dut0", "tx": "gen0"}
DROPPED = "{ type filter hook input priority 0; policy drop; }"
DROPS = [
    ["add", "table", "inet", "filter"],
    [
        "add",
        "chain",
        "inet",
        "filter",
        "input",
        "{ type filter hook input priority 0; policy drop; }",
    ],
]


def bed() -> tuple[config.Bed, config.Load]:
    hosts = {
        name: {"kind": "ssh", "hostname": name, "interface": interface, "address": address}
        for (name, interface), address in zip(
            INTERFACES.items(), ("198.18.1.2/24", "198.18.1.1/24"), strict=True
        )
    }
    loaded = config.HostsFile.model_validate(
        {"version": 1, "default_bed": "b", "beds": {"b": {"dut": "rx", "generator": "tx"}},
         "hosts": hosts}, strict=False,
    )  # fmt: skip
    return config.bed(loaded, None), loaded.load


class Lab:
    """Two hosts; ``enter`` is the command prefix that runs a command in one."""

    def __init__(self, enter: dict[str, list[str]]) -> None:
        self.enter = enter

    def run(self, host: str, *command: str) -> str:
        done = subprocess.run(
            [*self.enter[host], *command], check=True, capture_output=True, text=True
        )
        return done.stdout

    def of(self, _host: config.SshHost) -> Any:
        def start(*, host: str, log: Path) -> RemoteAgent:
            command = [*self.enter[host], sys.executable, "-m", "harness.agent"]
            return RemoteAgent(["env", f"--chdir={ROOT}", *command], host=host, log=log)

        return SimpleNamespace(start_agent=start)


@contextmanager
def holding(*command: str) -> Iterator[int]:
    """Start a process that keeps a namespace; returns its id."""
    process = subprocess.Popen(
        [*command, "sh", "-c", "echo there; exec sleep 600"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        yield process.pid
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    def enter(pid: int) -> list[str]:
        return ["nsenter", "-t", str(pid), "-U", "-n", "--preserve-credentials"]

    with holding("unshare", "-Urn") as rx, holding(*enter(rx), "unshare", "-n") as tx:
        made = Lab({"rx": enter(rx), "tx": enter(tx)})
        pair = ["ip", "link", "add", "dut0", "type", "veth", "peer", "name", "gen0"]
        made.run("rx", *pair, "netns", str(tx))
        monkeypatch.setattr(between, "SshTarget", made)
        monkeypatch.setattr(
            lease, "asked", lambda *_: SimpleNamespace(require_not_anothers=lambda: None)
        )
        yield made


def examined(**more: Any) -> dict[str, Finding]:
    return {row.check: row for row in between.examine(*bed(), **more)}


def state(lab: Lab) -> list[str]:
    return [lab.run(name, "ip", "-o", "-4", "address", "show", "dev", dev) +
            str("UP" in lab.run(name, "ip", "-o", "link", "show", "dev", dev).split(">")[0])
            for name, dev in INTERFACES.items()]  # fmt: skip


@in_namespace
def test_an_open_way_and_both_are_left_as_they_were(lab: Lab) -> None:
    before = state(lab)
    rows = examined()
    assert {name: row.ok for name, row in rows.items()} == {
        "links of both": True, "control to the dut": True, "data to the dut": True
    }, rows  # fmt: skip
    assert "10000" in rows["links of both"].detail
    assert state(lab) == before


@in_namespace
@pytest.mark.skipif(NFT is None, reason="needs nft (nftables)")
@pytest.mark.parametrize(
    ("closed", "ways"), [("rx", {"control", "data"}), ("tx", {"control", "data"})]
)
def test_a_closed_firewall_is_found_and_opened_by_the_command_named(
    lab: Lab, closed: str, ways: set[str]
) -> None:
    assert NFT is not None
    for line in DROPS:
        lab.run(closed, NFT, *line)
    rows = examined()
    assert {name.split()[0] for name, row in rows.items() if not row.ok} == ways
    remedy = rows["data to the dut"].remedy or ""
    assert f"nftables on {closed} blocks it: sudo nft insert rule inet filter input" in remedy
    assert ("the packet arrived" in rows["data to the dut"].detail) is (closed == "tx")
    lab.run(closed, "sh", "-c", remedy.partition("sudo ")[2].replace("nft ", f"{NFT} "))
    assert all(row.ok for row in examined().values())


@in_namespace
def test_a_port_that_is_taken_is_told(lab: Lab) -> None:
    taken = (
        "import socket, time\ns = socket.create_server(('', 12865))\nprint(1, flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen(
        [*lab.enter["rx"], sys.executable, "-c", taken], stdout=subprocess.PIPE
    ) as held:
        try:
            assert held.stdout is not None
            held.stdout.readline()
            rows = examined()
            assert "Address already in use" in rows["path"].detail
            assert "ss -ltnp" in (rows["path"].remedy or "")
        finally:
            held.kill()


def test_the_command_asks_between_only_once_both_were_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hosts.yaml"
    path.write_text(
        "version: 1\ndefault_bed: rack\nbeds:\n  rack: {dut: rx, generator: tx}\nhosts:\n"
        "  rx: {kind: ssh, hostname: rx.lab, interface: eth1, address: 198.18.1.2/24}\n"
        "  tx: {kind: ssh, hostname: tx.lab, interface: eth1, address: 198.18.1.1/24}\n"
    )
    there = ["agent", "interface"]
    asked: list[bool] = []

    def examine(*_: Any, **__: Any) -> Iterator[Finding]:
        return (Finding(check=check, ok=True, detail="") for check in there)

    def tried(_bed: Any, _load: Any, *, flood: bool) -> Iterator[Finding]:
        asked.append(flood)
        yield Finding(check="data to the dut", ok=False, detail="no answer", remedy="open it")

    monkeypatch.setattr("harness.beds.machine.doctor.examine", examine)
    monkeypatch.setattr(between, "examine", tried)

    def run(*words: str) -> Any:
        return CliRunner().invoke(cli, ["doctor", *words, "--hosts", str(path)])

    done = run("--format", "json")
    assert json.loads(done.stdout)["bed rack"][0]["check"] == "data to the dut"
    assert "bed rack lacks: data to the dut" in str(done.exception)
    assert "from tx to rx" in run("--flood").stdout
    assert asked == [False, True]
    run("rx", "tx")
    there.remove("agent")
    run()
    assert asked == [False, True]
