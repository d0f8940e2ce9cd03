# SPDX-License-Identifier: MIT
"""What filters packets on this host, by what is at work there, and what lets an interface in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.agent import programs
from harness.agent.faults import AgentError
from harness.agent.foreign import read_text

_WITHIN_S = 10.0
_HOOKS = ("input", "prerouting", "ingress")
_CHAIN = re.compile(r"[\w.-]{1,64}")


def firewall(interface: str, *, root: str = "/") -> dict[str, Any]:
    """``kind`` (firewalld, ufw, nftables, iptables; None: nothing filters what comes in) and
    ``opens``, the command that lets in what comes by ``interface`` until the next boot.
    """
    base = Path(root)
    if _runs(base, "firewalld"):
        opens = f"firewall-cmd --zone=trusted --add-interface={interface}"
        return {"kind": "firewalld", "opens": opens}
    if re.search(r"^ENABLED=yes\s*$", _text(base / "etc/ufw/ufw.conf"), re.MULTILINE):
        return {"kind": "ufw", "opens": f"ufw insert 1 allow in on {interface}"}
    if chains := filtering(_nft()):
        # Each of them judges a packet; that one accepts it does not spare it the next.
        opens = "; ".join(
            f'nft insert rule {family} {table} {chain} iifname "{interface}" accept'
            for family, table, chain in chains
        )
        return {"kind": "nftables", "opens": opens}
    # Of the old kind, which nft does not show.
    if "filter" in _text(base / "proc/net/ip_tables_names").split():
        return {"kind": "iptables", "opens": f"iptables -I INPUT -i {interface} -j ACCEPT"}
    return {"kind": None, "opens": None}


def filtering(said: str) -> list[tuple[str, str, str]]:
    """Family, table and name of the chains that may refuse what comes in.

    From ``nft -j list ruleset``.

    A chain without a rule that accepts by default refuses nothing.
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
    return any(said == name for said in _names(base))


def _names(base: Path) -> Iterator[str]:
    for path in (base / "proc").glob("[0-9]*/comm"):
        yield read_text(path) or ""


def _text(path: Path) -> str:
    return read_text(path) or ""
