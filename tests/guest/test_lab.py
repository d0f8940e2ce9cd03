# SPDX-License-Identifier: MIT
"""Typical lab conditions on the rack's machines: a quiet console, a full /boot, a firewall."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import config
from harness.base.progress import Progress
from harness.beds.machine import between
from harness.beds.machine.machine import Machine
from harness.kernels import Image
from harness.selftest.machine import INTERFACE
from harness.selftest.rack import Rack

pytestmark = pytest.mark.guest

QUIET = (
    "cp /etc/default/grub /etc/default/.grub && "
    "sed -i 's/^GRUB_CMDLINE_LINUX=\"\\?/&quiet loglevel=3 /' /etc/default/grub && "
    "update-grub && sync"
)
LOUD = "mv /etc/default/.grub /etc/default/grub && update-grub"


def bed_of(rack: Rack, tmp_path: Path) -> tuple[config.Bed, config.Load]:
    loaded = config.load(rack.hosts_yaml(tmp_path / "hosts.yaml"))
    return config.bed(loaded), loaded.load


@pytest.fixture(autouse=True)
def key(rack: Rack, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The operator's key is in an ssh agent."""
    with rack.ssh_agent() as environment:
        monkeypatch.setenv("SSH_AUTH_SOCK", environment["SSH_AUTH_SOCK"])
        yield


@pytest.fixture
def met(rack: Rack, tmp_path: Path) -> Iterator[Machine]:
    """The dut as a campaign finds it; left in its own kernel, without ours."""
    rack.switch_on()
    bed, _ = bed_of(rack, tmp_path)
    assert isinstance(bed.dut, config.SshHost)
    machine = Machine("dut", bed.dut, tmp_path, Progress(bars=False))
    with machine.watched():
        machine.meet()
        yield machine
        agent = machine.reached()
        if machine.runs_its_own(agent):
            agent.close()
        else:
            machine.back_to_known_good(agent)
        with contextlib.closing(machine.reached()) as last:
            last.kernel_remove()


def ignored(_event: str, **_: object) -> None:
    """Of the journal."""


@pytest.fixture
def quiet(rack: Rack) -> Iterator[None]:
    """The dut boots quiet, as distributions have it."""
    rack.switch_on()
    rack.dut.run("sudo", "-n", "sh", "-c", QUIET, timeout_s=300)
    rack.dut.cycle()
    rack.dut.wait_for_ssh()
    yield
    rack.dut.run("sudo", "-n", "sh", "-c", LOUD, timeout_s=300)


@pytest.mark.deep
def test_a_host_that_boots_quiet_has_a_kernel_of_ours_announce_itself(
    rack: Rack, quiet: None, met: Machine, built: dict[str, Image]
) -> None:
    assert "quiet" in rack.dut.run("cat", "/proc/cmdline").split()
    image = built["8"]
    agent = met.boot(met.reached(), image, ignored)
    line = rack.dut.run("cat", "/proc/cmdline").split()
    assert {"loglevel=7", "nmi_watchdog=panic"} <= set(line)
    assert "quiet" not in line
    said = met.said_since_start()
    assert said.startswith(f"Linux version {image.release} ")
    assert str(met._token) in said
    assert rack.dut.run("cat", "/proc/sys/kernel/printk").split()[0] == "7"
    agent.close()


@pytest.mark.deep
def test_kernels_go_through_a_boot_that_holds_two(
    rack: Rack, built: dict[str, Image], met: Machine
) -> None:
    with contextlib.closing(met.reached()) as agent:
        each_mib = agent.kernel_room()["each_mib"]
    # Room for one, with its initramfs, its modules and what is uploaded: all on one disk here.
    leaves = 12 * each_mib << 20
    fill = f"fallocate -l $(($(df --output=avail -B1 /boot | tail -n 1) - {leaves})) /full"
    rack.dut.run("sudo", "-n", "sh", "-c", fill)
    try:
        for step in ("0", "2", "8", "0"):
            met.boot(met.reached(), built[step], ignored).close()
            assert rack.dut.run("uname", "-r").strip() == built[step].release
    finally:
        rack.dut.run("sudo", "-n", "rm", "-f", "/full")


def test_a_way_that_is_closed_is_told_and_by_which_protocol(rack: Rack, tmp_path: Path) -> None:
    rack.switch_on()
    rack.dut.run("sudo", "-n", "sh", "-c", "pkill -x netserver || true")  # of another test
    bed, load = bed_of(rack, tmp_path)
    rows = {row.check: row for row in between.examine(bed, load)}
    assert all(row.ok for row in rows.values()), rows
    # There is no nft on it; this drops UDP as a firewall does, before any socket.
    closed = (
        f"tc qdisc add dev {INTERFACE} ingress && "
        f"tc filter add dev {INTERFACE} ingress protocol ip u32 "
        "match ip protocol 17 0xff action drop"
    )
    rack.dut.run("sudo", "-n", "sh", "-c", closed)
    try:
        rows = {row.check: row for row in between.examine(bed, load)}
        assert rows["control to the dut"].ok
        assert not rows["data to the dut"].ok
        assert "nothing arrived" in rows["data to the dut"].detail
    finally:
        rack.dut.run("sudo", "-n", "tc", "qdisc", "del", "dev", INTERFACE, "ingress")


TAP = (
    "import socket, time; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); "
    f"s.bind(({INTERFACE!r}, 0x0800)); time.sleep(600)"
)


def test_a_dhcp_clients_socket_on_the_interface_refuses_the_run_by_name(
    rack: Rack, met: Machine
) -> None:
    # As a DHCP client at work has it: bound to the interface, for IPv4.
    rack.dut.run("sudo", "-n", "systemd-run", "--unit=tap", "/usr/bin/python3", "-c", TAP)
    with contextlib.closing(met.reached()) as agent:
        try:
            taps = agent.inventory(interface=INTERFACE)["packet_taps"]
            [tap] = taps
            assert tap["in_path"]
            assert "python3 (process" in tap["detail"]
        finally:
            rack.dut.run("sudo", "-n", "systemctl", "stop", "tap")
        assert agent.inventory(interface=INTERFACE)["packet_taps"] == []


def test_steering_and_threads_of_an_operator_are_off_for_a_run_and_back_after_it(
    rack: Rack, met: Machine
) -> None:
    def write(path: str, text: str) -> None:
        rack.dut.run("sudo", "-n", "sh", "-c", f"echo {text} > {path}")

    def read() -> list[str]:
        return rack.dut.run("cat", *files).split()

    at = f"/sys/class/net/{INTERFACE}"
    files = [
        f"{at}/queues/rx-0/rps_flow_cnt",
        f"{at}/threaded",
        f"{at}/napi_defer_hard_irqs",
        "/proc/sys/net/core/rps_sock_flow_entries",
    ]
    before = read()
    theirs = ["4096", "1", "2", "32768"]
    for path, text in zip(files, theirs, strict=True):
        write(path, text)
    try:
        with contextlib.closing(met.reached()) as agent:
            agent.settings_apply(
                interface=INTERFACE, rfs=False, threaded=False, napi_defer_hard_irqs=0
            )
            assert read() == ["0"] * 4
            assert agent.settings_restore()["failed"] == []
            assert read() == theirs
    finally:
        for path, text in zip(files, before, strict=True):
            write(path, text)
