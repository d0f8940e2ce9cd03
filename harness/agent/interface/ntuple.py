# SPDX-License-Identifier: MIT
"""Receive rules that send UDP to one queue, by ETHTOOL_*RXCLSRL* (``ethtool -N``).

ethtool netlink has no call for them. Only rules of one kind are handled: UDP over IPv4, to
any address or to one, into a queue. All others are ignored.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from harness.agent.faults import AgentError

_GRXCLSRLCNT, _GRXCLSRULE, _GRXCLSRLALL = 0x2E, 0x2F, 0x30
_SRXCLSRLDEL, _SRXCLSRLINS = 0x31, 0x32
_UDP_V4_FLOW = 0x02
_LOC_ANY, _LOC_SPECIAL = 0xFFFFFFFF, 0x80000000
# struct ethtool_rxnfc with its struct ethtool_rx_flow_spec: flow type; values, then masks, of
# struct ethtool_tcpip4_spec (source, destination, their ports, TOS), each followed by a
# struct ethtool_flow_ext; queue, location.
_RXNFC = struct.Struct("=II Q I4s4sHHB39x20s 4s4sHHB39x20s 4xQI4x I4x")
_NO_EXT = bytes(20)
_MOST = 1 << 16
_ANY, _ONE = bytes(4), b"\xff" * 4
_ABSENT = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV)


class Rule(NamedTuple):
    """UDP over IPv4 to ``destination`` (``None``: any) goes to ``queue``."""

    destination: str | None
    queue: int


class Ntuple:
    """The rules of one interface; ``call`` makes an ethtool request (see :class:`Ethtool`)."""

    def __init__(self, call: Callable[[bytes], bytes]) -> None:
        self._call = call

    def rules(self) -> dict[int, Rule] | None:
        """By location; None if the driver does not support rules."""
        try:
            answer = _unpacked(self._call(_request(_GRXCLSRLCNT)))
            count = answer.rules
            if count > _MOST:
                raise AgentError(f"the driver reports {count} receive rules")
            request = _request(_GRXCLSRLALL, count=count) + bytes(4 * count)
            raw = self._call(request)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
        count = min(count, _unpacked(raw).rules)
        places = struct.unpack_from(f"={count}I", raw, _RXNFC.size - 4)
        found = {place: self._rule(place) for place in places}
        return {place: rule for place, rule in found.items() if rule}

    def add(self, rule: Rule) -> None:
        """Raises OSError if the driver refuses."""
        self._call(_request(_SRXCLSRLINS, rule=rule, location=self._free()))

    def remove(self, location: int) -> None:
        """Raises OSError if the driver refuses."""
        self._call(_request(_SRXCLSRLDEL, location=location))

    def _rule(self, location: int) -> Rule | None:
        try:
            return _unpacked(self._call(_request(_GRXCLSRULE, location=location))).rule
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise

    def _free(self) -> int:
        """The location for a new rule: the driver's choice, or the last free one."""
        data = _unpacked(self._call(_request(_GRXCLSRLCNT))).data
        if data & _LOC_SPECIAL:
            return _LOC_ANY
        taken = self.rules() or {}
        free = (place for place in range(data - 1, -1, -1) if place not in taken)
        place = next(free, None)
        if place is None:
            raise OSError(errno.ENOSPC, "no free location for another receive rule")
        return place


class _Unpacked(NamedTuple):
    data: int
    rules: int
    rule: Rule | None


def _request(command: int, *, count: int = 0, rule: Rule | None = None, location: int = 0) -> bytes:
    to, mask = _ANY, _ANY
    if rule and rule.destination:
        to, mask = socket.inet_aton(rule.destination), _ONE
    return _RXNFC.pack(
        command,
        0,
        0,
        _UDP_V4_FLOW if rule else 0,
        *(_ANY, to, 0, 0, 0, _NO_EXT),
        *(_ANY, mask, 0, 0, 0, _NO_EXT),
        rule.queue if rule else 0,
        location,
        count,
    )


def _unpacked(raw: bytes) -> _Unpacked:
    _, _, data, flow, *values, queue, _, count = _RXNFC.unpack_from(raw)
    _, to, *_ = values[:6]
    source, mask, *others = values[6:]
    ours = flow == _UDP_V4_FLOW and source == _ANY and mask in (_ANY, _ONE)
    # Our rules have no other masks and no extension.
    ours = ours and not any(others[:3]) and not any(others[3])
    rule = Rule(socket.inet_ntoa(to) if mask == _ONE else None, queue) if ours else None
    return _Unpacked(data, count, rule)
