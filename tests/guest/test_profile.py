# SPDX-License-Identifier: MIT
"""The time of a packet by function, of real kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.selftest.rack import Rack
from tests.guest.conftest import harness


def require_receive_path_of_steps_0_and_8(*asked: str) -> None:
    done = harness("profile", "0,8", *asked, "--duration", "4", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for one in told["steps"].values():
        assert one["packets"] > 10_000
        assert one["samples"] > 200
    ns = {row["function"]: row["ns"] for row in told["functions"]}
    assert ns["ip_rcv"]["0"] > ns["ip_rcv"]["8"]
    assert ns["ip_sublist_rcv"]["0"] == 0 < ns["ip_sublist_rcv"]["8"]
    for step, one in told["steps"].items():
        assert sum(by[step] for by in ns.values()) == pytest.approx(one["ns_per_packet"], rel=0.01)


@pytest.mark.guest
@pytest.mark.parametrize("bed", ["native", pytest.param("virtual", marks=pytest.mark.deep)])
def test_functions_of_the_receive_path_are_found(bed: str) -> None:
    require_receive_path_of_steps_0_and_8("--bed", bed)


@pytest.mark.deep
def test_machines_boot_one_after_the_other(
    rack: Rack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rack.switch_on()
    own = rack.dut.run("uname", "-r")
    hosts = rack.hosts_yaml(tmp_path / "hosts.yaml", top={"kernel": {"config": "benchmark"}})
    with rack.ssh_agent() as environment:
        monkeypatch.setenv("SSH_AUTH_SOCK", environment["SSH_AUTH_SOCK"])
        require_receive_path_of_steps_0_and_8("--hosts", str(hosts))
    assert rack.dut.run("uname", "-r") == own
