# SPDX-License-Identifier: MIT
"""An interface's rings and offloads through pyroute2.

Rings use ethtool netlink, which pyroute2 has since 0.8; offloads use the ioctl in all its
versions. A result is None if this host does not have the call, and the caller uses another.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from harness.agent.faults import need

_RINGS = {"rx": "RX", "tx": "TX", "max_rx": "RX_MAX", "max_tx": "TX_MAX"}


def has_rings() -> bool:
    """Does this host's pyroute2 have the netlink calls for rings?"""
    generic = importlib.import_module("pyroute2.netlink.generic.ethtool")
    return hasattr(generic.NlEthtool, "get_rings")


def rings(interface: str) -> dict[str, int] | None:
    """Descriptors in the rings: ``rx``, ``tx`` and their maxima."""
    with contextlib.suppress(OSError), _rings() as call:
        if call is not None:
            [answer, *_] = call.get_rings(interface)
            found = {
                name: answer.get_attr(f"ETHTOOL_A_RINGS_{attribute}")
                for name, attribute in _RINGS.items()
            }
            return found if all(count is not None for count in found.values()) else None
    return None


def set_rx_ring(interface: str, entries: int) -> bool:
    """Returns False if there is no such call; raises OSError if the driver refuses."""
    with _rings() as call:
        if call is None:
            return False
        message = importlib.import_module("pyroute2.ethtool.ethtool").EthtoolRings(rx=entries)
        call.set_rings(message.to_netlink(), interface)
        return True


@contextlib.contextmanager
def _rings() -> Iterator[Any]:
    """pyroute2's ethtool netlink; None if library or kernel is too old for it."""
    pyroute2 = need("pyroute2")
    if not has_rings():
        yield None
        return
    generic = importlib.import_module("pyroute2.netlink.generic.ethtool")
    try:
        with generic.NlEthtool() as call:
            call.module_err_level = "debug"
            yield call if call.is_nlethtool_in_kernel() else None
    except pyroute2.NetlinkError as error:
        raise OSError(error.code, str(error)) from error


def offloads(interface: str, kind: str = "rx-") -> dict[str, dict[str, bool]] | None:
    """Features by their names in ``ethtool -k``, which begin with ``kind``.

    Each is ``on`` or not, and ``fixed`` if it is unchangeable.
    """
    with _ethtool() as call:
        found = call.get_features(interface).features
        return {
            name: {"on": bool(feature.enable), "fixed": not feature.available}
            for name, feature in sorted(found.items())
            if name.startswith(kind)
        }
    return None


def set_offloads(interface: str, wanted: Mapping[str, bool]) -> None:
    """Raises OSError if the kernel refuses."""
    with _ethtool() as call:
        now = call.get_features(interface)
        for name, on in wanted.items():
            now.features[name].enable = on
        call.set_features(interface, now)


@contextlib.contextmanager
def _ethtool() -> Iterator[Any]:
    pyroute2 = need("pyroute2")
    errors = importlib.import_module("pyroute2.ethtool.ioctl")
    try:
        call = pyroute2.Ethtool()
        try:
            yield call
        finally:
            call.close()
    except errors.EthtoolError as error:
        raise OSError(errno.EOPNOTSUPP, str(error) or "not supported") from error
