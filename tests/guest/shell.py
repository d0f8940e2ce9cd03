# SPDX-License-Identifier: MIT
"""A shell in the kernel of a native bed, and whether its NIC passes packets."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass

from harness.beds.native import NativeBed

INSIDE = """\
import json, subprocess, sys
for line in sys.stdin:
    script, timeout_s = json.loads(line)
    try:
        done = subprocess.run(
            ["sh", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=timeout_s, errors="replace",
        )
        answer = [done.returncode, done.stdout]
    except subprocess.TimeoutExpired as error:
        answer = [124, (error.stdout or b"").decode(errors="replace")]
    print(json.dumps(answer), flush=True)
"""
"""The ``program`` of the bed."""

# The peer answers a datagram to a port where nobody listens, at most about once a second.
_ASK = """\
import socket, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
    line.settimeout(0.4)
    line.connect(("PEER", 9))
    until = time.monotonic() + WITHIN
    while time.monotonic() < until:
        try:
            line.send(b"?")
            line.recv(1)
        except ConnectionRefusedError:
            raise SystemExit(0)
        except OSError:
            time.sleep(0.1)
raise SystemExit(1)
"""


@dataclass
class Shell:
    """Runs scripts in the guest; ``IF`` in them is its interface, ``DEVICE`` its PCI device.

    ``peer`` is the address of the generator, ``own`` that of the guest.
    """

    bed: NativeBed
    own: str
    peer: str

    def __post_init__(self) -> None:
        self._line = self.bed.kernel.line.makefile("rw", encoding="utf-8")
        device = self.run("basename $(readlink /sys/class/net/IF/device)")
        self._device = device.strip()

    def run(self, script: str, *, fails: bool = False, timeout_s: float = 60.0) -> str:
        """What it printed; with ``fails`` it must not succeed."""
        script = script.replace("IF", self.bed.dut_interface)
        script = script.replace("DEVICE", getattr(self, "_device", ""))
        self.bed.kernel.line.settimeout(timeout_s + 30)
        self._line.write(json.dumps([script, timeout_s]) + "\n")
        self._line.flush()
        code, said = json.loads(self._line.readline())
        assert bool(code) == fails, (script, code, said)
        return str(said)

    def passes(self, within_s: float = 20.0) -> bool:
        """Whether a packet leaves the guest and another comes back."""
        script = _ASK.replace("PEER", self.peer).replace("WITHIN", str(within_s))
        said = self.run(f"python3 -c '{script}' && echo passes || echo silent", timeout_s=120)
        return "passes" in said

    def dmesg(self) -> str:
        return self.run("dmesg")

    def says(self, *patterns: str, within_s: float = 10.0) -> None:
        """The kernel says all of these, in this order, within a time."""
        wanted = re.compile(".*".join(patterns), re.DOTALL)
        until = time.monotonic() + within_s
        while not wanted.search(said := self.dmesg()):
            assert time.monotonic() < until, (patterns, said)
            time.sleep(0.1)

    def rebind(self) -> None:
        """Take the driver from the device and give it back, with its address."""
        self.run(
            "cd /sys/bus/pci/drivers/sfc; echo DEVICE > unbind; echo DEVICE > bind; sleep 0.2;"
            f"ip address add {self.own} dev IF; ip link set IF up"
        )
