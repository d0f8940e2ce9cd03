# SPDX-License-Identifier: MIT
"""A receive rule that sends UDP to the first queue, if the number of queues cannot be reduced."""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from harness.agent.interface.ethtool import Ethtool
from harness.agent.interface.ntuple import Ntuple, Rule
from harness.agent.setting import Asked, Declaration, Setting

from .addresses import parsed

# A driver's errors for a rule that its NIC has no filter for.
_NO_SUCH_RULE = (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL)

Rules = Sequence[Mapping[str, Any]]


def with_rule(now: Rules, destination: str | None) -> Rules:
    """``now`` with a rule that sends UDP for ``destination`` to the first queue."""
    rule = {"destination": destination, "queue": 0}
    return now if _covered(rule, now) else [*now, rule]


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
    """Add ``rule``, or one for UDP to any address: not every NIC can match only an address."""
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


def of(ntuple: Ntuple) -> Setting:
    """The setting that is the rules of one interface."""
    return Setting(
        "ntuple", lambda: _rules(ntuple), lambda value: _set_rules(ntuple, value), _rules_hold
    )


def _asked(asked: Asked, skipped: Collection[str]) -> bool:
    steering = asked["steering"]
    alone = steering == "auto" and asked["rx_queues"] == 1
    return steering == "ntuple" or (alone and "rx_queues" in skipped)


def _wanted(now: Rules, asked: Asked) -> Rules:
    address = asked["address"]
    return with_rule(now, None if address is None else str(parsed(address).ip))


SETTINGS = (
    Declaration(
        "ntuple",
        lambda interface: of(Ethtool(interface).ntuple()),
        wanted=_wanted,
        by="steering",
        asked=_asked,
        absent="the driver has no receive rules",
        compared=True,
        of_nic=True,
    ),
)
