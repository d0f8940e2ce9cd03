# SPDX-License-Identifier: MIT
"""A user-mode kernel's file: its symbols, sections and code (ELF, 64 bits, little endian).

Hides the format; elf(5). Addresses are those of the running process: such a kernel is linked
to a fixed place.
"""

from __future__ import annotations

import bisect
import mmap
import struct
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from harness.base.errors import InfrastructureError

_EXEC, _LOAD, _X, _W = 2, 1, 1, 2
_X86_64 = 62


class Symbol(NamedTuple):
    """A function or an object."""

    address: int
    size: int


class Elf:
    """The program in a file."""

    def __init__(self, path: Path) -> None:
        """Raises InfrastructureError if ``path`` is no such program."""
        with path.open("rb") as file:
            self._data = data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64:
            raise InfrastructureError(f"{path} is not a program for this machine")
        kind, machine = struct.unpack_from("<HH", data, 16)
        if (kind, machine) != (_EXEC, _X86_64):
            raise InfrastructureError(f"{path} is not an x86-64 program linked to a fixed address")
        programs, sections = struct.unpack_from("<QQ", data, 32)
        each, self._segments = struct.unpack_from("<HH", data, 54), []
        for at in range(programs, programs + each[0] * each[1], each[0]):
            segment = struct.unpack_from("<IIQQQQQ", data, at)
            if segment[0] == _LOAD:
                self._segments.append(segment)
        each = struct.unpack_from("<HHH", data, 58)
        found = [
            struct.unpack_from("<IIQQQQII", data, sections + number * each[0])
            for number in range(each[1])
        ]
        names = found[each[2]][4] if found else 0
        self._sections = {self._text(names + section[0]): section for section in found}

    def section(self, name: str) -> bytes:
        """The content of a section; empty if it does not exist."""
        section = self._sections.get(name)
        return b"" if section is None else self._data[section[4] : section[4] + section[5]]

    def address(self, section: str) -> int:
        """Where a section begins."""
        return int(self._sections[section][3])

    @cached_property
    def symbols(self) -> dict[str, Symbol]:
        """The defined symbols; of several with one name, the last."""
        strings = self.section(".strtab")
        entries = struct.iter_unpack("<IBBHQQ", self.section(".symtab"))
        return {
            strings[name : strings.index(b"\0", name)].decode(errors="replace"): Symbol(value, size)
            for name, _, _, section, value, size in entries
            if section and name
        }

    def function_at(self, address: int) -> str:
        """The symbol before ``address``; the address in hex if there is none."""
        places, names = self._places
        place = bisect.bisect_right(places, address) - 1
        return names[place] if place >= 0 else hex(address)

    def bytes_at(self, address: int, size: int) -> bytes:
        """What the file has for this address of the process; empty if nothing."""
        for _, _, offset, start, _, in_file, _ in self._segments:
            if start <= address < start + in_file:
                at = offset + address - start
                return self._data[at : min(at + size, offset + in_file)]
        return b""

    def room(self) -> tuple[int, int]:
        """Start and size of the part of the last page of code that is not used.

        The process has it mapped, and no code in it.
        """
        best = (0, 0)
        for _, flags, _, start, _, _, in_memory in self._segments:
            if flags & _X and not flags & _W:
                end = start + in_memory
                best = max(best, (end, -end % mmap.PAGESIZE), key=lambda place: place[1])
        return best

    @cached_property
    def _places(self) -> tuple[list[int], list[str]]:
        placed = sorted((symbol.address, name) for name, symbol in self.symbols.items())
        return [address for address, _ in placed], [name for _, name in placed]

    def _text(self, at: int) -> str:
        return self._data[at : self._data.find(b"\0", at)].decode(errors="replace")
