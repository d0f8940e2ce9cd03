# SPDX-License-Identifier: MIT
"""The number of receive queues that packets use.

Fewer channels if the driver can change their number, otherwise fewer queues in the RSS
table; if neither is possible, :mod:`.rules` sends UDP to the first queue.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from harness.agent import drivers
from harness.agent.interface.ethtool import Ethtool
from harness.agent.inventory import NET
from harness.agent.setting import Asked, Declaration, Setting


def with_queues(now: dict[str, Any], count: int, *, channels: bool) -> dict[str, Any] | None:
    """``now`` with ``count`` queues in use; None if that is impossible.

    ``channels``: the number of channels may be changed.
    """
    if now["in_use"] == count:
        return now
    there = now["channels"] if channels else None
    if there is None and now["indirection"] is None:
        return None
    if there is not None:
        there = there | {"combined" if there["combined"] else "rx": count}
    return now | {"in_use": count, "channels": there or now["channels"]}


def _queues(interface: str, ethtool: Ethtool) -> dict[str, Any]:
    channels, table = ethtool.channels(), ethtool.indirection()
    count = len(list((NET / interface / "queues").glob("rx-*")))
    return {
        "in_use": len(set(table)) if table else count,
        "queues": count,
        "channels": {"rx": channels.rx, "combined": channels.combined} if channels else None,
        "indirection": table,
    }


def _set_queues(ethtool: Ethtool, value: dict[str, Any]) -> None:
    """Set the channels if the driver can, otherwise the indirection table."""
    now = ethtool.channels()
    channels = value["channels"]
    if now and channels and channels != {"rx": now.rx, "combined": now.combined}:
        try:
            ethtool.set_channels(**channels)
        except OSError:
            if ethtool.indirection() is None:
                raise
    table = ethtool.indirection()
    if table is not None:
        wanted = value["indirection"] or []
        if len(wanted) != len(table) or len(set(wanted)) != value["in_use"]:
            wanted = [bucket % value["in_use"] for bucket in range(len(table))]
        if wanted != table:
            ethtool.set_indirection(wanted)


def _on(interface: str) -> Setting:
    ethtool = Ethtool(interface)
    return Setting(
        "rx_queues",
        lambda: _queues(interface, ethtool),
        lambda value: _set_queues(ethtool, value),
        lambda is_now, wanted: bool(is_now["in_use"] == wanted["in_use"]),
    )


def _asked(asked: Asked, _skipped: Collection[str]) -> bool:
    return asked["rx_queues"] is not None and asked["steering"] in ("auto", "rss")


def _wanted(now: dict[str, Any], asked: Asked) -> dict[str, Any] | None:
    ways: Collection[str] = (asked["steering"],)
    if asked["steering"] == "auto":
        found = Ethtool(asked["interface"]).driver()
        ways = drivers.named(found.name if found else None).steering
    if not {"channels", "rss"} & {*ways}:
        return None
    return with_queues(now, asked["rx_queues"] or 1, channels="channels" in ways)


SETTINGS = (
    Declaration(
        "rx_queues",
        _on,
        wanted=_wanted,
        asked=_asked,
        absent="the queue count is fixed and there is no indirection table",
        compared=True,
        of_nic=True,
    ),
)
