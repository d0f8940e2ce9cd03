# SPDX-License-Identifier: MIT
"""``python -m harness.nic``: run the NIC model as a process.

Prints one JSON line when it listens, and one with the counters of each device when it ends;
everything else goes to the log. It ends when its clients have left, or on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from pathlib import Path

from harness.nic.cable import cable
from harness.nic.datapath import DatapathError
from harness.nic.device import Nic
from harness.nic.journal import log
from harness.nic.server import MAX_TIMES, Port, Server, vfio_user, vhost_user
from harness.nic.wire import PacketWire, Wire


def _mac(text: str) -> bytes:
    octets = bytes(int(part, 16) for part in text.split(":"))
    if len(octets) != 6 or octets[0] & 1:
        raise ValueError(text)
    return octets


def _times(text: str) -> int:
    number = int(text)
    if not 0 <= number <= MAX_TIMES:
        raise ValueError(text)
    return number


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.nic", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path, help="where QEMU connects: vfio-user")
    where.add_argument(
        "--vhost-user", type=Path, help="where a user-mode kernel connects: vhost-user"
    )
    joined = parser.add_mutually_exclusive_group(required=True)
    joined.add_argument("--interface", help="the wire: a network interface")
    joined.add_argument(
        "--peer",
        type=Path,
        help="the wire: a cable to a second device; where the user-mode kernel with it connects",
    )
    parser.add_argument("--peer-mac", type=_mac, help="permanent unicast address of the peer")
    parser.add_argument("--mac", type=_mac, required=True, help="permanent unicast address")
    parser.add_argument("--control", type=Path, help="unix socket for counters and link")
    parser.add_argument("--log", type=Path, help="log file (default: stderr)")
    parser.add_argument("--verbose", action="store_true", help="log every command")
    parser.add_argument(
        "--repeat",
        type=_times,
        default=1,
        metavar="N",
        help="deliver each datagram of a stream N times; 0: as fast as the guest posts descriptors",
    )
    parser.add_argument(
        "--burst",
        type=_times,
        default=0,
        metavar="N",
        help="deliver N frames, and the next N when the guest has taken them; 0: as they come",
    )
    chosen = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if chosen.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        filename=chosen.log,
    )
    if (chosen.peer is None) != (chosen.peer_mac is None):
        parser.error("--peer and --peer-mac belong together")
    path = chosen.vhost_user or chosen.socket
    wire: Wire
    try:
        if chosen.peer:
            wire, far = cable()
        else:
            wire = PacketWire(chosen.interface)
        nic = Nic(wire, chosen.mac, bare=chosen.vhost_user is not None)
        nic.pace_wire(repeat=chosen.repeat, burst=chosen.burst)
        ports = [Port(nic, wire, path, vhost_user if chosen.vhost_user else vfio_user)]
        if chosen.peer:
            peer = Nic(far, chosen.peer_mac, bare=True)
            ports.append(Port(peer, far, chosen.peer, vhost_user))
        server = Server(*ports, control=chosen.control)
    except (OSError, DatapathError) as error:
        log.error("cannot start: %s", error)
        print(f"cannot start: {error}", file=sys.stderr)
        return 3
    log.info("data path: %s", nic.path)
    print(json.dumps({"ready": {"socket": str(path), "pid": os.getpid()}}), flush=True)
    server.run()
    with contextlib.suppress(BrokenPipeError):
        for name, port in zip(("counters", "peer"), ports, strict=False):
            print(json.dumps({name: port.nic.counters()}), flush=True)
    wire.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
