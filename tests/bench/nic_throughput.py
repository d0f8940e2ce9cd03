# SPDX-License-Identifier: MIT
"""Packets/s that reach a guest's stack through the virtual EF10, beside QEMU's igb and e1000e.

All three NICs are in one guest, so kernel, boot and machine are the same; they are
loaded in turn, in an order that rotates from round to round, and compared within
each round. The bed is the harness's own, with its CPUs, its receive interrupt, one
receive queue and each driver's own interrupt moderation. Two things differ:

The load. Ten netperf streams on a CPU shared with the NIC model reach about
100,000 messages/s and would be what is measured, so the frames they would send come
from a packet ring (:mod:`tests.bench.blaster`), on the same CPU and after all else.
In the guest a socket takes them that nobody reads: the stack does its work, and no
process takes time from it.

The wire. The EF10 model listens on a veth peer of the generator's interface. QEMU's
NICs have no such wire: each has a tap in the same namespace, which is itself the
generator's interface and whose descriptor QEMU gets, with the offloads it would ask
of a tap of its own. That saves the sender the veth, so it favours QEMU's NICs. What
moves the frames runs on one host CPU: the model's process, or QEMU's main loop.

All of it drops what it cannot take. A share of the offer well below 100 % says that
the sender was not the limit; a receive CPU that is never idle says the guest was.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import config, kernels
from harness.base import process
from harness.base.errors import InfrastructureError
from harness.base.progress import Progress
from harness.beds.access.channel import RemoteAgent
from harness.beds.local import netns
from harness.beds.local.nic_model import NicModel
from harness.beds.virtual import Equipment, machine_cpus, qemu
from tests.bench import command, ranged, show, spread
from tests.bench.blaster import PORT
from tests.bench.guest import Setup, options, ready

_TUN = Path("/dev/net/tun")
_OPEN_TAP = """
import fcntl, os, socket, struct, sys
name, line = sys.argv[1:]
tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, TUNSETIFF = 0x0002, 0x1000, 0x4000, 0x400454CA
request = struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
fcntl.ioctl(tap, TUNSETIFF, request)
socket.send_fds(socket.socket(fileno=int(line)), [b"."], [tap])
"""
_SINK = """
import socket, sys
sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sink.bind(("", int(sys.argv[1])))
print("bound", flush=True)
sys.stdin.read()
"""
_RAMP_S = 2.0
_SETTLE_S = 1.0
_NICE = 5
_LEAST_PPS = 1000.0


@dataclass(frozen=True, kw_only=True)
class Nic:
    """A NIC of the guest, what the generator reaches it by, and what was measured."""

    model: str
    number: int
    sender: str
    windows: list[dict[str, float]] = field(default_factory=list)

    @property
    def mac(self) -> str:
        return f"02:00:00:00:{self.number:02x}:02"

    @property
    def sender_mac(self) -> str:
        return f"02:00:00:00:{self.number:02x}:01"

    def address(self, host: int) -> str:
        """The guest is host 2 and the generator host 1 of each NIC's own subnet."""
        return f"198.18.{self.number}.{host}"

    def values(self, name: str) -> list[float]:
        return [window[name] for window in self.windows]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The guest with all NICs, up, and its generator."""

    dut: RemoteAgent
    namespace: netns.Namespace
    interfaces: dict[str, str]
    drivers: dict[str, str]


@contextmanager
def machine(
    bed: config.Bed, image: kernels.Image, equipment: Equipment, nics: list[Nic], directory: Path
) -> Iterator[Machine]:
    """Bring the guest up with one of each of ``nics``; the first is the EF10 model."""
    assert isinstance(bed.dut, config.QemuHost)
    cpus = machine_cpus(bed)
    ef10, *emulated = nics
    with contextlib.ExitStack() as up:
        runtime = Path(up.enter_context(tempfile.TemporaryDirectory(prefix="rb-")))
        namespace = netns.start(log=directory / "generator-agent.log")
        up.callback(namespace.agent.close)
        model = NicModel(
            namespace,
            wire=netns.WIRE,
            mac=ef10.mac,
            socket=runtime / "nic",
            control=runtime / "control",
            log=directory / "nic.log",
            cpu=cpus.model,
        )
        up.callback(model.stop)
        arguments: list[str] = []
        taps: list[int] = []
        for nic in emulated:
            tap = open_tap(namespace, nic)
            up.callback(os.close, tap)
            taps.append(tap)
            arguments += ["-netdev", f"tap,id={nic.model},fd={tap}"]
            arguments += ["-device", f"{nic.model},netdev={nic.model},mac={nic.mac},romfile="]
        guest = qemu.start(
            bed.dut,
            equipment,
            image=image,
            nic_socket=runtime / "nic",
            directory=directory,
            runtime=runtime,
            extra_arguments=arguments,
            pass_fds=taps,
        )
        up.callback(guest.stop)

        def watch() -> None:
            guest.check()
            model.check()

        guest.wait_for_ssh()
        guest.pin(cpus.vcpus, [cpus.model])
        dut = guest.ssh.start_agent(host=bed.dut_name, log=directory / "agent.log", watch=watch)
        up.callback(dut.kill)
        interfaces: dict[str, str] = {}
        drivers: dict[str, str] = {}
        for nic in nics:
            found = dut.inventory(mac=nic.mac)
            interfaces[nic.model], drivers[nic.model] = found["interface"], found["driver"]
            for _ in range(2):  # igb has no indirection table to set before it is up
                dut.settings_apply(
                    interface=found["interface"],
                    address=f"{nic.address(2)}/24",
                    peer={"address": nic.address(1), "mac": nic.sender_mac},
                    rx_queues=bed.rx_queues,
                    irq_cpu=bed.placement.irq_cpu,
                    rps=False,
                )
            namespace.agent.settings_apply(
                interface=nic.sender,
                address=f"{nic.address(1)}/24",
                peer={"address": nic.address(2), "mac": nic.mac},
            )
        up.enter_context(sink(guest))
        yield Machine(dut=dut, namespace=namespace, interfaces=interfaces, drivers=drivers)


@contextmanager
def sink(guest: qemu.Guest) -> Iterator[None]:
    """A socket in ``guest`` that takes the load."""
    taking = subprocess.Popen(
        guest.ssh.argv(["python3", "-c", _SINK, str(PORT)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        if not (taking.stdout and taking.stdout.readline()):
            raise InfrastructureError("the guest has no socket for the load")
        yield
    finally:
        process.end(taking)


def open_tap(namespace: netns.Namespace, nic: Nic) -> int:
    """A tap in the generator's namespace, up; it ends with the last copy of the descriptor.

    Raises:
        InfrastructureError: the system does not let it be made.
    """
    here, there = socket.socketpair()
    with here, there:
        made = subprocess.run(
            namespace.command([sys.executable, "-c", _OPEN_TAP, nic.sender, str(there.fileno())]),
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if made.returncode != 0:
            raise InfrastructureError(
                f"no tap can be made: {made.stderr.strip().splitlines()[-1]}",
                hint=f"give your user {_TUN}, or run this as root",
            )
        tap = socket.recv_fds(here, 1, 1)[1][0]
    for words in (f"address {nic.sender_mac}", "up"):
        process.run(namespace.command(["ip", "link", "set", nic.sender, *words.split()]))
    return tap


def measure(at: Machine, nic: Nic, setup: Setup) -> dict[str, float]:
    """One window under load through ``nic``; rates in packets/s, shares from 0 to 1."""
    with blaster(at, nic, setup) as finish:
        time.sleep(_RAMP_S)
        window = at.dut.window(
            interface=at.interfaces[nic.model],
            duration_s=setup.window_s,
        )
        offered_pps = finish()
    time.sleep(_SETTLE_S)
    start, end = window["start"], window["end"]
    elapsed_s: float = (end["monotonic_ns"] - start["monotonic_ns"]) / 1e9
    received = end["snmp"]["Ip"]["InReceives"] - start["snmp"]["Ip"]["InReceives"]
    stack_pps: float = received / elapsed_s
    if stack_pps < _LEAST_PPS:
        raise InfrastructureError(
            f"{nic.model}: {stack_pps:.0f} packets/s of {offered_pps:.0f} offered came through"
        )
    idle_ns = end["cpu"][setup.irq_cpu]["idle_ns"] - start["cpu"][setup.irq_cpu]["idle_ns"]
    interrupts = sum(
        count for cpus in window["placement"]["irq"].values() for count in cpus.values()
    )
    return {
        "stack_pps": stack_pps,
        "offered_pps": offered_pps,
        "taken": stack_pps / offered_pps,
        "cpu_busy": max(0.0, 1 - idle_ns / 1e9 / elapsed_s),
        "interrupts_ps": interrupts / elapsed_s,
    }


@contextmanager
def blaster(at: Machine, nic: Nic, setup: Setup) -> Iterator[Callable[[], float]]:
    """Load through ``nic``; what it gives ends the load and says its rate in packets/s."""
    sender = subprocess.Popen(
        at.namespace.command(
            ["nice", "-n", str(_NICE), "taskset", "-c", str(setup.sender_cpu),
             sys.executable, "-m", "tests.bench.blaster",
             nic.sender, nic.sender_mac, nic.address(1), nic.mac, nic.address(2)]
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )  # fmt: skip
    with contextlib.suppress(OSError):  # nice values count only within a session
        Path(f"/proc/{sender.pid}/autogroup").write_text(str(_NICE))

    def finish() -> float:
        said, complaint = sender.communicate(timeout=60)
        if sender.returncode != 0:
            raise process.failed(["tests.bench.blaster"], sender.returncode, complaint)
        counted = json.loads(said)
        return float(counted["offered"] / counted["elapsed_s"])

    try:
        yield finish
    finally:
        process.end(sender)


def main() -> None:
    chosen = options("nic_throughput", __doc__, rounds=5, window_s=4)
    if not os.access(_TUN, os.R_OK | os.W_OK):
        raise InfrastructureError(
            f"{_TUN} is not to be opened by this user, and QEMU's NICs need a tap",
            hint=f"give your user {_TUN}, or run this as root",
        )
    nics = [
        Nic(model="ef10", number=0, sender=netns.INTERFACE),
        Nic(model="igb", number=1, sender="tap-igb"),
        Nic(model="e1000e", number=2, sender="tap-e1000e"),
    ]
    with Progress() as progress, tempfile.TemporaryDirectory(prefix="rb-bench-") as kept:
        made = ready(chosen, progress)
        setup = made.setup
        with machine(made.bed, made.image, made.equipment, nics, Path(kept)) as at:
            for nic in nics:
                with progress.task(f"warm-up: {nic.model}"):
                    measure(at, nic, setup)
            for number in range(chosen.rounds):
                turn = number % len(nics)
                with progress.task(f"round {number + 1}/{chosen.rounds}"):
                    for nic in nics[turn:] + nics[:turn]:
                        nic.windows.append(measure(at, nic, setup))
            drivers = at.drivers
    result, rows = compared(nics, drivers)
    show({**made.about(), "nics": result}, rows, as_json=chosen.json)
    if not chosen.json:
        print(made.footnote())


def compared(
    nics: list[Nic], drivers: dict[str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Each NIC beside the first, whose ratio to it is taken round by round."""
    ef10 = nics[0].values("stack_pps")
    result: list[dict[str, Any]] = []
    rows: list[dict[str, str]] = []
    for nic in nics:
        ratios = [ours / other for ours, other in zip(ef10, nic.values("stack_pps"), strict=True)]
        result.append(
            {
                "nic": nic.model,
                "driver": drivers[nic.model],
                "ef10_ratio": spread(ratios),
                **{name: spread(nic.values(name)) for name in nic.windows[0]},
                "windows": nic.windows,
            }
        )
        rows.append(
            {
                "NIC": nic.model,
                "driver": drivers[nic.model],
                "EF10 ÷ this": ranged(ratios),
                "stack packets/s": ranged(nic.values("stack_pps"), ",.0f"),
                "interrupts/s": ranged(nic.values("interrupts_ps"), ",.0f"),
                "of the offer": ranged([100 * share for share in nic.values("taken")], ".0f")
                + " %",
                "receive CPU busy": ranged([100 * v for v in nic.values("cpu_busy")], ".0f") + " %",
            }
        )
    return result, rows


if __name__ == "__main__":
    command(main)
