# SPDX-License-Identifier: MIT
"""An interface's driver, counters, queues, rings, moderation and offloads.

Rings go through pyroute2's ethtool netlink if library and kernel have it. Everything else uses
the SIOCETHTOOL ioctl: ethtool netlink has no driver statistics and no receive rules, and
pyroute2 has no netlink calls for queues, moderation or the indirection table. The ioctl's layout
(include/uapi/linux/ethtool.h) is older than the oldest kernel measured.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

from harness.agent.faults import AgentError

from . import netlink
from .ntuple import Ntuple

_SIOCETHTOOL = 0x8946
_GDRVINFO, _GCOALESCE, _SCOALESCE = 0x03, 0x0E, 0x0F
_GRINGPARAM, _SRINGPARAM, _GSTRINGS, _GSTATS, _GGRO = 0x10, 0x11, 0x1B, 0x1D, 0x2B
_GRXFHINDIR, _SRXFHINDIR, _GCHANNELS, _SCHANNELS = 0x38, 0x39, 0x3C, 0x3D
_GPAUSEPARAM, _GPERMADDR = 0x12, 0x20
_SET_OF_STATS = 1
_NAME_BYTES = 32
_SLACK = 512
_MOST = 1 << 16

# Words of struct ethtool_coalesce after the command.
_COALESCE_WORDS = 22
_RX_USECS, _ADAPTIVE_RX = 0, 9
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV)


class Driver(NamedTuple):
    """The driver's own information; ``bus`` is a PCI address if there is one."""

    name: str
    firmware: str
    bus: str
    n_stats: int


class Channels(NamedTuple):
    """The current and the maximum numbers of receive queues."""

    rx: int
    combined: int
    max_rx: int
    max_combined: int


class Ethtool:
    """One interface, by name. Reads return None if the driver does not support them."""

    def __init__(self, interface: str) -> None:
        self._name = interface.encode()
        self._stat_names: list[str] = []

    def driver(self) -> Driver | None:
        """Driver, firmware and bus address."""
        answer = self._read(struct.pack("I192x", _GDRVINFO))
        if answer is None:
            return None
        name, firmware, bus, n_stats = struct.unpack("4x32s32x32s32s44x4xI", answer[:184])
        return Driver(_text(name), _text(firmware), _text(bus), n_stats)

    def statistics_values(self) -> bytes:
        """The driver's counters as the kernel wrote them, for :meth:`statistics`."""
        names = self._names()
        if not names:
            return b""
        # The kernel writes all current counters, however much space the caller provided.
        request = struct.pack("II", _GSTATS, len(names)) + bytes(8 * (len(names) + _SLACK))
        return (self._read(request) or b"")[8 : 8 + 8 * len(names)]

    def statistics(self, values: bytes) -> dict[str, int]:
        """Counters by the names ``ethtool -S`` shows."""
        numbers = struct.unpack(f"{len(values) // 8}Q", values[: len(values) & ~7])
        return dict(zip(self._names(), numbers))

    def permanent_address(self) -> str | None:
        """The permanent MAC address, in lower case."""
        answer = self._read(struct.pack("II32x", _GPERMADDR, 32))
        size = struct.unpack_from("II", answer)[1] if answer else 0
        if answer is None or size != 6 or not any(answer[8:14]):
            return None
        return ":".join(f"{byte:02x}" for byte in answer[8:14])

    def pause(self) -> dict[str, bool] | None:
        """Are pause frames negotiated (``autoneg``), obeyed (``rx``) and sent (``tx``)?"""
        answer = self._read(struct.pack("I12x", _GPAUSEPARAM))
        if answer is None:
            return None
        _, autoneg, rx, tx = struct.unpack("4I", answer)
        return {"autoneg": bool(autoneg), "rx": bool(rx), "tx": bool(tx)}

    def channels(self) -> Channels | None:
        """The numbers of queues."""
        answer = self._read(struct.pack("I32x", _GCHANNELS))
        if answer is None:
            return None
        _, max_rx, _, _, max_combined, rx, _, _, combined = struct.unpack("9I", answer)
        return Channels(rx, combined, max_rx, max_combined)

    def set_channels(self, *, rx: int, combined: int) -> None:
        """Raises OSError if the driver refuses."""
        words = list(struct.unpack("9I", self._call(struct.pack("I32x", _GCHANNELS))))
        words[0], words[5], words[8] = _SCHANNELS, rx, combined
        self._call(struct.pack("9I", *words))

    def indirection(self) -> list[int] | None:
        """The receive-side-scaling table: a queue for each hash bucket."""
        answer = self._read(struct.pack("II", _GRXFHINDIR, 0))
        size = struct.unpack("II", answer)[1] if answer else 0
        if not size:
            return None
        _bounded(size, "buckets")
        answer = self._read(struct.pack("II", _GRXFHINDIR, size) + bytes(4 * size))
        return list(struct.unpack(f"{size}I", answer[8:])) if answer else None

    def set_indirection(self, queues: Sequence[int]) -> None:
        """Raises OSError where the driver refuses."""
        self._call(struct.pack(f"II{len(queues)}I", _SRXFHINDIR, len(queues), *queues))

    def coalesce(self) -> dict[str, int | bool] | None:
        """``adaptive_rx`` and ``rx_usecs``."""
        words = self._coalesce_words()
        if words is None:
            return None
        return {"adaptive_rx": bool(words[_ADAPTIVE_RX]), "rx_usecs": words[_RX_USECS]}

    def set_coalesce(self, *, adaptive_rx: bool, rx_usecs: int) -> None:
        """Raises OSError where the driver refuses."""
        words = self._coalesce_words()
        if words is None:
            raise OSError(errno.EOPNOTSUPP, "the driver has no interrupt moderation")
        words[_ADAPTIVE_RX], words[_RX_USECS] = int(adaptive_rx), rx_usecs
        self._call(struct.pack(f"I{_COALESCE_WORDS}I", _SCOALESCE, *words))

    def rings(self) -> dict[str, int] | None:
        """Descriptors in the rings: ``rx``, ``tx`` and their maxima."""
        found = netlink.rings(self._name.decode())
        if found is not None:
            return found
        answer = self._read(struct.pack("I32x", _GRINGPARAM))
        if answer is None:
            return None
        _, max_rx, _, _, max_tx, rx, _, _, tx = struct.unpack("9I", answer)
        return {"rx": rx, "tx": tx, "max_rx": max_rx, "max_tx": max_tx}

    def set_rx_ring(self, entries: int) -> None:
        """Raises OSError where the driver refuses."""
        if netlink.set_rx_ring(self._name.decode(), entries):
            return
        words = list(struct.unpack("9I", self._call(struct.pack("I32x", _GRINGPARAM))))
        words[0], words[5] = _SRINGPARAM, entries
        self._call(struct.pack("9I", *words))

    def ntuple(self) -> Ntuple:
        """Its receive rules."""
        return Ntuple(self._call)

    def through(self) -> dict[str, str]:
        """The interface used for each setting: ``netlink`` or ``ioctl``."""
        rings = netlink.rings(self._name.decode())
        ioctl = dict.fromkeys(("rx_queues", "ntuple", "coalesce", "offloads"), "ioctl")
        return {"rings": "ioctl" if rings is None else "netlink", **ioctl}

    def gro(self) -> bool | None:
        """Is generic receive offload on?"""
        answer = self._read(struct.pack("II", _GGRO, 0))
        return bool(struct.unpack("II", answer)[1]) if answer else None

    def _names(self) -> list[str]:
        driver = self.driver()
        count = _bounded(driver.n_stats if driver else 0, "statistics")
        if len(self._stat_names) != count:
            request = struct.pack("III", _GSTRINGS, _SET_OF_STATS, count)
            room = bytes(_NAME_BYTES * (count + _SLACK))
            answer = (self._read(request + room) or b"")[12 : 12 + _NAME_BYTES * count]
            self._stat_names = [
                _text(answer[at : at + _NAME_BYTES]) for at in range(0, len(answer), _NAME_BYTES)
            ]
        return self._stat_names

    def _coalesce_words(self) -> list[int] | None:
        answer = self._read(struct.pack(f"I{4 * _COALESCE_WORDS}x", _GCOALESCE))
        return list(struct.unpack(f"4x{_COALESCE_WORDS}I", answer)) if answer else None

    def _read(self, request: bytes) -> bytes | None:
        try:
            return self._call(request)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return None
            raise

    def _call(self, request: bytes) -> bytes:
        data = ctypes.create_string_buffer(request, len(request))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
            fcntl.ioctl(
                handle, _SIOCETHTOOL, struct.pack("16sP16x", self._name, ctypes.addressof(data))
            )
        return data.raw


def _bounded(count: int, what: str) -> int:
    """``count``, checked: memory for it is allocated before the next request."""
    if count > _MOST:
        raise AgentError(f"the driver reports {count} {what}")
    return count


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("ascii", "replace")
