# SPDX-License-Identifier: MIT
"""What a frame or a doorbell costs in the NIC model, compiled and in Python, in turns.

The guest costs nothing: its rings and buffers lie in this process, descriptors are posted by a
doorbell, and events are cleared by one store. So do the wire's frames, which are there again as
soon as they were taken. A transport is only involved where doorbells are measured.
"""

from __future__ import annotations

import argparse
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.base.errors import InfrastructureError
from harness.nic import datapath, pcidev
from harness.nic.datapath import Datapath, build
from harness.nic.wire import LARGE_SLOT, SMALL_SLOT
from tests.bench import command, ranged, show
from tests.nic.fake_wire import FakeWire
from tests.nic.frames import MAC, udp4
from tests.nic.minidriver import EMPTY, MiniDriver
from tests.nic.vhost_driver import MiniVhostDriver

_SLOTS = 2048
_ENTRIES = 2048
_EVQ_ENTRIES = 4096
_BURSTS = (1, 8, 16, 32, 64, 128)
_PASSES = 64
"""Passes in a turn of one data path."""
_FLOWS = [udp4(b"x" * 18, source_port=4000 + n) for n in range(10)]
PYTHON = Datapath(None, "the reference")


class Bench:
    """One model with frames on its wire, and a guest that takes them."""

    def __init__(
        self,
        path: Datapath,
        frames: list[bytes],
        *,
        burst: int = 1000,
        channels: int = 1,
        repeat: bool = False,
    ) -> None:
        longest = max(map(len, frames))
        slot = SMALL_SLOT if longest <= 1514 else LARGE_SLOT
        self.burst = burst
        self.wire = FakeWire(slots=_SLOTS if slot == SMALL_SLOT else 512, slot=slot)
        self.driver = driver = MiniDriver(self.wire, path=path, megabytes=64)
        self.nic = driver.nic
        driver.attach()
        driver.set_irqs()
        driver.probe()
        many = channels > 1
        driver.open(channels=channels, entries=_ENTRIES, evq_entries=_EVQ_ENTRIES, filters=not many)
        if many:
            (context,) = struct.unpack("<I", driver.mcdi(0x9E, struct.pack("<III", 0, 0, channels)))
            driver.mcdi(0xA0, struct.pack("<I", context) + bytes(range(40)))
            driver.add_filter(MAC, rss=context)
        if longest > 1514:
            driver.mcdi(0x2C, struct.pack("<IIQIII", 9022, 0, 0, 0, 1, 0))
            self.wire.ring.buffer[:] = 0
        for channel, queues in enumerate(driver.channels):
            driver.events(channel)
            ring = [queues.buffer + 2048 * n | 1792 << 48 for n in range(_ENTRIES)]
            driver.poke(queues.rxq, np.array(ring, np.uint64).tobytes())
        guest = np.frombuffer(driver.memory, np.uint8)
        self.events: list[npt.NDArray[np.uint64]] = [
            guest[queues.evq : queues.evq + 8 * _EVQ_ENTRIES].view(np.uint64)
            for queues in driver.channels
        ]
        self.repeat = repeat
        while self.wire.tail or not self.wire.tail_total:
            self.wire.inject(frames[self.wire.tail_total % len(frames)])
        if repeat:
            self.nic.pace_wire(repeat=0, burst=0)
            self.nic.receive()
        else:
            self.offer(0)
        self.taken = [0] * channels
        self.passed_ns: list[float] = []
        self.polls: list[int] = []
        self.frames = 0
        self.wall_s = 0.0
        self.warm_up()

    def warm_up(self) -> None:
        """Use every buffer once: the first access to a page of the guest is a fault."""
        wanted, self.burst = self.burst, 128
        self.turn(2 * len(self.taken) * _ENTRIES // self.burst)
        self.burst = wanted
        self.passed_ns, self.polls, self.frames, self.wall_s = [], [], 0, 0.0

    def offer(self, number: int) -> None:
        """Let the next ``number`` frames be on the wire."""
        status, head = self.wire.ring.headers["status"], self.wire.ring.head
        if number == 0:
            status[:] = 0
        first = min(number, status.size - head)
        status[head : head + first] = 1
        status[: number - first] = 1

    def turn(self, passes: int = _PASSES) -> None:
        """So many passes; each is timed, and the guest has taken all frames before the next."""
        started_s = time.perf_counter()
        for _ in range(passes):
            if self.repeat:
                self.driver.clock.now_ns += 100_000
            else:
                self.offer(self.burst)
            began_ns = time.perf_counter_ns()
            done = self.nic.receive()
            self.passed_ns.append((time.perf_counter_ns() - began_ns) / max(done, 1))
            self.frames += done
            self.take()
        self.wall_s += time.perf_counter() - started_s

    def take(self) -> None:
        """The guest takes all events and posts as many descriptors again."""
        found = 0
        offsets: list[int] = []
        values: list[int] = []
        for channel, ring in enumerate(self.events):
            state = self.nic._rxqs[channel].state
            number = (state.rptr - self.taken[channel]) % _ENTRIES
            if number:
                start = self.nic._evqs[channel].state.wptr - number
                ring[np.arange(start, start + number) % _EVQ_ENTRIES] = EMPTY
                self.taken[channel] = state.rptr
                offsets.append(channel * 8192 + 0x830)
                values.append((state.rptr - 8) & ~7 & (_ENTRIES - 1))
            found += number
        self.nic.write_dwords(offsets, values)
        self.polls.append(found)

    def close(self) -> None:
        self.events.clear()
        self.driver.memory = bytearray()  # type: ignore[assignment]  # views of it may be alive
        self.driver.connection.close()


class Sending:
    """One model whose guest sends the same frames again and again."""

    def __init__(self, path: Datapath, frame: bytes, *, checksum: bool) -> None:
        self.driver = driver = MiniDriver(SilentWire(), path=path, megabytes=16)
        driver.attach()
        driver.set_irqs()
        driver.probe()
        driver.open(entries=512)
        queues = driver.channels[0]
        at = driver.allocate(16384)
        driver.poke(at, frame)
        ring = np.full(512, at | len(frame) << 48, np.uint64)
        driver.poke(queues.txq, ring.tobytes())
        if checksum:
            driver.post_tx([1 << 63 | 3])
            driver.poke(queues.txq, ring[:1].tobytes())
        self.wptr = queues.tx_written
        self.passed_ns: list[float] = []

    def turn(self, passes: int = 8) -> None:
        """So many doorbells for 256 frames each."""
        for _ in range(passes):
            self.wptr = (self.wptr + 256) % 512
            self.driver.nic.write_dwords([0xA18], [self.wptr])
            began_ns = time.perf_counter_ns()
            self.driver.nic.transmit()
            self.passed_ns.append((time.perf_counter_ns() - began_ns) / 256)
            self.driver.events(ack=False)

    def close(self) -> None:
        self.driver.close()


class Ringing:
    """One model whose user-mode kernel rings the doorbell of its receive queue."""

    def __init__(self, path: Datapath, *, burst: int) -> None:
        self.driver = driver = MiniVhostDriver(path=path, megabytes=8)
        driver.attach()
        driver.probe()
        driver.open()
        self.burst = burst
        desc, avail, _ = driver.rings[0]
        message = struct.pack("<BBHIQI", pcidev.MMIO_WRITE, 2, 0, 4, 0x830, 56)
        for head in range(driver.entries):
            at = driver.buffers + 64 * head
            driver.poke(at, message)
            driver.poke(desc + 16 * head, struct.pack("<QIHH", at, len(message), 0, 0))
            driver.poke(avail + 4 + 2 * head, struct.pack("<H", head))
        self.passed_ns: list[float] = []

    def turn(self, passes: int = 256) -> None:
        """So many times several doorbells at once."""
        driver = self.driver
        for _ in range(passes):
            driver.added[0] = (driver.added[0] + self.burst) & 0xFFFF
            driver.put_word(driver.rings[0][1] + 2, driver.added[0])
            began_ns = time.perf_counter_ns()
            driver.connection.serve(())
            self.passed_ns.append((time.perf_counter_ns() - began_ns) / self.burst)

    def close(self) -> None:
        self.driver.close()


class SilentWire(FakeWire):
    """Takes frames at no cost."""

    def send(self, frame: bytes | bytearray) -> bool:
        return True

    def send_staged(self, library: Any, stage: Any) -> list[tuple[int, int]]:
        return [(0, int(stage.count))]


@dataclass(kw_only=True)
class Row:
    """A kind of load: what it needs, and what it cost each data path, in ns a frame."""

    name: str
    make: Callable[[Datapath], Bench | Sending | Ringing]
    prototype_ns: float | None = None
    passes: int | None = None
    compiled_ns: list[float] = field(default_factory=list)
    python_ns: list[float] = field(default_factory=list)
    pps: list[float] = field(default_factory=list)

    def measure(self, paths: list[Datapath], rounds: int) -> None:
        both = [self.make(path) for path in paths]
        turn: dict[str, int] = {} if self.passes is None else {"passes": self.passes}
        for _ in range(rounds):
            for bench, costs in zip(both, (self.compiled_ns, self.python_ns), strict=True):
                bench.passed_ns.clear()
                bench.turn(**turn)
                costs.append(statistics.median(bench.passed_ns))
        if isinstance(both[0], Bench):
            self.pps.append(both[0].frames / both[0].wall_s)
        for bench in both:
            bench.close()

    def result(self) -> dict[str, Any]:
        ratios = [slow / fast for slow, fast in zip(self.python_ns, self.compiled_ns, strict=True)]
        return {
            "load": self.name,
            "compiled_ns": statistics.median(self.compiled_ns),
            "python_ns": statistics.median(self.python_ns),
            "ratios": ratios,
            "prototype_ns": self.prototype_ns,
            "taken_pps": self.pps[0] if self.pps else None,
        }

    def line(self) -> dict[str, str]:
        result = self.result()
        return {
            "load": self.name,
            "compiled, ns each": ranged(self.compiled_ns, ".0f"),
            "Python": ranged(self.python_ns, ".0f"),
            "Python ÷ compiled": ranged(result["ratios"], ".1f"),
            "C prototype": "" if self.prototype_ns is None else f"{self.prototype_ns:.0f}",
            "taken, Mpps": "" if not self.pps else f"{self.pps[0] / 1e6:.2f}",
        }


def rows() -> list[Row]:
    """The loads of the model's cost table."""
    mixed = [udp4(b"x" * (n * 131 % 1400), source_port=4000 + n % 10) for n in range(64)]
    tcp = [udp4(b"x" * 6, protocol=6, source_port=4000 + n) for n in range(64)]
    big = udp4(b"x" * 8958)
    made: list[tuple[str, float | None, Callable[[Datapath], Bench | Sending | Ringing]]] = [
        ("64 B, bursts of 1000", 29, lambda path: Bench(path, _FLOWS)),
        ("64 B, bursts of 64", 71, lambda path: Bench(path, _FLOWS, burst=64)),
        ("64 B, bursts of 8", 376, lambda path: Bench(path, _FLOWS, burst=8)),
        ("64 B, bursts of 1", 2288, lambda path: Bench(path, _FLOWS, burst=1)),
        ("64 B, repeated", None, lambda path: Bench(path, _FLOWS, repeat=True)),
        ("1500 B", 87, lambda path: Bench(path, [udp4(b"x" * 1472)])),
        ("mixed sizes", 61, lambda path: Bench(path, mixed)),
        ("TCP, 2 queues", 37, lambda path: Bench(path, tcp, channels=2)),
        ("TCP, 4 queues", 41, lambda path: Bench(path, tcp, channels=4)),
        ("TCP, 8 queues", 57, lambda path: Bench(path, tcp, channels=8)),
        ("9000 B, scattered", 460, lambda path: Bench(path, [big], burst=256)),
        ("send 64 B", None, lambda path: Sending(path, udp4(b"x" * 18), checksum=False)),
        ("send 64 B, checksum", None, lambda path: Sending(path, udp4(b"x" * 18), checksum=True)),
        ("send 1500 B", None, lambda path: Sending(path, udp4(b"x" * 1472), checksum=False)),
        ("send 9000 B, checksum", None, lambda path: Sending(path, big, checksum=True)),
        ("doorbells, one by one", None, lambda path: Ringing(path, burst=1)),
        ("doorbells, 8 at once", None, lambda path: Ringing(path, burst=8)),
        ("doorbells, 64 at once", None, lambda path: Ringing(path, burst=64)),
    ]
    return [Row(name=name, make=make, prototype_ns=prototype) for name, prototype, make in made]


def fidelity(path: Datapath) -> dict[int, float]:
    """Of bursts of n frames, the share that arrived in polls of n."""
    found: dict[int, float] = {}
    for size in _BURSTS:
        bench = Bench(path, _FLOWS, burst=size)
        bench.turn(500)
        found[size] = sum(poll == size for poll in bench.polls) / len(bench.polls)
        bench.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.nic", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each data path")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rb-bench-") as kept:
        try:
            path = datapath.load(build.compile_library(Path(kept) / "datapath.so"))
        except build.BuildError as error:
            raise InfrastructureError(str(error), hint="install a C compiler") from error
        measured = rows()
        for row in measured:
            row.measure([path, PYTHON], chosen.rounds)
        bursts = fidelity(path)
    result = {
        "rows": [row.result() for row in measured],
        "bursts": {str(size): share for size, share in bursts.items()},
    }
    show(result, [row.line() for row in measured], as_json=chosen.json)
    if not chosen.json:
        shares = ", ".join(f"{size}: {100 * share:.1f} %" for size, share in bursts.items())
        print(f"bursts of n that arrived in polls of n: {shares}")


if __name__ == "__main__":
    command(main)
