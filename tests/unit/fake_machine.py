# SPDX-License-Identifier: MIT
"""A machine's file system in a directory: GRUB, a running kernel, and programs that are scripts."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

from harness.agent.boot.record import Places

GRUB_CFG = """
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
menuentry 'Debian GNU/Linux' --id 'gnulinux-simple' {
	linux /boot/vmlinuz-6.12.1-amd64 root=UUID=abc ro quiet
}
### BEGIN /etc/grub.d/41_custom ###
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
fi
"""
CMDLINE = (
    'BOOT_IMAGE=/boot/vmlinuz-6.12.1-amd64 root=UUID=abc ro quiet panic=0 dyndbg="file a.c +p"'
)
RELEASE = "6.12.117-rb8"
# What the real ones do with the file system around a test is not the test's.
PROGRAMS = {
    "findmnt": 'case "$*" in *PARTUUID*) echo "${PARTUUID-0b-01}"; exit;; esac; '
    'echo \'{"filesystems": [{"uuid": "0a-b1", "source": "/dev/vda1", '
    '"fstype": "\'"${FSTYPE:-ext4}"\'"}]}\'',
    "grub-mkrelpath": 'echo "${1#"$ROOT"}"',
    "depmod": "true",
    # Whoever runs the tests keeps his machine up, whatever goes wrong in them.
    "reboot": 'echo rebooted > "$ROOT/left"',
    "systemctl": "exit 1",
    "bootctl": 'echo "$@" >> "$ROOT/bootctl.log"; case "$1" in '
    '--print-*) echo "$ROOT/boot";; '
    'set-oneshot) var="$ROOT/sys/firmware/efi/efivars/'
    'LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"; rm -f "$var"; '
    'test -z "$2" || { printf "\\7\\0\\0\\0"; printf "%s" "$2" | sed "s/./&\\x00/g"; '
    'printf "\\0\\0"; } > "$var";; esac',
    "mkinitramfs": 'test -e "$ROOT/boot/config-$3" && echo cpio > "$2"; touch "$TMPDIR/left"',
    "kexec": 'echo "$@" >> "$ROOT/kexec.log"; '
    'case "$*" in *--kexec-file-syscall*) test -z "$NO_FILE_LOAD";; esac || exit 1; '
    'case "$*" in *--unload*) echo 0;; *) echo 1;; esac > "$ROOT/sys/kernel/kexec_loaded"',
}


@dataclass(frozen=True)
class Machine(Places):
    """As the agent sees it; ``running`` is the kernel's release."""

    running: str = "6.12.1-amd64"

    def release(self) -> str:
        return self.running


def machine(root: Path) -> Machine:
    """A Debian with GRUB, started by its own kernel; put ``root/programs`` before PATH."""
    files = {
        "boot/grub/grub.cfg": GRUB_CFG,
        "boot/grub/grubenv": "# GRUB Environment Block\n".ljust(1024, "#"),
        "boot/vmlinuz-6.12.1-amd64": "its own",
        "boot/initrd.img-6.12.1-amd64": "its own",
        "etc/default/grub": 'GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT="quiet"\n',
        "lib/modules/6.12.1-amd64/modules.dep": "",
        "proc/cmdline": CMDLINE + "\n",
        "proc/sys/kernel/random/boot_id": "first\n",
        "proc/sys/kernel/kexec_load_disabled": "0\n",
        "sys/kernel/kexec_loaded": "0\n",
        "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
        "run/x": "",
        "var/lib/x": "",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name, text in PROGRAMS.items():
        path = root / "programs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    return Machine(root)


def systemd_boot(host: Machine, default: str | None) -> None:
    """Have it started by systemd-boot, with ``default`` in loader.conf."""
    guid = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    variables = host.root / "sys/firmware/efi/efivars"
    variables.mkdir(parents=True)
    said = "systemd-boot 252.1\0".encode("utf-16-le")
    (variables / f"LoaderInfo-{guid}").write_bytes(b"\6\0\0\0" + said)
    (host.boot / "loader/entries").mkdir(parents=True)
    text = f"timeout 3\ndefault {default}\n" if default else "timeout 3\n"
    (host.boot / "loader/loader.conf").write_text(text)


def bzimage(release: str) -> bytes:
    """As much of one as says its version."""
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x100).to_bytes(2, "little")
    text = f"{release} (bench@lab) #1 SMP\0".encode()
    head[0x300 : 0x300 + len(text)] = text
    return bytes(head)


def modules_tar(*names: str, release: str = RELEASE) -> bytes:
    """An archive with one small file for each name under lib/modules/RELEASE."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in names or ("kernel/net/sfc.ko", "modules.order"):
            member = tarfile.TarInfo(f"lib/modules/{release}/{name}")
            member.size = 3
            tar.addfile(member, io.BytesIO(b"ko\n"))
    return gzip.compress(packed.getvalue(), mtime=0)


def uploaded(directory: Path, release: str = RELEASE, *, modules: bytes | None = None) -> str:
    """A directory as the controller fills it."""
    directory.mkdir(mode=0o700, exist_ok=True)
    content = {
        "bzImage": bzimage(release),
        "config": b"CONFIG_BLK_DEV_INITRD=y\nCONFIG_RD_GZIP=y\n",
        "modules.tar": modules_tar(release=release) if modules is None else modules,
    }
    for name, data in content.items():
        path = directory / name
        path.write_bytes(data)
        path.chmod(0o600)
    return str(directory)


def tree(root: Path) -> dict[str, bytes | None]:
    """Everything of the machine that outlives a boot, by its path."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for top in ("boot", "lib", "etc", "var")
        for path in sorted((root / top).rglob("*"))
    }


def path_with(root: Path) -> str:
    """PATH with the machine's programs first."""
    return f"{root}/programs:{os.environ['PATH']}"
