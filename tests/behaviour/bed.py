# SPDX-License-Identifier: MIT
"""Scenes played on a virtual bed, and what is observed of them.

A burst is sent while the guest is frozen, so that it finds all of it at once, in one
poll of its NIC; the next is sent when the guest says that it is through with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import select
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from harness import config
from harness.base import process
from harness.base.errors import HarnessError, KernelError
from harness.base.progress import Progress
from harness.beds.local import netns
from harness.beds.virtual import VirtualBed, equipment, virtual_bed
from harness.campaign import prepare
from harness.kernels import Image
from tests.behaviour import traffic
from tests.behaviour.scene import Scene

HERE = Path(__file__).parent
INSIDE, OUTSIDE = (HERE / "inside.py").read_text(), (HERE / "outside.py").read_text()
SEED = 6
_ANSWER_S = 300.0
_DEATH_S = 60.0
_FLOOD_S = 0.3
_STREAM_OCTETS = 1 << 18
_ROUNDS_S = 6.0
"""For all requests of a connection: if none of them waits they take a twentieth of it."""
_TAKEN_DOWN_S = 3.0
_SPLAT = re.compile(
    r"(?:WARNING: |BUG: |INFO: (?:task|rcu|possible|inconsistent|trying)|KASAN: |UBSAN: |ODEBUG: "
    r"|list_(?:add|del) corruption|refcount_t: |unregister_netdevice: waiting|Oops: ).*"
)

Observed = Mapping[str, Mapping[str, Any]]


class Line:
    """A program that speaks JSON lines."""

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("a") as said:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                start_new_session=True,
            )

    def ask(self, request: object | None = None) -> dict[str, Any]:
        """The next answer, after sending ``request``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            if request is not None:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
        came = select.select([self._process.stdout], [], [], _ANSWER_S)[0]
        answer = self._process.stdout.readline() if came else ""
        if not answer:
            last = self._log.read_text(errors="replace").splitlines()[-3:]
            raise AssertionError("\n".join(["the scene's program ended", *last]))
        found: dict[str, Any] = json.loads(answer)
        return found

    def end(self) -> None:
        """End it."""
        process.end(self._process)


@dataclass
class Stage:
    """A bed that is up, on which scenes are played."""

    bed: VirtualBed
    outside: Line
    directory: Path

    def play(self, scene: Scene) -> Observed:
        """What is observed in ``scene``.

        Raises:
            KernelError: the guest's kernel died, or said that something is wrong.
        """
        seen_before = len(self.bed.console())
        log = self.directory / f"{scene.name.replace(' ', '-')}.log"
        argv = self.bed.guest.ssh.argv(["sudo", "python3", "-c", INSIDE])
        inside = Line(argv, log)
        try:
            with self._watched():
                observed = self._played(scene, inside)
        finally:
            inside.end()
        if splat := _SPLAT.search(self.bed.console(), seen_before):
            raise KernelError(splat.group(0), hint=f"console: {self.bed.guest.directory}")
        return observed

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """A program that ends or does not answer: did the kernel die?"""
        try:
            yield
        except (AssertionError, HarnessError):
            deadline = time.monotonic() + _DEATH_S
            while time.monotonic() < deadline:
                self.bed.guest.check()
                if _SPLAT.search(self.bed.console()):
                    time.sleep(1.0)
                    self.bed.guest.check()
                    break
                time.sleep(0.2)
            raise

    def _played(self, scene: Scene, inside: Line) -> Observed:
        names = {
            "nic": self.bed.dut_interface,
            "dut": self.bed.dut_mac,
            "generator": self.bed.generator_mac,
        }
        names["pci"] = inside.ask(scene.told(**names))["pci"]
        if scene.streams:
            return self._streamed(scene, inside)
        making = traffic.Making(
            rng=random.Random(f"{SEED} {scene.name}"),
            source=self.bed.generator_mac,
            targets=[mac.replace("{dut}", self.bed.dut_mac) for mac in scene.macs],
            flows=scene.flows,
            largest=scene.largest,
        )
        first = [next(traffic.bursts(making, kinds, 1)) for kinds in scene.first]
        bursts = [*first, *traffic.bursts(making, scene.kinds, scene.bursts)]
        self.outside.ask({"taken": True})
        if scene.churn:
            self._flooded(scene, inside, [frame for burst in bursts for frame in burst], names)
            return {}
        for number, burst in enumerate(bursts):
            self._send([*burst, traffic.marker(making.source, number)])
            inside.ask({"settle": number})
        observed: dict[str, Any] = inside.ask({"end": True})["observed"]
        answered = self.outside.ask({"taken": True})["frames"]
        return observed | {"sent by the guest": by_flow(map(bytes.fromhex, answered))}

    def _streamed(self, scene: Scene, inside: Line) -> Observed:
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
        observed: Observed = inside.ask({"end": True})["observed"]
        waited = any(took_s > _ROUNDS_S for _, took_s in answered)
        return {**observed, "requests": {"answered at once": not waited}}

    def _send(self, burst: Sequence[bytes]) -> None:
        """The guest finds the whole burst when it goes on."""
        count = ("rx_delivered", "rx_filtered", "rx_nodesc", "rx_oversize", "wire_ring_drops")
        self.bed.guest.freeze()
        try:
            before = self.bed.nic.counters()
            self.outside.ask({"send": [frame.hex() for frame in burst]})
            deadline = time.monotonic() + 20
            while True:
                now = self.bed.nic.counters()
                if sum(now.get(name, 0) - before.get(name, 0) for name in count) >= len(burst):
                    break
                assert time.monotonic() < deadline, "the NIC has not got all frames"
                time.sleep(0.01)
            assert now.get("rx_nodesc") == before.get("rx_nodesc"), "the NIC has lost frames"
        finally:
            self.bed.guest.thaw()

    def _flooded(
        self, scene: Scene, inside: Line, frames: Sequence[bytes], names: Mapping[str, str]
    ) -> None:
        """The flood goes on until the scene's namespaces have been taken down."""
        self.outside.ask({"flood": [frame.hex() for frame in frames]})
        try:
            for line in scene.churn:
                time.sleep(_FLOOD_S)
                for name in ("nic", "pci"):
                    line = line.replace(f"{{{name}}}", names[name])  # noqa: PLW2901
                inside.ask({"run": line})
            inside.end()
            time.sleep(_TAKEN_DOWN_S)
        finally:
            self.outside.ask({"stop": True})


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
def stage(image: Image, directory: Path, *, memory_mib: int = 1024) -> Iterator[Stage]:
    """The shipped virtual bed with its guest on ``image``."""
    shipped = config.bed(config.load(config.locate(None)))
    assert isinstance(shipped.dut, config.QemuHost)
    dut = shipped.dut.model_copy(update={"memory_mib": memory_mib})
    bed = shipped.model_copy(update={"dut": dut})
    with Progress() as progress:
        equipped = equipment(dut, image, progress)
    shutil.rmtree(directory, ignore_errors=True)
    with virtual_bed(bed, image, equipped, directory) as running:
        prepare.apply_settings(bed, running)
        wire = netns.Namespace(agent=running.generator, mac=running.generator_mac)
        for interface in (netns.INTERFACE, netns.WIRE):
            process.run(wire.command(["ip", "link", "set", interface, "mtu", "9000"]))
            # The generator answers nothing of its own.
            process.run(wire.command(["ip", "address", "flush", "dev", interface]))
        process.run(wire.command(["ip", "link", "set", netns.INTERFACE, "arp", "off"]))
        argv = wire.command([sys.executable, "-c", OUTSIDE, netns.INTERFACE])
        outside = Line(argv, directory / "outside.log")
        outside.ask()
        try:
            yield Stage(running, outside, directory)
        finally:
            outside.end()
