# SPDX-License-Identifier: MIT
"""The function behind an interface: which it is, its port, place and firmware.

What no driver of :mod:`harness.agent.drivers` knows is described as far as it goes and
told as a warning: all but the list lengths of the driver can be measured with any NIC.
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
    """The function of the interface at ``at`` in /sys; ``None`` where it does not say.

    ``queue_irqs`` are the receive queues' interrupts, by the number in their names.
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
    """Receive queue to interrupt, by the names that ``driver`` gives them."""
    found: dict[str, int] = {}
    for irq, name in irqs.items():
        match = driver.queue_irq.fullmatch(name)
        if match:
            found.setdefault(match["queue"], irq)
    return found


def _warnings(
    known: drivers.Driver, driver: str | None, pci_id: str | None, owner: drivers.Driver | None
) -> list[str]:
    no_lists = "its driver hands no lists to the stack by this series"
    if owner is known:
        return [] if known.makes_lists else [f"{known.name}: {no_lists}"]
    if owner:
        chip = owner.functions[pci_id or ""].chip
        what = f"{owner.family} function ({chip})"
        return [f"{what} under the driver {driver}, not {owner.name}"]
    what = f"PCI {pci_id}" if pci_id else "no PCI function"
    makers = [f"{one.family} function of {one.name}" for one in drivers.makers_of_lists()]
    return [f"no {' or '.join(makers)} ({what}, driver {driver or 'unknown'}): {no_lists}"]
