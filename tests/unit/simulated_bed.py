# SPDX-License-Identifier: MIT
"""A bed of simulated hosts: their agents, its boots, and a transcript of all that is asked.

The agents refuse what real agents refuse, and calls that make no sense fail the test.
Every call is written to the transcript, and so is every line of the campaign's journal and
every boot.json as soon as it is on disk.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.agent.protocol import Calls
from harness.base.errors import HostLostError, KernelError
from harness.beds.access.channel import Pending
from harness.beds.bed import Block, Boots, RunningBed
from harness.config import Wire
from tests.unit.fake_agent import FakeAgent
from tests.unit.simulated_hosts import (
    DUT_INTERFACE,
    GENERATOR_INTERFACE,
    Bench,
    Clock,
    Generator,
    Host,
    Json,
    Kernel,
    round_trip_us,
)

BOOT_S = 40.0
_LONG_AGO_S = 1000.0
_DUT_MAC, _GENERATOR_MAC = "02:00:00:00:00:02", "02:00:00:00:00:01"


class Transcript:
    """What was asked of whom, one line each, with the time that passed between."""

    def __init__(self, clock: Clock) -> None:
        self.lines: list[str] = []
        self.directory: Path | None = None
        self._clock, self._at_s = clock, clock.now_s
        self._journalled = 0
        self._boots: dict[Path, bytes] = {}

    def add(self, who: str, what: str, **arguments: Any) -> None:
        self.look()
        said = "".join(f" {name}={_written(value)}" for name, value in arguments.items())
        self._say(f"{who:<14}{what}{said}")

    def call(self, role: str, name: str, arguments: Mapping[str, Any]) -> None:
        """Arguments that are as if they had not been given are left out."""
        known = inspect.signature(getattr(Calls, name)).parameters
        usual = {one: parameter.default for one, parameter in known.items()}
        given = {
            one: arguments[one]
            for one in (*known, *sorted(arguments.keys() - known.keys()))
            if one in arguments and _plain(arguments[one]) != _plain(usual.get(one))
        }
        self.add(role, name, **given)

    def look(self) -> None:
        """Write down what has come to disk."""
        if self.directory is None:
            return
        for path in sorted(self.directory.glob("boots/*/boot.json")):
            content = path.read_bytes()
            if self._boots.get(path) != content:
                self._boots[path] = content
                boot = json.loads(content)
                trials = [f"{one['kind']} {one['index']}" for one in boot["trials"]]
                self._say(
                    f"{'file':<14}{path.parent.name}/boot.json {boot['outcome']}: "
                    + (", ".join(trials) or "no trials")
                )
        journal = self.directory / "journal.jsonl"
        lines = journal.read_text().splitlines() if journal.exists() else []
        for line in lines[self._journalled :]:
            noted = json.loads(line)
            what = {name: noted[name] for name in ("boot_id", "release") if name in noted}
            said = "".join(f" {name}={_written(value)}" for name, value in what.items())
            about = " ".join(filter(None, (noted["boot"], noted["event"])))
            self._say(f"{'journal':<14}{about}{said}")
        self._journalled = len(lines)

    def _say(self, line: str) -> None:
        passed_s, self._at_s = self._clock.now_s - self._at_s, self._clock.now_s
        if passed_s > 1e-6:
            self.lines.append(f"{'':<14}{passed_s:.3f} s pass")
        self.lines.append(line)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


class _Agents:
    """Both agents of a bench, by the names of their calls."""

    def __init__(self, bench: Bench, transcript: Transcript) -> None:
        self.bench, self.transcript = bench, transcript
        self.received_before = 0.0
        self.began_s = 0.0
        self.ended_streams = 0

    def agent(self, role: str, host: Host, ready: Json) -> FakeAgent:
        who = f"{self.bench.kernel.release} {role}"

        answers = functools.partial(self.bench.kernel.answers, role)

        def usual(name: str, arguments: Json) -> Any:
            if name == "settings_apply":
                return host.apply(arguments)
            if name == "settings_restore":
                return host.restore()
            return getattr(self, f"{role}_{name}")(**arguments)

        def answer(name: str, /, **arguments: Any) -> Any:
            self.transcript.call(who, name, arguments)
            return answers(name, lambda: usual(name, arguments))

        def opens(name: str, /, *, duration_s: float, **arguments: Any) -> Pending[Any]:
            self.transcript.call(who, name, arguments | {"duration_s": duration_s})
            opened = self._opened(name, duration_s, arguments)
            return Pending(opened.arrived, lambda: answers(name, opened.result))

        def closes() -> None:
            self.transcript.add(who, "(closed)")
            host.restore()
            if host is self.bench.generator:
                self.bench.generator.streams = 0

        return FakeAgent(answer, opens=opens, ready=ready, closes=closes, host=role)

    def _opened(self, name: str, duration_s: float, arguments: Json) -> Pending[Any]:
        bench = self.bench
        paced = "unlimited" if bench.generator.paced_pps is None else "paced"
        bench.opened.append(f"{name}, {paced}" + ", under probes" * bench.probes)
        measure = bench.trace if name == "trace" else bench.window
        ended = measure(duration_s, **arguments)
        until_s = bench.up_s + duration_s

        def arrived() -> bool:
            return bench.up_s >= until_s - 1e-9

        def result() -> Any:
            if not arrived():
                assert not bench.frozen, "it waits for a bed that stands still"
                bench.clock.sleep(until_s - bench.up_s)
            return ended()

        return Pending(arrived, result)

    # The dut

    def dut_inventory(self, *, interface: str) -> Json:
        return {
            "interface": interface,
            "link": True,
            "speed_mbps": 10000,
            "versions": {"netserver": "2.7.1"},
        }

    def dut_counters(self, *, interface: str) -> Json:
        assert interface == DUT_INTERFACE
        return self.bench.snapshot()

    def dut_netserver_start(self, **arguments: Any) -> Json:
        set_up = self.bench.dut.settings
        where = str(set_up.get("address6") or set_up.get("address")).partition("/")[0]
        assert arguments["address"] == where, "it listens where the host was set up to be"
        self.bench.netserver = arguments
        return {"pid": 99}

    def dut_netserver_end(self) -> Json:
        assert self.bench.netserver
        return {"pids": [99]}

    def dut_netserver_stop(self) -> Json:
        self.bench.netserver = None
        return {}

    def dut_trace_attach(self, *, interface: str) -> Json:
        assert interface == DUT_INTERFACE
        assert not self.bench.probes
        self.bench.probes = True
        return {}

    def dut_trace_detach(self) -> Json:
        self.bench.probes = False
        return {}

    def dut_symbols(self, *, addresses: list[int]) -> list[tuple[str, int]]:
        return [(f"function_{address >> 12}", address & 0xFFF) for address in addresses]

    # The generator

    def generator_inventory(self, *, interface: str) -> Json:
        return {
            "interface": interface,
            "link": True,
            "speed_mbps": 10000,
            "versions": {"netperf": "2.7.1"},
        }

    def generator_counters(self, *, interface: str) -> Json:
        assert interface == GENERATOR_INTERFACE
        return {"link": {"tx_packets": int(self.bench.generator.sent)}}

    def generator_netperf_start(self, **arguments: Any) -> Json:
        bench, generator = self.bench, self.bench.generator
        self._served(arguments)
        generator.streams = arguments["streams"]
        generator.message_bytes = arguments["message_bytes"]
        generator.paused = False
        generator.sends_from_s = bench.up_s + 1.0
        self.received_before, self.began_s = bench.counts["read"], bench.up_s
        bench.clock.sleep(0.8)
        return {"pids": [], "nice": [], "settle_s": 1}

    def generator_netperf_sending(self) -> Json:
        begun = self.bench.up_s > self.bench.generator.sends_from_s
        return {"streams": self.bench.generator.streams if begun else 0}

    def generator_netperf_pause(self) -> Json:
        assert self.bench.generator.streams
        self.bench.generator.paused = True
        return {}

    def generator_netperf_resume(self) -> Json:
        assert self.bench.generator.streams
        self.bench.generator.paused = False
        return {}

    def generator_netperf_end(self) -> Json:
        self.ended_streams, self.bench.generator.streams = self.bench.generator.streams, 0
        return {"pids": []}

    def generator_netperf_stop(self) -> Json:
        self.bench.generator.streams = 0
        return {}

    def generator_netperf_wait(self, *, timeout_s: float) -> list[Json]:
        assert not self.bench.generator.streams, "they have to be ended first"
        received = int(self.bench.counts["read"]) - int(self.received_before)
        streams = self.ended_streams
        return [
            {
                "stream": number,
                "status": 0,
                "messages_sent": 10**6,
                "messages_received": received // streams + (received % streams) * (number == 0),
                "elapsed_s": self.bench.up_s - self.began_s,
            }
            for number in range(streams)
        ]

    def generator_netperf_rr(self, *, duration_s: float, **arguments: Any) -> Json:
        self._served(arguments)
        bench = self.bench
        assert not bench.generator.streams, "a load is under way beside it"
        assert not bench.probes
        mean_us = round_trip_us(
            bench.dut.settings["coalesce"]["rx_usecs"], bench.dut.settings["busy_read_us"]
        )
        bench.round_trips_pps = 1e6 / mean_us
        bench.clock.sleep(duration_s)
        bench.round_trips_pps = 0.0
        return {
            "transactions_per_s": 1e6 / mean_us,
            **{f"{which}_us": mean_us for which in ("mean", "p50", "p90", "p99")},
        }

    def _served(self, arguments: Json) -> None:
        netserver = self.bench.netserver
        assert netserver, "no netserver runs"
        assert (arguments["target"], arguments["port"]) == (netserver["address"], netserver["port"])


@dataclass(kw_only=True)
class SimulatedBed(RunningBed):
    """A bed that is up."""

    bench: Bench
    transcript: Transcript

    def freeze(self) -> None:
        self.transcript.add("bed", f"freeze {self.bench.kernel.release}")
        self.bench.frozen = True

    def thaw(self) -> None:
        self.transcript.add("bed", f"thaw {self.bench.kernel.release}")
        self.bench.frozen = False

    def nic_counters(self) -> Json | None:
        return None

    def set_wire(self, wire: Wire) -> None:
        self.transcript.add("bed", f"wire of {self.bench.kernel.release}", burst=wire.burst)

    def executed(self) -> list[Block]:
        self.transcript.add("bed", "executed")
        return [
            Block(address=number << 12, runs=10, instructions=1000 * number, misses=number)
            for number in (1, 2)
        ]

    def console(self) -> str:
        return self.bench.kernel.console


class SimulatedBoots(Boots):
    """Boots kernels of :attr:`kernels` by their release."""

    accelerator = None

    def __init__(self, clock: Clock, transcript: Transcript, *, machines: bool) -> None:
        self.clock, self.transcript = clock, transcript
        self.kernels: dict[str, Kernel] = {}
        self.machines = machines
        self.benches: list[Bench] = []
        """Of every boot so far."""
        self.left: list[Json] = []
        """How each boot's hosts were when it ended, before their agents were closed."""
        self.death: KernelError | None = None
        """What :meth:`lost` finds."""
        self.took_along: str | None = None
        self._sending: tuple[Generator, FakeAgent] | None = None
        self._speeds_mbps: dict[str, int] = {}

    @contextmanager
    def boot(
        self, image: Any, directory: Path, note: Callable[..., None]
    ) -> Iterator[SimulatedBed]:
        directory.mkdir(parents=True, exist_ok=True)
        kernel = self.kernels[image.release]
        # A machine that sends is not booted: its agent stays.
        generator = self._sending[0] if self._sending else Generator()
        generator.sends_from_s, generator.most_pps = -_LONG_AGO_S, kernel.offered_pps
        bench = Bench(self.clock, kernel, generator)
        number = len(self.benches) + 1
        note("leaving", boot_id=f"boot-{number - 1}", release=image.release)
        self.transcript.add("bed", f"boot {image.release}")
        self.clock.sleep(BOOT_S)
        note("up", boot_id=f"boot-{number}")
        self.benches.append(bench)
        agents = _Agents(bench, self.transcript)
        ready = {"release": kernel.runs or kernel.release, "boot_id": f"boot-{number}"}
        dut = agents.agent("dut", bench.dut, ready)
        sending = agents.agent("generator", generator, {"release": "own", "boot_id": "g"})
        if self.machines:
            self._sending = generator, sending
        self.clock.benches.append(bench)
        try:
            yield SimulatedBed(
                dut=dut,  # type: ignore[arg-type]
                generator=sending,  # type: ignore[arg-type]
                dut_interface=DUT_INTERFACE,
                dut_mac=_DUT_MAC,
                generator_interface=GENERATOR_INTERFACE,
                generator_mac=_GENERATOR_MAC,
                netperf_prefix=[] if self.machines else ["nsenter"],
                netperf_cpus=[0, 6],
                netperf_nice=0,
                placed={},
                speeds_mbps=self._speeds_mbps,
                bench=bench,
                transcript=self.transcript,
            )
        finally:
            self.left.append(
                {
                    "release": kernel.release,
                    "dut": dict(bench.dut.changed),
                    "generator": dict(generator.changed),
                    "streams": generator.streams,
                    "netserver": bench.netserver,
                    "probes": bench.probes,
                    "frozen": bench.frozen,
                }
            )
            dut.close()
            self.clock.benches.remove(bench)
            if not self.machines:
                sending.close()
            self.transcript.add("bed", f"end {image.release}")

    def lost(self, error: HostLostError) -> None:
        self.transcript.add("bed", f"lost: {error.message}")
        self.close()
        if self.death:
            raise self.death

    def crashed(self, notes: Mapping[str, Mapping[str, Any]]) -> str | None:
        release = str(notes["leaving"]["release"]) if "leaving" in notes else None
        self.transcript.add("bed", f"crashed? {release}")
        return f"{release} took its host along" if release == self.took_along else None

    def close(self) -> None:
        """End the agent on the generator, which puts everything back."""
        if self._sending:
            self._sending[1].close()
            self._sending = None
