# SPDX-License-Identifier: MIT
"""The file system that holds a path, the devices under it, and whether GRUB can write there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from harness.agent import programs
from harness.agent.faults import AgentError, parsing
from harness.agent.foreign import read_text

# GRUB overwrites a file's blocks in place, so the file system must not move or checksum them
# (grub-core/commands/loadenv.c and the file systems' read hooks).
_WRITABLE = ("ext2", "ext3", "ext4", "xfs", "vfat")
_BLOCK = Path("/sys/dev/block")
# Disks and their partitions as the kernel names them. Other devices are built on them (dm-0,
# md127p1, bcache0, loop0), or the firmware does not reach them the same way.
_DISK = re.compile(
    r"(?:sd[a-z]+|hd[a-z]+|x?vd[a-z]+)\d*"
    r"|(?:nvme\d+(?:c\d+)?n|mmcblk|pmem)\d+(?:p\d+)?|cciss!c\d+d\d+(?:p\d+)?"
)
_COLUMNS = "SOURCE,FSTYPE,UUID,FSROOT,MAJ:MIN,OPTIONS"
_MANY_PATHS = re.compile(r"(part\d+-)?mpath-")


class Mount(NamedTuple):
    """What findmnt(8) reports; None if it does not."""

    source: str
    """The device only: ``/dev/sda2``, also if findmnt says ``/dev/sda2[/boot]``."""
    root: str
    """The part of the file system that is mounted: ``/``, a subvolume's or a bind mount's path."""
    type: str
    uuid: str | None
    number: str | None
    """The device number, ``8:2``."""
    options: tuple[str, ...]


def mount_of(path: Path) -> Mount:
    """The mount that holds ``path``.

    Raises:
        AgentError: findmnt is missing or fails.
    """
    command = ["findmnt", "--json", "--output", _COLUMNS, "--target", str(path)]
    return parse_findmnt(programs.run(command, timeout_s=10))


@parsing("what findmnt says")
def parse_findmnt(text: str) -> Mount:
    """The last mount in ``findmnt --json``, which is the one on top."""
    row = json.loads(text)["filesystems"][-1]
    if not isinstance(row, dict):
        raise TypeError("not a file system")
    told = {name: _text(row.get(name)) for name in ("source", "fstype", "uuid", "fsroot")}
    source, bracket, inside = (told["source"] or "").partition("[")
    return Mount(
        source=source,
        root=told["fsroot"] or (inside.rstrip("]") if bracket else "") or "/",
        type=told["fstype"] or "",
        uuid=told["uuid"],
        number=_text(row.get("maj:min")),
        options=tuple((_text(row.get("options")) or "").split(",")),
    )


def why_grub_cannot_write(path: Path) -> str | None:
    """Why GRUB cannot write to the file ``path`` in place; None where it can."""
    try:
        mount = mount_of(path)
    except AgentError as error:
        return f"the file system of {path} is unknown: {error}"
    if mount.type not in _WRITABLE:
        kind = mount.type or "an unknown file system"
        return f"{path} is on {kind}, where GRUB cannot clear a one-shot"
    if "data=journal" in mount.options:
        return f"{path} is on {mount.type} with data=journal, where GRUB cannot clear a one-shot"
    if "ro" in mount.options:
        return f"{path} is on a file system mounted read-only: mount -o remount,rw it"
    made_up = _made_up(mount)
    if made_up is not None:
        return (
            f"{path} is on {made_up}: GRUB cannot clear a one-shot on LVM, RAID or an encrypted "
            "disk; put /boot on a partition of its own"
        )
    return None


def _made_up(mount: Mount) -> str | None:
    """A description of the device if GRUB cannot write to it, or None."""
    name = _device(mount)
    if name is None:
        return f"{mount.source or 'a device'}, which is not a partition of a disk"
    if _DISK.fullmatch(name):
        return None
    uuid = read_text(Path("/sys/class/block") / name / "dm/uuid") or ""
    if _MANY_PATHS.match(uuid):
        return None  # multipath: GRUB sees the disk itself
    for begin, what in (("LVM-", "LVM"), ("CRYPT-", "an encrypted disk")):
        if uuid.startswith(begin):
            return f"{what}, {mount.source}"
    return f"{'RAID, ' if mount.source.startswith('/dev/md') else ''}{mount.source or name}"


def _device(mount: Mount) -> str | None:
    """The kernel's name of the device, ``sda2`` or ``dm-0``."""
    if mount.number is not None and (at := _BLOCK / mount.number).exists():
        return at.resolve().name
    if not mount.source.startswith("/dev/"):
        return None
    return Path(os.path.realpath(mount.source)).name


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
