# SPDX-License-Identifier: MIT
"""The test interface and the NIC behind it, as the doctor judges them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.agent.interface.nic import EF10
from harness.agent.inventory import NET, inventory

from . import health
from .health import Check, check


def checks(name: str, role: str, irq_cpu: int | None) -> Iterator[Check]:
    """Those of the interface ``name``; without one there is nothing more to tell."""
    if not (NET / name).exists():
        have = ", ".join(sorted(path.name for path in NET.iterdir()))
        yield check(
            "interface",
            ok=False,
            detail=f"no {name}; there are {have}",
            remedy="name the test interface in hosts.yaml",
            needed=True,
        )
        return
    found = inventory(interface=name)
    port = health.number(NET / name / "dev_port") or 0
    speed = f"{found['speed_mbps']} Mbit/s" if found["speed_mbps"] else "speed unknown"
    yield check("interface", ok=True, detail=f"{name}, {found['mac']}, port {port}", needed=True)
    is_sfc = found["driver"] == "sfc"
    known = EF10.get(found["pci_id"] or "")
    if role == "dut":
        yield check(
            "driver",
            ok=is_sfc,
            detail=f"{found['driver']} {found['bus'] or ''}".strip(),
            remedy="lists are made by the sfc driver: name an interface of a Solarflare NIC",
            needed=True,
        )
        what = f"{known.chip} ({known.adapters}), {known.kind}" if known else "no EF10"
        adapters = dict.fromkeys(one.adapters for one in EF10.values())
        yield check(
            "NIC",
            ok=known is not None and known.kind == "PF",
            detail=f"{found['pci_id']} {what}",
            remedy="use a physical function of an EF10: " + ", ".join(adapters),
            needed=True,
        )
        yield check(
            "firmware",
            ok=bool(found["firmware"]),
            detail=_firmware(found) or "the driver does not say",
            remedy="sfupdate of the vendor's utilities shows and writes it",
            needed=False,
        )
        queues = [row for row in found["irqs"] if row["name"].startswith(name)]
        yield check(
            "interrupts",
            ok=bool(queues),
            detail=", ".join(row["name"] for row in queues) or f"none is named {name}-…",
            remedy=f"bring the interface up: ip link set {name} up",
            needed=False,
        )
        yield _numa(found["numa_node"], irq_cpu)
    yield check(
        "link",
        ok=found["link"],
        detail=f"up, {speed}" if found["link"] else "no carrier",
        remedy=f"the cable, the other end, and: ip link set {name} up",
        needed=False,
    )


def _firmware(found: dict[str, Any]) -> str:
    variant = (found["nic"]["firmware"] or {}).get("variant")
    return f"{found['firmware']} ({variant})" if variant else found["firmware"] or ""


def _numa(node: int | None, irq_cpu: int | None) -> Check:
    if irq_cpu is None or node is None or node < 0:
        return check("NUMA node", ok=True, detail="one, or unknown", needed=False)
    there = Path(f"/sys/devices/system/cpu/cpu{irq_cpu}/node{node}").exists()
    return check(
        "NUMA node",
        ok=there,
        detail=f"the NIC is on node {node}; CPU {irq_cpu} is {'too' if there else 'not'}",
        remedy=f"choose placement.irq_cpu from node {node}: lscpu --extended",
        needed=False,
    )
