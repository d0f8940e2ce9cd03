# SPDX-License-Identifier: MIT
"""Run in the guest as root: one probe at a time, as it is told a line at a time.

Arguments: the agent's archive and the interface. A request is a JSON list, ``[]`` for no
probe, ``["ours", STAGE, …]``, ``["session"]`` or ``["bpftrace", PROGRAM]``; the answer is a
line that says how it is attached.
"""

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

sys.path.insert(0, sys.argv[1])

from harness.agent import tracing as trace
from harness.agent.tracing import compiler
from harness.agent.tracing.stages import Stage

IFINDEX = socket.if_nametoindex(sys.argv[2])
SOURCE = compiler.probe_source("receive_lists.bpf.c", None)


class Some(trace._Program):
    """The trials' program with only the probes that are asked for."""

    def only(self, names: list[str]) -> str:
        if not hasattr(self, "every"):
            self.every = self.stages
        self.stages = [stage for stage in self.every if stage.name in names]
        self.tracepoint = self.truth.name in names
        self.attach()
        self.count(IFINDEX)
        return ", ".join(str(probe.attach) for probe in (*self.stages, self.truth) if probe.attach)

    def _attach_tracepoint(self, stage: Stage, name: str) -> None:
        stage.attach = None
        if self.tracepoint or self.session:
            super()._attach_tracepoint(stage, name)


@contextlib.contextmanager
def ours(program: Some, names: list[str]) -> Iterator[str]:
    try:
        yield program.only(names)
    finally:
        program.detach()


@contextlib.contextmanager
def bpftrace(program: str) -> Iterator[str]:
    running = subprocess.Popen(
        ["bpftrace", "-e", program + ' interval:ms:100 { printf("up\\n"); }'],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stderr is not None
    up = any(line == "up\n" for line in running.stdout)
    try:
        yield "bpftrace" if up else f"failed: {running.stderr.read()[-300:]}"
    finally:
        running.send_signal(signal.SIGINT)
        running.communicate()


def main() -> None:
    trials = Some(SOURCE, None, session=False)
    session = Some(SOURCE, None, session=True)
    every = [stage.name for stage in session.stages] + [session.truth.name]
    with contextlib.ExitStack() as attached:
        for line in sys.stdin:
            attached.close()
            how, *what = json.loads(line) or ["nothing"]
            if how == "nothing":
                print("nothing", flush=True)
            elif how == "bpftrace":
                print(attached.enter_context(bpftrace(what[0])), flush=True)
            else:
                one = (session, every) if how == "session" else (trials, what or every)
                print(attached.enter_context(ours(*one)), flush=True)


main()
