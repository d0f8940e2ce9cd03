# SPDX-License-Identifier: MIT
"""Survives client memory that vanishes while it is mapped.

A client may shrink the file it shared. Access to a page behind the new end raises
SIGBUS, at any instruction of any copy, and would end the process. Alternatives do not
work: seals (F_SEAL_SHRINK) need files that were created with them, a check of the file's
size can be outdated when the copy starts, and copying by system call (process_vm_readv)
costs more than the copies themselves. So the signal is handled: the missing page is
replaced by an empty one, and the instruction runs again. The client reads zeros there and
loses what is written there; nothing else changes. Without a fault this costs nothing.

The handler runs Python inside the faulting copy. The fault is synchronous, in the only
thread, during a copy by numpy or a memoryview. Only the interpreter's lock is held then,
and ctypes handles that one.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import weakref

import numpy as np
import numpy.typing as npt

_BUS_ADRERR = 2  # beyond the end of the file, or no page available
_SA_SIGINFO = 4
_SI_CODE, _SI_ADDR = 8, 16  # offsets in siginfo_t, 64 bits
_MAP_FIXED = 0x10


class _SigAction(ctypes.Structure):
    """struct sigaction of glibc and musl on 64-bit machines."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_libc = ctypes.CDLL(None)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
)  # fmt: skip

_areas: dict[int, int] = {}
"""Start → end of every guarded mapping."""
_old = _SigAction()
_installed = False
_lost_pages = 0


def guard(octets: npt.NDArray[np.uint8]) -> None:
    """Survive faults in ``octets``, a mapping of a client's file, during its lifetime."""
    _install()
    start = int(octets.ctypes.data)
    _areas[start] = start + octets.size
    weakref.finalize(octets, _areas.pop, start, None)


def lost_pages() -> int:
    """How many pages were replaced because the client took them away."""
    return _lost_pages


def _handle(_number: int, info: int, _context: int) -> None:
    try:
        code = ctypes.c_int.from_address(info + _SI_CODE).value
        address = ctypes.c_size_t.from_address(info + _SI_ADDR).value
        if code == _BUS_ADRERR and _mend(address):
            return
    except Exception:  # noqa: BLE001, S110 - an exception here would fault again and again
        pass
    # Not ours: the previous handler gets the same fault again.
    _libc.sigaction(signal.SIGBUS, ctypes.byref(_old), None)


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(_handle)


def _mend(address: int) -> bool:
    """Put an empty page where one is missing; False outside the guarded mappings."""
    global _lost_pages  # noqa: PLW0603
    for start, end in _areas.items():
        if start <= address < end:
            # A part of a huge page cannot be replaced; then the whole mapping is.
            page = address & ~(mmap.PAGESIZE - 1)
            if _replace(page, mmap.PAGESIZE) or _replace(start, end - start):
                _lost_pages += 1
                return True
    return False


def _replace(start: int, size: int) -> bool:
    flags = _MAP_FIXED | mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    return bool(_libc.mmap(start, size, protection, flags, -1, 0) == start)


def _install() -> None:
    global _installed  # noqa: PLW0603
    if not _installed:
        action = _SigAction(handler=ctypes.cast(_HANDLER, ctypes.c_void_p).value, flags=_SA_SIGINFO)
        _libc.sigaction(signal.SIGBUS, ctypes.byref(action), ctypes.byref(_old))
        _installed = True
