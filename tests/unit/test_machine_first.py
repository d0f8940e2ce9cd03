# SPDX-License-Identifier: MIT
"""The checks of a machine before anything is built for it, and how room is made on it."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import config
from harness.agent import inventory
from harness.agent.boot.drivers import drivers, mounted
from harness.agent.boot.kernels import Kernels
from harness.agent.faults import AgentError
from harness.agent.interface import ethtool
from harness.base.errors import ConfigurationError, HostLostError, InfrastructureError
from harness.beds.machine import machines
from harness.beds.machine.machine import Machine
from harness.kernels import bootable
from tests.unit.fake_agent import FakeAgent
from tests.unit.fake_machine import Machine as Disk
from tests.unit.fake_machine import machine as disk
from tests.unit.fake_machine import path_with, tree, uploaded
from tests.unit.test_machine import IMAGE, OURS, Host, boot, host, made

__all__ = ["host", "made"]

pytestmark = pytest.mark.unit


@pytest.fixture
def rx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setenv("PATH", path_with(tmp_path / "rx"))
    monkeypatch.setenv("ROOT", str(tmp_path / "rx"))
    return disk(tmp_path / "rx")


# /boot fills


class Full:
    """A file system with ``kernels`` places; a kernel of ours takes one."""

    def __init__(self, host: Disk, kernels: int) -> None:
        self.host, self.places = host, kernels

    def __call__(self, _path: object) -> Any:
        there = self.host.kernels
        ours = len(list(there.iterdir())) if there.exists() else 0
        return SimpleNamespace(free=(self.places - ours) * (100 << 20), total=0, used=0)


def install(host: Disk, directory: Path, release: str, may_go: list[str]) -> list[str]:
    shutil.rmtree(directory, ignore_errors=True)
    kernels = Kernels(host, sudo_uid=os.getuid())
    done = kernels.install(release=release, directory=uploaded(directory, release), may_go=may_go)
    return [str(one) for one in done["evicted"]]


@pytest.mark.parametrize("places", [2, 3])
def test_nine_kernels_go_through_a_boot_of_a_few(
    rx: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: int
) -> None:
    (rx.boot / "initrd.img-6.12.1-amd64").write_bytes(bytes(1 << 20))
    monkeypatch.setattr("harness.agent.boot.kernels._SPARE", 90 << 20)
    monkeypatch.setattr("harness.agent.boot.kernels.shutil.disk_usage", Full(rx, places))
    # What is freed is not what this file system says: the pieces are small.
    monkeypatch.setattr(Kernels, "_require_fits", fits_after(rx, Full(rx, places)))
    before = tree(rx.root)
    there: list[str] = []
    gone: list[str] = []
    for step in range(9):
        release = f"6.12.117-s{step}"
        evicted = install(rx, tmp_path / "up", release, list(there))
        there = [one for one in there if one not in evicted] + [release]
        gone += evicted
    assert gone == [f"6.12.117-s{step}" for step in range(9 - places)]
    assert [path.name for path in sorted(rx.kernels.iterdir())] == there
    menu = (rx.boot / "grub/custom.cfg").read_text()
    assert all((f"-s{step}'" in menu or f"/6.12.117-s{step}/" in menu) is (step >= 9 - places)
               for step in range(9))  # fmt: skip
    Kernels(rx, sudo_uid=os.getuid()).remove()
    assert tree(rx.root) == before


def fits_after(host: Disk, full: Full) -> Callable[..., None]:
    def fits(_self: Kernels, _need: object, gone: Any = ()) -> None:
        away = {path for path in gone if path.parent == host.kernels}
        if full(None).free + len(away) * (100 << 20) < 100 << 20:
            raise AgentError("no room: /boot needs more")

    return fits


def test_nothing_goes_where_that_would_not_be_enough(
    rx: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(rx, tmp_path / "up", "6.12.117-a", [])
    monkeypatch.setattr(
        "harness.agent.boot.kernels.shutil.disk_usage", lambda _: SimpleNamespace(free=0)
    )
    with pytest.raises(AgentError, match="no room: "):
        install(rx, tmp_path / "up", "6.12.117-b", ["6.12.117-a", "nosuch-1"])
    assert [row["release"] for row in Kernels(rx).installed()] == ["6.12.117-a"]


def test_the_running_kernel_never_makes_room(
    rx: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(rx, tmp_path / "up", "6.12.117-a", [])
    running = Disk(rx.root, running="6.12.117-a")
    monkeypatch.setattr(Kernels, "_require_fits", fits_after(rx, Full(rx, 1)))
    with pytest.raises(AgentError, match="no room"):
        install(running, tmp_path / "up", "6.12.117-b", ["6.12.117-a"])


def test_how_many_there_is_room_for(rx: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    (rx.boot / "initrd.img-6.12.1-amd64").write_bytes(bytes(40 << 20))
    (rx.boot / "vmlinuz-6.12.1-amd64").write_bytes(bytes(10 << 20))
    monkeypatch.setattr(
        "harness.agent.boot.kernels.shutil.disk_usage", lambda _: SimpleNamespace(free=200 << 20)
    )
    assert Kernels(rx).room() == {"each_mib": 60, "free_mib": 200, "fit": 3, "ours": 0}


def test_what_was_booted_longest_ago_makes_room_first(
    host: Host, made: Callable[..., Machine]
) -> None:
    machine, asked = made(), []
    call = host.call

    def seen(name: str, /, **arguments: Any) -> Any:
        if name == "kernel_install":
            asked.append(arguments["may_go"])
        return call(name, **arguments)

    host.call = seen  # type: ignore[method-assign]
    host.installed = {"of-another-campaign"}
    for release in ("a", "b", "a", "c"):
        host.comes_up = release
        machine.boot(machine.reached(), cast("Any", SimpleNamespace(release=release)),
                     lambda *_, **__: None)  # fmt: skip
    assert asked == [
        ["of-another-campaign"], ["of-another-campaign", "a"], ["of-another-campaign", "b", "a"]
    ]  # fmt: skip


# The first look


def bed(**kernel: Any) -> tuple[config.Bed, config.Kernel]:
    entry = {"kind": "ssh", "hostname": "h", "interface": "enp1s0f0np0"}
    loaded = config.HostsFile.model_validate(
        {"version": 1, "default_bed": "b", "beds": {"b": {"dut": "rx", "generator": "tx"}},
         "hosts": {"rx": {**entry, "address": "198.18.1.2/24"},
                   "tx": {**entry, "address": "198.18.1.1/24"}}, "kernel": kernel},
        strict=False,
    )  # fmt: skip
    return config.bed(loaded, None), loaded.kernel


class Looked:
    """Both machines, as their agents answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, Any] = {
            "inventory": {"mac": "02:00:00:00:00:01"},
            "kernel_room": {"fit": 4, "ours": 0, "each_mib": 60, "free_mib": 300},
            "others": {
                "manager": None,
                "remedy": "",
                "dhcp": False,
                "service": None,
                "port": 12865,
            },
            "drivers": {"xfs": "the root file system is xfs", "nvme": "its disk"},
        }
        self.lost = False
        target = SimpleNamespace(of=lambda _: SimpleNamespace(start_agent=self.start))
        monkeypatch.setattr(machines, "SshTarget", target)

    def start(self, *, host: str, log: Path) -> Any:
        if self.lost:
            raise HostLostError(f"{host}: no answer")
        return FakeAgent(lambda name, **_: self.said(host, name))

    def said(self, host: str, name: str) -> Any:
        answer = self.answers.get(f"{host} {name}", self.answers.get(name))
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_an_interface_that_was_renamed_is_told_before_building(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = Looked(monkeypatch)
    machines.looked_at(*bed())
    for name in ("rx", "tx"):
        looked.answers[f"{name} inventory"] = ConfigurationError(
            f"{name}: no interface enp1s0f0np0 on this host", hint="the host has: ens3f0np0, lo"
        )
        with pytest.raises(ConfigurationError, match=f"{name}: no interface enp1s0f0np0"):
            machines.looked_at(*bed())
        del looked.answers[f"{name} inventory"]


def test_a_boot_without_room_is_told_before_building(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = Looked(monkeypatch)
    looked.answers["kernel_room"] = {"fit": 1, "ours": 0, "each_mib": 60, "free_mib": 80}
    with pytest.raises(
        InfrastructureError, match="no room: /boot holds at most 1 kernels of about 60"
    ):
        machines.looked_at(*bed())
    looked.answers["kernel_room"]["ours"] = 3
    machines.looked_at(*bed())


@pytest.mark.parametrize("name", ["rx", "tx"])
def test_whoever_would_undo_a_run_is_told_before_building(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = Looked(monkeypatch)
    alone = looked.answers["others"]
    managed = {"manager": "NetworkManager (connecting)", "remedy": "nmcli …", "dhcp": True}
    looked.answers[f"{name} others"] = alone | managed
    with pytest.raises(InfrastructureError, match=f"{name}: NetworkManager.*DHCP") as caught:
        machines.looked_at(*bed())
    assert "nmcli" in (caught.value.hint or "")
    looked.answers[f"{name} others"] = alone | managed | {"dhcp": False}  # an address of its own
    machines.looked_at(*bed())
    looked.answers[f"{name} others"] = alone | {"service": "netperf.service"}
    if name == "tx":  # it serves nothing
        machines.looked_at(*bed())
        return
    with pytest.raises(
        InfrastructureError, match=r"netperf\.service occupies TCP port 12865"
    ) as caught:
        machines.looked_at(*bed())
    assert "systemctl disable --now netperf.service" in (caught.value.hint or "")


def test_a_machine_that_hangs_is_not_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = Looked(monkeypatch)
    looked.lost = True
    with pytest.raises(HostLostError):
        machines.looked_at(*bed())
    machines.looked_at(*bed(), resumed=True)


def test_a_configuration_that_cannot_boot_the_host_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Looked(monkeypatch)
    machines.looked_at(*bed(config="host"))
    with pytest.raises(ConfigurationError) as caught:
        machines.looked_at(*bed(config="benchmark"))
    assert "CONFIG_XFS_FS (xfs: the root file system is xfs)" in caught.value.message
    assert "CONFIG_BLK_DEV_NVME (nvme: its disk)" in caught.value.message
    assert "benchmark is for virtual beds" in (caught.value.hint or "")
    mine = tmp_path / "my.config"
    mine.write_text("CONFIG_XFS_FS=m\n# CONFIG_BLK_DEV_NVME is not set\n")
    with pytest.raises(ConfigurationError, match="missing: CONFIG_BLK_DEV_NVME") as caught:
        machines.looked_at(*bed(config=mine))
    assert "XFS" not in caught.value.message
    mine.write_text("CONFIG_XFS_FS=m\nCONFIG_BLK_DEV_NVME=y\n")
    machines.looked_at(*bed(config=mine))


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4))
def test_what_a_host_names_that_is_not_known_is_not_judged(drivers: dict[str, str]) -> None:
    known = {name: what for name, what in drivers.items() if name not in bootable.OPTIONS}
    bootable.require(config.Kernel(config="benchmark"), "rx", known)


# What a host needs


def link(path: Path, to: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


def test_a_root_on_lvm_on_a_crypted_mirror_of_nvme_and_sata(tmp_path: Path) -> None:
    sys = tmp_path / "sys"
    pci = sys / "devices/pci0000:00"
    disks = {
        "nvme0n1": (pci / "0000:01:00.0", "nvme", pci / "0000:01:00.0/nvme/nvme0/nvme0n1"),
        "sda": (pci / "0000:02:00.0", "ahci", pci / "0000:02:00.0/ata1/host0/0:0:0:0/block/sda"),
    }
    for function, driver, block in disks.values():
        (block / "part1").mkdir(parents=True)
        module = sys / "module" / driver
        module.mkdir(parents=True)
        link(function / "driver/module", module)
    sd = sys / "module/sd_mod"
    sd.mkdir()
    link(disks["sda"][2].parents[1] / "driver/module", sd)
    virtual = sys / "devices/virtual/block"
    for name in ("dm-1", "dm-0", "md0"):
        (virtual / name / "slaves").mkdir(parents=True)
    (virtual / "dm-1/dm").mkdir()
    (virtual / "dm-1/dm/uuid").write_text("LVM-abc\n")
    (virtual / "dm-0/dm").mkdir()
    (virtual / "dm-0/dm/uuid").write_text("CRYPT-LUKS2-abc-luks\n")
    (virtual / "md0/md").mkdir()
    (virtual / "md0/md/level").write_text("raid1\n")
    link(virtual / "dm-1/slaves/dm-0", virtual / "dm-0")
    link(virtual / "dm-0/slaves/md0", virtual / "md0")
    for name, (_, _, block) in disks.items():
        link(virtual / "md0/slaves" / name, block / "part1")
    link(sys / "dev/block/254:1", virtual / "dm-1")
    sfc = sys / "module/sfc"
    sfc.mkdir()
    link(pci / "0000:03:00.0/driver/module", sfc)
    link(sys / "class/net/enp3s0f0np0/device", pci / "0000:03:00.0")
    mounts = tmp_path / "proc/self/mountinfo"
    mounts.parent.mkdir(parents=True)
    mounts.write_text(
        "1 1 0:1 / / rw - rootfs rootfs rw\n"
        "22 1 254:1 / / rw,relatime shared:1 master:2 - xfs /dev/mapper/vg-root rw\n"
        "23 22 0:21 / /proc rw - proc proc rw\n"
    )
    found = drivers(interface="enp3s0f0np0", root=str(tmp_path))
    assert set(found) == {"xfs", "dm_mod", "dm_crypt", "raid1", "nvme", "ahci", "sd_mod", "sfc"}
    assert found["sfc"] == "enp3s0f0np0 needs it"
    assert set(found) <= set(bootable.OPTIONS)


def test_what_this_host_needs_can_be_told() -> None:
    assert isinstance(drivers(interface="lo"), dict)
    assert drivers(interface="nosuch0", root="/nosuch") == {}


@given(
    st.text(max_size=200)
    | st.lists(
        st.sampled_from(["1", "-", "/", "8:1", "ext4", "rw", "\n", "a:b", "\x00"]), max_size=40
    ).map(" ".join)
)
def test_whatever_mountinfo_says(text: str) -> None:
    assert all(":" in device for _, device in mounted(text))


# An interface by its own address


def test_an_interface_is_found_by_the_address_it_was_made_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, address in {"bond0": "02:00:00:00:00:0a", "ens3f0np0": "02:00:00:00:00:0a",
                          "other": "02:00:00:00:00:0b"}.items():  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "address").write_text(address + "\n")
    (tmp_path / "ens3f0np0/device").mkdir()
    own = {"other": "02:00:00:00:00:0c"}
    monkeypatch.setattr(inventory, "NET", tmp_path)
    monkeypatch.setattr(inventory, "permanent_address", own.get)
    assert inventory._named_by("02:00:00:00:00:0A") == "ens3f0np0"
    assert inventory._named_by("02:00:00:00:00:0c") == "other"
    with pytest.raises(AgentError, match="no interface with the address"):
        inventory._named_by("02:00:00:00:00:0d")


def test_the_permanent_address_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ioctl(_handle: object, number: int, request: bytes) -> None:
        import ctypes

        name, at = struct.unpack("16sP16x", request)
        asked.append((number, name.rstrip(b"\0")))
        ctypes.memmove(at, struct.pack("II", 0x20, 6) + bytes.fromhex("000f53010203"), 14)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert ethtool.Ethtool("eth1").permanent_address() == "00:0f:53:01:02:03"
    assert asked == [(0x8946, b"eth1")]


def test_loopback_has_no_address_of_its_own() -> None:
    assert inventory.permanent_address("lo") is None
    assert inventory.permanent_address("nosuch0") is None


def test_under_another_kernel_it_is_found_by_its_address(
    host: Host, made: Callable[..., Machine]
) -> None:
    machine = made()
    call = host.call

    def renamed(name: str, /, **arguments: Any) -> Any:
        if name == "inventory" and "mac" in arguments:
            return {"interface": "ens3f0np0", "mac": arguments["mac"]}
        return {"mac": "02:00:00:00:00:0a"} if name == "inventory" else call(name, **arguments)

    host.call = renamed  # type: ignore[method-assign]
    machine.meet()
    agent, _ = boot(machine)
    assert machine.interface(agent) == ("eth1", "02:00:00:00:00:0a")

    def by_name(name: str, /, **more: Any) -> Any:
        wanted = name == "inventory" and "interface" in more
        return (call if wanted else renamed)(name, **more)

    host.call = by_name  # type: ignore[method-assign]
    host.has_nic = False
    again = cast("Any", FakeAgent(host.call, ready=agent.ready))
    assert machine.interface(again) == ("ens3f0np0", "02:00:00:00:00:0a")
    assert IMAGE.release == OURS
