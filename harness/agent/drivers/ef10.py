# SPDX-License-Identifier: MIT
"""EF10 NICs under sfc; counters as in drivers/net/ethernet/sfc (ef10.c, ethtool_common.c)."""

from __future__ import annotations

import re
from dataclasses import replace

from .driver import CounterNames, Driver, Firmware, Function

# port_rx_packets (MC_CMD_MAC_RX_PKTS) is counted at the MAC, before a descriptor is needed.
# The driver's own drops are 32 bits wide (efx_get_uint_stat, atomic_read).
_DRIVER_DROPS = (
    "rx_nodesc_trunc",
    "rx_noskb_drops",
    "rx_frm_trunc",
    "rx_eth_crc_err",
    "rx_xdp_drops",
    "rx_xdp_bad_drops",
    "rx_mport_bad",
)
_PORT = CounterNames(
    known_by=("port_rx_packets",),
    at_port="port_rx_packets",
    ring_drops=("port_rx_nodesc_drops",),
    other_drops=(
        "port_rx_bad",
        "port_rx_overflow",
        "port_rx_pm_discard_bb_overflow",
        "port_rx_pm_discard_vfifo_full",
        "port_rx_pm_discard_qbb",
        "port_rx_pm_discard_mapping",
        "port_rx_dp_q_disabled_packets",
        "port_rx_dp_di_dropped_packets",
    ),
    driver_drops=_DRIVER_DROPS,
    kept=("port_rx_pause", "port_rx_control"),
    # The driver adds these to rx_dropped (efx_ef10_update_stats_common); the port's drops only
    # with firmware without virtual adapters, otherwise the virtual adapter's own counters.
    in_link_dropped=("port_rx_nodesc_drops", "rx_nodesc_trunc", "rx_noskb_drops"),
    of_32_bits=frozenset(_DRIVER_DROPS),
)
_ADAPTER = ("rx_unicast", "rx_overflow")

# MC_CMD_GET_CAPABILITIES_OUT_RXDP_* and _TXDP_* of mcdi_pcol.h.
_RX_VARIANTS = {
    0x0: "full-feature",
    0x1: "low-latency",
    0x2: "packed-stream",
    0x5: "rules-engine",
    0x6: "dpdk",
    0x10A: "bist",
}
_TX_VARIANTS = {**_RX_VARIANTS, 0x3: "high-packet-rate", 0x12D: "bist"}
_VERSION = re.compile(r"(?P<version>[\d.]+)(?: rx(?P<rx>[0-9a-f]+) tx(?P<tx>[0-9a-f]+))?")


def parse_firmware(text: str) -> Firmware | None:
    """sfc's firmware version, ``7.6.9.1018 rx1 tx1``, with the names of its variants."""
    match = _VERSION.fullmatch(text)
    if match is None:
        return None
    named = {
        way: variants.get(int(match[way], 16), f"unknown ({match[way]})") if match[way] else None
        for way, variants in (("rx", _RX_VARIANTS), ("tx", _TX_VARIANTS))
    }
    return {"version": match["version"], "variant": named["rx"], "tx_variant": named["tx"]}


DRIVER = Driver(
    name="sfc",
    family="EF10",
    makes_lists=True,
    counters=(
        replace(
            _PORT,
            known_by=(*_PORT.known_by, *_ADAPTER),
            in_link_dropped=_PORT.in_link_dropped[1:],
        ),
        _PORT,
        # A function that does not control its port, such as a VF, sees only its virtual adapter.
        replace(
            _PORT,
            known_by=_ADAPTER,
            at_port=None,
            ring_drops=("rx_overflow",),
            other_drops=("rx_bad",),
            in_link_dropped=(),
        ),
    ),
    # efx_pci_table of drivers/net/ethernet/sfc/efx.c, those with an EF10 efx_nic_type.
    functions={
        f"1924:{device}": Function(chip, adapters, kind)
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
    },
    firmware=parse_firmware,
    firmware_hint="sfupdate of the vendor's utilities shows and writes it",
)
