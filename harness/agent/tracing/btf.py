# SPDX-License-Identifier: MIT
"""Offsets of structure members in the running kernel, from its BTF.

Format: Documentation/bpf/btf.rst. Only what the probes need is decoded, in one pass over the
types.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

VMLINUX = Path("/sys/kernel/btf/vmlinux")
_MAGIC = 0xEB9F
_STRUCT, _UNION, _ENUM = 4, 5, 6
# Bytes that follow the 12 of struct btf_type, by kind: fixed, and for each of vlen entries.
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
_EACH = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}


class Btf:
    """The types of one kernel."""

    def __init__(self, data: bytes) -> None:
        magic, _, _, header, types, types_size, strings, strings_size = struct.unpack_from(
            "HBBIIIII", data
        )
        if magic != _MAGIC:
            raise ValueError("not BTF of this machine's byte order")
        self._types = memoryview(data)[header + types : header + types + types_size]
        self._strings = data[header + strings : header + strings + strings_size]

    def member_offsets(self, *members: tuple[str, str]) -> list[int] | None:
        """Byte offsets of ``(structure, member)``, also inside anonymous unions.

        None if one of them does not exist.
        """
        wanted = {self._string_at(name) for pair in members for name in pair}
        structures = {self._string_at(structure) for structure, _ in members}
        layouts: dict[int, tuple[int, int]] = {}
        found: dict[int, int] = {}
        for number, (name, kind, vlen, at) in enumerate(self._walk(), start=1):
            if kind not in (_STRUCT, _UNION) or (name and name not in structures) or not vlen:
                continue
            layouts[number] = (at, at + 12 * vlen)
            if name:
                found[name] = number
        if -1 in wanted:
            return None
        offsets = [
            self._offset(layouts, found.get(self._string_at(s), 0), self._string_at(m))
            for s, m in members
        ]
        return None if None in offsets else [bits // 8 for bits in offsets if bits is not None]

    def enumerators(self, enum: str) -> dict[int, str]:
        """The names of ``enum`` by value; empty if it does not exist."""
        wanted = self._string_at(enum)
        for name, kind, vlen, at in self._walk():
            if kind == _ENUM and name == wanted and vlen:
                pairs = struct.iter_unpack("Ii", self._types[at : at + 8 * vlen])
                return {value: self._text(text) for text, value in pairs}
        return {}

    def _offset(self, layouts: dict[int, tuple[int, int]], number: int, member: int) -> int | None:
        begin, end = layouts.get(number, (0, 0))
        for name, kind, bits in struct.iter_unpack("III", self._types[begin:end]):
            # The upper byte is a bit field's size where the structure has bit fields.
            place = int(bits & 0xFFFFFF)
            if name == member:
                return place
            if name == 0 and kind in layouts:
                inner = self._offset(layouts, kind, member)
                if inner is not None:
                    return place + inner
        return None

    def _walk(self) -> Iterator[tuple[int, int, int, int]]:
        """(name, kind, vlen, offset after the header) of each type, beginning with type 1."""
        at, end = 0, len(self._types)
        unpack = struct.Struct("II").unpack_from
        while at < end:
            name, info = unpack(self._types, at)
            kind, vlen = info >> 24 & 0x1F, info & 0xFFFF
            at += 12
            yield name, kind, vlen, at
            at += _FIXED.get(kind, 0) + _EACH.get(kind, 0) * vlen

    def _text(self, at: int) -> str:
        return self._strings[at : self._strings.index(b"\0", at)].decode(errors="replace")

    def _string_at(self, text: str) -> int:
        where = self._strings.find(b"\0" + text.encode() + b"\0")
        return where + 1 if where >= 0 else -1
