# SPDX-License-Identifier: MIT
"""The rack itself: two guests that behave as machines do, joined by their NICs."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from harness import config
from harness.base import process
from harness.base.errors import ConfigurationError, HostLostError
from harness.selftest.machine import INTERFACE, Machine
from harness.selftest.rack import ADDRESSES, Rack

pytestmark = pytest.mark.guest

BANNER = "] Linux version "


@pytest.fixture(scope="module", autouse=True)
def up(rack: Rack) -> None:
    rack.switch_on()


def press(rack: Rack, machine: Machine, button: str) -> str:
    """As whoever drives its BMC does it."""
    return process.run([*rack.power_command(machine), button], timeout_s=60).stdout.strip()


def cable_up(machine: Machine) -> None:
    machine.run("sudo", "ip", "address", "replace", ADDRESSES[machine.name], "dev", INTERFACE)
    machine.run("sudo", "ip", "link", "set", INTERFACE, "up")


def ping(machine: Machine, other: Machine) -> str:
    to = ADDRESSES[other.name].partition("/")[0]
    return machine.run("sudo", "ping", "-c", "3", "-w", "20", "-I", INTERFACE, to)


def test_the_nics_are_joined(rack: Rack) -> None:
    for machine in rack.machines:
        assert machine.run("/usr/sbin/ethtool", "-i", INTERFACE).startswith("driver: sfc\n")
        cable_up(machine)
    assert " 0% packet loss" in ping(rack.generator, rack.dut)
    rack.dut.run("netserver")
    to = ADDRESSES["dut"].partition("/")[0]
    sent = rack.generator.run(
        "netperf", "-H", to, "-t", "UDP_STREAM", "-l", "3", "-P", "0", "--", "-m", "1"
    )
    received = [line.split() for line in sent.splitlines() if line.strip()][1]
    assert int(received[2]) > 1000


LISTENER = """
import socket
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
line.bind(("", 6666))
with open("netconsole", "wb", 0) as log:
    while True:
        log.write(line.recv(65535))
"""


def test_a_kernel_speaks_by_netconsole(rack: Rack, tmp_path: Path) -> None:
    for machine in rack.machines:
        cable_up(machine)
    listen = 'setsid -f timeout 120 python3 -c "$1" < /dev/null > /dev/null 2>&1'
    rack.generator.run("sh", "-c", listen, "sh", LISTENER)
    address = ADDRESSES["generator"].partition("/")[0]
    with contextlib.closing(rack.dut.ssh.start_agent(host="dut", log=tmp_path / "log")) as agent:
        for _ in range(2):  # it may be on already
            agent.netconsole(interface=INTERFACE, address=address, port=6666)
        with pytest.raises(ConfigurationError, match=f"{address} is reached through {INTERFACE}"):
            agent.netconsole(interface="lo", address=address, port=6666)
    rack.dut.run("sudo", "sh", "-c", "echo '<2>seven times thirteen' > /dev/kmsg")
    deadline = time.monotonic() + 30
    heard = ""
    while "seven times thirteen" not in heard and time.monotonic() < deadline:
        heard = rack.generator.run("cat", "netconsole")
    assert heard.startswith(f"Linux version {rack.dut.run('uname', '-r').strip()} ")
    assert "seven times thirteen" in heard


def test_the_hosts_file_is_of_two_machines(rack: Rack, tmp_path: Path) -> None:
    bed = config.bed(config.load(rack.hosts_yaml(tmp_path / "hosts.yaml", bed={"rx_queues": 2})))
    assert (bed.kind, bed.rx_queues) == ("hardware", 2)
    assert isinstance(bed.dut, config.SshHost)
    assert bed.dut.power
    assert bed.dut.console


def test_the_disk_outlives_the_power(rack: Rack) -> None:
    machine = rack.generator
    before, banners = machine.boot_id(), machine.console_log.read_text().count(BANNER)
    machine.run("sh", "-c", "echo kept > kept && sync")
    assert press(rack, machine, "status") == "on"
    assert press(rack, machine, "off") == "off"
    with pytest.raises(HostLostError):
        machine.ssh.run(["true"])
    assert press(rack, machine, "on") == "on"
    assert machine.wait_for_boot(before) == machine.run("uname", "-r").strip()
    assert machine.run("cat", "kept") == "kept\n"
    assert machine.console_log.read_text().count(BANNER) == banners + 1
    cable_up(machine)
    assert " 0% packet loss" in ping(machine, rack.dut)


def test_a_machine_hangs_and_its_management_cable_is_pulled(rack: Rack) -> None:
    machine = rack.generator
    machine.freeze()
    with pytest.raises(HostLostError):
        machine.ssh.run(["true"], timeout_s=5)
    assert machine.is_on()
    machine.thaw()
    machine.wait_for_ssh(within_s=60)
    machine.cut(off=True)
    with pytest.raises(HostLostError):
        machine.ssh.run(["true"], timeout_s=5)
    machine.cut(off=False)
    machine.wait_for_ssh(within_s=60)
