# SPDX-License-Identifier: MIT
"""The firewall of this host, and the command that opens it for an interface."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from harness.agent import programs
from harness.agent.faults import AgentError
from harness.agent.foreign import read_text

_WITHIN_S = 10.0
_HOOKS = ("input", "prerouting", "ingress")
_CHAIN = re.compile(r"[\w.-]{1,64}")


def firewall(interface: str, *, root: str = "/") -> dict[str, Any]:
    """``kind`` (firewalld, ufw, nftables, iptables; None: nothing filters incoming packets) and
    ``opens``, the command that accepts packets from ``interface`` until the next boot.
    """
    base = Path(root)
    if _runs(base, "firewalld"):
        opens = f"firewall-cmd --zone=trusted --add-interface={interface}"
        return {"kind": "firewalld", "opens": opens}
    if re.search(r"^ENABLED=yes\s*$", _text(base / "etc/ufw/ufw.conf"), re.MULTILINE):
        return {"kind": "ufw", "opens": f"ufw insert 1 allow in on {interface}"}
    if chains := filtering(_nft()):
        # A packet passes all of these chains: one that accepts it does not skip the next.
        opens = "; ".join(
            f'nft insert rule {family} {table} {chain} iifname "{interface}" accept'
            for family, table, chain in chains
        )
        return {"kind": "nftables", "opens": opens}
    # nft does not show rules of legacy iptables.
    if "filter" in _text(base / "proc/net/ip_tables_names").split():
        return {"kind": "iptables", "opens": f"iptables -I INPUT -i {interface} -j ACCEPT"}
    return {"kind": None, "opens": None}


def filtering(said: str) -> list[tuple[str, str, str]]:
    """Family, table and name of the chains in ``nft -j list ruleset`` that may drop what comes in.

    A chain whose policy is accept drops nothing unless it has a rule.
    """
    try:
        rows = json.loads(said)["nftables"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    ruled = {_of(row["rule"], "chain") for row in rows if isinstance(row.get("rule"), dict)}
    found = []
    for row in rows:
        chain = row.get("chain")
        if not isinstance(chain, dict) or chain.get("hook") not in _HOOKS:
            continue
        at = _of(chain, "name")
        judges = chain.get("policy") == "drop" or at in ruled
        if all(at) and judges and chain.get("type", "filter") == "filter":
            found.append(at)
    return found


def _of(row: dict[str, Any], name: str) -> tuple[str, str, str]:
    words = (row.get("family"), row.get("table"), row.get(name))
    plain = [word if isinstance(word, str) and _CHAIN.fullmatch(word) else "" for word in words]
    return plain[0], plain[1], plain[2]


def _nft() -> str:
    try:
        return programs.run(["nft", "-j", "list", "ruleset"], timeout_s=_WITHIN_S)
    except AgentError:
        return ""


def _runs(base: Path, name: str) -> bool:
    return any(read_text(path) == name for path in (base / "proc").glob("[0-9]*/comm"))


def _text(path: Path) -> str:
    return read_text(path) or ""
