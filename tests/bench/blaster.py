# SPDX-License-Identifier: MIT
"""A sender faster than netperf: the 1-octet datagrams of ten flows, as fast as a CPU can.

netperf needs a system call and a walk through the stack for each message. Here the
finished frames, checksums included, lie in a packet socket's transmit ring and one
call sends them all. What the interface cannot take is dropped there, as a flood is.
Runs until its standard input ends, then prints how many it offered, as JSON.
"""

from __future__ import annotations

import argparse
import json
import mmap
import select
import socket
import struct
import sys
import time
from ipaddress import IPv4Address

import numpy as np

PORT = 9000
_FLOWS, _FIRST_SOURCE = 10, 20000
_SLOT, _SLOTS, _BLOCK = 128, 1024, 4096
_HEADER = 32  # TPACKET2_HDRLEN without its sockaddr_ll
_SEND_REQUEST, _TPACKET_V2 = 1, 1
_SOL_PACKET = 263
_PACKET_VERSION, _PACKET_TX_RING, _PACKET_QDISC_BYPASS = 10, 13, 20
_LEAST_FRAME = 60


def frame(
    source: tuple[str, str], target: tuple[str, str], source_port: int, data: bytes = b"\0"
) -> bytes:
    """The frame of one datagram; ``source`` and ``target`` are MAC and IPv4 addresses."""
    (from_mac, from_ip), (to_mac, to_ip) = source, target
    addresses = IPv4Address(from_ip).packed + IPv4Address(to_ip).packed
    length = 8 + len(data)
    udp = struct.pack("!HHH", source_port, PORT, length)
    udp += struct.pack("!H", _checksum(addresses + struct.pack("!HH", 17, length) + udp + data))
    ip = struct.pack("!BBHHHBB", 0x45, 0, 20 + length, 0, 0x4000, 64, 17)
    ip += struct.pack("!H", _checksum(ip + addresses)) + addresses
    ethernet = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in (to_mac, from_mac))
    return (ethernet + b"\x08\0" + ip + udp + data).ljust(_LEAST_FRAME, b"\0")


def _checksum(octets: bytes) -> int:
    padded = octets + b"\0" * (len(octets) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.blaster", description=__doc__)
    for name in ("interface", "from_mac", "from_ip", "to_mac", "to_ip"):
        parser.add_argument(name)
    chosen = parser.parse_args()
    frames = [
        frame((chosen.from_mac, chosen.from_ip), (chosen.to_mac, chosen.to_ip), port)
        for port in range(_FIRST_SOURCE, _FIRST_SOURCE + _FLOWS)
    ]
    line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    line.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V2)
    line.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
    request = struct.pack("IIII", _BLOCK, _SLOTS * _SLOT // _BLOCK, _SLOT, _SLOTS)
    line.setsockopt(_SOL_PACKET, _PACKET_TX_RING, request)
    line.bind((chosen.interface, 0))
    ring = np.frombuffer(mmap.mmap(line.fileno(), _SLOTS * _SLOT), np.uint8).reshape(_SLOTS, _SLOT)
    words = ring.view("<u4")
    status, lengths = words[:, 0], words[:, 1]
    for slot in range(_SLOTS):
        octets = frames[slot % _FLOWS]
        ring[slot, _HEADER : _HEADER + len(octets)] = np.frombuffer(octets, np.uint8)
    lengths[:] = _LEAST_FRAME
    offered, started_s = 0, time.monotonic()
    while not select.select([sys.stdin], [], [], 0)[0]:
        before = int(np.count_nonzero(status))
        status[:] = _SEND_REQUEST
        try:
            line.send(b"")
        except OSError:  # the interface dropped a frame, which the next call tries again
            offered += 1
        offered += _SLOTS - before
    print(json.dumps({"offered": offered, "elapsed_s": time.monotonic() - started_s}))


if __name__ == "__main__":
    main()
