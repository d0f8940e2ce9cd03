# SPDX-License-Identifier: MIT
"""What an administrator does to the dut's NIC, through the kernel's driver."""

from __future__ import annotations

import pytest

from tests.guest.conftest import Beds

pytestmark = pytest.mark.guest

_SELF_TEST_S = 120.0
# What the driver says, at any level, when the card did what it did not expect.
# Before it tests an interrupt it asks for a workaround that must not be there (0x4a).
_EXPECTED = "MC command 0x4a inlen 8 failed rc=-38"
_TROUBLE = ("MCDI", "failed", "WARNING", "timed out", "timeout", "invalid", "disabled", "unable")


def test_self_tests_link_and_rebinding(beds: Beds) -> None:
    with beds.up("0") as bed:
        name = bed.dut_interface

        def run(script: str) -> str:
            command = ["sudo", "sh", "-c", script.replace("IF", name)]
            done = bed.guest.ssh.run(command, timeout_s=_SELF_TEST_S)
            said = done.stdout.decode() + done.stderr.decode()
            assert done.returncode == 0, (script, said)
            return said

        run("dmesg --clear")
        for kind in ("online", "offline"):
            result = run(f"ethtool -t IF {kind}")
            assert "The test result is PASS" in result
        assert "registers" in result
        counters = bed.nic_counters()
        assert counters is not None
        assert counters["tx_looped"] > 0
        assert counters["mc_reboots"] == 1

        assert "10000Mb/s" in run("sleep 1; ethtool IF")
        assert "1000Mb/s" in run("ethtool -s IF speed 1000 autoneg off; sleep 1; ethtool IF")
        assert "10000Mb/s" in run("ethtool -s IF speed 10000 autoneg off; sleep 1; ethtool IF")
        assert "SFP" in run("ethtool -m IF")
        run("timeout 20 ethtool -p IF 1")
        run("for turn in 1 2 3; do ip link set IF down; ip link set IF up; done")
        device = run("basename $(readlink /sys/class/net/IF/device)").strip()
        run(
            f"cd /sys/bus/pci/drivers/sfc; echo {device} > unbind; echo {device} > bind; sleep 1;"
            f"ip link set $(ls /sys/bus/pci/devices/{device}/net) up"
        )
        said = run("dmesg --level=emerg,alert,crit,err,warn")
        lines = [line for line in said.splitlines() if _EXPECTED not in line]
        assert not [line for line in lines if any(word in line for word in _TROUBLE)]
        counters = bed.nic_counters()
        assert counters is not None
        assert counters["internal_errors"] == 0
        assert counters.get("mcdi_bad_address", 0) == 0
