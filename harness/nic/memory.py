# SPDX-License-Identifier: MIT
"""Guest memory: the only place that turns a guest address into bytes.

Hides the table of segments that a client maps (q35 splits its RAM, and booting maps and
unmaps pieces of it), bounds checks, and the vectorised copy. Every access is checked
against the table at the time of the access. Only :class:`Ring` keeps a pointer into the
guest, and forgets it on every change of the table.

Addresses are plain integers or int64 arrays: descriptors have 48 address bits,
so the sum of an address and a length never wraps.
"""

from __future__ import annotations

import bisect
import ctypes
import errno
import mmap
import os
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.nic import datapath, faults

Int64s = npt.NDArray[np.int64]
Qwords = npt.NDArray[np.uint64]
Octets = npt.NDArray[np.uint8]

ADDRESS_LIMIT = 1 << 48
_PAGE = 4096
MAX_SEGMENTS = 32768
"""The most segments a client may map: a process has 65530 mappings by default
(vm.max_map_count)."""
_UNREACHABLE: Octets = np.empty(0, np.uint8)


class GuestAccessError(Exception):
    """An address range is not completely in guest memory, or is not writable."""


class MapError(Exception):
    """A mapping request is refused; the client gets ``errno``."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.errno = number


def octet_groups(buffer: Octets, octets: int) -> npt.NDArray[Any]:
    """``buffer`` as overlapping groups: element i is octets i … i + ``octets``.

    An array of a void type with a stride of 1. Indexing it with an array of offsets
    copies a whole group per offset, in about 30 ns. Indexing single octets costs four
    times that even for the shortest frames.
    """
    shape = (max(0, buffer.size - octets + 1),)
    return np.ndarray(shape, dtype=f"V{octets}", buffer=buffer.data, strides=(1,))


class Segment:
    """One contiguous piece of guest memory; ``octets`` is empty if it is not accessible."""

    def __init__(self, start: int, size: int, *, writable: bool, octets: Octets) -> None:
        self.start = start
        self.end = start + size
        self.size = size
        self.writable = writable
        self.octets = octets
        self.view = octets.data  # for single accesses: much faster than the array
        self.address = int(octets.ctypes.data) if octets.size else 0
        self._groups: dict[int, npt.NDArray[Any]] = {}

    def groups(self, octets: int) -> npt.NDArray[Any]:
        found = self._groups.get(octets)
        if found is None:
            if len(self._groups) > 64:
                self._groups.clear()
            found = self._groups[octets] = octet_groups(self.octets, octets)
        return found


class Segments:
    """Single accesses to ``segments``, which are sorted by their ``starts``."""

    def __init__(self, segments: list[Segment], starts: list[int]) -> None:
        self._segments = segments
        self._starts = starts
        self._table = datapath.Memory()
        self._table_address = ctypes.addressof(self._table)
        self._table_entries: Any = None
        self._table_made = False

    def changed(self) -> None:
        """The segments are others now."""
        self._table_made = False

    def table(self) -> int:
        """The address of the segments for compiled code, to be asked for before each call.

        It never changes; what is there does.
        """
        if not self._table_made:
            entries = (datapath.Segment * len(self._segments))()
            for entry, found in zip(entries, self._segments, strict=True):
                entry.start, entry.end = found.start, found.end
                entry.octets, entry.writable = found.address or None, found.writable
            self._table_entries = entries
            self._table.segments, self._table.count = ctypes.addressof(entries), len(entries)
            self._table_made = True
        return self._table_address

    def segment(self, start: int, size: int, *, write: bool) -> Segment:
        """The segment that contains ``start`` … ``start + size``.

        Raises:
            GuestAccessError: no accessible one does.
        """
        at = bisect.bisect_right(self._starts, start) - 1
        if at >= 0 and start >= 0 and size >= 0:
            found = self._segments[at]
            if start + size <= found.end and found.octets.size:
                if write and not found.writable:
                    raise GuestAccessError(f"{start:#x}+{size:#x} is read-only")
                return found
        raise GuestAccessError(f"{start:#x}+{size:#x} is not guest memory")

    def read(self, start: int, size: int) -> bytes:
        found = self.segment(start, size, write=False)
        at = start - found.start
        return bytes(found.view[at : at + size])

    def write(self, start: int, data: bytes) -> None:
        found = self.segment(start, len(data), write=True)
        at = start - found.start
        found.view[at : at + len(data)] = data


class GuestMemory(Segments):
    """The segments of a client's memory, by guest address, as the PCI function accesses them.

    Attributes:
        shared: the same for the client's own rings, which do not depend on bus mastering.
    """

    def __init__(self) -> None:
        self._mapped: list[Segment] = []
        self._mapped_starts: list[int] = []
        self._reachable = True
        # The function's accesses use all mapped segments, or none (see reachable).
        super().__init__(self._mapped, self._mapped_starts)
        self.shared = Segments(self._mapped, self._mapped_starts)
        self._order: Int64s | None = None
        self.rings: weakref.WeakSet[Ring] = weakref.WeakSet()

    def __len__(self) -> int:
        return len(self._mapped)

    @property
    def reachable(self) -> bool:
        """Whether the function may access memory; if not, every access fails."""
        return self._reachable

    @reachable.setter
    def reachable(self, reachable: bool) -> None:
        self._reachable = reachable
        self._segments = self._mapped if reachable else []
        self._starts = self._mapped_starts if reachable else []
        self._forget()

    def map(self, start: int, size: int, *, writable: bool, fd: int | None, offset: int) -> None:
        """Add a segment backed by ``fd`` at ``offset``; without ``fd`` it is not accessible.

        Raises:
            MapError: it overlaps another, or the file cannot be mapped.
        """
        if size <= 0 or start < 0 or start + size > ADDRESS_LIMIT:
            raise MapError(errno.EINVAL, f"segment {start:#x}+{size:#x} is out of range")
        if len(self._mapped) >= MAX_SEGMENTS:
            raise MapError(errno.ENOSPC, f"the limit of {MAX_SEGMENTS} segments is reached")
        at = bisect.bisect_right(self._mapped_starts, start)
        if (at and self._mapped[at - 1].end > start) or (
            at < len(self._mapped) and self._mapped_starts[at] < start + size
        ):
            raise MapError(errno.EEXIST, f"segment {start:#x}+{size:#x} overlaps another")
        octets = _UNREACHABLE if fd is None else _map_file(fd, offset, size, writable=writable)
        self._mapped.insert(at, Segment(start, size, writable=writable, octets=octets))
        self._mapped_starts.insert(at, start)
        self._forget()

    def unmap(self, start: int, size: int) -> None:
        """Remove all segments in a range, which may contain several, with gaps.

        Raises:
            MapError: the range contains none, or only a part of one; nothing was removed.
        """
        end = start + size
        first = bisect.bisect_left(self._mapped_starts, start)
        last = bisect.bisect_left(self._mapped_starts, end)
        if size <= 0 or first == last:
            raise MapError(errno.ENOENT, f"no segment starts in {start:#x}+{size:#x}")
        for edge in (self._mapped[first - 1 : first], self._mapped[last - 1 : last]):
            for found in edge:
                inside = start <= found.start and found.end <= end
                if not inside and found.end > start:
                    raise MapError(
                        errno.EINVAL,
                        f"{start:#x}+{size:#x} contains only a part of segment "
                        f"{found.start:#x}+{found.size:#x}",
                    )
        del self._mapped[first:last], self._mapped_starts[first:last]
        self._forget()

    def unmap_all(self) -> None:
        self._mapped.clear()
        self._mapped_starts.clear()
        self._forget()

    def scatter_whole(
        self, to: Qwords, low: int, high: int, pieces: npt.NDArray[Any], octets: int
    ) -> bool:
        """The fast path of :meth:`scatter`: copy pieces of ``octets`` octets to ``to``.

        Returns False and copies nothing unless all targets, from the lowest ``low`` to
        the highest ``high``, are in one writable segment.
        """
        at = bisect.bisect_right(self._starts, low) - 1
        if at < 0:
            return False
        found = self._segments[at]
        if high + octets > found.end or not found.writable or not found.octets.size:
            return False
        found.groups(octets)[to - np.uint64(found.start)] = pieces
        return True

    def scatter(self, to: Int64s, source: Octets, offsets: Int64s, octets: int) -> Int64s:
        """Copy ``octets`` octets from each of ``offsets`` in ``source`` to each of ``to``.

        The caller checks the source offsets. Returns the indices of pieces that were not
        copied because their target is not completely in writable guest memory (usually
        none).
        """
        groups = octet_groups(source, octets)
        missed = np.ones(to.size, bool)
        if self._order is None:
            self._order = np.array(self._starts, np.int64)
        within = np.searchsorted(self._order, to, side="right") - 1
        for index in np.unique(within[within >= 0]).tolist():
            found = self._segments[index]
            if not found.writable or found.octets.size < octets:
                continue
            here = np.flatnonzero((within == index) & (to <= found.end - octets))
            if here.size:
                found.groups(octets)[to[here] - found.start] = groups[offsets[here]]
                missed[here] = False
        return np.flatnonzero(missed)

    def _forget(self) -> None:
        self._order = None
        self.changed()
        self.shared.changed()
        for ring in self.rings:
            ring.forget()


class Ring:
    """A power-of-two ring of qwords in guest memory, looked up at each use.

    Raises:
        GuestAccessError: from every access while its memory is not mapped.
    """

    def __init__(self, memory: GuestMemory, start: int, entries: int, *, write: bool) -> None:
        self._memory = memory
        self._start = start
        self._write = write
        self._view: Qwords | None = None
        self.mask = entries - 1
        self._places = np.arange(2 * entries) & self.mask
        memory.rings.add(self)
        self.view()

    def view(self) -> Qwords:
        """The ring itself: ``entries`` little-endian qwords, shared with the guest."""
        if self._view is None:
            size = (self.mask + 1) * 8
            found = self._memory.segment(self._start, size, write=self._write)
            at = self._start - found.start
            self._view = found.octets[at : at + size].view(np.dtype("<u8"))
        return self._view

    def places(self, first: int, number: int) -> Int64s:
        """The indices of ``number`` entries from ``first`` on, around the ring."""
        if number > self.mask:
            return np.arange(first, first + number) & self.mask
        return self._places[first : first + number]

    def forget(self) -> None:
        self._view = None


def _map_file(fd: int, offset: int, size: int, *, writable: bool) -> Octets:
    if offset < 0 or offset % _PAGE:
        raise MapError(errno.EINVAL, f"file offset {offset:#x} is not page aligned")
    try:
        # The file may also shrink later: see faults.
        if os.fstat(fd).st_size < offset + size:
            raise MapError(errno.EINVAL, "the file is shorter than the segment")
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        area = mmap.mmap(fd, size, mmap.MAP_SHARED, protection, offset=offset)
    except (OSError, ValueError, OverflowError) as error:
        number = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
        raise MapError(number, f"cannot map the segment: {error}") from error
    octets = np.frombuffer(area, np.uint8)
    faults.guard(octets)
    return octets
