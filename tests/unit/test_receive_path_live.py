# SPDX-License-Identifier: MIT
"""The rules of the receive path on this machine's own kernel: a veth pair, with and without RPS."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness.trials import VOID_RULES
from harness.trials.counted import Delta
from harness.trials.readings import Window
from harness.trials.receive_path import softirq_rules

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces"),
    pytest.mark.skipif(
        not {0, 1} <= os.sched_getaffinity(0), reason="CPUs 0 and 1 are not both to be had"
    ),
]

TOLERANCES = {name: rule.tolerances for name, rule in VOID_RULES.items()}
PACKETS = 5000
# In a namespace of its own: what v0 sends comes out of v1, in the softirq of the sender's CPU.
_SCRIPT = """
import json, os, socket, struct, subprocess, sys
from pathlib import Path
from harness.agent import counters
from harness.agent.inventory import see_own_interfaces

def ip(*words):
    subprocess.run(["ip", *words], check=True)

ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
ip("address", "add", "198.18.0.2/24", "dev", "v1")
for name in ("v0", "v1"):
    ip("link", "set", name, "up")
see_own_interfaces()
Path("/sys/class/net/v1/queues/rx-0/rps_cpus").write_text(sys.argv[1])
os.sched_setaffinity(0, {0})
mac = bytes.fromhex(Path("/sys/class/net/v1/address").read_text().strip().replace(":", ""))
header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 29, 0, 0, 64, 17, 0,
                     socket.inet_aton("198.18.0.1"), socket.inet_aton("198.18.0.2"))
total = sum(struct.unpack("!10H", header))
total = (total & 0xFFFF) + (total >> 16)
header = header[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[12:]
frame = mac + b"\\2\\0\\0\\0\\0\\1\\x08\\0" + header + struct.pack("!HHHH", 9, 9, 9, 0) + b"x"
sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sender.bind(("v0", 0))

def send(_):
    for _ in range(int(sys.argv[2])):
        sender.send(frame)

window = counters.Counters("v1", list).window(duration_s=0.01, sample_s=1.0, sleep=send)
print(json.dumps(window))
"""


def _window(rps_cpus: str) -> Window:
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-c", _SCRIPT, rps_cpus, str(PACKETS)],
        cwd=Path(harness.__file__).parents[1], capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if "Operation not permitted" in done.stderr:
        pytest.skip("network namespaces cannot be made here")
    assert done.returncode == 0, done.stderr
    return Window.model_validate(json.loads(done.stdout))


def test_packets_are_processed_where_they_are_sent() -> None:
    window = _window("0")
    delta = Delta(window.start, window.end)
    # A new interface hears a few frames of IPv6, too, its own among them.
    for count in (delta.nic_delivered, delta.ip_in):
        assert count is not None
        assert PACKETS <= count < PACKETS + 20
    found = {void.rule: void.detail for void in softirq_rules(window, [0], TOLERANCES)}
    assert "softirq-moved" not in found
    moved = {void.rule: void.detail for void in softirq_rules(window, [1], TOLERANCES)}
    told = moved["softirq-moved"]
    assert re.search(r"of the interface's 50\d\d packets were processed on CPU 1; CPU 0: ", told)


def test_packets_that_are_steered_to_another_cpu_void_a_trial() -> None:
    found = {void.rule: void.detail for void in softirq_rules(_window("2"), [0], TOLERANCES)}
    assert found.keys() == {"rps-used", "softirq-moved"}
    assert "CPU 1: " in found["rps-used"]
