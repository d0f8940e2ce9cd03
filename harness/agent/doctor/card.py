# SPDX-License-Identifier: MIT
"""The test interface and the NIC behind it, as the doctor judges them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.agent import drivers
from harness.agent.inventory import NET, inventory

from .health import Check, check


def checks(name: str, role: str, irq_cpu: int | None) -> Iterator[Check]:
    """The checks of the interface ``name``; only one if it does not exist."""
    if not (NET / name).exists():
        have = ", ".join(sorted(path.name for path in NET.iterdir()))
        detail, remedy = f"no {name}; the host has {have}", "name the test interface in hosts.yaml"
        yield check("interface", False, detail, remedy, needed=True)
        return
    found = inventory(interface=name)
    port = found["nic"]["port"] or 0
    speed = f"{found['speed_mbps']} Mbit/s" if found["speed_mbps"] else "speed unknown"
    yield check("interface", True, f"{name}, {found['mac']}, port {port}", needed=True)
    driver = drivers.named(found["driver"])
    if role == "dut":
        yield _driver(found, driver)
        fit = [driver] if driver.name in drivers.DRIVERS else drivers.makers_of_lists()
        if any(one.functions for one in fit):
            yield _function(found["pci_id"], fit)
        yield check(
            "firmware",
            bool(found["firmware"]),
            _firmware(found) or "the driver does not report it",
            driver.firmware_hint,
        )
        rows = [row["name"] for row in found["irqs"]]
        queues = [row for row in rows if row.startswith(name) or driver.queue_irq.fullmatch(row)]
        yield check(
            "interrupts",
            bool(queues),
            ", ".join(queues) or f"none is named {name}-…",
            f"bring the interface up: ip link set {name} up",
        )
        yield _numa(found["numa_node"], irq_cpu)
    detail = f"up, {speed}" if found["link"] else "no carrier"
    remedy = f"check the cable and the other end, and: ip link set {name} up"
    yield check("link", found["link"], detail, remedy)


def _driver(found: dict[str, Any], driver: drivers.Driver) -> Check:
    known = driver.name in drivers.DRIVERS
    detail = f"{found['driver']} {found['bus'] or ''}".strip()
    if not known:
        detail += ": unknown to the harness, which then reads only the link's counters"
    elif not driver.makes_lists:
        detail += ": the series does not make it hand lists to the stack"
    makers = ", ".join(f"{one.name} ({one.family})" for one in drivers.makers_of_lists())
    remedy = (
        f"drivers that hand lists to the stack: {makers}. Name an interface of such a NIC, "
        "or add the driver to harness/agent/drivers"
    )
    return check("driver", known, detail, remedy, needed=True)


def _function(pci_id: str | None, fit: Sequence[drivers.Driver]) -> Check:
    """Is it a physical function that one of the drivers ``fit`` supports?"""
    functions = {at: one for driver in fit for at, one in driver.functions.items()}
    families = " or ".join(driver.family for driver in fit)
    known = functions.get(pci_id or "")
    what = f"{known.chip} ({known.adapters}), {known.kind}" if known else f"no {families}"
    adapters = dict.fromkeys(one.adapters for one in functions.values())
    return check(
        "NIC",
        known is not None and known.kind == "PF",
        f"{pci_id} {what}",
        f"use a physical function of {families}: " + ", ".join(adapters),
        needed=True,
    )


def _firmware(found: dict[str, Any]) -> str:
    variant = (found["nic"]["firmware"] or {}).get("variant")
    return f"{found['firmware']} ({variant})" if variant else found["firmware"] or ""


def _numa(node: int | None, irq_cpu: int | None) -> Check:
    if irq_cpu is None or node is None or node < 0:
        return check("NUMA node", True, "only one, or unknown")
    there = Path(f"/sys/devices/system/cpu/cpu{irq_cpu}/node{node}").exists()
    detail = f"the NIC is on node {node}; CPU {irq_cpu} is {'too' if there else 'not'}"
    remedy = f"choose placement.irq_cpu from node {node}: lscpu --extended"
    return check("NUMA node", there, detail, remedy)
