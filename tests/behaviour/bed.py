# SPDX-License-Identifier: MIT
"""Scenes played on a native or virtual bed, and what is observed of them.

A burst is sent while the guest is frozen, so that it finds all of it at once, in one
poll of its NIC; the next is sent when the guest says that it is through with it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import random
import re
import select
import shutil
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from harness import config
from harness.base import process
from harness.base.errors import HarnessError, KernelError
from harness.base.progress import Progress
from harness.beds import native, virtual
from harness.beds.bed import RunningBed
from harness.beds.local import netns
from harness.beds.native import NativeBed
from harness.beds.virtual import VirtualBed
from harness.campaign import prepare
from harness.kernels import Image
from tests.behaviour import traffic
from tests.behaviour.scene import Scene

HERE = Path(__file__).parent
INSIDE, OUTSIDE = (HERE / "inside.py").read_text(), (HERE / "outside.py").read_text()
SEED = 6
_ANSWER_S = 300.0
_DEATH_S = 20.0
_FLOOD_S = 0.1
_STREAM_OCTETS = 1 << 18
_ROUNDS_S = 6.0
"""For all requests of a connection: if none of them waits they take a twentieth of it."""
_TAKEN_DOWN_S = 1.0
_SPLAT = re.compile(
    r"(?:WARNING: |BUG: |INFO: (?:task|rcu|possible|inconsistent|trying)|KASAN: |UBSAN: |ODEBUG: "
    r"|list_(?:add|del) corruption|refcount_t: |unregister_netdevice: waiting|Oops: ).*"
)

Observed = Mapping[str, Mapping[str, Any]]


class Line:
    """To a program that speaks JSON lines."""

    def __init__(self, line: socket.socket) -> None:
        self._line, self._answers = line, line.makefile("rb")

    def ask(self, request: object | None = None) -> dict[str, Any]:
        """The next answer, after sending ``request``."""
        answer, came = b"", [self._line]
        # It may end before it has read the request, or between the two.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if request is not None:
                self._line.sendall(json.dumps(request).encode() + b"\n")
            came = select.select([self._line], [], [], _ANSWER_S)[0]
            answer = self._answers.readline() if came else b""
        assert answer, "the scene's program ended" if came else "the scene's program is silent"
        found: dict[str, Any] = json.loads(answer)
        assert not found.get("over"), found["over"]
        return found


@contextmanager
def program(argv: Sequence[str], log: Path) -> Iterator[Line]:
    """Run ``argv``; its standard error goes to ``log``."""
    ours, theirs = socket.socketpair()
    with ours, log.open("a") as said:
        with theirs:
            running = process.start(argv, stdin=theirs, stdout=theirs, stderr=said)
        try:
            yield Line(ours)
        finally:
            process.end(running)


class Kernel(Protocol):
    """The kernel of a bed, which is frozen while it gets its packets."""

    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def console(self) -> str: ...
    def check(self) -> None:
        """Raise an error if it has ended."""


@dataclass
class Stage:
    """A bed that is up, on which scenes are played."""

    bed: NativeBed | VirtualBed
    kernel: Kernel
    inside: Line
    outside: Line
    directory: Path
    _seen: int = 0
    """Length of the console that was searched."""

    def play(self, scene: Scene) -> Observed:
        """What is observed in ``scene``.

        Raises:
            KernelError: the guest's kernel died, or said that something is wrong.
        """
        with self._watched():
            observed = self._played(scene)
            if not scene.churn:
                self.inside.ask({"over": True})
        console = self.kernel.console()
        splat, self._seen = _SPLAT.search(console, self._seen), len(console)
        if splat:
            raise KernelError(splat.group(0), hint=f"console: {self.directory}")
        return observed

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """A program that ends or does not answer: did the kernel die?"""
        try:
            yield
        except (AssertionError, HarnessError):
            deadline = time.monotonic() + _DEATH_S
            while time.monotonic() < deadline:
                self.kernel.check()
                if _SPLAT.search(self.kernel.console()):
                    time.sleep(1.0)
                    self.kernel.check()
                    break
                time.sleep(0.2)
            raise

    def _played(self, scene: Scene) -> Observed:
        names = {
            "nic": self.bed.dut_interface,
            "dut": self.bed.dut_mac,
            "generator": self.bed.generator_mac,
        }
        names["pci"] = self.inside.ask(scene.told(**names))["pci"]
        if scene.streams:
            return self._streamed(scene)
        bursts = _bursts(scene, self.bed.generator_mac, self.bed.dut_mac)
        self.outside.ask({"taken": True})
        if scene.churn:
            self._flooded(scene, [frame for burst in bursts for frame in burst], names)
            return {}
        for number, burst in enumerate(bursts):
            self._send([*burst, traffic.marker(self.bed.generator_mac, number)])
            self.inside.ask({"settle": number})
        observed: dict[str, Any] = self.inside.ask({"end": True})["observed"]
        answered = self.outside.ask({"taken": True})["frames"]
        return observed | {"sent by the guest": by_flow(map(bytes.fromhex, answered))}

    def _streamed(self, scene: Scene) -> Observed:
        asked = {
            "own": traffic.GENERATOR,
            "to": traffic.DUT,
            "mac": self.bed.dut_mac,
            "count": scene.streams,
            "octets": _STREAM_OCTETS,
            **scene.asked(),
        }
        answered = self.outside.ask({"streams": asked})["streams"]
        self.outside.ask({"taken": True})
        assert all(complete for complete, _ in answered), "a connection ended early"
        observed: Observed = self.inside.ask({"end": True})["observed"]
        waited = any(took_s > _ROUNDS_S for _, took_s in answered)
        return {**observed, "requests": {"answered at once": not waited}}

    def _send(self, burst: Sequence[bytes]) -> None:
        """The guest finds the whole burst when it goes on."""
        count = ("rx_delivered", "rx_filtered", "rx_nodesc", "rx_oversize", "wire_ring_drops")
        self.kernel.freeze()
        try:
            before = self.bed.nic_counters()
            self.outside.ask({"send": [frame.hex() for frame in burst]})
            deadline = time.monotonic() + 20
            while True:
                now = self.bed.nic_counters()
                if sum(now.get(name, 0) - before.get(name, 0) for name in count) >= len(burst):
                    break
                assert time.monotonic() < deadline, "the NIC has not got all frames"
                time.sleep(0.01)
            assert now.get("rx_nodesc") == before.get("rx_nodesc"), "the NIC has lost frames"
        finally:
            self.kernel.thaw()

    def _flooded(self, scene: Scene, frames: Sequence[bytes], names: Mapping[str, str]) -> None:
        """The flood goes on until the scene's namespaces have been taken down."""
        self.outside.ask({"flood": [frame.hex() for frame in frames]})
        try:
            for line in scene.churn:
                time.sleep(_FLOOD_S)
                for name in ("nic", "pci"):
                    line = line.replace(f"{{{name}}}", names[name])  # noqa: PLW2901
                self.inside.ask({"run": line})
            self.inside.ask({"over": True})
            time.sleep(_TAKEN_DOWN_S)
        finally:
            self.outside.ask({"stop": True})


@functools.cache
def _bursts(scene: Scene, source: str, dut: str) -> list[list[bytes]]:
    """The traffic of ``scene``, always the same."""
    making = traffic.Making(
        rng=random.Random(f"{SEED} {scene.name}"),
        source=source,
        targets=[mac.replace("{dut}", dut) for mac in scene.macs],
        flows=scene.flows,
        largest=scene.largest,
    )
    first = [next(traffic.bursts(making, kinds, 1)) for kinds in scene.first]
    return [*first, *traffic.bursts(making, scene.kinds, scene.bursts)]


def by_flow(frames: Iterator[bytes]) -> dict[str, str]:
    """Counts and digests of frames, in order, by flow; without what depends on time."""
    flows: dict[str, list[bytes]] = defaultdict(list)
    for frame in frames:
        packet = Ether(frame)
        ip = packet.getlayer(IP) or packet.getlayer(IPv6)
        flow = [f"{packet.type:04x}"]
        if ip is not None:
            flow += [str(ip.src), str(ip.dst), type(ip.payload).__name__]
            flow += [
                f"{name} {ip.payload.fields[name]}"
                for name in ("type", "id", "sport", "dport")
                if name in ip.payload.fields
            ]
        content = frame
        if IP in packet and TCP in packet:
            content = b"%d" % len(frame)
        elif IP in packet:
            content = frame[:18] + bytes(2) + frame[20:24] + bytes(2) + frame[26:]  # id, checksum
        flows[" ".join(flow)].append(content)
    return {
        flow: f"{len(all_)} {hashlib.sha256(b''.join(all_)).hexdigest()[:12]}"
        for flow, all_ in sorted(flows.items())
    }


def differences(one: Observed, other: Observed) -> list[str]:
    """A line for each thing in which two observations differ.

    A counter that a kernel has not counts as 0: it may have been configured without.
    """

    def told(observed: Observed, what: str, name: str) -> object:
        return observed.get(what, {}).get(name, 0 if what.startswith("counters") else None)

    return [
        f"{what}: {name}: {told(one, what, name)} / {told(other, what, name)}"
        for what in sorted({*one, *other})
        for name in sorted({*one.get(what, {}), *other.get(what, {})})
        if told(one, what, name) != told(other, what, name)
    ]


@contextmanager
def stage(image: Image, directory: Path) -> Iterator[Stage]:
    """The shipped native bed with a user-mode kernel ``image``."""
    bed = config.bed(config.load(config.locate(None)), "native")
    assert isinstance(bed.dut, config.UmlHost)
    wire = bed.dut.wire.model_copy(update={"repeat": 1, "burst": None})
    dut = bed.dut.model_copy(update={"memory_mib": 1536, "wire": wire})
    with Progress() as progress:
        equipped = native.equipment(progress)
    shutil.rmtree(directory, ignore_errors=True)
    bed = bed.model_copy(update={"dut": dut})
    with native.native_bed(bed, image, equipped, directory, program=INSIDE) as up:
        prepare.apply_settings(bed, up)
        with _outside(up, directory) as outside:
            yield Stage(up, up.kernel, Line(up.kernel.line), outside, directory)


@contextmanager
def guest(image: Image, directory: Path) -> Iterator[VirtualBed]:
    """The shipped virtual bed with a guest on ``image``, for what needs an x86 kernel."""
    bed = config.bed(config.load(config.locate(None)), "virtual")
    assert isinstance(bed.dut, config.QemuHost)
    sanitized = "\nCONFIG_KASAN=y\n" in (image.directory / "config").read_text()
    dut = bed.dut.model_copy(update={"memory_mib": 1536 if sanitized else 1024})
    with Progress() as progress:
        equipped = virtual.equipment(dut, image, progress)
    shutil.rmtree(directory, ignore_errors=True)
    bed = bed.model_copy(update={"dut": dut})
    with virtual.virtual_bed(bed, image, equipped, directory) as up:
        prepare.apply_settings(bed, up)
        yield up


@contextmanager
def virtual_stage(image: Image, directory: Path) -> Iterator[Stage]:
    """The same as a stage."""
    with guest(image, directory) as up:
        argv = up.guest.ssh.argv(["sudo", "python3", "-c", INSIDE])
        with program(argv, directory / "inside.log") as inside, _outside(up, directory) as outside:
            yield Stage(up, up.guest, inside, outside, directory)


@contextmanager
def _outside(up: RunningBed, directory: Path) -> Iterator[Line]:
    """The generator's end of the wire, which does nothing of its own."""
    wire = netns.Namespace(agent=up.generator, mac=up.generator_mac)
    for interface in (netns.INTERFACE, netns.WIRE):
        process.run(wire.command(["ip", "link", "set", interface, "mtu", "9000"]))
        process.run(wire.command(["ip", "address", "flush", "dev", interface]))
    process.run(wire.command(["ip", "link", "set", netns.INTERFACE, "arp", "off"]))
    argv = wire.command([sys.executable, "-c", OUTSIDE, netns.INTERFACE])
    with program(argv, directory / "outside.log") as outside:
        outside.ask()
        yield outside
