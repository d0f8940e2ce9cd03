# SPDX-License-Identifier: MIT
"""``python -m harness.selftest power SOCKET MACHINE on|off|cycle|status``: press a button.

A rack's hosts file names this as the power command of its machines.
"""

from __future__ import annotations

import socket
import sys

_PATIENCE_S = 60.0


def main() -> int:
    if len(sys.argv) != 5 or sys.argv[1] != "power":
        print(__doc__, file=sys.stderr)
        return 2
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(_PATIENCE_S)
            line.connect(sys.argv[2])
            line.sendall(f"{sys.argv[3]} {sys.argv[4]}\n".encode())
            answer = line.makefile().readline().strip()
    except OSError as error:
        answer = f"error {error}"
    if answer not in ("on", "off"):
        print(answer, file=sys.stderr)
        return 1
    print(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
