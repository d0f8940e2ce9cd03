# SPDX-License-Identifier: MIT
"""Run on the generator's end of the wire: sends frames, keeps those that come back.

Argument: the interface. Speaks JSON lines: {"send": [hex, …]} is answered when all
are sent, {"flood": [hex, …]} sends them over and over until {"stop": true},
{"taken": true} is answered with the frames that came since the last time.
"""

import contextlib
import json
import select
import socket
import sys

SOL_PACKET, IGNORE_OUTGOING, SO_RCVBUFFORCE, ROOM = 263, 23, 33, 64 << 20
PASS = 256


def main():
    line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    line.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
    with contextlib.suppress(PermissionError):
        line.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
    line.bind((sys.argv[1], 3))
    print(json.dumps({"ready": True}), flush=True)
    frames, flooding, at = [], False, 0
    while True:
        if flooding and not select.select([sys.stdin], [], [], 0)[0]:
            for _ in range(PASS):
                with contextlib.suppress(OSError):
                    line.send(frames[at])
                at = (at + 1) % len(frames)
            continue
        asked = json.loads(sys.stdin.readline() or '{"over": true}')
        answer = {"done": True}
        if "over" in asked:
            return
        if "stop" in asked:
            flooding = False
        elif "taken" in asked:
            answer = {"frames": []}
            line.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    answer["frames"].append(line.recv(65536).hex())
            line.setblocking(True)
        else:
            flooding = "flood" in asked
            frames = [bytes.fromhex(each) for each in asked.get("flood", asked.get("send"))]
            for frame in () if flooding else frames:
                line.send(frame)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
