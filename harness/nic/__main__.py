# SPDX-License-Identifier: MIT
"""``python -m harness.nic``: run the model as a process of its own.

Writes one JSON line when it listens and one with its counters when it ends; all
else goes to the log. It ends when its client has left, or on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from pathlib import Path

from harness.nic.device import Nic
from harness.nic.journal import log
from harness.nic.server import Server
from harness.nic.wire import PacketWire


def _mac(text: str) -> bytes:
    octets = bytes(int(part, 16) for part in text.split(":"))
    if len(octets) != 6 or octets[0] & 1:
        raise ValueError(text)
    return octets


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.nic", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="where QEMU connects")
    parser.add_argument("--interface", required=True, help="the wire: a network interface")
    parser.add_argument("--mac", type=_mac, required=True, help="permanent unicast address")
    parser.add_argument("--control", type=Path, help="unix socket for counters and link")
    parser.add_argument("--log", type=Path, help="log file (default: stderr)")
    parser.add_argument("--verbose", action="store_true", help="log every command")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if chosen.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(message)s",
        filename=chosen.log,
    )
    try:
        wire = PacketWire(chosen.interface)
        nic = Nic(wire, chosen.mac)
        server = Server(nic, wire, path=chosen.socket, control=chosen.control)
    except OSError as error:
        log.error("cannot start: %s", error)
        print(f"cannot start: {error}", file=sys.stderr)
        return 3
    print(json.dumps({"ready": {"socket": str(chosen.socket), "pid": os.getpid()}}), flush=True)
    server.run()
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"counters": nic.counters()}), flush=True)
    wire.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
