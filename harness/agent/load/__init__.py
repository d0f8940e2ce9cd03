# SPDX-License-Identifier: MIT
"""The load: netserver on the dut, netperf streams on the generator.

Hides how the processes are started, pinned and tracked, how they die with the agent, and the
format of netperf's output.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.agent import packages, programs
from harness.agent.cpus import allowed, as_list, online
from harness.agent.faults import AgentError
from harness.agent.foreign import read_text

Sleep = Callable[[float], None]

_POLL_S = 0.05
_START_S = 20.0
_END_S = 2.0
# netserver stops receiving 4 s after the test's length, counted from its set-up
# (PAD_TIME in netperf's netlib.h): a longer delay would cut off the end of a stream.
_MAX_SETTLE_S = 3
# Output selectors of netperf's omni tests; UDP_STREAM is one of them.
_SELECTORS = "LOCAL_BYTES_SENT,REMOTE_BYTES_RECVD,ELAPSED_TIME,LOCAL_SEND_SIZE"
_RR_SELECTORS = {
    "TRANSACTION_RATE": "transactions_per_s",
    "MEAN_LATENCY": "mean_us",
    "STDDEV_LATENCY": "stddev_us",
    "MIN_LATENCY": "min_us",
    "P50_LATENCY": "p50_us",
    "P90_LATENCY": "p90_us",
    "P99_LATENCY": "p99_us",
    "MAX_LATENCY": "max_us",
    "ELAPSED_TIME": "elapsed_s",
}
_LISTEN = "0A"


@dataclass
class _Stream:
    process: subprocess.Popen[str]
    pid: int = 0
    """netperf itself, inside setpriv and a command prefix."""
    early: bool | None = None


class Load:
    """The processes that this agent started. All of them die with the agent."""

    def __init__(self) -> None:
        self._netserver: subprocess.Popen[str] | None = None
        self._netserver_pid = 0
        self._streams: list[_Stream] = []
        self._message_bytes, self._test = 1, ""
        self._duration_s = 0
        self._paused_s = 0.0
        self._paused_at_s: float | None = None

    def netserver_start(
        self,
        *,
        address: str,
        port: int,
        cpu: int | None = None,
        command_prefix: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Start netserver on ``address``, pinned with all it forks; returns once it listens.

        A running one is kept.

        Raises:
            AgentError: netserver is missing, exits at once or does not listen in time.
        """
        if self._netserver is not None and self._netserver.poll() is None and _listening(port):
            return {"pid": self._netserver_pid}
        self.netserver_stop()
        if _listening(port):
            raise AgentError(
                f"port {port} is already taken on this host",
                hint="stop the other netserver (the package starts one as a service)",
            )
        version = _version(address)
        command = [*command_prefix, "netserver", "-D", version, "-L", address, "-p", str(port)]
        # In a PID namespace, the processes that netserver forks for its connections
        # cannot outlive the agent either.
        contained = Path("/proc/self/ns/pid").exists() and programs.found("unshare") is not None
        if contained:
            # Not with --kill-child: current versions of unshare need pidfds for it (Linux 5.3).
            command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
            command = ["unshare", "--pid", "--fork", "--", *command]
        self._netserver = _started(command, cpus=None if cpu is None else [cpu])
        end_s = time.monotonic() + _START_S
        while not _listening(port):
            if self._netserver.poll() is not None:
                raise _died(self._netserver, "netserver")
            if time.monotonic() > end_s:
                self.netserver_stop()
                raise AgentError(f"netserver did not listen on port {port} within {_START_S:.0f} s")
            time.sleep(_POLL_S)
        # In a PID namespace netserver is a child of the process that was started.
        self._netserver_pid = [*descendants(self._netserver.pid), self._netserver.pid][0]
        return {"pid": self._netserver_pid}

    def netserver_end(self) -> dict[str, Any]:
        """End every stream that is being received, as netserver's own timer would.

        A stream ends with a datagram. If a full socket drops it, netserver would wait for the
        whole length of the test.
        """
        serving = descendants(self._netserver_pid) if self._netserver is not None else []
        begun = [pid for pid in serving if _catches(pid, signal.SIGALRM)]
        return {"pids": _signalled(begun, signal.SIGALRM)}

    def netserver_stop(self) -> dict[str, Any]:
        if self._netserver is not None:
            _end([self._netserver])
            self._netserver = None
        return {}

    def netperf_start(
        self,
        *,
        target: str,
        port: int,
        duration_s: float,
        cpus: Sequence[int],
        streams: int = 10,
        message_bytes: int = 1,
        send_buffer_bytes: int = 0,
        nice: int = 0,
        settle_s: int = 1,
        watched_s: float | None = None,
        data_to: str | None = None,
        test: str = "UDP_STREAM",
        command_prefix: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Start ``streams`` times ``test``, stream i on ``cpus[i % len(cpus)]`` (empty: any).

        Each waits ``settle_s`` between its set-up and its first message, so that no control
        connection is set up under the load of earlier streams. Returns after ``watched_s``, by
        default shortly before messages begin. ``send_buffer_bytes`` limits
        what is queued in a socket while the interface is paced; 0: the host's default.
        Messages go to ``data_to``, by default to ``target`` as the control connection does. They
        are sent until :meth:`netperf_end`, at most for ``duration_s`` rounded up to whole seconds.

        Raises:
            AgentError: netperf is missing, a stream ended during set-up, or this host
                does not allow the arguments.
        """
        self.netperf_stop()
        if not 0 <= settle_s <= _MAX_SETTLE_S:
            raise AgentError(f"settle_s has to be 0 to {_MAX_SETTLE_S}", kind="configuration")
        self._message_bytes, self._test = message_bytes, test
        self._duration_s = math.ceil(duration_s)
        self._paused_s, self._paused_at_s = 0.0, None
        command = [*command_prefix, "netperf", _version(target), "-H", target, "-p", str(port)]
        command += ["-t", test, "-l", str(self._duration_s), "-P", "0"]
        command += ["-s", str(settle_s)] if settle_s else []
        # -R 1: otherwise netperf sets SO_DONTROUTE and stays on the local link.
        command += ["--", "-m", str(message_bytes), "-R", "1", "-k", _SELECTORS]
        command += ["-s", str(send_buffer_bytes)] if send_buffer_bytes else []
        command += ["-H", data_to] if data_to else []
        try:
            for index in range(streams):
                pinned = [cpus[index % len(cpus)]] if cpus else None
                self._streams.append(_Stream(_started(command, cpus=pinned)))
        except BaseException:
            self.netperf_stop()
            raise
        pids = [stream.process.pid for stream in self._streams]
        niced = [_niced(pid, nice) for pid in pids]
        end_s = time.monotonic() + (0.8 * settle_s if watched_s is None else watched_s)
        while True:
            for stream in self._streams:
                if stream.process.poll() is not None:
                    raise self._stream_died(stream, target, port)
            if time.monotonic() >= end_s:
                break
            time.sleep(_POLL_S)
        for stream in self._streams:
            stream.pid = [stream.process.pid, *descendants(stream.process.pid)][-1]
        return {"pids": pids, "nice": niced, "settle_s": settle_s}

    def netperf_rr(
        self,
        *,
        target: str,
        port: int,
        duration_s: float,
        cpu: int | None = None,
        command_prefix: Sequence[str] = (),
        sleep: Sleep,
    ) -> dict[str, float]:
        """Run one UDP_RR test of 1 byte each way; times are in µs.

        Raises:
            AgentError: netperf is missing, fails, or does not end in time.
        """
        self.netperf_stop()
        command = [*command_prefix, "netperf", _version(target), "-H", target, "-p", str(port)]
        command += ["-t", "UDP_RR", "-l", str(math.ceil(duration_s)), "-j", "-P", "0"]
        command += ["--", "-r", "1,1", "-R", "1", "-k", ",".join(_RR_SELECTORS)]
        process = _started(command, cpus=None if cpu is None else [cpu])
        self._streams = [_Stream(process)]
        end_s = time.monotonic() + duration_s + _START_S
        while process.poll() is None:
            if time.monotonic() > end_s:
                self.netperf_stop()
                raise AgentError(f"netperf UDP_RR did not end within {duration_s + _START_S:.0f} s")
            sleep(_POLL_S)
        if process.returncode != 0:
            raise self._stream_died(self._streams[0], target, port)
        self._streams = []
        return parse_round_trips(process.communicate()[0])

    def netperf_sending(self) -> dict[str, Any]:
        """The number of streams that have finished their set-up.

        netperf handles SIGALRM once its timer is set; before that :meth:`netperf_end` would
        kill it.
        """
        return {"streams": sum(_catches(pid, signal.SIGALRM) for pid in self._sending())}

    def netperf_pause(self) -> dict[str, Any]:
        """Stop all streams until :meth:`netperf_resume`."""
        if self._paused_at_s is None:
            self._paused_at_s = time.monotonic()
            _signalled(self._sending(), signal.SIGSTOP)
        return {}

    def netperf_resume(self) -> dict[str, Any]:
        if self._paused_at_s is not None:
            _signalled(self._sending(), signal.SIGCONT)
            self._paused_s += time.monotonic() - self._paused_at_s
            self._paused_at_s = None
        return {}

    def netperf_end(self) -> dict[str, Any]:
        """End every stream now, as its own timer would; those that have ended are ``early``."""
        self.netperf_resume()
        for stream in self._streams:
            stream.early = stream.process.poll() is not None
        return {"pids": _signalled(self._sending(), signal.SIGALRM)}

    def _sending(self) -> list[int]:
        return [stream.pid for stream in self._streams if stream.process.poll() is None]

    def netperf_wait(self, *, timeout_s: float, sleep: Sleep) -> list[dict[str, Any]]:
        """The results of all streams; those that do not end within ``timeout_s`` are killed.

        A killed stream has the status None. ``ended_early`` marks a stream that ended before
        it was told to. ``elapsed_s`` is netperf's and includes pauses; the rates exclude them.
        """
        end_s = time.monotonic() + timeout_s
        while any(s.process.poll() is None for s in self._streams) and time.monotonic() < end_s:
            sleep(_POLL_S)
        late = {s.process.pid for s in self._streams if s.process.poll() is None}
        _end([s.process for s in self._streams])
        results = []
        for index, stream in enumerate(self._streams):
            stdout, stderr = stream.process.communicate()
            status = stream.process.returncode
            if stream.process.pid in late:
                status, stderr = None, f"{stderr}stopped: no end within {timeout_s:.0f} s\n"
            row = parse_stream(stdout, message_bytes=self._message_bytes, paused_s=self._paused_s)
            if self._test == "TCP_STREAM":
                row["octets_received"] = _number(_values(stdout), "REMOTE_BYTES_RECVD")
            early = stream.early
            if early is None:
                elapsed_s = row["elapsed_s"]
                early = elapsed_s is None or elapsed_s < self._duration_s - 0.1
            results.append(
                {
                    "stream": index,
                    "status": status,
                    "stdout": stdout,
                    "stderr": stderr,
                    **row,
                    "ended_early": early,
                }
            )
        self._streams = []
        return results

    def netperf_stop(self) -> dict[str, Any]:
        _end([stream.process for stream in self._streams])
        self._streams = []
        return {}

    def stop(self) -> None:
        """Kill all streams and netserver."""
        self.netperf_stop()
        self.netserver_stop()

    @contextlib.contextmanager
    def netserver_stands_still(self) -> Iterator[None]:
        """Stop netserver meanwhile: its sockets fill, and further packets are dropped there."""
        stopped = _signalled(self.pids(), signal.SIGSTOP)
        try:
            yield
        finally:
            _signalled(stopped, signal.SIGCONT)

    def pids(self) -> list[int]:
        """The processes of the load, including netserver's for its connections."""
        mine = [stream.process.pid for stream in self._streams]
        if self._netserver is not None:
            mine += [self._netserver_pid, *descendants(self._netserver_pid)]
        return mine

    def serving(self) -> bool:
        """Has netserver a process for at least one connection?"""
        return self._netserver is not None and bool(descendants(self._netserver_pid))

    def _stream_died(self, stream: _Stream, target: str, port: int) -> AgentError:
        error = _died(stream.process, "netperf")
        self.netperf_stop()
        if "onnection refused" in str(error) or "establish the control" in str(error):
            error.hint = (
                f"nothing answers on TCP port {port} of {target}: `harness doctor` tests the "
                "path, and names the command that opens a firewall"
            )
        elif "o route to host" in str(error) or "timed out" in str(error):
            error.hint = (
                f"{target} is unreachable, or its firewall rejects TCP port {port}: `harness "
                "doctor` tests the path, and names the command that opens the firewall"
            )
        elif "could not resolve" in str(error):
            error.hint = "the network namespace needs an interface that is up and has an address"
        return error


def parse_stream(
    stdout: str, *, message_bytes: int, paused_s: float = 0.0
) -> dict[str, float | None]:
    """Messages and rates from netperf's KEY=value lines; None if a line is missing.

    Messages are bytes divided by the message size: the remote's count of receive calls may
    include one that returned nothing.
    """
    values = _values(stdout)
    sent, received = _number(values, "LOCAL_BYTES_SENT"), _number(values, "REMOTE_BYTES_RECVD")
    elapsed_s = _number(values, "ELAPSED_TIME")

    def rate_pps(size: float | None) -> float | None:
        if size is None or elapsed_s is None or elapsed_s <= paused_s:
            return None
        return size / message_bytes / (elapsed_s - paused_s)

    return {
        "messages_sent": None if sent is None else round(sent / message_bytes),
        "messages_received": None if received is None else round(received / message_bytes),
        "elapsed_s": elapsed_s,
        "send_pps": rate_pps(sent),
        "recv_pps": rate_pps(received),
    }


def parse_round_trips(stdout: str) -> dict[str, float]:
    """The rate and the times in µs of UDP_RR.

    Raises:
        AgentError: a value is missing or not a number.
    """
    values = _values(stdout)
    try:
        found = {name: float(values[key]) for key, name in _RR_SELECTORS.items()}
    except (KeyError, ValueError) as error:
        raise AgentError(f"netperf UDP_RR printed no {error}") from error
    if odd := [name for name, value in found.items() if not math.isfinite(value)]:
        raise AgentError(f"netperf UDP_RR printed no finite number for {', '.join(odd)}")
    return found


def _values(stdout: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in stdout.splitlines() if "=" in line)


def _number(values: Mapping[str, str], key: str) -> float | None:
    try:
        found = float(values[key])
    except (KeyError, ValueError):
        return None
    return found if math.isfinite(found) else None


def descendants(pid: int) -> list[int]:
    """All descendants of ``pid``: its children first, then theirs, and so on."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(LookupError, ValueError):
            stat = read_text(path) or ""
            parent = int(stat[stat.rindex(")") + 2 :].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found: list[int] = []
    generation = [pid]
    while generation:
        generation = sorted(child for parent in generation for child in children.get(parent, []))
        found += generation
    return found


def _signalled(pids: Sequence[int], number: signal.Signals) -> list[int]:
    """Send ``number`` to each of ``pids``; returns those that exist."""
    there = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            there.append(pid)
    return there


def _catches(pid: int, number: signal.Signals) -> bool:
    """Does ``pid`` handle ``number``? False if the process has ended."""
    with contextlib.suppress(StopIteration, LookupError, ValueError):
        status = read_text(Path(f"/proc/{pid}/status")) or ""
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
    return False


def _started(command: list[str], *, cpus: Sequence[int] | None) -> subprocess.Popen[str]:
    """Start ``command`` on ``cpus`` (None: all); it gets SIGKILL when the agent dies."""
    if programs.found(command[0]) is None:
        raise AgentError(
            f"{command[0]} is not installed on this host", hint=packages.hint(command[0])
        )
    own = os.sched_getaffinity(0)
    try:
        # Set before the fork, so that the load does not inherit the agent's own CPU.
        os.sched_setaffinity(0, online() if cpus is None else cpus)
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except FileNotFoundError as error:
        raise AgentError(
            "setpriv is not installed on this host", hint=packages.hint("util-linux")
        ) from error
    except OSError as error:
        raise AgentError(
            f"cannot start {command[0]} on CPU {cpus}: {error.strerror}",
            kind="configuration",
            hint=f"CPUs allowed to processes here: {as_list(allowed())}",
        ) from error
    finally:
        os.sched_setaffinity(0, own)


def _niced(pid: int, nice: int) -> int:
    """Set and return the nice value of ``pid``; root in a user namespace cannot go below 0."""
    with contextlib.suppress(PermissionError, ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, pid, nice)
    with contextlib.suppress(ProcessLookupError):
        return os.getpriority(os.PRIO_PROCESS, pid)
    return 0


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Kill ``processes`` with all they forked, and wait for them."""
    for process in processes:
        if process.poll() is None:
            # A wrapper that was started only waits for its children and then exits.
            forked = descendants(process.pid)
            for pid in forked or [process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    for process in processes:
        try:
            process.wait(timeout=_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _died(process: subprocess.Popen[str], what: str) -> AgentError:
    stdout, stderr = process.communicate()
    said = (stderr or stdout).strip()
    missing = "No such file" in said or "not found" in said
    return AgentError(
        f"{what} ended with status {process.returncode}: {said or 'it said nothing'}",
        hint=packages.hint("netperf") if missing else None,
    )


def _version(address: str) -> str:
    """netperf's option for the version of IP."""
    return "-6" if ":" in address else "-4"


def _listening(port: int) -> bool:
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(LookupError, ValueError):
            for line in (read_text(Path("/proc/net", name)) or "").splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTEN and int(words[1].rpartition(":")[2], 16) == port:
                    return True
    return False
