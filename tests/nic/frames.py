# SPDX-License-Identifier: MIT
"""Frames of a network, and the addresses of the NIC and of its sender."""

from __future__ import annotations

import struct

from harness.nic.wire import TP_STATUS_CSUMNOTREADY

MAC = bytes.fromhex("020000000042")
PEER = bytes.fromhex("020000000001")
BROADCAST = b"\xff" * 6
CSUMNOTREADY = 1 | TP_STATUS_CSUMNOTREADY


def checksum(data: bytes) -> int:
    """The Internet checksum, straight from RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def udp4(
    payload: bytes = b"x",
    *,
    to: bytes = MAC,
    good: bool = True,
    partial: bool = False,
    protocol: int = 17,
    source: bytes = bytes((10, 0, 0, 1)),
    source_port: int = 4000,
    ip_good: bool = True,
    options: bytes = b"",
    frag: int = 0,
) -> bytes:
    """An IPv4 UDP or TCP frame; ``partial``: the L4 checksum as a stack leaves it."""
    ports = struct.pack(">HH", source_port, 5000)
    if protocol == 17:
        l4 = ports + struct.pack(">HH", 8 + len(payload), 0) + payload
        field_at = 6
    else:
        l4 = ports + struct.pack(">IIHHHH", 1, 2, 0x5010, 1000, 0, 0) + payload
        field_at = 16
    addresses = source + bytes((10, 0, 0, 2))
    pseudo = addresses + struct.pack(">BBH", 0, protocol, len(l4))
    value = (checksum(pseudo) ^ 0xFFFF) if partial else checksum(pseudo + l4) or 0xFFFF
    if not good:
        value ^= 0x1234
    l4 = l4[:field_at] + struct.pack(">H", value) + l4[field_at + 2 :]
    words = 5 + len(options) // 4
    ip = struct.pack(">BBHHHBBH", 0x40 | words, 0, words * 4 + len(l4), 1, frag, 64, protocol, 0)
    ip += addresses + options
    ip_value = checksum(ip) if ip_good else checksum(ip) ^ 0x55
    ip = ip[:10] + struct.pack(">H", ip_value) + ip[12:]
    return to + PEER + b"\x08\x00" + ip + l4


def udp6(
    payload: bytes = b"x", *, good: bool = True, partial: bool = False, extension: bytes = b""
) -> bytes:
    """An IPv6 UDP frame; ``extension``: a header of destination options, without its type."""
    addresses = bytes.fromhex("fe80" + "00" * 13 + "01" + "fe80" + "00" * 13 + "02")
    l4 = struct.pack(">HHHH", 4000, 5000, 8 + len(payload), 0) + payload
    pseudo = addresses + struct.pack(">IHBB", len(l4), 0, 0, 17)
    value = (checksum(pseudo) ^ 0xFFFF) if partial else checksum(pseudo + l4) or 0xFFFF
    if not good:
        value ^= 0x1234
    l4 = l4[:6] + struct.pack(">H", value) + l4[8:]
    if extension:
        l4 = b"\x11" + extension + l4
    ip = struct.pack(">IHBB", 6 << 28, len(l4), 60 if extension else 17, 64) + addresses
    return MAC + PEER + b"\x86\xdd" + ip + l4


def tagged(frame: bytes, *tags: int) -> bytes:
    """``frame`` with VLAN tags, the outer ones of 802.1ad."""
    if not tags:
        return frame
    tpids = [0x88A8] * (len(tags) - 1) + [0x8100]
    stack = b"".join(struct.pack(">HH", *tag) for tag in zip(tpids, tags, strict=True))
    return frame[:12] + stack + frame[12:]
