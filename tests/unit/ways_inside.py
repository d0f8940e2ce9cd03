# SPDX-License-Identifier: MIT
"""What the agent sees of links, packet sockets and programs, in the network namespace it runs in.

Run as a program in a namespace of its own; prints one line of JSON.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyroute2

from harness.agent import inventory, settings
from harness.agent.doctor import health
from harness.agent.interface import in_the_way, stacked

_ETH_P_ALL, _ETH_P_IP, _ETH_P_ARP = 0x0003, 0x0800, 0x0806
_BPF = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _TYPE_XDP, _XDP_PASS = 5, 6, 2
_PR_SET_NAME = 15


def ip(*lines: str) -> None:
    for line in lines:
        subprocess.run(["ip", *line.split()], check=True)


def together(*lines: str, of: str = "dut") -> list[str]:
    """What has one wire with ``of`` once ``lines`` are done, or the first line that cannot be."""
    for line in lines:
        done = subprocess.run(["ip", *line.split()], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return [f"not here: ip {line}: {done.stderr.strip()}"]
    return sorted(stacked.together([of], stacked.interfaces()))


def bridged() -> Any:
    return together(
        "link add dut type veth peer name far",
        "link add br0 type bridge",
        "link set dut master br0",
        "link add mgmt type bridge",
        "link add alone type veth peer name other",
    )


def deep() -> Any:
    """dut in br0; br0 joined by a veth pair with br1; on that a macvlan."""
    return together(
        "link add dut type veth peer name far",
        "link add br0 type bridge",
        "link add br1 type bridge",
        "link set dut master br0",
        "link add v0 type veth peer name v1",
        "link set v0 master br0",
        "link set v1 master br1",
        "link add link br1 name mv type macvlan mode bridge",
        "link add alone type veth peer name other",
    )


def kind(*lines: str) -> Callable[[], Any]:
    return lambda: together("link add dut type veth peer name far", *lines)


def elsewhere() -> Any:
    """The other end of a pair is in another namespace, and its number is one of ours, too."""
    ip("link add dut type veth peer name far", "link add alone type veth peer name other")
    with subprocess.Popen(["unshare", "--net", "sleep", "60"]) as holder:
        try:
            end_s = time.monotonic() + 5
            own = Path("/proc/self/ns/net").stat().st_ino
            while Path(f"/proc/{holder.pid}/ns/net").stat().st_ino == own:
                assert time.monotonic() < end_s
                time.sleep(0.01)
            ip(f"link set far netns {holder.pid}")
            return sorted(stacked.together(["dut"], stacked.interfaces()))
        finally:
            holder.kill()


def taps() -> Any:
    """A DHCP client's socket, one for everything, one for ARP, one of this agent's own."""
    ip("link add dut type veth peer name far", "link set far up", "link set dut up")
    before = in_the_way.found("dut")
    script = (
        "import ctypes, os, socket, sys, time; "
        "ctypes.CDLL(None).prctl(15, os.fsencode(sys.argv[1])); "
        "one = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0); "
        "one.bind((sys.argv[2], int(sys.argv[3]))) if sys.argv[2] else "
        "None; print(flush=True); time.sleep(60)"
    )
    # In a shell of its own, so that it is none of this process's children.
    wanted = [
        ("dhclient", "dut", _ETH_P_IP),
        ("caf\udce9", "dut", _ETH_P_ALL),
        ("arping", "dut", _ETH_P_ARP),
        ("elsewhere", "far", _ETH_P_ALL),
    ]
    started: list[int] = []
    for name, interface, protocol in wanted:
        done = subprocess.run(
            ["sh", "-c", '"$@" >/dev/null & echo $!', "sh", sys.executable, "-c", script, name,
             interface, str(protocol)],
            stdout=subprocess.PIPE,
            check=True,
        )  # fmt: skip
        started.append(int(done.stdout))
    own = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
    own.bind(("far", 0))
    try:
        end_s = time.monotonic() + 10
        while len(in_the_way.found("dut")["packet_taps"]) < 3 and time.monotonic() < end_s:
            time.sleep(0.05)
        agent = settings.Settings()
        found = agent.apply(interface="dut")["packet_taps"]
        agent.restore()
        again = inventory.inventory(interface="dut")["packet_taps"]
        return {"before": before, "found": found, "same": found == again, "pids": started}
    finally:
        own.close()
        for pid in started:
            os.kill(pid, 9)


def programs() -> Any:
    ip(
        "link add dut type veth peer name far",
        "link add br0 type bridge",
        "link set dut up",
    )
    found: dict[str, Any] = {"nothing": in_the_way.found("dut")["in_the_way"]}
    _attach_xdp("dut")
    found["xdp"] = in_the_way.found("dut")["in_the_way"]
    ip("link set dev dut xdp off")
    found["xdp off"] = in_the_way.found("dut")["in_the_way"]
    subprocess.run(["tc", "qdisc", "add", "dev", "dut", "clsact"], check=True)
    found["clsact"] = in_the_way.found("dut")["in_the_way"]
    words = "filter add dev dut ingress protocol ip u32 match u32 0 0 flowid 1:1"
    filters = ["tc", *words.split()]
    if subprocess.run(filters, capture_output=True, check=False).returncode == 0:
        found["filter"] = in_the_way.found("dut")["in_the_way"]
    subprocess.run(["tc", "qdisc", "del", "dev", "dut", "clsact"], check=True)
    ip("link set dut master br0")
    found["bridge"] = in_the_way.found("dut")["in_the_way"]
    ip("link set dut nomaster", "link add link dut name mv type macvlan")
    found["macvlan"] = in_the_way.found("dut")["in_the_way"]
    return found


def _attach_xdp(interface: str) -> None:
    """The shortest program there is: every packet passes."""
    code = struct.pack("<BBhiBBhi", 0xB7, 0, 0, _XDP_PASS, 0x95, 0, 0, 0)
    code_at, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"MIT")
    asked = struct.pack(
        "<IIQQIIQII", _TYPE_XDP, 2, ctypes.addressof(code_at), ctypes.addressof(licence),
        0, 0, 0, 0, 0,
    ) + bytes(64)  # fmt: skip
    libc = ctypes.CDLL(None, use_errno=True)
    number = _BPF[os.uname().machine]
    file = libc.syscall(number, _PROG_LOAD, ctypes.create_string_buffer(asked), len(asked))
    if file < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    with pyroute2.IPRoute() as route:
        route.link("set", index=socket.if_nametoindex(interface), xdp_fd=file)


def _lines(*more: str) -> None:
    """A client behind `far`, a test interface `dut` in br0 with it, and `apart` of its own."""
    ip(
        "link set lo up",
        "link add br0 type bridge",
        "link add dut type veth peer name gen",
        "link add up0 type veth peer name far",
        "link set dut master br0",
        "link set up0 master br0",
        "link add apart type veth peer name other",
        *(f"link set {name} up" for name in ("br0", "dut", "gen", "up0", "far", "apart", "other")),
        "address add 192.0.2.1/24 dev br0",
        "-6 address add 2001:db8::1/64 dev br0 nodad",
        "address add 198.51.100.1/24 dev apart",
        *more,
    )


def _under_sshd(host: str, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """What the agent finds below an sshd whose connection has this host's address ``host``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    script = (
        "import json, socket, sys; from harness.agent.doctor import health; "
        "from harness.agent.interface import reached; "
        "print(json.dumps({'carried': health.carried('dut'), 'apart': health.carried('apart'), "
        "'connections': sorted(reached.connections())}))"
    )
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, 2222))
        listening.listen()
        pid = os.fork()
        if pid == 0:
            # Named as sshd names the process of a session.
            ctypes.CDLL(None).prctl(_PR_SET_NAME, b"sshd-session")
            with socket.create_connection((host, 2222)) as client:
                ours, _ = listening.accept()
                with ours:
                    # sudo between them: nothing of the environment is left.
                    done = subprocess.run(
                        [sys.executable, "-c", script],
                        env={"PATH": os.environ["PATH"], **(environment or {})},
                        capture_output=True,
                        text=True,
                        check=False,
                    )
                    sys.stderr.write(done.stderr)
                    sys.stdout.write(done.stdout)
                    sys.stdout.flush()
                client.close()
            os._exit(0)
        os.waitpid(pid, 0)
    return {}


def ssh_v4() -> Any:
    _lines()
    return _under_sshd("192.0.2.1")


def ssh_v6() -> Any:
    _lines()
    return _under_sshd("2001:db8::1")


def ssh_apart() -> Any:
    _lines()
    return _under_sshd("198.51.100.1")


def ssh_loopback() -> Any:
    _lines()
    return _under_sshd("127.0.0.1")


def ssh_by_environment() -> Any:
    """No sshd above, as in tmux; the variable is all there is."""
    _lines()
    os.environ["SSH_CONNECTION"] = "192.0.2.77 50000 192.0.2.1 22"
    script = (
        "import json; from harness.agent.doctor import health; "
        "from harness.agent.interface import reached; "
        "print(json.dumps({'carried': health.carried('dut'), 'apart': health.carried('apart'), "
        "'connections': sorted(reached.connections())}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def routes() -> Any:
    """Of default routes, too, what matters is the wire."""
    _lines("route add default via 192.0.2.2 dev br0")
    first = health.carried("dut")[0]
    ip("route del default", "-6 route add default via 2001:db8::2 dev br0")
    return {"v4": first, "v6": health.carried("dut")[0], "apart": health.carried("apart")[0]}


CHECKS: dict[str, Callable[[], Any]] = {
    "bridged": bridged,
    "deep": deep,
    "vlan": kind("link add link dut name upper type vlan id 5"),
    "vlan below": lambda: together(
        "link add real type veth peer name far",
        "link add link real name dut type vlan id 5",
        "link add link real name upper type vlan id 6",
    ),
    "macvlan": kind("link add link dut name upper type macvlan mode bridge"),
    "macvlan beside": lambda: together(
        "link add real type veth peer name far",
        "link add link real name dut type macvlan mode bridge",
        "link add link real name upper type macvlan mode bridge",
    ),
    "ipvlan": kind("link add link dut name upper type ipvlan"),
    "bond": kind("link add upper type bond", "link set dut down", "link set dut master upper"),
    "team": kind("link add upper type team", "link set dut down", "link set dut master upper"),
    "vxlan": kind("link add upper type vxlan id 4 dev dut dstport 4789 remote 10.0.0.3"),
    "vrf": kind("link add upper type vrf table 5", "link set dut master upper"),
    "elsewhere": elsewhere,
    "taps": taps,
    "programs": programs,
    "ssh_v4": ssh_v4,
    "ssh_v6": ssh_v6,
    "ssh_apart": ssh_apart,
    "ssh_loopback": ssh_loopback,
    "ssh_by_environment": ssh_by_environment,
    "routes": routes,
}


def main() -> int:
    inventory.see_own_interfaces()
    found = CHECKS[sys.argv[1]]()
    if found != {}:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
