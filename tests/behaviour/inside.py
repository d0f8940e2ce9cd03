# SPDX-License-Identifier: MIT
"""Run in the guest as root: sets scenes up, watches them, and tells what was seen.

A scene lives in a process of its own, in network and mount namespaces of that process:
its counters begin at nothing, and all of it is gone when the process ends; the NIC then
returns. Speaks JSON lines: takes the scene, says ready; takes {"settle": n} and answers
once the marker frame n has come; at {"end": true} tells what was observed. At
{"over": true}, or when it cannot go on, the scene ends, and that is the answer.
"""

import collections
import contextlib
import ctypes
import hashlib
import itertools
import json
import os
import select
import shlex
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARKER = 0x88B5  # IEEE 802's local experimental EtherType
PATIENCE_S = 120.0
WOKEN_S = 3.0
ROOM = 2 << 20
SOL_PACKET, ADD_MEMBERSHIP, PROMISC, IGNORE_OUTGOING = 263, 1, 1, 23
SO_RCVBUFFORCE, SO_TIMESTAMPING, SO_BUSY_POLL, SO_MEMINFO, UDP = 33, 37, 46, 55, 17
SO_RXQ_OVFL, SO_ATTACH_REUSEPORT_CBPF = 40, 51
RX_SOFTWARE_STAMPS = (1 << 3) | (1 << 4)
# A flood of an emulated machine that has sanitizers can well take the usual 20 seconds.
GLOBAL = {
    "kernel/printk": "8",
    "kernel/watchdog_thresh": "60",
    "net/ipv6/mld_qrv": "1",
    "net/ipv4/udp_mem": "20000 30000 40000",
}
# Nothing may depend on the time that passes: no limits of rates, nothing sent unasked.
QUIET = {
    "net/ipv4/icmp_ratemask": "0",
    "net/ipv4/igmp_qrv": "1",
    "net/ipv4/conf/default/igmpv3_unsolicited_report_interval": "1",
    "net/ipv6/conf/default/mldv2_unsolicited_report_interval": "1",
    "net/ipv4/ipfrag_time": "900",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    "net/ipv6/icmp/ratemask": "",
    "net/ipv6/auto_flowlabels": "0",
    "net/ipv6/ip6frag_time": "900",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/addr_gen_mode": "1",
    "net/ipv6/conf/default/autoconf": "0",
    "net/ipv6/conf/default/router_solicitations": "0",
    "net/netfilter/nf_conntrack_acct": "1",
    "net/netfilter/nf_conntrack_udp_timeout": "900",
    "net/netfilter/nf_conntrack_icmp_timeout": "900",
}


def write(path: str, text: str) -> None:
    Path(path).write_text(f"{text}\n")


def run(line: str) -> str:
    """One command of a scene: an argument vector, but for ``write VALUE FILE`` and ``take NIC``."""
    argv = shlex.split(line)
    if argv[0] == "write":
        write(argv[2], argv[1])
        return ""
    if argv[0] == "take":
        take(argv[1])
        return ""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{line}: {done.stderr.strip()}")
    return done.stdout


def take(nic: str) -> None:
    """Have the NIC in this namespace, once it is in the system's."""
    argv = f"nsenter --target 1 --net ip link set {nic} netns {os.getpid()}".split()
    deadline = time.monotonic() + PATIENCE_S
    while subprocess.run(argv, capture_output=True).returncode != 0:
        if time.monotonic() > deadline:
            raise SystemExit(f"{nic} has not come back from the last scene, or its driver")
        time.sleep(0.05)


def await_carrier(nic: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while Path("/sys/class/net", nic, "operstate").read_text() != "up\n":
        if time.monotonic() > deadline:
            raise SystemExit(f"{nic} has no carrier")
        time.sleep(0.05)


def enter(nic: str) -> None:
    """Go into new namespaces, and take the NIC along."""
    if sys.version_info < (3, 12):
        raise SystemExit("network namespaces are entered by Python 3.12 or newer")
    set_up(GLOBAL)
    os.unshare(os.CLONE_NEWNET | os.CLONE_NEWNS)
    for line in ("mount --make-rprivate /", "mount -t sysfs sysfs /sys", "mount -t tmpfs run /run"):
        run(line)
    set_up(QUIET)
    take(nic)


def set_up(sysctls: dict[str, str]) -> None:
    for name, value in sysctls.items():
        if Path("/proc/sys", name).exists():
            write(f"/proc/sys/{name}", value)


@contextlib.contextmanager
def within(namespace: str | None) -> Iterator[None]:
    """For a while in another network namespace of the scene; None: its own."""
    if namespace is None:
        yield
        return
    if sys.version_info < (3, 12):
        raise SystemExit("network namespaces are entered by Python 3.12 or newer")
    own_path, other_path = Path("/proc/self/ns/net"), Path("/run/netns", namespace)
    with own_path.open() as own, other_path.open() as other:
        os.setns(other.fileno(), os.CLONE_NEWNET)
        try:
            yield
        finally:
            os.setns(own.fileno(), os.CLONE_NEWNET)


class Flows:
    """Digests of what came, in order, by flow."""

    def __init__(self) -> None:
        self.counts = collections.Counter[str]()
        self.digests: dict[str, hashlib._Hash] = collections.defaultdict(hashlib.sha256)

    def add(self, flow: str, *parts: bytes) -> None:
        self.counts[flow] += 1
        for part in parts:
            self.digests[flow].update(struct.pack("!I", len(part)) + part)

    def told(self) -> dict[str, str]:
        return {
            flow: f"{count} {self.digests[flow].hexdigest()[:12]}"
            for flow, count in sorted(self.counts.items())
        }


class Datagrams:
    """A UDP socket; what it got is read at the end, or at once by a busy-polling thread."""

    def __init__(self, spec: dict[str, Any]) -> None:
        family = socket.AF_INET6 if spec["family"] == 6 else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        option = self.socket.setsockopt
        option(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        option(socket.SOL_SOCKET, SO_RCVBUFFORCE, spec["room"] // 2)  # the kernel doubles it
        if family == socket.AF_INET6:
            option(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if spec["stamped"]:
            option(socket.SOL_SOCKET, SO_TIMESTAMPING, RX_SOFTWARE_STAMPS)
        if spec["between"]:
            option(socket.SOL_SOCKET, SO_RXQ_OVFL, 1)
        if spec["member"]:
            option(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if spec["device"]:
            option(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, spec["device"].encode())
        self.socket.bind(("", spec["port"]))
        if spec["peer"]:
            self.socket.connect(tuple(spec["peer"]))
        if spec["group"]:
            index = socket.if_nametoindex(spec["group"][1])
            member = socket.inet_aton(spec["group"][0]) + bytes(4) + struct.pack("=i", index)
            option(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        if spec["member"]:
            by_first_bit(self.socket)
        self.stamped, self.between = spec["stamped"], spec["between"]
        self.flows = Flows()
        self.stamps: list[tuple[int, int]] = []
        self.drops: list[int] = []
        self._reader: threading.Thread | None = None
        self._first: list[bytes] = []
        self._waiting = [
            threading.Thread(target=self._wait, daemon=True) for _ in range(spec["waiting"])
        ]
        if spec["busy_poll_us"]:
            option(socket.SOL_SOCKET, SO_BUSY_POLL, spec["busy_poll_us"])
            self.socket.settimeout(0.2)
            self._over = threading.Event()
            self._reader = threading.Thread(target=self._poll, daemon=True)
            self._reader.start()
        elif not self._waiting:
            self.socket.setblocking(False)
        for thread in self._waiting:
            thread.start()

    def _wait(self) -> None:
        self._first.append(self.socket.recv(65536))

    def _poll(self) -> None:
        while not self._over.is_set():
            self._take()

    def _take(self, most: int | None = None) -> None:
        """What has come, in all or ``most`` datagrams."""
        flags = 0 if self._reader else socket.MSG_DONTWAIT
        with contextlib.suppress(BlockingIOError, TimeoutError, ConnectionRefusedError):
            for _ in itertools.count() if most is None else range(most):
                data, ancillary, _, source = self.socket.recvmsg(65536, 512, flags)
                self.flows.add(f"{source[0]}:{source[1]}", data)
                for _, kind, content in ancillary:
                    if kind == SO_TIMESTAMPING:
                        self.stamps.append(struct.unpack_from("=qq", content))
                    elif kind == SO_RXQ_OVFL:
                        self.drops.append(*struct.unpack("=I", content))

    def settle(self) -> None:
        self._take(self.between)

    def told(self) -> dict[str, str]:
        if self._reader:
            self._over.set()
            self._reader.join()
        deadline = time.monotonic() + WOKEN_S
        for thread in self._waiting:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._take()
        found: dict[str, Any] = dict(self.flows.told())
        if self._waiting:
            first = Flows()
            first.add("to those who waited", *sorted(self._first))
            found |= {"woken": len(self._first), **first.told()}
        if self.between:
            found["drops told"] = " ".join(map(str, self.drops))
        memory = self.socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)
        found["dropped"] = struct.unpack("=9I", memory)[8]
        if self.stamped:
            found["stamped"] = len(self.stamps)
            found["stamps in order"] = self.stamps == sorted(self.stamps)
            found["stamped at reception"] = all(seconds > 0 for seconds, _ in self.stamps)
        return found


def leave_no_memory() -> socket.socket:
    """A socket that holds more than what CPUs may keep in reserve, and all others may get."""
    ballast = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ballast.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 * ROOM)
    ballast.bind(("127.0.0.1", 0))
    for _ in range(100):
        ballast.sendto(bytes(40000), ballast.getsockname())
    run("nsenter --target 1 --net sysctl -qw 'net.ipv4.udp_mem=0 0 0'")
    return ballast


def by_first_bit(member: socket.socket) -> None:
    """Have its reuseport group choose a member by the first bit of a datagram's payload."""
    code = struct.pack("HBBI" * 3, 0x30, 0, 0, 0, 0x54, 0, 0, 1, 0x16, 0, 0, 0)
    kept = ctypes.create_string_buffer(code)  # ldb [0]; and #1; ret a
    program = struct.pack("HxxxxxxQ", 3, ctypes.addressof(kept))
    member.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)


class Streams(threading.Thread):
    """Takes TCP connections: what came, by the number that each begins with.

    After that come ``rounds`` requests, each answered before the next.
    """

    def __init__(self, port: int, rounds: int, request: int, busy_poll_us: int) -> None:
        super().__init__(daemon=True)
        # A connection whose last packet is lost keeps its namespace, and so the NIC, for 100 s.
        write("/proc/sys/net/ipv4/tcp_orphan_retries", "3")
        self._listening = socket.create_server(("", port), backlog=128)
        self._rounds, self._request, self._busy_poll_us = rounds, request, busy_poll_us
        self._found: dict[str, str] = {}
        self.start()

    def run(self) -> None:
        while True:
            threading.Thread(target=self._take, args=self._listening.accept()[:1]).start()

    def _take(self, line: socket.socket) -> None:
        line.setsockopt(socket.SOL_SOCKET, SO_BUSY_POLL, self._busy_poll_us)
        with line, line.makefile("rb") as stream:
            (number,) = struct.unpack("!I", stream.read(4))
            for _ in range(self._rounds):
                line.sendall(stream.read(self._request))
            content = stream.read()
            digest = hashlib.sha256(content).hexdigest()[:12]
            self._found[f"stream {number}"] = f"{len(content)} {digest}"
            line.sendall(b".")

    def told(self) -> dict[str, str]:
        return self._found


class Tap:
    """A packet socket on a device: for everything, in promiscuous mode, or for one protocol."""

    def __init__(self, device: str, protocol: int, one_order: bool) -> None:
        self.one_order = one_order
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        self.socket.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
        if protocol == 3:
            membership = struct.pack("iHH8s", socket.if_nametoindex(device), PROMISC, 0, b"")
            self.socket.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, membership)
        self.socket.bind((device, protocol))
        self.socket.setblocking(False)

    def told(self) -> dict[str, str]:
        flows = Flows()
        with contextlib.suppress(BlockingIOError):
            while True:
                frame, (_, protocol, kind, _, _) = self.socket.recvfrom(65536)
                # GRO holds some TCP back: mostly its order is that of the wire only within a flow.
                is_tcp = frame[12:14] == b"\x08\0" and frame[23:24] == b"\x06"
                if is_tcp and not self.one_order:
                    flows.add(f"tcp {frame[26:38].hex()} kind {kind}", frame)
                    continue
                flows.add(f"type {protocol:04x} kind {kind}", frame)
                flows.add("all", frame)
        return flows.told()


class Queue(threading.Thread):
    """Accepts all that nft queues to number 0, as user space would."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.line = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
        self.line.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
        self.line.bind((0, 0))
        self._tell(2, 1, struct.pack("!BBH", 1, 0, 0))  # CONFIG: CMD: BIND
        self._tell(2, 2, struct.pack("!IB", 0, 1))  # CONFIG: PARAMS: COPY_META
        self._tell(2, 3, struct.pack("!I", 4096))  # CONFIG: QUEUE_MAXLEN
        self.start()

    def _tell(self, message: int, attribute: int, value: bytes) -> None:
        body = struct.pack("!BBH", 0, 0, 0)
        body += struct.pack("=HH", 4 + len(value), attribute) + value + bytes(-len(value) % 4)
        self.line.send(struct.pack("=IHHII", 16 + len(body), 3 << 8 | message, 1, 0, 0) + body)

    def run(self) -> None:
        while True:
            data = self.line.recv(65536)
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                message, data = data[:length], data[(length + 3) & ~3 :]
                at = 20
                while kind == 3 << 8 and at < length:
                    size, attribute = struct.unpack_from("=HH", message, at)
                    if attribute == 1:  # PACKET_HDR
                        (packet,) = struct.unpack_from("!I", message, at + 4)
                        self._tell(1, 2, struct.pack("!II", 1, packet))  # VERDICT: accept
                    at += (size + 3) & ~3

    def waiting(self) -> int:
        lines = Path("/proc/net/netfilter/nfnetlink_queue").read_text().splitlines()
        return sum(int(line.split()[2]) for line in lines)


def op(code: int, registers: int, offset: int, number: int) -> bytes:
    return struct.pack("BBhi", code, registers, offset, number)


def generic_xdp(device: str, redirect_to: str) -> None:
    """By the last three bits of an IPv4 UDP port: 2 is dropped, 3 redirected, the rest passed."""
    libc = ctypes.CDLL(None, use_errno=True)

    def bpf(command: int, attributes: bytes) -> int:
        done: int = libc.syscall(321, command, attributes, len(attributes))
        if done < 0:
            raise SystemExit(f"bpf({command}): {os.strerror(ctypes.get_errno())}")
        return done

    program = b"".join((
        op(0x61, 0x12, 0, 0), op(0x61, 0x13, 4, 0),  # r2 = data, r3 = data_end
        op(0xB7, 0x00, 0, 2),  # r0 = XDP_PASS
        op(0xBF, 0x24, 0, 0), op(0x07, 0x04, 0, 38), op(0x2D, 0x34, 13, 0),  # too short: exit
        op(0x69, 0x25, 12, 0), op(0x55, 0x05, 11, 0x0008),  # not IPv4: exit
        op(0x71, 0x25, 23, 0), op(0x55, 0x05, 9, UDP),
        op(0x71, 0x25, 37, 0), op(0x57, 0x05, 0, 7),  # r5 = port & 7
        op(0x55, 0x05, 2, 2), op(0xB7, 0x00, 0, 1), op(0x95, 0, 0, 0),  # 2: XDP_DROP
        op(0x55, 0x05, 3, 3),
        op(0xB7, 0x01, 0, socket.if_nametoindex(redirect_to)),
        op(0xB7, 0x02, 0, 0), op(0x85, 0, 0, 23),  # r0 = bpf_redirect(r1, 0)
        op(0x95, 0, 0, 0),
    ))  # fmt: skip
    code, license_ = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
    frags = 1 << 5  # takes packets in pieces, so the kernel copies them to new ones
    loaded = bpf(5, struct.pack(
        "IIQQIIQII16sII", 6, len(program) // 8, ctypes.addressof(code),
        ctypes.addressof(license_), 0, 0, 0, 0, frags, b"by_port", 0, 37,
    ))  # fmt: skip
    skb_mode = 2
    index = socket.if_nametoindex(device)
    bpf(28, struct.pack("IIII", loaded, index, 37, skb_mode) + bytes(16))


def columns(path: str) -> dict[str, int]:
    """Counters of a file in which lines come in pairs: names, then values."""
    lines = [line.split() for line in Path(path).read_text().splitlines()]
    return {
        f"{names[0]}{name}": int(value)
        for names, values in zip(lines[::2], lines[1::2], strict=True)
        for name, value in zip(names[1:], values[1:], strict=True)
    }


def per_cpu(path: str, wanted: tuple[str, ...]) -> dict[str, int]:
    """Sums over the CPUs of the ``wanted`` columns of a file of hexadecimal numbers."""
    if not Path(path).exists():
        return {}
    names, *rows = (line.split() for line in Path(path).read_text().splitlines())
    return {
        name: sum(int(row[at], 16) for row in rows)
        for at, name in enumerate(names)
        if name in wanted
    }


def links(nic: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for link in json.loads(run("ip -json -details -statistics -statistics link show")):
        # The NIC tells its own counters late, and a bond those of its NICs.
        late = link["ifname"] == nic or link.get("linkinfo", {}).get("info_kind") == "bond"
        for way in ("rx", "tx"):
            for name, value in link.get("stats64", {}).get(way, {}).items():
                # What the stack dropped is told at once.
                if not late or name in ("dropped", "nohandler", "otherhost"):
                    found[f"{link['ifname']} {way} {name}"] = value
    return found


def counters(nic: str) -> dict[str, int]:
    """All that only grows, in this network namespace."""
    lines = Path("/proc/net/snmp6").read_text().splitlines()
    softnet = [line.split() for line in Path("/proc/net/softnet_stat").read_text().splitlines()]
    return {
        **columns("/proc/net/snmp"),
        **columns("/proc/net/netstat"),
        **{name: int(value) for name, value in (line.split() for line in lines)},
        **{f"link {name}": value for name, value in links(nic).items()},
        "softnet dropped": sum(int(row[1], 16) for row in softnet),
        **per_cpu("/proc/net/stat/rt_cache", ("in_martian_dst", "in_martian_src", "in_no_route")),
        **per_cpu(
            "/proc/net/stat/nf_conntrack",
            ("found", "invalid", "insert", "insert_failed", "drop", "early_drop", "clashres"),
        ),
    }


def conntrack() -> dict[str, int]:
    path = Path("/proc/net/nf_conntrack")
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        words = line.split()
        del words[4]  # the time left
        found.append(" ".join(word for word in words if not word.startswith("use=")))
    return dict(collections.Counter(found))


def nft_counters() -> dict[str, str]:
    if not Path("/proc/net/netfilter").exists():
        return {}
    found = json.loads(run("nft --json list counters"))["nftables"]
    named = [entry["counter"] for entry in found if "counter" in entry]
    return {each["name"]: f"{each['packets']} packets, {each['bytes']} bytes" for each in named}


class Marks:
    """Sees the marker frames, whichever device they reach."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(MARKER))
        self.socket.setblocking(False)

    def wait_for(self, number: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        seen = -1
        while seen != number:
            if not select.select([self.socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise SystemExit(f"marker {number} did not come in {PATIENCE_S:.0f} s")
            (seen,) = struct.unpack_from("!I", self.socket.recv(256))


def settle(queue: Queue | None) -> None:
    """Return when nothing is under way: no backlog, nothing queued to user space."""
    deadline = time.monotonic() + PATIENCE_S
    quiet = 0
    while quiet < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
        rows = [line.split() for line in Path("/proc/net/softnet_stat").read_text().splitlines()]
        busy = any(int(row[11], 16) for row in rows) or (queue and queue.waiting())
        quiet = 0 if busy else quiet + 1


def play(scene: dict[str, Any]) -> None:
    nic = scene["nic"]
    enter(nic)
    run(f"ip link set {nic} mtu 1500")
    rps = f"/sys/class/net/{nic}/queues/rx-0/rps_cpus"
    if Path(rps).exists():
        write(rps, "0")
    for namespace in scene["namespaces"]:
        run(f"ip netns add {namespace}")
        with within(namespace):
            set_up(QUIET)
    for line in scene["setup"]:
        run(line)
    await_carrier(nic)  # what is sent before is lost
    if scene["nft"]:
        done = subprocess.run(
            ["nft", "-f", "-"], input=scene["nft"], text=True, capture_output=True
        )
        if done.returncode != 0:
            raise SystemExit(f"nft: {done.stderr.strip()}")
    queue = Queue() if "queue" in scene["nft"] else None
    sockets: dict[str, Datagrams] = {}
    for spec in scene["sockets"]:
        with within(spec["namespace"]):
            sockets[spec["name"]] = Datagrams(spec)
    ballast = leave_no_memory() if scene["no_memory"] else None
    time.sleep(0.2)  # what is said of interfaces that come up, and of groups, has been said then
    taps = {
        f"tap {device} {protocol:04x}": Tap(device, protocol, scene["one_order"])
        for device, protocol in scene["taps"]
    }
    if scene["xdp"]:
        generic_xdp(*scene["xdp"])
    streams = Streams(**scene["streams"]) if scene["streams"] else None
    marks = Marks()
    before: dict[str | None, dict[str, int]] = {}
    for namespace in (None, *scene["namespaces"]):
        with within(namespace):
            before[namespace] = counters(nic)
    pci = Path("/sys/class/net", nic, "device").resolve().name
    answer({"ready": True, "pci": pci})
    while "end" not in (asked := json.loads(sys.stdin.readline())):
        if "run" in asked:
            run(asked["run"])
        elif "settle" in asked:
            marks.wait_for(asked["settle"])
            settle(queue)
            for each in sockets.values():
                each.settle()
        else:
            return
        answer({"done": True})
    observed: dict[str, dict[str, Any]] = {}
    if streams:  # how often segments were sent again is a matter of time: no counters
        answer({"observed": {"streams": streams.told()}})
        sys.stdin.readline()
        return
    for namespace, then in before.items():
        with within(namespace):
            now = counters(nic)
            observed[f"counters {namespace or ''}".strip()] = {
                name: value - then.get(name, 0) for name, value in now.items()
            }
            observed[f"conntrack {namespace or ''}".strip()] = conntrack()
            observed[f"nft {namespace or ''}".strip()] = nft_counters()
    observed |= {name: each.told() for name, each in sockets.items()}
    observed |= {name: each.told() for name, each in taps.items()}
    if ballast:
        ballast.close()
    answer({"observed": observed})
    sys.stdin.readline()  # whoever ends leaves groups, and says so: not before all have been asked


def answer(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


def main() -> None:
    for line in iter(sys.stdin.readline, ""):
        if not (child := os.fork()):
            failed = ""
            try:
                play(json.loads(line))
            except SystemExit as ended:
                failed = str(ended)
            except Exception:  # noqa: BLE001 - whatever it is, the host tells
                failed = traceback.format_exc()
            answer({"over": failed})
            os._exit(0)  # without waiting for threads
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
