# SPDX-License-Identifier: MIT
"""A machine whose power button is pressed by BMCs, and whose console is had by one."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from harness import config
from harness.beds.machine import console, power
from harness.selftest.rack import Rack
from tests.bmc import IPMI_PASSWORD, PASSWORD, IpmiBmc, RedfishBmc

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(
        shutil.which("ipmi_sim") is None or shutil.which("ipmitool") is None,
        reason="needs ipmi_sim (openipmi) and ipmitool",
    ),
]


def test_a_machine_is_switched_and_watched_by_bmcs_alone(
    rack: Rack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDFISH", PASSWORD)
    monkeypatch.setenv("IPMI", IPMI_PASSWORD)
    rack.dut.power_off()
    button = rack.power_command(rack.dut)
    with RedfishBmc(button) as bmc, IpmiBmc(button, console=rack.dut.console_log) as other:
        by_redfish = power.connect(
            config.RedfishPower(
                redfish=config.Redfish(
                    url=bmc.url, user=bmc.user, password=config.EnvironmentSecret(env="REDFISH")
                )
            ),
            "dut",
        )
        ipmi = config.Ipmi(
            hostname="127.0.0.1",
            port=other.port,
            user=other.user,
            password=config.EnvironmentSecret(env="IPMI"),
            cipher_suite=other.cipher_suite,
        )
        by_ipmi = power.connect(config.IpmiPower(ipmi=ipmi), "dut")
        log = tmp_path / "console.log"
        with console.start(config.SolConsole(sol=ipmi), "dut", log) as said:
            said.check()
            assert by_redfish.status() is False
            by_redfish.on()
            assert rack.dut.is_on()
            for cycle in (None, by_ipmi.cycle):
                since = said.position
                if cycle is not None:
                    cycle()
                deadline = time.monotonic() + 180
                while "Linux version" not in said.text(since) and time.monotonic() < deadline:
                    time.sleep(0.5)
                assert "Linux version" in said.text(since)
        by_ipmi.off()
        assert by_redfish.status() is False
        assert not rack.dut.is_on()
