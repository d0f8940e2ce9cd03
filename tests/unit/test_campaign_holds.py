# SPDX-License-Identifier: MIT
"""What holds in every campaign, whatever else changes: asserted on simulated beds.

The order and the arguments of calls in full are in the transcripts of test_campaign_calls.py.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from harness.base.errors import (
    HarnessError,
    HostLostError,
    InfrastructureError,
    KernelError,
)
from harness.results.samples import Boot
from harness.trials import VOID_RULES
from harness.trials.latency import LatencyTrial
from harness.trials.ndr import NdrTrial
from harness.trials.paced import PacedTrial
from harness.trials.readings import Loaded, Trial, Windowed
from harness.trials.traced import TracedTrial
from tests.unit import simulated_lab
from tests.unit.simulated_hosts import Json
from tests.unit.simulated_lab import STACK_PPS, Lab, fails_once

pytestmark = pytest.mark.unit
lab = simulated_lab.lab

ALL = ("--also", "cpu", "--also", "latency", "--also", "ndr")
FRAME_BYTES = 14 + 20 + 8 + 1
"""Of a message of one byte, as a pacer counts it: Ethernet, IP and UDP headers."""
AS_MET = {"dut": {}, "generator": {}, "streams": 0, "netserver": None, "probes": False,
          "frozen": False}  # fmt: skip


def at(lines: list[str], pattern: str) -> list[int]:
    return [number for number, line in enumerate(lines) if re.search(pattern, line)]


_Sample = TypeVar("_Sample", bound=Trial)


def trials(boot: Boot, sample: type[_Sample]) -> list[_Sample]:
    return [trial for trial in boot.trials if isinstance(trial, sample)]


def void(lab: Lab, step: str) -> dict[str, set[str]]:
    """By kind of trial, the rules by which trials of ``step`` do not count."""
    found: dict[str, set[str]] = {}
    for one in lab.report()["void"]:
        if one["step"] == step:
            found.setdefault(one["kind"], set()).update(why["rule"] for why in one["reasons"])
    return found


# Before and after the load


@pytest.mark.parametrize("bed", ["rack", "virtual"])
def test_settings_are_made_before_the_load_and_put_back_after_it(lab: Lab, bed: str) -> None:
    assert lab.run("--bed", bed, "--profile", "smoke", *ALL).exit_code == 0
    for step in STACK_PPS:
        lines = [line for line in lab.transcript.lines if line.startswith(f"r{step} ")]
        loads = at(lines, "netperf_(start|rr|resume)")
        for role in ("dut", "generator"):
            made = at(lines, f"{role} +settings_apply .* address=")
            [back] = at(lines, f"{role} +settings_restore")
            assert max(made) < min(loads)
            assert back > max(loads)
            assert back > max(at(lines, "settings_apply"))
    assert [{**left, "release": ""} for left in lab.bed.left] == [{**AS_MET, "release": ""}] * 2
    for step in STACK_PPS:
        settings = lab.boot(step).settings
        for role in ("dut", "generator"):
            assert settings[role]["after"]["address"] != settings[role]["before"].get("address")
            assert "address" in settings["restored"][role]["restored"]


@pytest.mark.parametrize(
    ("role", "call", "nth"),
    [
        ("dut", "settings_apply", 1),
        ("dut", "counters", 3),
        ("dut", "window", 2),
        ("dut", "window", 4),
        ("dut", "trace_attach", 1),
        ("dut", "trace", 1),
        ("generator", "netperf_rr", 2),
        ("generator", "netperf_resume", 3),
        ("dut", "settings_restore", 1),
    ],
)
@pytest.mark.parametrize("error", [KernelError, HostLostError, InfrastructureError])
def test_whatever_ends_a_boot_the_hosts_are_left_as_they_were(
    lab: Lab, role: str, call: str, nth: int, error: type[HarnessError]
) -> None:
    lab.kernels["r0"].answers = fails_once(error("it happened"), role, call, nth)
    done = lab.run("--profile", "smoke", *ALL)
    assert (done.exception is None) == (error is HostLostError), "a lost host is tried again"
    for bench in lab.bed.benches:
        assert (bench.dut.changed, bench.generator.changed) == ({}, {})
        assert bench.generator.streams == 0
    assert lab.bed.left[0]["release"] == "r0"
    if error is not InfrastructureError:
        assert {**lab.bed.left[-1], "release": ""} == {**AS_MET, "release": ""}
        assert void(lab, "8") == {}
        assert lab.row("8")["stack_rx_pps"] == pytest.approx(STACK_PPS["8"], rel=0.31)
        assert lab.row("8")["timed_trials"] == 1


def test_what_a_latency_trial_sets_is_set_back_also_when_it_fails(lab: Lab) -> None:
    lab.kernels["r0"].answers = fails_once(InfrastructureError("x"), "generator", "netperf_rr", 4)
    lab.run("--profile", "smoke", *ALL)
    last = [line for line in lab.transcript.lines if "settings_apply" in line][-1]
    assert {'coalesce={"adaptive_rx":false,"rx_usecs":60}', "busy_read_us=0"} <= set(last.split())


def test_the_load_has_ended_before_the_bed_does(lab: Lab) -> None:
    assert lab.run("--profile", "smoke", *ALL).exit_code == 0
    for release in ("r0", "r8"):
        lines = lab.transcript.lines
        [end] = at(lines, f"bed +end {release}")
        mine = [number for number in at(lines, f"^{release} ") if number < end]
        assert len(at(lines, f"^{release} .*netperf_start")) == len(
            at(lines, f"^{release} .*netperf_end")
        )
        [stop] = at(lines, f"^{release} .*netserver_stop")
        assert stop in mine
        assert stop > max(at(lines, f"^{release} .*netperf_(wait|rr)"))


# The kernel


def test_another_kernel_than_asked_for_is_not_measured(lab: Lab) -> None:
    lab.kernels["r8"].runs = "r7"
    done = lab.run("--profile", "smoke")
    assert isinstance(done.exception, KernelError)
    assert "runs r7, not r8" in done.exception.message
    assert lab.boot("8").outcome == "failed"
    assert lab.boot("8").trials == []
    assert not at(lab.transcript.lines, "^r8 .* (settings_apply|netperf_start|counters) ")
    assert lab.boot("0").outcome == "ok"


def test_a_kernel_that_complained_has_failed(lab: Lab) -> None:
    lab.kernels["r8"].console = "[  12.1] BUG: unable to handle page fault for address"
    done = lab.run("--profile", "smoke")
    assert isinstance(done.exception, KernelError)
    assert "unable to handle page fault" in done.exception.message
    assert {step: lab.boot(step).outcome for step in STACK_PPS} == {"0": "ok", "8": "failed"}


def test_what_stands_between_the_nic_and_the_stack_is_refused(lab: Lab) -> None:
    tap = {"in_path": True, "detail": "a tap on eth1", "remedy": "end tcpdump"}
    lab.kernels["r8"].answers = _edited("settings_apply", lambda one: one.update(packet_taps=[tap]))
    done = lab.run("--profile", "smoke")
    assert isinstance(done.exception, InfrastructureError)
    assert "a tap on eth1" in done.exception.message
    assert not at(lab.transcript.lines, "^r8 .* netperf_start ")


# Pacing, places, windows


def test_paced_loads_are_shares_in_bytes_a_second(lab: Lab) -> None:
    assert lab.run(*ALL).exit_code == 0
    for step in STACK_PPS:
        lines = [line for line in lab.transcript.lines if line.startswith(f"r{step} ")]
        first_ndr = at(lines, "netperf_pause")[0]
        paced = [
            int(match[1])
            for line in lines[:first_ndr]
            if (match := re.search(r"generator +settings_apply .*pacing_bytes_per_s=(\d+)", line))
        ]
        wanted = [0.1 * 200_000, 0.5 * 200_000, 0.9 * 200_000, 0.5 * 200_000]  # the last: ndr
        assert paced[::2] == [pytest.approx(pps * FRAME_BYTES, rel=1e-3) for pps in wanted]
        assert paced[1::2] == [0, 0, 0], "each is let go before the next begins"
        found = [trial.paced_pps for trial in trials(lab.boot(step), PacedTrial)]
        assert found == [pytest.approx(pps, rel=1e-3) for pps in wanted[:3] for _ in range(3)]


def test_interrupts_and_processes_are_put_where_the_plan_says(lab: Lab) -> None:
    assert lab.run(*ALL).exit_code == 0
    lines = lab.transcript.lines
    for line in lab.calls("settings_apply"):
        if " address=" in line and " dut " in line:
            assert {"irq_cpu=2", "process_cpus=[4]"} <= set(line.split())
        elif " address=" in line:
            assert "process_cpus=[0,6]" in line
    for call, where in (
        ("netserver_start", "cpu=4"),
        ("netperf_start", "cpus=[0,6]"),
        ("netperf_rr", "cpu=0"),
        ("window", "pmu_cpu=2"),
    ):
        assert lab.calls(call)
        assert [line for line in lab.calls(call) if f" {where}" not in line] == []
    assert lines
    for step in STACK_PPS:
        windowed = trials(lab.boot(step), Windowed)
        assert windowed
        for trial in windowed:
            assert trial.window is not None
            assert set(trial.window.placement.irq["30"]) == {"2"}
            [netserver] = trial.window.placement.processes
            assert set(netserver.cpus) == {"4"}


def test_counters_are_read_at_both_ends_of_each_window(lab: Lab) -> None:
    assert lab.run(*ALL).exit_code == 0
    planned_s = {"warmup": 2.0, "timed": 5.0, "paced": 5.0, "trace": 3.0}

    def apart_s(first: Any, last: Any) -> float:
        return float(last.monotonic_ns - first.monotonic_ns) / 1e9

    for step in STACK_PPS:
        boot = lab.boot(step)
        for trial in boot.trials:
            assert isinstance(trial, Loaded | LatencyTrial | NdrTrial)
            assert trial.whole is not None
            before, after = trial.whole.before, trial.whole.after
            if isinstance(trial, Loaded):
                assert isinstance(trial, Windowed | TracedTrial)
                between = trial.window if isinstance(trial, Windowed) else trial.trace
                assert between is not None
                assert between.start is not None
                assert between.end is not None
                assert apart_s(between.start, between.end) == pytest.approx(planned_s[trial.kind])
                assert apart_s(before, between.start) > 0
                # The NIC's own statistics come once a second.
                assert apart_s(between.end, after) > 1.0
                assert trial.ramp is not None
                assert trial.ramp["steady"] is True
            else:
                assert apart_s(before, after) >= 5.0
        assert len(boot.trials) == 1 + 3 + 9 + 1 + 4 + 1


def test_nothing_is_timed_under_the_probes(lab: Lab) -> None:
    assert lab.run(*ALL).exit_code == 0
    for bench in lab.bed.benches:
        assert bench.opened == [
            *["window, unlimited"] * 4,
            *["window, paced"] * 9,
            "trace, unlimited, under probes",
        ]
    boots = [json.loads(boot)["trials"] for boot in _content(lab.out).values()]
    assert len(boots) == len(STACK_PPS)
    for kept in boots:
        assert [trial["kind"] for trial in kept if trial.get("trace")] == ["trace"]
        assert [bool(trial.get("window")) for trial in kept if trial["kind"] == "trace"] == [False]


def test_the_highest_rate_is_confirmed_and_loses_next_to_nothing(lab: Lab) -> None:
    assert lab.run("--profile", "smoke", "--also", "ndr").exit_code == 0
    for step in STACK_PPS:
        [trial] = trials(lab.boot(step), NdrTrial)
        assert trial.search is not None
        assert trial.ndr_pps is not None
        for tried in trial.search:
            lossy = tried.sent - tried.read > 0.001 * tried.sent
            short = tried.offered_pps < 0.95 * tried.asked_pps
            assert tried.passed == (not lossy and not short)
        again = [tried.passed for tried in trial.search if tried.asked_pps == trial.ndr_pps]
        assert again == [True] * 2
        above = [one.asked_pps for one in trial.search if not one.passed]
        assert min(above) <= 1.031 * trial.ndr_pps
        assert above.count(min(above)) == 3
        assert trial.zero_loss_pps is not None
        assert trial.pdr_pps is not None
        assert trial.zero_loss_pps <= trial.ndr_pps <= trial.pdr_pps
        assert trial.not_found == {}


def test_a_rate_that_the_generator_does_not_send_does_not_pass(lab: Lab) -> None:
    lab.kernels["r8"].offered_pps = 100_000
    assert lab.run("--profile", "smoke", "--also", "ndr").exit_code == 0
    [trial] = trials(lab.boot("8"), NdrTrial)
    [void] = trial.void
    assert "it sent 100,000, of which 0 were lost" in void.detail
    assert set(trial.not_found) == {"zero_loss_pps", "pdr_pps"}
    assert trial.search is not None
    for tried in trial.search:
        assert tried.passed == (tried.asked_pps <= 100_000 / 0.95)
    assert max(tried.asked_pps for tried in trial.search) < 400_000


def test_a_kernel_that_dies_during_a_search_ends_no_other_boot(lab: Lab) -> None:
    lab.kernels["r8"].answers = fails_once(
        KernelError("rx: the kernel died"), "generator", "netperf_resume", 4
    )
    done = lab.run("--profile", "smoke", "--also", "ndr")
    assert isinstance(done.exception, KernelError)
    assert lab.boot("8").outcome == "failed"
    assert trials(lab.boot("8"), NdrTrial) == []
    [trial] = trials(lab.boot("0"), NdrTrial)
    assert trial.ndr_pps is not None


# What would void a trial


def _edited(call: str, edit: Callable[[Any], Any]) -> Callable[..., Any]:
    def answers(_role: str, asked: str, usual: Callable[[], Any]) -> Any:
        answer = usual()
        if asked == call:
            edit(answer)
        return answer

    return answers


def _unsteady(lab: Lab) -> None:
    factors = itertools.cycle((0.25, 4.0))

    def edit(_: Any) -> None:
        lab.kernels["r8"].stack_pps *= next(factors)

    lab.kernels["r8"].answers = _edited("netperf_sending", edit)


def _no_busy_polling(answer: Json) -> None:
    if answer["after"]["busy_read_us"]:
        answer["skipped"].append({"setting": "busy_read_us", "why": "no busy polling"})


def _queues(window: Json) -> None:
    nic = window["end"]["nic"]
    nic["rx-1.rx_packets"] = nic["rx-0.rx_packets"] // 3
    nic["rx-0.rx_packets"] -= nic["rx-1.rx_packets"]


def _set(name: str, value: Any) -> Callable[[Lab], None]:
    return lambda lab: setattr(lab.kernels["r8"], name, value)


def _answers(call: str, edit: Callable[[Any], Any]) -> Callable[[Lab], None]:
    return _set("answers", _edited(call, edit))


def _stolen(window: Json) -> None:
    window["end"]["cpu"][2]["steal_ns"] += 10**9


VOIDS: dict[str, tuple[Callable[[Lab], Any], str]] = {
    "irq-moved": (_set("irqs_on", 3), "timed"),
    "softirq-moved": (_set("irqs_on", 3), "paced"),
    "process-moved": (_set("netserver_on", 1), "timed"),
    "queues-spread": (_answers("window", _queues), "timed"),
    "link-flapped": (
        _answers("window", lambda one: one["end"]["link"].update(carrier_changes=2)),
        "timed",
    ),
    "cpu-throttled": (_answers("window", _stolen), "paced"),
    "counter-reset": (
        _answers("window", lambda one: one["end"]["snmp"]["Udp"].update(InDatagrams=0)),
        "timed",
    ),
    "rps-used": (
        _answers("window", lambda one: one["end"]["softnet"][0].update(received_rps=9)),
        "timed",
    ),
    "stream-failed": (_answers("netperf_wait", lambda one: one[1].update(status=1)), "timed"),
    "stream-short": (_answers("netperf_wait", lambda one: one[1].update(elapsed_s=0.5)), "paced"),
    "delivery-conservation": (
        _answers("netperf_wait", lambda one: one[0].update(messages_received=1)),
        "timed",
    ),
    "ramp-unsteady": (_unsteady, "timed"),
    "no-load": (_answers("netperf_sending", lambda one: one.update(streams=3)), "timed"),
    "unsaturated": (_set("offered_pps", 100_000), "timed"),
    "rate-not-found": (_set("offered_pps", 100_000), "ndr"),
    "rate-missed": (_set("stack_pps", 100_000), "paced"),
    "cell-missing": (_answers("settings_apply", _no_busy_polling), "latency"),
    "trace-missed": (_answers("trace", lambda one: one.update(missed=10**9)), "trace"),
    "list-path": (_set("steps", 0), "timed"),
}
"""By rule: what has to happen in the boot of step 8, and a kind of trial that it voids."""


NOT_HERE = {
    "counters-missing",
    "forward-conservation",
    "ip-conservation",
    "nic-conservation",
    "nic-model-error",
    "payload-conservation",
    "rate-unknown",
    "sent-conservation",
    "stack-conservation",
}
"""Rules of which test_metrics.py and other tests have the cases."""


def test_no_rule_is_without_a_case() -> None:
    assert {*VOIDS, *NOT_HERE} == set(VOID_RULES)


@pytest.mark.parametrize("rule", VOIDS)
def test_a_trial_in_which_this_happens_does_not_count(lab: Lab, rule: str) -> None:
    happens, kind = VOIDS[rule]
    happens(lab)
    assert lab.run("--profile", "smoke", *ALL).exit_code == 0
    assert rule in void(lab, "8").get(kind, ())
    assert void(lab, "0") == {}


def test_a_share_of_a_rate_that_nobody_knows_voids_paced_trials(lab: Lab) -> None:
    for kernel in lab.kernels.values():
        kernel.answers = _edited("netperf_sending", lambda one: one.update(streams=3))
    assert lab.run("--profile", "smoke", *ALL).exit_code == 0
    for step in STACK_PPS:
        assert void(lab, step).get("paced") == {"rate-unknown", "counters-missing"}


# The journal, lost hosts, resumption


def test_what_is_done_to_a_host_is_on_disk_before(lab: Lab) -> None:
    assert lab.run("--profile", "smoke").exit_code == 0
    lines = lab.transcript.lines
    for place, step in (("b01-p01-s0", "0"), ("b01-p02-s8", "8")):
        order = [
            rf"journal +{place} begin",
            rf"journal +{place} leaving .*release=r{step}",
            rf"bed +boot r{step}",
            rf"journal +{place} up",
            rf"^r{step} dut +settings_apply",
            rf"bed +end r{step}",
            rf"file +{place}/boot.json ok",
            rf"journal +{place} end",
        ]
        seen = [at(lines, pattern) for pattern in order]
        assert [len(one) for one in seen] == [1] * len(order)
        assert seen == sorted(seen)
    assert at(lines, "bed +boot r0") < at(lines, "bed +boot r8"), "the order that was drawn"


def test_a_lost_host_is_tried_three_times_and_its_boot_has_no_end(lab: Lab) -> None:
    losses = itertools.count()

    def lost(_role: str, call: str, usual: Callable[[], Any]) -> Any:
        if call == "window" and next(losses) >= 0:
            raise HostLostError("no answer")
        return usual()

    lab.kernels["r0"].answers = lost
    done = lab.run("--profile", "smoke")
    assert isinstance(done.exception, HostLostError)
    lines = lab.transcript.lines
    assert len(at(lines, "bed +boot r0")) == 3
    assert len(at(lines, "bed +lost")) == 2
    assert at(lines, "bed +boot r8") == []
    assert at(lines, "journal +b01-p01-s0 end") == []
    lab.kernels["r0"].answers = lambda _role, _call, usual: usual()
    assert lab.run("--resume").exit_code == 0
    assert len(at(lines, "bed +boot r0")) == 4
    assert {step: lab.boot(step).outcome for step in STACK_PPS} == {"0": "ok", "8": "ok"}


def test_a_resumption_asks_of_what_was_left_and_keeps_what_is_done(lab: Lab) -> None:
    lab.kernels["r8"].answers = fails_once(SystemExit(9), "dut", "window")  # type: ignore[arg-type]
    lab.run("--profile", "smoke")
    kept = _content(lab.out)
    first = len(lab.transcript.lines)
    assert lab.run("--resume").exit_code == 0
    lines = lab.transcript.lines[first:]
    [asked], [booted] = at(lines, r"bed +crashed\? r8"), at(lines, "bed +boot")
    assert asked < booted
    assert at(lines, "bed +boot r0") == []
    assert _content(lab.out).items() >= kept.items()
    assert lab.report()["problems"] == []


def _content(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob("boots/*/boot.json")}
