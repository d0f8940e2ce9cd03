# SPDX-License-Identifier: MIT
"""Run on the generator's end of the wire: sends frames, keeps those that come back.

Argument: the interface. Speaks JSON lines: {"send": [hex, …]} is answered when all
are sent, {"flood": [hex, …]} sends them over and over until {"stop": true},
{"taken": true} is answered with the frames that came since the last time,
{"streams": {…}} when that many TCP connections of this system have sent all, with the
seconds that their requests took before.
"""

import array
import contextlib
import fcntl
import json
import random
import select
import socket
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

SOL_PACKET, IGNORE_OUTGOING, SO_RCVBUFFORCE, ROOM = 263, 23, 33, 64 << 20
PASS, PAUSE_S = 256, 0.002
"""A flood leaves a kernel with one CPU some time for its processes."""
SIOCETHTOOL, SET_TX_CHECKSUMS, SET_TSO, SET_GSO = 0x8946, 0x17, 0x1F, 0x24


def offloads(interface: str, on: bool) -> None:
    """What is sent is to be made up here: nobody else does, before the NIC's model gets it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for command in (SET_TX_CHECKSUMS, SET_TSO, SET_GSO):
            value = array.array("I", [command, int(on)])
            asked = struct.pack("16sQ16x", interface.encode(), value.buffer_info()[0])
            with contextlib.suppress(OSError):  # checksums off took the others along
                fcntl.ioctl(any_socket, SIOCETHTOOL, asked)


def streams(
    interface: str,
    *,
    own: str,
    to: str,
    mac: str,
    port: int,
    count: int,
    octets: int,
    rounds: int,
    request: int,
) -> list[tuple[bool, float]]:
    """``count`` connections at once, each of which sends its number and as much as is asked.

    Between the two, it sends ``rounds`` requests and waits for the answer of each.
    """

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words, "dev", interface], check=True)

    def one(number: int) -> tuple[bool, float]:
        with socket.create_connection((to, port), timeout=120) as line:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.sendall(struct.pack("!I", number))
            begun = time.monotonic()
            for _ in range(rounds):
                line.sendall(bytes(request))
                line.recv(request, socket.MSG_WAITALL)
            took_s = time.monotonic() - begun
            line.sendall(random.Random(number).randbytes(octets))
            line.shutdown(socket.SHUT_WR)
            complete = line.recv(1) == b"."  # the other end has all
            line.recv(1)  # and has closed: its last packet needs an answer
            return complete, took_s

    offloads(interface, False)
    ip("address", "add", f"{own}/24")
    ip("neighbour", "replace", to, "lladdr", mac, "nud", "permanent")
    try:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(one, range(count)))
    finally:
        ip("neighbour", "del", to)  # or it goes with the address
        ip("address", "del", f"{own}/24")
        offloads(interface, True)


def main() -> None:
    line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    line.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
    with contextlib.suppress(PermissionError):
        line.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
    line.bind((sys.argv[1], 3))
    print(json.dumps({"ready": True}), flush=True)
    frames: list[bytes] = []
    flooding, at = False, 0
    while True:
        if flooding and not select.select([sys.stdin], [], [], 0)[0]:
            for _ in range(PASS):
                with contextlib.suppress(OSError):
                    line.send(frames[at])
                at = (at + 1) % len(frames)
            time.sleep(PAUSE_S)
            continue
        asked = json.loads(sys.stdin.readline() or '{"over": true}')
        answer: dict[str, object] = {"done": True}
        if "over" in asked:
            return
        if "stop" in asked:
            flooding = False
        elif "taken" in asked:
            taken: list[str] = []
            line.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    taken.append(line.recv(65536).hex())
            line.setblocking(True)
            answer = {"frames": taken}
        elif "streams" in asked:
            answer = {"streams": streams(sys.argv[1], **asked["streams"])}
        else:
            flooding = "flood" in asked
            frames = [bytes.fromhex(each) for each in asked.get("flood", asked.get("send"))]
            for frame in () if flooding else frames:
                line.send(frame)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
