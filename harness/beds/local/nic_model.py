# SPDX-License-Identifier: MIT
"""The NIC model's process, and the side of a bed that sends to it.

Hides how both die with the harness and leave CPU time to the kernel under test.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base import process, runtime
from harness.base.errors import InfrastructureError
from harness.beds.access.channel import RemoteAgent
from harness.beds.bed import RunningBed
from harness.beds.local import netns
from harness.config import QemuHost, UmlHost, Wire
from harness.nic import datapath

NETPERF_NICE = 2
"""Two thirds of the scheduler weight of the vCPU and of the NIC model, where they share a CPU."""
_REPEATED_NICE = 10
"""For netperf where the wire repeats its datagrams: its own rate does not matter then."""
_ANSWER_S = 20.0
CONTROL = "nic-control"
"""The name of its control socket."""


def data_path() -> tuple[bool, str]:
    """Whether the model's data path is the compiled one, and its name with the reason."""
    try:
        chosen = datapath.chosen()
    except datapath.DatapathError as error:
        return False, str(error)
    return chosen.code is not None, str(chosen)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The device at the other end of a cable inside the model's process."""

    socket: Path
    """Where the user-mode kernel with it connects."""
    mac: str


class NicModel:
    """The NIC model's process and its control socket."""

    def __init__(
        self,
        namespace: netns.Namespace | None,
        *,
        wire: str | Peer,
        mac: str,
        socket: Path,
        control: Path,
        log: Path,
        cpu: int | None = None,
        vhost_user: bool = False,
        delivery: Wire | None = None,
    ) -> None:
        """Start it on the interface ``wire`` of ``namespace``, or on a cable to a peer.

        It listens at ``socket``. QEMU connects there, or a user-mode kernel with ``vhost_user``.
        By default it delivers each frame once.
        """
        options = [] if delivery is None else wire_options(delivery)
        self.repeats = delivery is not None and delivery.repeat != 1
        joined = (
            ["--peer", str(wire.socket), "--peer-mac", wire.mac]
            if isinstance(wire, Peer)
            else ["--interface", wire]
        )
        command = [
            *([] if cpu is None else ["taskset", "-c", str(cpu)]),
            sys.executable, "-m", "harness.nic",
            "--vhost-user" if vhost_user else "--socket", str(socket), *options,
            "--control", str(control), *joined, "--mac", mac, "--log", str(log),
        ]  # fmt: skip
        if namespace is None:
            command = ["setpriv", "--pdeathsig=KILL", "--", *command]
        else:
            command = namespace.command(command)
        self._control = control
        self._stderr = log.with_name("nic-stderr.log")
        with self._stderr.open("w", encoding="utf-8") as stderr:
            self.process = process.start(
                command,
                hint="apt-get install util-linux",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                encoding="utf-8",
                errors="replace",
            )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        if not ready:
            self.process.wait()
            self.check()

    def check(self) -> None:
        """Raise an :class:`InfrastructureError` if the model has ended."""
        if self.process.poll() is not None:
            said = self._stderr.read_text(errors="replace", encoding="utf-8")
            raise process.failed(["python", "-m", "harness.nic"], self.process.returncode, said)

    def counters(self) -> dict[str, Any]:
        """The model's own counters, by name."""
        return dict(self._ask({"call": "counters"})["counters"])

    def pace_repetition(self, pps: float | None) -> None:
        """Have it deliver so many repeated frames per second; None: as many as the link does."""
        self._ask({"call": "pace", "pps": pps})

    def fault(self, name: str, **what: int) -> None:
        """Have it do what hardware does on a bad day: ``nic/injection.py`` lists the faults."""
        self._ask({"call": "fault", "name": name, **what})

    def set_wire(self, wire: Wire) -> None:
        """Have it deliver frames like that from now on."""
        repeat = 0 if wire.repeat == "auto" else wire.repeat
        self._ask({"call": "wire", "repeat": repeat, "burst": wire.burst or 0})
        self.repeats = repeat != 1

    def _ask(self, call: dict[str, Any]) -> dict[str, Any]:
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(_ANSWER_S)
                line.connect(str(self._control))
                line.sendall(json.dumps(call).encode() + b"\n")
                answer: dict[str, Any] = json.loads(line.makefile().readline())
        except (OSError, ValueError) as error:
            self.check()
            raise InfrastructureError(f"the NIC model does not answer: {error}") from error
        if "error" in answer:
            raise InfrastructureError(f"the NIC model refuses {call}: {answer['error']}")
        return answer

    def freeze(self) -> None:
        """Stop it. Stop its client first."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it continue."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        self.check()  # its pid may belong to another process otherwise
        self.process.send_signal(number)

    def stop(self) -> None:
        """End it."""
        process.end(self.process)


@dataclass(kw_only=True)
class ModelledBed(RunningBed):
    """A bed whose dut has the NIC model."""

    nic: NicModel

    def nic_counters(self) -> dict[str, Any]:
        return self.nic.counters()

    @property
    def repeats(self) -> bool:
        return self.nic.repeats

    def pace_repetition(self, pps: float | None) -> None:
        self.nic.pace_repetition(pps)

    def set_wire(self, wire: Wire) -> None:
        self.nic.set_wire(wire)

    def sent(self) -> int:
        if not self.repeats:
            return super().sent()
        found = self.nic.counters()
        return int(found["rx_frames"] + found["repeat_lost"])


@dataclass(frozen=True, kw_only=True)
class SendingSide:
    """The agent of the generator, and the NIC model at the other end of its wire."""

    agent: RemoteAgent
    interface: str
    mac: str
    model: NicModel
    nic_socket: Path
    """The socket at which the kernel under test finds its NIC."""
    runtime: Path
    """A directory for further sockets, removed at the end."""


def wire_options(wire: Wire) -> list[str]:
    """The NIC model's options for ``wire``."""
    told = ["--repeat", "0" if wire.repeat == "auto" else str(wire.repeat)]
    return told if wire.burst is None else [*told, "--burst", str(wire.burst)]


def load_nice(wire: Wire) -> int:
    """The nice value of netperf that sends to ``wire``."""
    return NETPERF_NICE if wire.repeat == 1 else _REPEATED_NICE


@contextmanager
def sending_side(
    dut: QemuHost | UmlHost, directory: Path, *, cpu: int, vhost_user: bool = False
) -> Iterator[SendingSide]:
    """Start a namespace, and the NIC model of ``dut`` on ``cpu``.

    Both end with the context. ``directory`` keeps their logs.
    """
    with contextlib.ExitStack() as up:
        sockets = up.enter_context(runtime.directory(name_bytes=len(CONTROL)))
        namespace = netns.start(log=directory / "generator-agent.log")
        up.callback(namespace.agent.close)
        set_nice(namespace.agent.pid, load_nice(dut.wire))
        model = NicModel(
            namespace,
            wire=netns.WIRE,
            mac=dut.nic.mac,
            socket=sockets / "nic",
            control=sockets / CONTROL,
            log=directory / "nic.log",
            cpu=cpu,
            vhost_user=vhost_user,
            delivery=dut.wire,
        )
        up.callback(model.stop)
        yield SendingSide(
            agent=namespace.agent,
            interface=netns.INTERFACE,
            mac=namespace.mac,
            model=model,
            nic_socket=sockets / "nic",
            runtime=sockets,
        )


def set_nice(pid: int, nice: int) -> None:
    """For the whole session of ``pid``: with autogroups, a process's own nice counts only in it."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="utf-8")
