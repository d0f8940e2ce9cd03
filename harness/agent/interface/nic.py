# SPDX-License-Identifier: MIT
"""The PCI function of an interface: its kind, port, place and firmware.

An unknown NIC is described as far as possible, with a warning: any NIC allows all measurements
except the driver's list lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.agent import drivers
from harness.agent.foreign import read_text


def describe(
    at: Path,
    *,
    driver: str | None,
    pci_id: str | None,
    firmware: str | None,
    irqs: Mapping[int, str],
) -> dict[str, Any]:
    """The function of the interface at ``at`` in /sys; unknown values are None.

    ``queue_irqs`` are the receive queues' interrupts, by the queue number in their names.
    """
    known = drivers.named(driver)
    owner = drivers.behind(pci_id)
    if owner is None and known.name in drivers.DRIVERS and not known.functions:
        owner = known
    found = owner.functions.get(pci_id or "") if owner else None
    port = read_text(at / "dev_port")
    return {
        "family": owner.family.lower() if owner else None,
        "chip": found.chip if found else None,
        "adapters": found.adapters if found else None,
        "function": found.kind if found else None,
        "port": int(port) if port and port.isdigit() else None,
        "port_name": read_text(at / "phys_port_name") or None,
        "local_cpus": read_text(at / "device" / "local_cpulist") or None,
        "firmware": known.firmware(firmware or ""),
        "queue_irqs": queue_irqs(irqs, known),
        "warnings": _warnings(known, driver, pci_id, owner),
    }


def queue_irqs(irqs: Mapping[int, str], driver: drivers.Driver) -> dict[str, int]:
    """Receive queue to interrupt, by ``driver``'s names of interrupts."""
    found: dict[str, int] = {}
    for irq, name in irqs.items():
        match = driver.queue_irq.fullmatch(name)
        if match:
            found.setdefault(match["queue"], irq)
    return found


def _warnings(
    known: drivers.Driver, driver: str | None, pci_id: str | None, owner: drivers.Driver | None
) -> list[str]:
    no_lists = "the series does not make its driver hand lists to the stack"
    if owner is known:
        return [] if known.makes_lists else [f"{known.name}: {no_lists}"]
    if owner:
        chip = owner.functions[pci_id or ""].chip
        what = f"{owner.family} function ({chip})"
        return [f"{what} under the driver {driver}, not {owner.name}"]
    what = f"PCI {pci_id}" if pci_id else "no PCI function"
    makers = [f"{one.family} function of {one.name}" for one in drivers.makers_of_lists()]
    return [f"no {' or '.join(makers)} ({what}, driver {driver or 'unknown'}): {no_lists}"]
