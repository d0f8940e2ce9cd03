# SPDX-License-Identifier: MIT
"""The test interface and the NIC behind it, as the doctor judges them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.agent import drivers
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
    driver = drivers.named(found["driver"])
    if role == "dut":
        yield _driver(found, driver)
        fit = [driver] if driver.name in drivers.DRIVERS else drivers.makers_of_lists()
        if any(one.functions for one in fit):
            yield _function(found["pci_id"], fit)
        yield check(
            "firmware",
            ok=bool(found["firmware"]),
            detail=_firmware(found) or "the driver does not say",
            remedy=driver.firmware_hint,
            needed=False,
        )
        rows = [row["name"] for row in found["irqs"]]
        queues = [row for row in rows if row.startswith(name) or driver.queue_irq.fullmatch(row)]
        yield check(
            "interrupts",
            ok=bool(queues),
            detail=", ".join(queues) or f"none is named {name}-…",
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


def _driver(found: dict[str, Any], driver: drivers.Driver) -> Check:
    """Is it one that the harness knows? Of any other it reads what every driver has."""
    known = driver.name in drivers.DRIVERS
    detail = f"{found['driver']} {found['bus'] or ''}".strip()
    if not known:
        detail += ": not known to the harness, which reads the link's counters alone"
    elif not driver.makes_lists:
        detail += ": hands no lists to the stack by this series"
    makers = [f"{one.name} ({one.family})" for one in drivers.makers_of_lists()]
    return check(
        "driver",
        ok=known,
        detail=detail,
        remedy=f"lists are made by {', '.join(makers)}: name an interface of such a NIC, "
        "or add the driver to harness/agent/drivers",
        needed=True,
    )


def _function(pci_id: str | None, fit: Sequence[drivers.Driver]) -> Check:
    """Is it a physical function of a NIC of the drivers that are ``fit``?"""
    functions = {at: one for driver in fit for at, one in driver.functions.items()}
    families = " or ".join(driver.family for driver in fit)
    known = functions.get(pci_id or "")
    what = f"{known.chip} ({known.adapters}), {known.kind}" if known else f"no {families}"
    adapters = dict.fromkeys(one.adapters for one in functions.values())
    return check(
        "NIC",
        ok=known is not None and known.kind == "PF",
        detail=f"{pci_id} {what}",
        remedy=f"use a physical function of {families}: " + ", ".join(adapters),
        needed=True,
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
