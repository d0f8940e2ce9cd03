# SPDX-License-Identifier: MIT
"""The compiled data path: C behind the objects of the receive and transmit path.

Hides the library, its structures and whether there is one. The state of rings and filters that
both languages use is in these structures; each belongs to a Python object, which also keeps
alive what it points to. Without the library the same objects do the same work in Python, which is
also what the library is tested against.

``$RECEIVE_BATCHING_NIC`` decides: ``python``, ``compiled`` (an error where there is none), or not
set: compiled where there is a library.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import Structure, c_int, c_int64, c_uint8, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path

from harness.nic.datapath import build

CHOICE = "RECEIVE_BATCHING_NIC"
MAX_VIS = 1024
MAX_WRITES = 1024
MAX_TX_FRAME = 16384
_STAGED = 4096
_STAGE_FRAMES = 256


class Segment(Structure):
    """A piece of guest memory."""

    _fields_ = (
        ("start", c_uint64), ("end", c_uint64), ("octets", c_void_p), ("writable", c_uint64),
    )  # fmt: skip


class Memory(Structure):
    """The segments of guest memory."""

    _fields_ = (("segments", c_void_p), ("count", c_uint64))


class Evq(Structure):
    """An event queue."""

    _fields_ = (
        ("start", c_uint64), ("mask", c_uint32), ("wptr", c_uint32), ("armed", c_uint32),
        ("live", c_uint32), ("due", c_uint32), ("overrun", c_uint32),
        ("unmapped", c_uint32), ("unused", c_uint32), ("ring", c_void_p),
    )  # fmt: skip


class Rxq(Structure):
    """A receive queue."""

    _fields_ = (
        ("evq", c_void_p), ("start", c_uint64), ("label", c_uint64), ("mask", c_uint32),
        ("wptr", c_uint32), ("rptr", c_uint32), ("scatter", c_uint32), ("buffer", c_uint32),
        ("instance", c_uint32), ("state", c_uint32), ("unused", c_uint32), ("ring", c_void_p),
    )  # fmt: skip


class Txq(Structure):
    """A transmit queue, with the part of a frame that it has gathered."""

    _fields_ = (
        ("evq", c_void_p), ("start", c_uint64), ("label", c_uint64), ("mask", c_uint32),
        ("wptr", c_uint32), ("rptr", c_uint32), ("ip_csum", c_uint32), ("l4_csum", c_uint32),
        ("broken", c_uint32), ("gathered", c_uint32), ("unused", c_uint32),
        ("frame", c_uint8 * MAX_TX_FRAME),
    )  # fmt: skip


class Rss(Structure):
    """An RSS context."""

    _fields_ = (("table", c_void_p), ("key", c_void_p))


class Filter(Structure):
    """A filter."""

    _fields_ = (("match", c_uint64), ("mac", c_uint64), ("queue", c_int64), ("rss", c_void_p))


class Slots(Structure):
    """A ring of frames."""

    _fields_ = (
        ("buffer", c_void_p), ("number", c_uint32), ("octets", c_uint32),
        ("head", c_uint32), ("tail", c_uint32),
    )  # fmt: skip


class Outcome(Structure):
    """What a call did."""

    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            "frames", "delivered", "nodesc", "filtered", "oversize", "truncated", "bad_buffers",
            "bad_address", "rx_unmapped", "evq_unmapped", "evq_overrun", "due", "blocked",
            "busy_changed",
        )
    )  # fmt: skip


class _StagedEvent(Structure):
    _fields_ = (("evq", c_void_p), ("event", c_uint64))


class Receiver(Structure):
    """The receive path of a function."""

    _fields_ = (
        ("memory", c_void_p), ("stats", c_void_p), ("filters", c_void_p),
        ("filters_count", c_uint32), ("max_frame", c_uint32), ("busy_count", c_uint32),
        ("staged_count", c_uint32), ("outcome", Outcome), ("rxqs", c_void_p * MAX_VIS),
        ("busy", c_uint32 * MAX_VIS), ("staged", _StagedEvent * _STAGED),
    )  # fmt: skip


class Stage(Structure):
    """Frames that a transmit queue has sent, on their way to the wire."""

    _fields_ = (
        *(
            (name, c_uint64)
            for name in (
                "count", "dropped", "bad_buffers", "bad_address", "bad_options", "bad_option",
                "unmapped", "evq_unmapped", "evq_overrun", "due", "done", "used",
            )
        ),
        ("offsets", c_uint32 * _STAGE_FRAMES),
        ("lengths", c_uint32 * _STAGE_FRAMES),
        ("data", c_uint8 * (_STAGE_FRAMES * 2048)),
    )  # fmt: skip

    def frame(self, index: int) -> bytearray:
        """A copy of a staged frame."""
        at = self.offsets[index]
        return bytearray(memoryview(self.data)[at : at + self.lengths[index]])


class Deliverable(Structure):
    """Frames with their prefixes for one queue."""

    _fields_ = (
        ("buffer", c_void_p), ("offsets", c_void_p), ("lengths", c_void_p), ("events", c_void_p),
        ("distance", c_int64), ("first", c_uint64), ("wrap", c_uint64), ("count", c_uint64),
    )  # fmt: skip


class Vq(Structure):
    """A virtqueue, and the posted writes that were taken from it."""

    _fields_ = (
        ("desc", c_void_p), ("avail", c_void_p), ("used", c_void_p), ("last_register", c_uint64),
        ("size", c_uint32), ("taken", c_uint32), ("given", c_uint32), ("count", c_uint32),
        ("offsets", c_uint32 * MAX_WRITES), ("values", c_uint32 * MAX_WRITES),
    )  # fmt: skip


STRUCTURES: tuple[type[Structure], ...] = (
    Segment, Memory, Evq, Rxq, Txq, Rss, Filter, Slots, Outcome, Receiver, Stage, Deliverable,
    Vq,
)  # fmt: skip
"""In the order of ``datapath_sizes``."""


class Library:
    """The functions of the compiled library, by their names without ``datapath_``.

    Arguments are addresses (``ctypes.addressof``). The interpreter's lock is held during a call:
    see faults.
    """

    def __init__(self, loaded: ctypes.PyDLL) -> None:
        for name, result, arguments in (
            ("receive", c_int64, (c_void_p, c_void_p, c_uint64, c_int)),
            ("deliver", c_int, (c_void_p, c_void_p, c_void_p)),
            ("transmit", c_uint64, (c_void_p, c_void_p, c_void_p, c_uint64)),
            ("count_sent", None, (c_void_p, c_void_p, c_uint64, c_uint64)),
            ("send", c_uint64, (c_int, c_void_p, c_uint64)),
            ("put", c_uint64, (c_void_p, c_void_p)),
            ("take_writes", c_uint32, (c_void_p, c_void_p, c_uint32)),
        ):
            function = getattr(loaded, f"datapath_{name}")
            function.restype, function.argtypes = result, arguments
        self.receive = loaded.datapath_receive
        self.deliver = loaded.datapath_deliver
        self.transmit = loaded.datapath_transmit
        self.count_sent = loaded.datapath_count_sent
        self.send = loaded.datapath_send
        self.put = loaded.datapath_put
        self.take_writes = loaded.datapath_take_writes
        self.sizes = list((c_uint32 * len(STRUCTURES)).in_dll(loaded, "datapath_sizes"))


@dataclass(frozen=True, slots=True)
class Datapath:
    """What moves frames: ``code``, or Python for the reason ``why``."""

    code: Library | None
    why: str

    def __str__(self) -> str:
        return "compiled" if self.code else f"Python ({self.why})"


class DatapathError(Exception):
    """The chosen data path is not there."""


def load(path: Path = build.LIBRARY) -> Datapath:
    """The data path of the library at ``path``, if it was made from the sources beside this."""
    if not path.exists():
        return Datapath(None, f"{path.name} is missing: say make")
    try:
        loaded = ctypes.PyDLL(str(path))
        made_from = c_uint32.in_dll(loaded, "datapath_source_sum").value
    except (OSError, ValueError) as error:
        return Datapath(None, f"{path.name} cannot be loaded: {error}")
    if made_from != build.source_sum():
        return Datapath(None, f"{path.name} was compiled from other sources: say make")
    return Datapath(Library(loaded), "")


@functools.cache
def _loaded() -> Datapath:
    return load()


def chosen() -> Datapath:
    """The data path that the environment asks for.

    Raises:
        DatapathError: it asks for the compiled one, which is not there, or for another.
    """
    choice = os.environ.get(CHOICE, "")
    if choice == "python":
        return Datapath(None, f"{CHOICE} asks for it")
    if choice not in ("", "compiled"):
        raise DatapathError(f"{CHOICE}={choice}: it is python, compiled or not set")
    found = _loaded()
    if choice and found.code is None:
        raise DatapathError(f"{CHOICE}=compiled: {found.why}")
    return found
