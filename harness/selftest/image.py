# SPDX-License-Identifier: MIT
"""The disk image of a rack's machines, made once and cached.

It has a partition table, GRUB from its own installer, a stock Debian kernel, systemd and
sshd. It is made without root: the system by mmdebstrap, the boot loader by a first boot
of the disk. Files that differ between machines are written into a copy.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import images
from harness.base import cache, process
from harness.base.errors import InfrastructureError
from harness.base.progress import Progress
from harness.beds.virtual import qemu
from harness.images import Tools

MACHINE_USER = "bench"
_SETUP = Path(__file__).with_name("machine-setup.sh")
_PACKAGES = (
    "linux-image-amd64", "initramfs-tools", "grub-pc", "kexec-tools", "kmod",
    "systemd", "systemd-sysv", "udev", "openssh-server", "sudo",
    "procps", "iproute2", "iputils-ping", "ethtool", "netperf", "squashfs-tools",
    "python3", "python3-bpfcc", "python3-psutil", "python3-pyroute2",
)  # fmt: skip
_DISK_MIB = 2048
_START_MIB = 1  # GRUB is in the gap before the partition
_BOOT_LOADER_S = 600
_E2FSPROGS = "apt-get install e2fsprogs"


@dataclass(frozen=True, kw_only=True)
class MachineImage:
    """The disk and the key of :data:`MACHINE_USER` on it."""

    directory: Path

    @property
    def disk(self) -> Path:
        """Raw, with an MBR and one ext4 partition."""
        return self.directory / "disk.raw"

    @property
    def key(self) -> Path:
        """The private key for logins of the user."""
        return self.directory / "client_key"

    @property
    def kernel(self) -> Path:
        """A copy of the stock kernel on the disk."""
        return next(self.directory.glob("boot/vmlinuz-*"))


def machine_image(tools: Tools, progress: Progress) -> MachineImage:
    """The image, from the cache or made now."""

    def make(making: Path) -> None:
        with progress.task("machine image"):
            images.make_key(making / "client_key", "bench")
            public = making / "client_key.pub"
            root_uuid = str(uuid.uuid4())
            system = making / "system.ext2"
            images.debootstrap(
                system,
                _PACKAGES,
                _SETUP,
                {
                    "AUTHORIZED_KEY": public.read_text(encoding="utf-8").strip(),
                    "MACHINE_USER": MACHINE_USER,
                    "ROOT_UUID": root_uuid,
                },
                copied_out=[("/boot", making)],
            )
            _to_ext4(system, root_uuid)
            _partition(system, making / "disk.raw")
            system.unlink()
            _install_boot_loader(MachineImage(directory=making), tools)

    return MachineImage(directory=cache.entry(image_home(), make, what="the machine image"))


def image_home() -> Path:
    """The image's place in the cache."""
    key = cache.digest(images.SUITE, _PACKAGES, _SETUP.read_text(encoding="utf-8"), _DISK_MIB)
    return cache.root() / "machines" / key


def copy(image: MachineImage, disk: Path, files: Mapping[str, tuple[str, int]]) -> None:
    """A copy for one machine with root's ``files``, as path to (content, mode)."""
    process.run(["cp", "--sparse=always", "--reflink=auto", str(image.disk), str(disk)])
    disk.chmod(0o600)
    commands = []
    for number, (path, (content, mode)) in enumerate(files.items()):
        beside = disk.with_name(f"{disk.name}.{number}")
        beside.write_text(content, encoding="utf-8")
        beside.chmod(0o600)
        commands += [
            f'rm "{path}"',
            f'write "{beside}" "{path}"',
            f'sif "{path}" mode 0100{mode:o}',
            *(f'sif "{path}" {owner} 0' for owner in ("uid", "gid")),
        ]
    done = process.run(
        ["/sbin/debugfs", "-w", "-f", "-", _root(disk)],
        stdin="\n".join(commands) + "\n",
        hint=_E2FSPROGS,
    )
    for number in range(len(files)):
        disk.with_name(f"{disk.name}.{number}").unlink()
    if "Allocated inode" not in done.stdout and files:
        raise InfrastructureError(f"debugfs wrote nothing into {disk}: {done.stderr.strip()}")


def _to_ext4(system: Path, root_uuid: str) -> None:
    process.run(["/sbin/resize2fs", str(system), f"{_DISK_MIB - _START_MIB}M"], hint=_E2FSPROGS)
    features = "has_journal,extent,dir_index"
    process.run(["/sbin/tune2fs", "-O", features, "-U", root_uuid, str(system)])
    _check(str(system))


def _check(file_system: str) -> None:
    """Replay the journal and repair the file system."""
    process.run(["/sbin/debugfs", "-w", "-R", "journal_run", file_system], hint=_E2FSPROGS)
    command = ["/sbin/e2fsck", "-f", "-p", file_system]
    done = process.run(command, check=False, hint=_E2FSPROGS)
    if done.returncode > 1:  # 1: corrected
        raise process.failed(command, done.returncode, done.stdout)


def _partition(system: Path, disk: Path) -> None:
    with disk.open("wb") as file:
        os.truncate(file.fileno(), _DISK_MIB << 20)
    table = f"label: dos\nstart={_START_MIB}MiB, type=83, bootable\n"
    process.run(["/sbin/sfdisk", "-q", str(disk)], stdin=table, hint="apt-get install fdisk")
    process.run(
        ["dd", f"if={system}", f"of={disk}", "bs=1M", f"seek={_START_MIB}",
         "conv=notrunc,sparse", "status=none"]
    )  # fmt: skip


def _install_boot_loader(image: MachineImage, tools: Tools) -> None:
    console = image.directory / "boot-loader.log"
    initrd = next(image.directory.glob("boot/initrd.img-*"))
    arguments = [
        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35",
        *qemu.machine("tcg"), "-smp", "2", "-m", "768M",
        "-kernel", str(image.kernel), "-initrd", str(initrd),
        "-append", "root=/dev/vda1 rw console=ttyS0 init=/sbin/install-boot-loader",
        "-drive", f"file={image.disk},format=raw,if=none,id=root",
        "-device", "virtio-blk-pci,drive=root",
        "-serial", f"file:{console}",
    ]  # fmt: skip
    process.run(tools.qemu(arguments), timeout_s=_BOOT_LOADER_S)
    said = console.read_text(errors="replace", encoding="utf-8")
    if "boot loader installed" not in said:
        raise process.failed(["grub-install", "/dev/vda"], 1, said)
    _check(_root(image.disk))


def _root(disk: Path) -> str:
    """The file system on ``disk``, as e2fsprogs' tools name it."""
    return f"{disk}?offset={_START_MIB << 20}"
