# SPDX-License-Identifier: MIT
"""The card's flash: its partitions, and the NVRAM commands of mcdi_pcol.h.

Hides what the partitions contain and how an update is done: NVRAM_UPDATE_START, then
NVRAM_ERASE and NVRAM_WRITE, then NVRAM_UPDATE_FINISH. As in NOR flash, erasing sets all bits
of whole sectors, and writing can only clear bits. The contents outlive every reset, and end
with the model.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from harness.nic.mcdi import EACCES, EINVAL, ENOENT, EPERM, Command, Layout, McdiError

_SECTOR = 4096
_ERASED = 0xFF
MOST = 1008
"""Octets in one NVRAM_READ or NVRAM_WRITE: what a request of version 2 holds."""

# NVRAM_INFO_OUT_FLAGS.
_PROTECTED, _READ_ONLY = 1 << 0, 1 << 5
# NVRAM_METADATA_OUT_FLAGS.
_VERSION_VALID, _DESCRIPTION_VALID = 1 << 1, 1 << 2
_TEST_PASS = 0
_VERIFY_SUCCESS = 1

_TYPE = Layout(4, TYPE=0)
_RANGE = Layout(12, TYPE=0, OFFSET=4, LENGTH=8)
_FINISH = Layout(8, TYPE=0, REBOOT=4)
_FINISH_V2 = Layout(12, FLAGS=8)


@dataclass
class Partition:
    """One partition.

    Args:
        kind: NVRAM_PARTITION_TYPE_*.
        old: MC_CMD_NVRAM_TYPE_*, by which NVRAM_TYPES and older software know it.
        flags: of NVRAM_INFO.
        version: NVRAM_METADATA_OUT_VERSION_W, X, Y, Z; None: it has none.
    """

    kind: int
    description: bytes
    size: int = 65536
    old: int | None = None
    flags: int = 0
    version: tuple[int, int, int, int] | None = None
    content: bytearray = field(init=False)

    def __post_init__(self) -> None:
        self.content = bytearray([_ERASED]) * self.size

    @property
    def fixed(self) -> bool:
        """It cannot be changed."""
        return bool(self.flags & (_PROTECTED | _READ_ONLY))


def _partitions() -> tuple[Partition, ...]:
    made = (
        Partition(0x100, b"management firmware", 262144, old=0x1, version=(1, 0, 0, 1)),
        Partition(0x300, b"expansion ROM", 131072, old=0x7, version=(1, 0, 0, 0)),
        Partition(0x400, b"static configuration", old=0x3, flags=_PROTECTED),
        Partition(0x500, b"dynamic configuration", old=0x5),
        Partition(0x600, b"expansion ROM configuration", old=0x8),
        Partition(0x1B00, b"defaults of the dynamic configuration", flags=_PROTECTED),
    )
    for partition in made:
        partition.content[: len(partition.description)] = partition.description
    return made


class Nvram:
    """The partitions, and the table of their commands."""

    def __init__(self) -> None:
        self._partitions = {partition.kind: partition for partition in _partitions()}
        self._old = {
            partition.old: partition
            for partition in self._partitions.values()
            if partition.old is not None
        }
        self._updating: set[int] = set()
        self.commands: dict[int, Command] = {
            number: Command(name, run)
            for number, name, run in (
                (0x36, "NVRAM_TYPES", self._types),
                (0x37, "NVRAM_INFO", self._info),
                (0x38, "NVRAM_UPDATE_START", self._update_start),
                (0x39, "NVRAM_READ", self._read),
                (0x3A, "NVRAM_WRITE", self._write),
                (0x3B, "NVRAM_ERASE", self._erase),
                (0x3C, "NVRAM_UPDATE_FINISH", self._update_finish),
                (0x4C, "NVRAM_TEST", self._test),
                (0x51, "NVRAM_PARTITIONS", self._list),
                (0x52, "NVRAM_METADATA", self._metadata),
            )
        }

    def reset(self) -> None:
        """Forget updates that were not finished."""
        self._updating.clear()

    def _of(self, payload: bytes) -> Partition:
        kind = _TYPE.unpack(payload)["TYPE"]
        partition = self._partitions.get(kind) or self._old.get(kind)
        if partition is None:
            raise McdiError(ENOENT, f"no partition {kind:#x}")
        return partition

    def _range(self, payload: bytes) -> tuple[Partition, slice]:
        partition, asked = self._of(payload), _RANGE.unpack(payload)
        start, end = asked["OFFSET"], asked["OFFSET"] + asked["LENGTH"]
        if not start < end <= partition.size:
            raise McdiError(EINVAL, f"{start:#x} to {end:#x} of {partition.size:#x} octets")
        return partition, slice(start, end)

    def _updated(self, payload: bytes) -> tuple[Partition, slice]:
        partition, where = self._range(payload)
        if partition.kind not in self._updating:
            raise McdiError(EACCES, f"partition {partition.kind:#x} is not being updated")
        return partition, where

    def _types(self, _: bytes) -> bytes:
        return struct.pack("<I", sum(1 << old for old in self._old))

    def _list(self, _: bytes) -> bytes:
        kinds = list(self._partitions)
        return struct.pack(f"<{1 + len(kinds)}I", len(kinds), *kinds)

    def _info(self, payload: bytes) -> bytes:
        partition = self._of(payload)
        return struct.pack(
            "<6I", _TYPE.unpack(payload)["TYPE"], partition.size, _SECTOR, partition.flags, 0, 0
        )

    def _metadata(self, payload: bytes) -> bytes:
        partition = self._of(payload)
        flags = _DESCRIPTION_VALID | (0 if partition.version is None else _VERSION_VALID)
        version = partition.version or (0, 0, 0, 0)
        fixed = struct.pack("<III4H", partition.kind, flags, 0, *version)
        return fixed + partition.description + b"\0"

    def _test(self, payload: bytes) -> bytes:
        self._of(payload)
        return struct.pack("<I", _TEST_PASS)

    def _read(self, payload: bytes) -> bytes:
        partition, where = self._range(payload)
        if where.stop - where.start > MOST:
            raise McdiError(EINVAL, f"more than {MOST} octets")
        return bytes(partition.content[where])

    def _update_start(self, payload: bytes) -> bytes:
        partition = self._of(payload)
        if partition.fixed:
            raise McdiError(EPERM, f"partition {partition.kind:#x} is protected")
        self._updating.add(partition.kind)
        return b""

    def _write(self, payload: bytes) -> bytes:
        partition, where = self._updated(payload)
        data = payload[12 : 12 + where.stop - where.start]
        if len(data) != where.stop - where.start:
            raise McdiError(EINVAL, "fewer octets than LENGTH")
        kept = partition.content[where]
        partition.content[where] = bytes(old & new for old, new in zip(kept, data, strict=True))
        return b""

    def _erase(self, payload: bytes) -> bytes:
        partition, where = self._updated(payload)
        if where.start % _SECTOR or where.stop % _SECTOR:
            raise McdiError(EINVAL, f"only whole sectors of {_SECTOR} octets can be erased")
        partition.content[where] = bytes([_ERASED]) * (where.stop - where.start)
        return b""

    def _update_finish(self, payload: bytes) -> bytes:
        partition = self._of(payload)
        _FINISH.unpack(payload)
        if partition.kind not in self._updating:
            raise McdiError(EACCES, f"partition {partition.kind:#x} is not being updated")
        self._updating.discard(partition.kind)
        if len(payload) < _FINISH_V2.minimum:
            return b""
        return struct.pack("<I", _VERIFY_SUCCESS)
