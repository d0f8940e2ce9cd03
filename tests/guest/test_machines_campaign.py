# SPDX-License-Identifier: MIT
"""Whole campaigns on two machines that only BMCs switch: Redfish the one, IPMI the other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.selftest import faults
from harness.selftest.rack import Rack
from harness.selftest.strikes import FAULTS
from tests.bmc import IPMI_PASSWORD, PASSWORD, IpmiBmc, RedfishBmc, missing_for_ipmi

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif(missing_for_ipmi() is not None, reason=str(missing_for_ipmi())),
]


@dataclass(frozen=True)
class Lab:
    rack: Rack
    environment: dict[str, str]
    dut: dict[str, Any]
    generator: dict[str, Any]
    resets: list[str]
    """The ResetType of each act of Redfish."""


@pytest.fixture(scope="module")
def lab(rack: Rack) -> Iterator[Lab]:
    rack.switch_on()
    button = rack.power_command(rack.dut)
    with (
        RedfishBmc(button) as redfish,
        IpmiBmc(button, console=rack.dut.console_log) as sol,
        IpmiBmc(rack.power_command(rack.generator)) as ipmi,
        rack.ssh_agent() as environment,
    ):
        secrets = {"REDFISH_PASSWORD": PASSWORD, "IPMI_PASSWORD_OF_LAB": IPMI_PASSWORD}
        by_redfish = {
            "url": redfish.url,
            "user": redfish.user,
            "password": {"env": "REDFISH_PASSWORD"},
        }
        yield Lab(
            rack=rack,
            environment=environment | secrets,
            dut={"power": {"redfish": by_redfish}, "console": {"sol": _ipmi(sol)}},
            generator={"power": {"ipmi": _ipmi(ipmi)}},
            resets=redfish.resets,
        )


def _ipmi(bmc: IpmiBmc) -> dict[str, Any]:
    return {
        "hostname": "127.0.0.1",
        "port": bmc.port,
        "user": bmc.user,
        "password": {"env": "IPMI_PASSWORD_OF_LAB"},
        "cipher_suite": bmc.cipher_suite,
    }


@pytest.mark.parametrize("method", ["kexec", "one-shot"])
def test_steps_0_2_8(lab: Lab, method: str, tmp_path: Path) -> None:
    hosts = lab.rack.hosts_yaml(
        tmp_path / "hosts.yaml",
        dut={**lab.dut, "boot": {"method": method, "timeout_s": 200}},
        generator=lab.generator,
        top={"kernel": {"config": "benchmark"}},
    )
    known_good = lab.rack.dut.run("uname", "-r")

    def harness(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "harness", *words],
            env=lab.environment, capture_output=True, text=True, timeout=3000,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr
        return done.stdout

    out = tmp_path / "result"
    harness("run", "--hosts", str(hosts), "--profile", "smoke", "--steps", "0,2,8",
            "--out", str(out))  # fmt: skip
    report = json.loads(harness("report", str(out), "--format", "json"))
    assert report["complete"]
    by_step = {row["step"]: row for row in report["rows"]}
    assert by_step["0"]["list_len_max"] is None
    assert by_step["2"]["list_len_max"] > 1
    assert by_step["2"]["ip_rcv_per_packet"] == pytest.approx(1, abs=0.01)
    assert by_step["8"]["ip_rcv_per_packet"] < 0.01
    for row in by_step.values():
        # Where the generator shares this machine's CPUs, it may be what limits the rate.
        assert row["unsaturated_trials"] or row["stack_rx_pps"] > 0
        assert row["cpu_ns_per_packet"] > 0
    assert lab.rack.dut.run("uname", "-r") == known_good
    written = "".join(path.read_text(errors="replace") for path in out.rglob("*.*"))
    assert PASSWORD not in written
    assert IPMI_PASSWORD not in written
    harness("hosts", "clean", "dut", "--hosts", str(hosts))


def test_a_hang_is_ended_by_redfish(lab: Lab, tmp_path: Path) -> None:
    scene = faults.Scene(lab.rack, tmp_path, lab.environment, dut=lab.dut)
    before = len(lab.resets)
    [outcome] = faults.run(scene, [fault for fault in FAULTS if fault.name == "hang"])
    assert outcome.wrong == (), outcome
    assert len(lab.resets) > before
