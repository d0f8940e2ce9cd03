# SPDX-License-Identifier: MIT
"""The function behind an interface: which EF10 it is, its port, place and firmware.

What is no EF10 function is described as far as it goes and told as a warning: all
but the list lengths of the driver can be measured with any NIC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SOLARFLARE = "1924"
EF10_DRIVER = "sfc"


class Function(NamedTuple):
    """A chip of the EF10 architecture, the adapters it is on, and which function this is."""

    chip: str
    adapters: str
    kind: str


# efx_pci_table of drivers/net/ethernet/sfc/efx.c, those with an EF10 efx_nic_type.
EF10: Mapping[str, Function] = {
    f"{SOLARFLARE}:{device}": Function(chip, adapters, kind)
    for device, chip, adapters, kind in (
        ("0903", "SFC9120", "7x22", "PF"),
        ("1903", "SFC9120", "7x22", "VF"),
        ("0923", "SFC9140", "7x42", "PF"),
        ("1923", "SFC9140", "7x42", "VF"),
        ("0a03", "SFC9220", "8xxx", "PF"),
        ("1a03", "SFC9220", "8xxx", "VF"),
        ("0b03", "SFC9250", "X2", "PF"),
        ("1b03", "SFC9250", "X2", "VF"),
        ("0c03", "X4", "X4", "PF"),
        ("2c03", "X4", "X4", "PF"),
        ("8c03", "X4D", "X4", "PF"),
        ("ac03", "X4D", "X4", "PF"),
    )
}
# MC_CMD_GET_CAPABILITIES_OUT_RXDP_* and _TXDP_* of mcdi_pcol.h.
_RX_VARIANTS = {
    0x0: "full-feature",
    0x1: "low-latency",
    0x2: "packed-stream",
    0x5: "rules-engine",
    0x6: "dpdk",
    0x10A: "bist",
}
_TX_VARIANTS = _RX_VARIANTS | {0x3: "high-packet-rate", 0x12D: "bist"}
_VERSION = re.compile(r"(?P<version>[\d.]+)(?: rx(?P<rx>[0-9a-f]+) tx(?P<tx>[0-9a-f]+))?")


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
    found = EF10.get(pci_id or "")
    return {
        "family": "ef10" if found else None,
        "chip": found.chip if found else None,
        "adapters": found.adapters if found else None,
        "function": found.kind if found else None,
        "port": _number(at / "dev_port"),
        "port_name": _text(at / "phys_port_name"),
        "local_cpus": _text(at / "device" / "local_cpulist"),
        "firmware": parse_firmware(firmware or ""),
        "queue_irqs": queue_irqs(irqs),
        "warnings": [*_warnings(driver, pci_id, found)],
    }


def parse_firmware(text: str) -> dict[str, str | None] | None:
    """sfc's firmware version, ``7.6.9.1018 rx1 tx1``, with the names of its variants."""
    match = _VERSION.fullmatch(text)
    if match is None:
        return None
    named = {
        way: variants.get(int(match[way], 16), f"unknown ({match[way]})") if match[way] else None
        for way, variants in (("rx", _RX_VARIANTS), ("tx", _TX_VARIANTS))
    }
    return {"version": match["version"], "variant": named["rx"], "tx_variant": named["tx"]}


def queue_irqs(irqs: Mapping[int, str]) -> dict[str, int]:
    """Receive queue to interrupt: drivers end an interrupt's name with its channel.

    Interrupts of transmission alone, which sfc calls ``IF-tx-N``, are left out.
    """
    found: dict[str, int] = {}
    for irq, name in irqs.items():
        match = re.search(r"-(\d+)$", name)
        if match and not re.search(r"-(tx|xdp)-\d+$", name):
            found.setdefault(match[1], irq)
    return found


def _warnings(driver: str | None, pci_id: str | None, found: Function | None) -> Sequence[str]:
    if found and driver == EF10_DRIVER:
        return []
    if found:
        return [f"an EF10 function ({found.chip}) under the driver {driver}, not {EF10_DRIVER}"]
    what = f"PCI {pci_id}" if pci_id else "no PCI function"
    told = f"no EF10 function of {EF10_DRIVER} ({what}, driver {driver or 'unknown'}): "
    return [told + "its driver hands no lists to the stack by this series"]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text and text.isdigit() else None
