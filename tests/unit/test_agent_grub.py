# SPDX-License-Identifier: MIT
"""Which configuration the firmware's GRUB reads, and whether it can write its environment."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from harness.agent import programs
from harness.agent.boot import BootControl, firmware, grub, mounts
from harness.agent.boot.grub import Grub
from harness.agent.boot.kernels import Kernels
from harness.agent.faults import AgentError
from tests.unit.fake_machine import GRUB_CFG, RELEASE, Machine, machine, path_with, tree, uploaded

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(
        shutil.which("grub-editenv", path="/usr/bin:/usr/sbin") is None,
        reason="needs grub-editenv (grub-common)",
    ),
]
HERE = "0a-b1"
"""The file system of everything on the machine of the tests."""
OTHERS = "8c4f2f46-1111-2222-3333-444455556666"
DEBIAN = (
    "search.fs_uuid {uuid} root hd0,gpt2 \nset prefix=($root)'{path}'\n"
    "configfile $prefix/grub.cfg\n"
)
FEDORA = (
    "search --no-floppy --root-dev-only --fs-uuid --set=dev {uuid}\n"
    "set prefix=($dev){path}\nexport $prefix\nconfigfile $prefix/grub.cfg\n"
)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    root = tmp_path / "root"
    monkeypatch.setenv("PATH", path_with(root))
    monkeypatch.setenv("ROOT", str(root))
    monkeypatch.setattr(programs, "_SYSTEM", "")
    return machine(root)


def load_option(path: str | None, *, name: str = "debian") -> bytes:
    """An EFI boot entry as efivarfs shows it: a partition, then a file on it."""
    nodes = struct.pack("<BBH38x", 4, 1, 42)
    if path is not None:
        text = (path + "\0").encode("utf-16-le")
        nodes += struct.pack("<BBH", 4, 4, 4 + len(text)) + text
    nodes += struct.pack("<BBH", 0x7F, 0xFF, 4)
    described = (name + "\0").encode("utf-16-le")
    return b"\7\0\0\0" + struct.pack("<IH", 1, len(nodes)) + described + nodes


def efi(host: Machine, loader: str | None, *, current: bool = True) -> Path:
    """Have the firmware start ``loader``; returns the EFI directory of the ESP."""
    variables = host.root / "sys/firmware/efi/efivars"
    variables.mkdir(parents=True)
    if current:
        (variables / f"BootCurrent-{firmware._GLOBAL}").write_bytes(b"\6\0\0\0\3\0")
    (variables / f"Boot0003-{firmware._GLOBAL}").write_bytes(load_option(loader))
    at = host.boot / "efi/EFI"
    at.mkdir(parents=True)
    return at


def beside(esp: Path, name: str, text: str) -> Path:
    (esp / name).mkdir(exist_ok=True)
    (esp / name / "grub.cfg").write_text(text)
    return esp / name


def why(host: Machine) -> str | None:
    said = BootControl(host).can()["loader_why"]
    return None if said is None else str(said)


@pytest.mark.parametrize("form", [DEBIAN, FEDORA], ids=["debian", "fedora"])
def test_the_one_that_the_loader_points_to(host: Machine, form: str) -> None:
    esp = efi(host, "\\EFI\\debian\\shimx64.efi")
    beside(esp, "debian", form.format(uuid=HERE, path="/boot/grub"))
    assert Grub(host).directory == host.boot / "grub"
    assert why(host) is None


def test_of_two_distributions_the_one_that_was_started(host: Machine) -> None:
    (host.boot / "grub2").mkdir()
    (host.boot / "grub2/grub.cfg").write_text(GRUB_CFG)
    esp = efi(host, "\\EFI\\DEBIAN\\GRUBX64.EFI")
    beside(esp, "debian", DEBIAN.format(uuid=HERE.upper(), path="/boot/grub"))
    beside(esp, "fedora", FEDORA.format(uuid=HERE, path="/boot/grub2"))
    assert Grub(host).directory == host.boot / "grub"
    assert why(host) is None


@pytest.mark.parametrize(
    ("loader", "files", "told"),
    [
        (
            "\\EFI\\ubuntu\\shimx64.efi",
            {"ubuntu": (OTHERS, "/boot/grub")},
            "belongs to another system",
        ),
        (
            "\\EFI\\debian\\grubx64.efi",
            {"debian": (HERE, "/@/boot/grub")},
            "belongs to another system",
        ),
        ("\\EFI\\debian\\grubx64.efi", {}, "no grub.cfg beside"),
        ("\\EFI\\refind\\refind_x64.efi", {"debian": (HERE, "/boot/grub")}, "which is not GRUB"),
        (None, {"debian": (HERE, "/boot/grub")}, "names no file"),
        (
            "\\EFI\\BOOT\\BOOTX64.EFI",
            {"debian": (HERE, "/boot/grub"), "ubuntu": (OTHERS, "/boot/grub")},
            "it is unknown which GRUB",
        ),
    ],
)
def test_one_that_is_not_sure_is_refused(
    host: Machine, tmp_path: Path, loader: str | None, files: dict[str, Any], told: str
) -> None:
    esp = efi(host, loader)
    for name, (uuid, path) in files.items():
        beside(esp, name, DEBIAN.format(uuid=uuid, path=path))
    said = why(host)
    assert said is not None
    assert told in said
    before = tree(host.root)
    ours = Kernels(host, sudo_uid=os.getuid())
    ours.install(release=RELEASE, directory=uploaded(tmp_path / "upload"))
    assert not (host.boot / "grub/custom.cfg").exists(), "it would not be read"
    with pytest.raises(AgentError, match="one-shot cannot be used"):
        BootControl(host).prepare(release=RELEASE, method="one-shot")
    ours.remove()
    assert tree(host.root) == before


def test_the_fallback_loader_with_one_candidate(host: Machine) -> None:
    esp = efi(host, "\\EFI\\BOOT\\BOOTX64.EFI")
    beside(esp, "debian", DEBIAN.format(uuid=HERE, path="/boot/grub"))
    assert why(host) is None


def test_a_firmware_that_does_not_say(host: Machine) -> None:
    esp = efi(host, None, current=False)
    beside(esp, "debian", DEBIAN.format(uuid=HERE, path="/boot/grub"))
    assert why(host) is None
    beside(esp, "ubuntu", DEBIAN.format(uuid=OTHERS, path="/boot/grub"))
    assert "it is unknown which GRUB" in (why(host) or "")


def test_a_configuration_on_the_esp_itself(host: Machine, tmp_path: Path) -> None:
    """As Fedora had it: the whole of grub.cfg beside the loader, and grubenv with it."""
    esp = efi(host, "\\EFI\\fedora\\shimx64.efi")
    at = beside(esp, "fedora", GRUB_CFG)
    shutil.copy(host.boot / "grub/grubenv", at / "grubenv")
    assert Grub(host).directory == at
    assert why(host) is None
    before = tree(host.root)
    ours = Kernels(host, sudo_uid=os.getuid())
    ours.install(release=RELEASE, directory=uploaded(tmp_path / "upload"))
    assert (at / "custom.cfg").is_file()
    assert not (host.boot / "grub/custom.cfg").exists()
    ours.remove()
    assert tree(host.root) == before


def test_without_efi_the_kernel_that_runs_has_to_be_named(host: Machine) -> None:
    assert why(host) is None
    (host.root / "proc/cmdline").write_text("BOOT_IMAGE=(hd0,msdos1)/vmlinuz-5.14.0 ro\n")
    assert "does not name the kernel" in (why(host) or "")
    entries = host.boot / "loader/entries"
    entries.mkdir(parents=True)
    (entries / "0.conf").write_text("linux /vmlinuz-5.14.0\n")
    assert why(host) is None
    (entries / "0.conf").write_text("linux /vmlinuz-5.14.0-rescue\n")
    assert "does not name the kernel" in (why(host) or "")
    (host.root / "proc/cmdline").write_text("root=/dev/vda1 ro\n")
    assert why(host) is None, "a kernel that came up by kexec says nothing of GRUB"


def test_two_of_one_machine_without_efi(host: Machine) -> None:
    (host.boot / "grub2").mkdir()
    (host.boot / "grub2/grub.cfg").write_text("menuentry x {}\nblscfg\n")
    shutil.copy(host.boot / "grub/grubenv", host.boot / "grub2/grubenv")
    assert Grub(host).directory == host.boot / "grub"
    assert why(host) is None
    shutil.copy(host.boot / "grub/grub.cfg", host.boot / "grub2/grub.cfg")
    assert "both hold a grub.cfg" in (why(host) or "")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"source": "/dev/sda2"}, None),
        ({"source": "/dev/sda2[/boot]", "fsroot": "/boot"}, None),
        ({"source": "/dev/nvme0n1p2"}, None),
        ({"source": "/dev/mapper/vg-root[/boot]"}, "LVM"),
        ({"source": "/dev/mapper/vg-root"}, "LVM"),
        ({"source": "/dev/mapper/luks-1234"}, "encrypted"),
        ({"source": "/dev/md127"}, "RAID"),
        ({"source": "/dev/md/boot"}, "RAID"),
        ({"source": "/dev/md0p1"}, "RAID"),
        ({"source": "/dev/dm-3[/@boot]"}, "LVM"),
        ({"source": "/dev/vg/root"}, "/dev/vg/root"),
        ({"source": "/dev/sdb"}, None),
        ({"source": "/dev/bcache0"}, "bcache0"),
        ({"source": "/dev/loop3"}, "loop3"),
        ({"source": "/dev/sda2[/@/boot]", "fstype": "btrfs"}, "btrfs"),
        ({"source": "bpool/BOOT/ubuntu", "fstype": "zfs"}, "zfs"),
        ({"source": "overlay", "fstype": "overlay"}, "overlay"),
        ({"source": "/dev/sda2", "fstype": "f2fs"}, "f2fs"),
        ({"source": "/dev/sda2", "fstype": None}, "an unknown file system"),
        ({"source": None}, "not a partition of a disk"),
        ({"source": "/dev/sda2", "options": "rw,data=journal"}, "data=journal"),
        ({"source": "/dev/sda2", "options": "ro,relatime"}, "read-only"),
        ({"source": "/dev/sda1", "fstype": "vfat"}, None),
    ],
)
def test_what_grub_can_write_on(
    host: Machine, row: dict[str, Any], told: str | None, tmp_path: Path
) -> None:
    answer = {"filesystems": [{"uuid": HERE, "fstype": "ext4", "options": "rw"} | row]}
    findmnt = host.root / "programs/findmnt"
    (tmp_path / "answer").write_text(json.dumps(answer))
    findmnt.write_text(f"#!/bin/sh\ncat '{tmp_path}/answer'\n")
    said = why(host)
    assert (said is None) is (told is None), said
    assert told is None or told in str(said)


def test_a_device_is_known_by_its_number(
    host: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a mount is called, its device is that of its number."""
    monkeypatch.setattr(mounts, "_BLOCK", tmp_path / "block")
    (tmp_path / "devices/dm-0").mkdir(parents=True)
    (tmp_path / "devices/sda1").mkdir(parents=True)
    (tmp_path / "block").mkdir()
    (tmp_path / "block/253:0").symlink_to(tmp_path / "devices/dm-0")
    (tmp_path / "block/8:1").symlink_to(tmp_path / "devices/sda1")
    for number, device in (("253:0", "dm-0"), ("8:1", "sda1")):
        row = {"source": "/dev/root", "fstype": "ext4", "maj:min": number}
        mount = mounts.parse_findmnt(json.dumps({"filesystems": [row]}))
        assert mounts._device(mount) == device
        assert (mounts._made_up(mount) is None) is (device == "sda1")


def test_a_bind_mount_whose_path_grub_would_not_find(host: Machine, tmp_path: Path) -> None:
    answer = {
        "filesystems": [
            {"source": "/dev/sda2[/os1/boot]", "fsroot": "/os1/boot", "uuid": HERE,
             "fstype": "ext4", "options": "rw"}
        ]
    }  # fmt: skip
    (tmp_path / "answer").write_text(json.dumps(answer))
    (host.root / "programs/findmnt").write_text(f"#!/bin/sh\ncat '{tmp_path}/answer'\n")
    before = tree(host.root)
    with pytest.raises(AgentError, match="/os1/boot of /dev/sda2 is mounted there"):
        Kernels(host, sudo_uid=os.getuid()).install(
            release=RELEASE, directory=uploaded(tmp_path / "upload")
        )
    assert tree(host.root) == before


def test_the_mounts_of_this_machine() -> None:
    if shutil.which("findmnt") is None:
        pytest.skip("needs findmnt (util-linux)")
    mount = mounts.mount_of(Path("/"))
    assert mount.type
    assert mount.root.startswith("/")


def test_a_boot_entry_of_the_firmware() -> None:
    assert firmware.parse_load_option(load_option("\\EFI\\debian\\x.efi")) == "\\EFI\\debian\\x.efi"
    assert firmware.parse_load_option(load_option(None)) is None
    assert grub.Grub.name == "grub"
    for content in (b"", b"\7\0\0\0", load_option("\\x.efi")[:20], b"\xff" * 40):
        with pytest.raises(AgentError, match="boot entry"):
            firmware.parse_load_option(content)
