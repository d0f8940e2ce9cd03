# SPDX-License-Identifier: MIT
"""What this model leaves out: the MCDI commands that it refuses, and why.

Together with the tables of ``commands``, ``phy``, ``nvram`` and ``sensors`` this has every
command that the driver of 6.1 and of 6.12 can send to an EF10 card;
tests/nic/test_commands.py finds those in the driver's source.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.nic.mcdi import ENOENT, ENOSPC, ENOSYS, EPERM

_MEDFORD = "an SFC9140 has no tunnel offloads; the firmware of Medford cards has them"
_PIO = "GET_CAPABILITIES offers no PIO buffers, so the driver asks for none"
_SRIOV = "the function has no SR-IOV capability, so there are no virtual functions to serve"
_WOL = "the card has no auxiliary power, so nothing could wake the machine"


@dataclass(frozen=True, slots=True)
class Refused:
    """One command: its number, its name, the MC_CMD_ERR_* of the answer, and why."""

    number: int
    name: str
    code: int
    why: str


REFUSED = (
    Refused(0x0B, "PTP", ENOSYS, "no clock is modelled; the driver then offers no timestamps"),
    Refused(0x27, "FLUSH_RX_QUEUES", ENOSYS, "of Siena; EF10 has FINI_RXQ"),
    Refused(0x32, "WOL_FILTER_SET", ENOSYS, _WOL),
    Refused(0x33, "WOL_FILTER_REMOVE", ENOSYS, _WOL),
    Refused(0x34, "WOL_FILTER_RESET", ENOSYS, _WOL),
    Refused(0x45, "WOL_FILTER_GET", ENOSYS, _WOL),
    Refused(0x5C, "LINK_STATE_MODE", EPERM, _SRIOV),
    Refused(0x8F, "ALLOC_PIOBUF", ENOSPC, _PIO),
    Refused(0x90, "FREE_PIOBUF", ENOENT, _PIO),
    Refused(0x92, "LINK_PIOBUF", ENOENT, _PIO),
    Refused(0x93, "UNLINK_PIOBUF", ENOENT, _PIO),
    Refused(0x94, "VSWITCH_ALLOC", ENOSYS, _SRIOV),
    Refused(0x95, "VSWITCH_FREE", ENOENT, _SRIOV),
    Refused(0x96, "VPORT_ALLOC", ENOSYS, _SRIOV),
    Refused(0x97, "VPORT_FREE", ENOENT, _SRIOV),
    Refused(0x9A, "EVB_PORT_ASSIGN", ENOSYS, _SRIOV),
    Refused(0xA8, "VPORT_ADD_MAC_ADDRESS", ENOENT, _SRIOV),
    Refused(0xA9, "VPORT_DEL_MAC_ADDRESS", ENOENT, _SRIOV),
    Refused(0xAA, "VPORT_GET_MAC_ADDRESSES", ENOENT, _SRIOV),
    Refused(0xD0, "LICENSING_V3", ENOSYS, "no feature is licensed"),
    Refused(0xE1, "RSS_CONTEXT_SET_FLAGS", ENOSYS, "every context hashes all types of packet"),
    Refused(0x117, "SET_TUNNEL_ENCAP_UDP_PORTS", ENOSYS, _MEDFORD),
)
