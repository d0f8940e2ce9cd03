# SPDX-License-Identifier: MIT
"""Probes in the process of a user-mode kernel, which a small program plays."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import tracing
from harness.agent.tracing.stages import Stage
from harness.base.errors import HarnessError, InfrastructureError
from harness.beds.access.channel import Pending
from harness.beds.native import counting, detours
from harness.beds.native.counting import OutsideProbes
from harness.beds.native.elf import Elf

pytestmark = [
    pytest.mark.unit,
    pytest.mark.skipif(
        not all(map(shutil.which, ("gcc", "objdump", "pahole"))),
        reason="needs gcc, objdump and pahole",
    ),
]

SOURCE = Path(__file__).parent / "fixtures" / "small_kernel.c"
INDEX = 7


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "linux"
    command = ["gcc", "-g", "-O2", "-no-pie", "-fno-pic", "-fcf-protection=none"]
    subprocess.run([*command, "-Wl,-Ttext-segment=0x60000000", "-o", path, SOURCE], check=True)
    subprocess.run(["pahole", "-J", path], check=True)
    return path


class SmallKernel:
    """The program, and what a bed asks of a user-mode kernel and its agent."""

    def __init__(self, program: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid_here = self.process.pid
        self._line = threading.Lock()
        self.ask: Callable[[], None] = lambda: None

    def check(self) -> None:
        if self.process.poll() is not None:
            raise InfrastructureError(f"ended with {self.process.returncode}")

    def inventory(self, *, interface: str) -> dict[str, Any]:
        return {"index": INDEX, "interface": interface}

    def deliver(self, number: int, device: int = 1) -> None:
        self._tell(f"deliver {number} {device}")

    def deliver_all(self, *numbers: int) -> None:
        for number in numbers:
            self.deliver(number)

    def counters(self, *, interface: str = "") -> dict[str, int]:
        """What the program itself counted."""
        self.ask()
        assert self.process.stdout is not None
        with self._line:
            self._tell("counters")
            words = self.process.stdout.readline().split()
        if not words:
            raise InfrastructureError(f"{interface}: ended")
        return {
            "received": int(words[1]),
            "alarms": int(words[3]),
            "keys": sum(map(int, words[5:])),
        }

    def begin(
        self, _: object, within_s: float, *, interface: str, duration_s: float
    ) -> Pending[Any]:
        """As a window of the agent: a reading, a while, a reading."""
        assert within_s >= duration_s
        start = self.counters() | {"monotonic_ns": time.monotonic_ns()}
        time.sleep(duration_s)
        end = self.counters() | {"monotonic_ns": time.monotonic_ns()}
        return Pending(lambda: True, lambda: {"start": start, "end": end, "interface": interface})

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the answer tells that it has ended
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(program: Path) -> Iterator[Callable[..., tuple[SmallKernel, OutsideProbes]]]:
    started: list[SmallKernel] = []

    def make(*arguments: str) -> tuple[SmallKernel, OutsideProbes]:
        started.append(SmallKernel(program, *arguments))
        return started[-1], OutsideProbes(started[-1], program)  # type: ignore[arg-type]

    yield make
    for one in started:
        one.end()


Start = Callable[..., tuple[SmallKernel, OutsideProbes]]


def code(kernel: SmallKernel, program: Path) -> dict[str, bool]:
    """Whether the first bytes of each probed function are those of its file."""
    elf = Elf(program)
    names = (
        "netif_receive_skb_list", "ip_list_rcv", "ip_rcv", "snmp_seq_show",
        "__traceiter_netif_receive_skb", "__traceiter_kfree_skb",
    )  # fmt: skip
    with Path(f"/proc/{kernel.pid_here}/mem").open("rb", 0) as memory:

        def own(address: int) -> bool:
            memory.seek(address)
            return memory.read(16) == elf.bytes_at(address, 16)

        return {name: own(elf.symbols[name].address) for name in names}


def test_every_packet_is_counted_at_every_stage(start: Start, program: Path) -> None:
    kernel, probes = start()
    kernel.deliver(5)
    found = {stage["name"]: stage for stage in probes.trace_attach(interface="eth0")["stages"]}
    assert found["ip_list_rcv"]["attach"] == found["ip_rcv"]["attach"] == "detour"
    assert "no traceable function" in found["ip_sublist_rcv"]["why"]
    kernel.deliver(5)
    kernel.ask = lambda: kernel.deliver_all(23, 64, 64, 65, 0)
    told = probes.begin("eth0", 0.01, 30).result()
    # What is delivered before the first reading and after the last is not of the window.
    assert told["per_skb"] == {
        "ip_rcv": 216,
        "ip_list_rcv_packets": 216,
        "tracepoint_netif_receive_skb": 216,
    }
    for stage in told["stages"]:
        assert (stage["calls"], stage["packets"], stage["overflow"]) == (5, 216, 1)
        assert {n: lists for n, lists in enumerate(stage["lengths"]) if lists} == {
            0: 1,
            23: 1,
            64: 2,
        }
        assert (stage["min"], stage["max"], stage["by_cpu"]) == (0, 65, {"0": 216})
    assert told["end"]["received"] - told["start"]["received"] == 216
    changed = code(kernel, program)
    assert changed.pop("__traceiter_kfree_skb"), "only a session counts drops"
    assert not any(changed.values())
    probes.trace_detach()
    kernel.ask = lambda: None
    assert all(code(kernel, program).values())
    assert kernel.counters()["keys"] == 0


def test_only_the_interface_is_counted(start: Start) -> None:
    kernel, probes = start()

    def deliver() -> None:
        kernel.deliver(7, device=0)
        kernel.deliver(3)

    kernel.ask = deliver
    told = probes.begin("eth0", 0.01, 30).result()
    assert told["per_skb"]["tracepoint_netif_receive_skb"] == 3
    assert {stage["packets"] for stage in told["stages"]} == {3}


def test_a_session_counts_drops_and_queues(start: Start, program: Path) -> None:
    kernel, probes = start()
    found = tracing.begin(probes, "eth0")
    assert {probe.name: probe.attach for probe in found}["skb:kfree_skb"] == "detour"
    sent = 0
    for packets in (23, 64, 29):
        kernel.deliver(packets)
        sent += packets
        kernel.counters()
        *_, reading = tracing.readings(probes, interval_s=0.01, duration_s=0.01)
        assert (reading.packets, reading.per_skb["ip_rcv"]) == (sent, sent)
        assert {stage.packets for stage in reading.stages} == {sent}
        assert {str(stage.by_queue) for stage in reading.stages} == {f"{{'0': {sent}}}"}
        assert reading.drops == (
            tracing.Drop(function="ip_list_rcv", reason="NO_SOCKET", packets=sent),
        )
    tracing.end(probes)
    assert all(code(kernel, program).values())
    assert kernel.counters()["keys"] == 0
    with pytest.raises(HarnessError, match="nothing is watched"):
        probes.trace_read()


def test_counts_are_exact_while_signals_and_packets_keep_coming(
    start: Start, program: Path
) -> None:
    kernel, probes = start("busy")
    sending = threading.Event()

    def disturb() -> None:
        while not sending.wait(0.0005):
            os.kill(kernel.pid_here, signal.SIGUSR1)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(15):
            before = kernel.counters()
            told = probes.begin("eth0", 0.02, 30).result()
            received = told["end"]["received"] - told["start"]["received"]
            assert received > 64
            assert set(told["per_skb"].values()) == {received}
            assert {(stage["packets"], stage["max"]) for stage in told["stages"]} == {
                (received, 64)
            }
            assert all(code(kernel, program).values())
            assert kernel.counters()["alarms"] > before["alarms"]
    finally:
        sending.set()
        thread.join()
    assert kernel.counters()["keys"] == 0


def test_a_stopped_process_stays_stopped(start: Start, program: Path) -> None:
    kernel, probes = start("busy")
    probes.trace_attach(interface="eth0")
    os.kill(kernel.pid_here, signal.SIGSTOP)
    probes.trace_detach()
    assert all(code(kernel, program).values())
    assert psutil.Process(kernel.pid_here).status() == psutil.STATUS_STOPPED
    os.kill(kernel.pid_here, signal.SIGCONT)
    assert kernel.counters()["received"] < kernel.counters()["received"]


def test_a_process_may_be_stopped_while_it_is_changed(start: Start) -> None:
    kernel, probes = start("busy")

    def stop_and_continue() -> None:
        kernel.ask = lambda: None
        os.kill(kernel.pid_here, signal.SIGSTOP)
        time.sleep(0.2)
        assert psutil.Process(kernel.pid_here).status() in {"stopped", "tracing-stop"}
        os.kill(kernel.pid_here, signal.SIGCONT)

    kernel.ask = stop_and_continue
    told = probes.begin("eth0", 0.02, 30).result()
    received = told["end"]["received"] - told["start"]["received"]
    assert set(told["per_skb"].values()) == {received}


def test_a_process_that_dies_while_it_is_changed(start: Start) -> None:
    kernel, probes = start()
    kernel.ask = kernel.process.kill
    with pytest.raises(InfrastructureError, match="ended"):
        probes.trace_attach(interface="eth0")
    assert kernel.process.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("how", ["never called", "harness gives up"])
def test_without_the_right_moment_nothing_is_changed(
    start: Start, program: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    kernel, probes = start("busy")
    if how == "never called":
        monkeypatch.setattr(counting, "_ANSWER_S", 0.3)
        monkeypatch.setattr(kernel, "counters", lambda *, interface: interface)
        with pytest.raises(InfrastructureError, match="did not call the function in time"):
            probes.trace_attach(interface="eth0")
    else:

        def give_up() -> None:
            raise KeyboardInterrupt

        kernel.ask = give_up
        with pytest.raises(KeyboardInterrupt):
            probes.trace_attach(interface="eth0")
        kernel.ask = lambda: None
    monkeypatch.undo()
    assert all(code(kernel, program).values())
    assert kernel.counters()["keys"] == 0
    assert kernel.counters()["received"] > 0


def test_other_code_than_the_file_has_is_left_alone(
    start: Start, program: Path, tmp_path: Path
) -> None:
    kernel, _ = start()
    at = Elf(program).symbols["ip_rcv"].address
    data = program.read_bytes()
    first = Elf(program).bytes_at(at, 16)
    assert data.count(first) == 1
    other = tmp_path / "other"
    # One more instruction of one byte, nop, in place of another.
    other.write_bytes(data.replace(first, b"\x90" * 6 + first[6:]))
    probes = OutsideProbes(kernel, other)  # type: ignore[arg-type]
    with pytest.raises(InfrastructureError, match="has other code at"):
        probes.trace_attach(interface="eth0")
    assert all(code(kernel, program).values())


def test_what_cannot_be_moved_is_not_probed(tmp_path: Path) -> None:
    def why(assembly: str) -> str | None:
        text = 'asm(".globl ip_rcv; .type ip_rcv,@function; ip_rcv: ' + assembly
        text += '; .size ip_rcv, .-ip_rcv");\nint main(void) { return 0; }\n'
        (tmp_path / "x.c").write_text(text)
        command = ["gcc", "-no-pie", "-o", str(tmp_path / "x"), str(tmp_path / "x.c")]
        subprocess.run(command, check=True)
        stage = Stage("ip_rcv", "count_skb", 0, function="ip_rcv")
        detours._entry(Elf(tmp_path / "x"), stage)
        return stage.why

    assert why("push %r13; push %r12; push %rbp; ret; nop; nop") is None
    assert "cannot be moved" in str(why("push %rbx; jmp main; nop; nop"))
    assert "cannot be moved" in str(why("mov main(%rip), %rax; ret; nop"))
    assert "cannot be moved" in str(why("push %rbx; ret; nop; nop; nop; nop"))
    again = "push %rbx; 1: push %r12; push %r13; dec %edi; jnz 1b; ret"
    assert "jumps into its first" in str(why(again))


def test_a_kernel_that_cannot_be_counted_in_says_why(program: Path, tmp_path: Path) -> None:
    def why(path: Path) -> str:
        with pytest.raises(InfrastructureError) as told:
            detours.of_kernel(path, session=False)
        return str(told.value)

    bare = tmp_path / "bare"
    subprocess.run(["objcopy", "--remove-section=.BTF", program, bare], check=True)
    assert "its BTF lacks a structure" in why(bare)
    subprocess.run(["objcopy", "--strip-symbol=snmp_seq_show", program, bare], check=True)
    assert "no function for snmp_seq_show" in why(bare)
    (tmp_path / "text").write_text("#!/bin/sh\n" * 10)
    assert "is not a program for this machine" in why(tmp_path / "text")
    command = ["gcc", "-shared", "-x", "c", "-o", str(tmp_path / "shared"), "/dev/null"]
    subprocess.run(command, check=True)
    assert "not an x86-64 program linked to a fixed address" in why(tmp_path / "shared")
