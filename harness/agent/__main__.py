# SPDX-License-Identifier: MIT
"""The agent's loop: one JSON request a line on stdin, one answer a line on stdout.

Hides how calls are dispatched and how an agent ends: when the controller is gone for any
reason, it detaches probes, stops the load and restores the settings before it exits.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from .boot import BootControl
from .boot.drivers import drivers
from .boot.kernel_config import kernel_config
from .boot.kernels import Kernels
from .boot.netconsole import netconsole
from .counters import Counters
from .counters.emulated import Emulated, symbols
from .counters.pmu import Pmu
from .doctor import Doctor
from .doctor.around import others
from .doctor.firewall import firewall
from .faults import AgentError, ControllerGone
from .foreign import read_text
from .inventory import inventory, see_own_interfaces
from .lease import Lease
from .load import Load
from .load.way import Way
from .protocol import PROTOCOL, bound
from .settings import Settings
from .tracing import Tracer
from .tracing.sampler import Sampler

_NO_CHARACTER = re.compile(r"(?<!\\ud[89ab][0-9a-f]{2})\\udc[89a-f][0-9a-f]")
_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Channel:
    """Lines from and to the controller; a wait ends when the controller is gone."""

    def __init__(self) -> None:
        # Output of libraries must not become part of the protocol.
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._pending = b""
        self._ended = False

    def line(self) -> str | None:
        """The next request; None at the end of the stream."""
        while b"\n" not in self._pending and not self._ended:
            self._receive()
        line, newline, rest = self._pending.partition(b"\n")
        self._pending = rest
        return line.decode(errors="replace") if newline else None

    def send(self, message: dict[str, Any]) -> None:
        """Raises ControllerGone if nobody reads any more."""
        text = json.dumps(message, separators=(",", ":"))
        # Bytes from a file that are not UTF-8 become U+FFFD.
        data = _NO_CHARACTER.sub(r"\\ufffd", text).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except BrokenPipeError as error:
            raise ControllerGone from error

    def sleep(self, duration_s: float) -> None:
        """Raises ControllerGone as soon as stdin ends."""
        end_s = time.monotonic() + duration_s
        while True:
            left_s = max(0.0, end_s - time.monotonic())
            if select.select([0], [], [], left_s)[0]:
                self._receive()
                if self._ended:
                    raise ControllerGone
            elif left_s == 0.0 or time.monotonic() >= end_s:
                return

    def _receive(self) -> None:
        data = os.read(0, 65536)
        self._pending += data
        self._ended = not data


class Agent:
    """The calls, one method each; results and arguments are plain JSON values."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self._sleep = sleep
        self._settings = Settings()
        self._load = Load()
        self._tracer = Tracer()
        self._sampler = Sampler()
        self._way = Way()
        lease = Lease()
        self._pmu = Pmu()
        self._counters: dict[str, Counters] = {}
        boot = BootControl()
        kernels = Kernels()
        self.calls: dict[str, Callable[..., Any]] = {
            "inventory": inventory,
            "lease_take": lease.take,
            "lease_refresh": lease.refresh,
            "lease_free": lease.free,
            "lease_break": lease.broken,
            "lease_state": lease.state,
            "kernel_config": kernel_config,
            "settings_apply": self._settings_apply,
            "settings_read": self._settings.read,
            "settings_restore": self._settings.restore,
            "netserver_start": self._load.netserver_start,
            "netserver_end": self._load.netserver_end,
            "netserver_stop": self._load.netserver_stop,
            "netperf_start": self._load.netperf_start,
            "netperf_rr": self._netperf_rr,
            "netperf_sending": self._load.netperf_sending,
            "netperf_pause": self._load.netperf_pause,
            "netperf_resume": self._load.netperf_resume,
            "netperf_end": self._load.netperf_end,
            "netperf_wait": self._netperf_wait,
            "netperf_stop": self._load.netperf_stop,
            "counters": self._snapshot,
            "window": self._window,
            "trace": self._trace,
            "trace_can": self._tracer.can,
            "trace_attach": self._tracer.attach,
            "trace_detach": self._tracer.detach,
            "trace_watch": self._tracer.watch,
            "trace_read": self._tracer.read,
            "sample": partial(self._sampler.sample, sleep=self._sleep),
            "dmesg": _dmesg,
            "netconsole": netconsole,
            "kernel_install": kernels.install,
            "kernel_list": kernels.installed,
            "kernel_remove": kernels.remove,
            "kernel_room": kernels.room,
            "drivers": drivers,
            "firewall": firewall,
            "others": others,
            "way_listen": self._way.listen,
            "way_try": self._way.tried,
            "way_end": self._way.end,
            "boot_can": boot.can,
            "boot_prepare": boot.prepare,
            "boot_go": boot.go,
            "boot_cancel": boot.cancel,
            "boot_state": boot.state,
            "doctor": Doctor(boot, kernels).examine,
            "settings_recover": self._settings.recover,
            "symbols": symbols,
        }

    def close(self) -> None:
        """Restore the host; a failure does not stop the rest."""
        self._way.end()
        for last in (self._tracer.close, self._load.stop, self._settings.restore):
            try:
                left = last()
            except Exception:  # noqa: BLE001 - the rest has to be restored all the same
                traceback.print_exc(file=sys.stderr)
            else:
                for failure in (left or {}).get("failed", ()):
                    sys.stderr.write(f"not restored: {failure}\n")

    def _settings_apply(self, *, interface: str, **wanted: Any) -> Any:
        # Queues and interrupts may change.
        self._counters.clear()
        return self._settings.apply(interface=interface, sleep=self._sleep, **wanted)

    def _netperf_wait(self, *, timeout_s: float) -> Any:
        return self._load.netperf_wait(timeout_s=timeout_s, sleep=self._sleep)

    def _netperf_rr(self, **test: Any) -> Any:
        return self._load.netperf_rr(sleep=self._sleep, **test)

    def _snapshot(self, *, interface: str) -> Any:
        return self._of(interface).snapshot()

    def _window(
        self,
        *,
        interface: str,
        duration_s: float,
        sample_s: float = 0.2,
        netserver: bool = False,
        pmu_cpu: int | None = None,
        emulated: bool = False,
    ) -> Any:
        if netserver and not self._load.serving():
            raise AgentError("netserver receives no stream when the window starts", kind="void")
        window = partial(
            self._of(interface).window,
            duration_s=duration_s,
            sample_s=sample_s,
            sleep=self._sleep,
        )
        if pmu_cpu is None:
            return window()
        # netserver's own instructions are not part of the receive path, and a kernel that
        # leaves it more CPU time would have more of them.
        still = self._load.netserver_stands_still() if emulated else contextlib.nullcontext()
        counters = Emulated() if emulated else self._pmu
        with still, counters.over(pmu_cpu) as watch:
            found = window(opened=watch.open, closed=watch.close)
            return found | {"pmu": watch.read()}

    def _trace(self, *, interface: str, duration_s: float, program_dir: str | None = None) -> Any:
        return self._tracer.trace(
            interface=interface,
            duration_s=duration_s,
            program_dir=program_dir,
            counters=self._of(interface),
            sleep=self._sleep,
        )

    def _of(self, interface: str) -> Counters:
        if interface not in self._counters:
            self._counters[interface] = Counters(interface, self._load.pids)
        return self._counters[interface]


def _dmesg() -> dict[str, str]:
    done = subprocess.run(
        ["dmesg"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode != 0:
        raise AgentError(f"the kernel log cannot be read: {done.stderr.strip()}")
    return {"text": done.stdout}


def _request(line: str) -> tuple[int, str, dict[str, Any]]:
    try:
        request = json.loads(line)
        return request["id"], request["call"], request.get("args") or {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AgentError(f"not a request: {line[:200]!r}", kind="configuration") from error


def _call(calls: dict[str, Callable[..., Any]], name: str, arguments: dict[str, Any]) -> Any:
    if name not in calls:
        known = ", ".join(sorted(calls))
        raise AgentError(f"no call {name!r}", kind="configuration", hint=f"calls: {known}")
    try:
        bound(name, arguments)
    except TypeError as error:
        raise AgentError(f"{name}: {error}", kind="configuration") from error
    return calls[name](**arguments)


def _answer(calls: dict[str, Callable[..., Any]], line: str) -> dict[str, Any]:
    number = None
    try:
        number, name, arguments = _request(line)
        return {"id": number, "result": _call(calls, name, arguments)}
    except AgentError as error:
        problem = {"kind": error.kind, "message": str(error), "hint": error.hint}
    except Exception as error:  # noqa: BLE001 - one failed call must not end the agent
        traceback.print_exc(file=sys.stderr)
        message = f"{type(error).__name__}: {error}"
        problem = {"kind": "infrastructure", "message": message, "hint": None}
    return {"id": number, "error": problem}


def _stopped(_number: int, _frame: FrameType | None) -> NoReturn:
    # A second signal must not interrupt the clean-up.
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)
    raise ControllerGone


def main(_arguments: Sequence[str] = ()) -> int:
    """Serve until the controller is gone; 0 is the only status of a clean exit."""
    channel = _Channel()
    see_own_interfaces()
    agent = Agent(channel.sleep)
    for number in _ENDS:
        signal.signal(number, _stopped)
    with contextlib.suppress(ControllerGone):
        try:
            channel.send(
                {
                    "ready": {
                        "protocol": PROTOCOL,
                        "pid": os.getpid(),
                        "python": platform.python_version(),
                        "release": platform.release(),
                        "boot_id": read_text(Path("/proc/sys/kernel/random/boot_id")),
                        "hostname": platform.node(),
                    }
                }
            )
            while (line := channel.line()) is not None:
                if line.strip():
                    channel.send(_answer(agent.calls, line))
        finally:
            for number in _ENDS:
                signal.signal(number, signal.SIG_IGN)
            agent.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
