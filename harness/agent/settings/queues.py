# SPDX-License-Identifier: MIT
"""Into which receive queues packets go: how many there are, and what chooses among them.

Fewer queues where the driver can change their number, else fewer of them in the
receive-side-scaling table, else a rule that sends UDP to the first.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.agent.cpus import parse_mask
from harness.agent.interface.ethtool import Ethtool
from harness.agent.interface.ntuple import Ntuple, Rule
from harness.agent.inventory import NET
from harness.agent.setting import Setting, number, queue_files, write_each

# What a driver answers to a rule its NIC has no filter for.
_NO_SUCH_RULE = (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL)

Rules = Sequence[Mapping[str, Any]]


def settings(interface: str, ethtool: Ethtool) -> list[Setting]:
    """Queues in use, rules for UDP, and RPS and RFS, which would spread again what they gather."""
    at = NET / interface / "queues"
    ntuple = ethtool.ntuple()
    return [
        Setting(
            "rx_queues",
            lambda: _queues(interface, ethtool),
            lambda value: _set_queues(ethtool, value),
            lambda is_now, wanted: bool(is_now["in_use"] == wanted["in_use"]),
        ),
        Setting(
            "ntuple", lambda: _rules(ntuple), lambda value: _set_rules(ntuple, value), _rules_hold
        ),
        _of_queues("rps", at, "rps_cpus", lambda one, other: parse_mask(one) == parse_mask(other)),
        _of_queues("rfs", at, "rps_flow_cnt", lambda one, other: number(one) == number(other)),
    ]


def with_queues(now: dict[str, Any], count: int, *, channels: bool) -> dict[str, Any] | None:
    """``now`` with ``count`` queues in use; ``channels``: their number may be changed."""
    if now["in_use"] == count:
        return now
    there = now["channels"] if channels else None
    if there is None and now["indirection"] is None:
        return None
    if there is not None:
        there = there | {"combined" if there["combined"] else "rx": count}
    return now | {"in_use": count, "channels": there or now["channels"]}


def with_rule(now: Rules, destination: str | None) -> Rules:
    """``now`` and the rule that sends UDP for ``destination`` to the first queue."""
    rule = {"destination": destination, "queue": 0}
    return now if _covered(rule, now) else [*now, rule]


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
    """Fewer channels where the driver can, else fewer of them in the indirection table."""
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


def _rules(ntuple: Ntuple) -> list[dict[str, Any]] | None:
    rules = ntuple.rules()
    return None if rules is None else [rule._asdict() for _, rule in sorted(rules.items())]


def _set_rules(ntuple: Ntuple, value: Rules) -> None:
    wanted = [Rule(**rule) for rule in value]
    there = ntuple.rules() or {}
    for location, rule in there.items():
        if rule not in wanted:
            ntuple.remove(location)
    for rule in wanted:
        if rule not in there.values():
            _add(ntuple, rule)


def _add(ntuple: Ntuple, rule: Rule) -> None:
    """``rule``, or that for UDP to any address: not every NIC matches on an address alone."""
    try:
        ntuple.add(rule)
    except OSError as error:
        if rule.destination is None or error.errno not in _NO_SUCH_RULE:
            raise
        ntuple.add(rule._replace(destination=None))


def _rules_hold(is_now: Rules | None, wanted: Rules) -> bool:
    return (
        is_now is not None
        and len(is_now) == len(wanted)
        and all(_covered(rule, is_now) for rule in wanted)
    )


def _covered(rule: Mapping[str, Any], rules: Rules) -> bool:
    return rule in rules or {**rule, "destination": None} in rules


def _of_queues(name: str, queues: Path, file: str, same: Callable[[str, str], bool]) -> Setting:
    """What ``file`` of each receive queue holds; a queue that went away needs nothing."""
    return Setting(
        name,
        lambda: queue_files(queues, file),
        lambda value: write_each(
            ((queues / queue / file, text) for queue, text in value.items()), same
        ),
        lambda is_now, wanted: all(
            same(is_now[queue], text) for queue, text in wanted.items() if queue in is_now
        ),
    )
