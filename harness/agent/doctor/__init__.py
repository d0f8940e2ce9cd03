# SPDX-License-Identifier: MIT
"""Checks what a run needs of a host, without changing anything; each failure has a remedy."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from harness.agent import cpus, packages, programs
from harness.agent.boot import BootControl
from harness.agent.boot.kernel_config import kernel_config
from harness.agent.boot.kernels import Kernels
from harness.agent.faults import AgentError
from harness.agent.interface import in_the_way
from harness.agent.inventory import inventory

from . import around, card, health
from .health import Check, check

_ROLES = ("dut", "generator")
_LEAST_KERNELS = 2
"""The running one and the one that boots next."""
_VAR_MIB, _GENERATOR_VAR_MIB = 1024, 64
_CLOCK_S = 120.0


class Doctor:
    """The call ``doctor``: ``boot`` knows how the host can boot, ``kernels`` how many fit."""

    def __init__(self, boot: BootControl, kernels: Kernels) -> None:
        self._boot = boot
        self._kernels = kernels

    def examine(
        self, *, interface: str, role: str, irq_cpu: int | None = None, now_s: float | None = None
    ) -> list[Check]:
        """All checks of a host in its ``role``; ``now_s`` is the controller's time of day.

        A check that raises is reported as failed.
        """
        if role not in _ROLES:
            raise AgentError(f"no role {role!r:.40}", kind="configuration", hint="dut, generator")
        dut = role == "dut"
        steps: list[tuple[str, Callable[[], Iterable[Check]]]] = [
            ("python", lambda: _python(dut)),
            ("interface", lambda: card.checks(interface, role, irq_cpu)),
            ("around", lambda: around.checks(interface, role)),
            ("netperf", lambda: _netperf(dut)),
            ("ssh", lambda: _apart_from_ssh(interface)),
            ("between NIC and stack", lambda: _in_the_way(interface)),
            ("CPUs", lambda: _cpus(dut, irq_cpu)),
            ("clock", lambda: _clock(now_s)),
            ("disk", lambda: self._disk(dut)),
        ]
        if dut:
            steps += [
                ("kernel config", _kernel_config),
                ("types", _types),
                ("boot", self._booting),
                ("recovery", health.recovery),
                ("perf", _perf),
            ]
        checks: list[Check] = []
        for name, step in steps:
            try:
                checks.extend(step())
            except Exception as error:  # noqa: BLE001 - the other checks are still worth having
                detail = f"{type(error).__name__}: {error}"
                remedy = "the check itself failed: look at this by hand"
                checks.append(check(name, False, detail, remedy))
        return checks

    def _disk(self, dut: bool) -> Iterator[Check]:
        places = {"/var": _VAR_MIB if dut else _GENERATOR_VAR_MIB}
        if dut:
            yield self._boot_room()
            places |= {"/lib/modules": _VAR_MIB}
        for path, mib in places.items():
            status = os.statvfs(next(at for at in (Path(path), *Path(path).parents) if at.exists()))
            free = status.f_bavail * status.f_frsize >> 20
            remedy = f"free {mib} MiB; `harness hosts clean` removes kernels of the harness"
            yield check(f"space in {path}", free >= mib, f"{free} MiB free", remedy, needed=True)

    def _boot_room(self) -> Check:
        """A campaign boots one kernel while another runs; those that do not fit are sent again."""
        room = self._kernels.room()
        fit = room["fit"] + room["ours"]
        return check(
            "space in /boot",
            fit >= _LEAST_KERNELS,
            f"{room['free_mib']} MiB free, room for {fit} kernels of the harness (about "
            f"{room['each_mib']} MiB each). A campaign has one kernel for each step and layout; if "
            "they do not all fit, it removes those that do not boot next",
            f"free {_LEAST_KERNELS * room['each_mib']} MiB: old kernels of the "
            f"distribution ({health.autoremove()})",
            needed=True,
        )

    def _booting(self) -> Iterator[Check]:
        can = self._boot.can()
        kexec, loader = can["kexec"], can["loader"]
        remedy = health.install("kexec-tools") + ", or boot by one-shot"
        yield check("kexec", kexec, can["kexec_why"] or "works", remedy)
        yield check(
            "boot loader", loader is not None, can["loader_why"] or loader, "or boot by kexec"
        )
        way = "kexec" if kexec else "one-shot" if loader else "none"
        yield check("a way to boot", way != "none", way, "one of the two above", needed=True)
        maker = programs.found("mkinitramfs") or programs.found("dracut")
        yield check(
            "initramfs",
            maker is not None,
            maker or "neither mkinitramfs nor dracut",
            health.install("initramfs"),
            needed=True,
        )
        state = self._boot.state()
        yield check(
            "default boot",
            state["default_untouched"],
            "unchanged" if state["default_untouched"] else state["default"],
            "`harness restore` disarms entries of the harness; then set the default again",
            needed=True,
        )
        pending = state["one_shot_pending"]
        yield check(
            "one-shot boot",
            pending is None,
            f"{pending} boots next" if pending else "none is set",
            "`harness restore` disarms one of the harness",
        )


def _python(dut: bool) -> Iterator[Check]:
    enough = sys.version_info >= (3, 9)
    remedy = "the agent needs /usr/bin/python3 of version 3.9 or later"
    yield check("python", enough, platform.python_version(), remedy, needed=True)
    for module in ("psutil", "pyroute2", *(["bcc"] if dut else [])):
        there = importlib.util.find_spec(module) is not None
        detail = "installed" if there else f"python3 cannot import {module}"
        yield check(module, there, detail, health.install(module), needed=True)


def _netperf(dut: bool) -> Iterator[Check]:
    program = "netserver" if dut else "netperf"
    version = inventory()["versions"][program]
    detail = version or "not installed"
    yield check(program, version is not None, detail, health.install("netperf"), needed=True)
    if version is not None and program == "netperf":
        remedy = "install 2.7 or later: older versions pace and report differently"
        yield check("netperf version", packages.at_least(version, "2.7"), version, remedy)


def _apart_from_ssh(interface: str) -> Iterator[Check]:
    through, why = health.carried(interface)
    detail = f"yes, as far as can be seen: {why}" if why else "yes"
    if through:
        detail = f"{interface} carries {' and '.join(through)}"
    remedy = "the test interface needs a network of its own"
    yield check("apart from ssh", not through, detail, remedy, needed=True)


def _in_the_way(interface: str) -> Iterator[Check]:
    found = in_the_way.found(interface)
    rows = [*found["packet_taps"], *found["in_the_way"]]
    yield check(
        "between NIC and stack",
        not any(row.get("in_path") or row.get("stops") for row in rows),
        "; ".join(row["detail"] for row in rows) or "nothing",
        "; ".join(row["remedy"] for row in rows),
        needed=True,
    )


def _cpus(dut: bool, irq_cpu: int | None) -> Iterator[Check]:
    found = inventory()
    if irq_cpu is not None:
        online = irq_cpu in cpus.online()
        yield check(
            "the interrupt's CPU",
            online,
            f"CPU {irq_cpu} is {'online' if online else 'not online'}",
            f"set placement.irq_cpu to a CPU that is online: {found['cpus_online']}",
            needed=True,
        )
    yield check(
        "CPUs",
        found["cpus"] >= 2,
        f"{found['cpus']} online ({found['cpus_online']}), clocksource {found['clocksource']}",
        "one CPU receives; the agent that watches it needs another",
    )
    governors = set((found["governors"] or {}).values())
    yield check(
        "governor",
        not governors or "performance" in governors or bool(health.governors_at_hand()),
        ", ".join(sorted(governors)) or "the host has no cpufreq",
        "allow the performance governor: cpupower frequency-set -g performance",
    )
    yield from health.switches()
    if dut:
        running = found["irqbalance"]
        yield check(
            "irqbalance",
            not running or programs.found("systemctl") is not None,
            "running; a run stops it and starts it again" if running else "not running",
            "stop it by hand: this host has no systemctl",
        )


def _clock(now_s: float | None) -> Iterator[Check]:
    synchronised = health.clock_synchronised()
    detail = {True: "synchronised", False: "not synchronised", None: "unknown"}[synchronised]
    remedy = health.install("chrony") + ", and start it"
    yield check("clock", synchronised is not False, detail, remedy)
    if now_s is not None:
        off_s = time.time() - now_s
        yield check(
            "time of day",
            abs(off_s) < _CLOCK_S,
            f"{off_s:+.1f} s from the controller's",
            "set the clocks: otherwise records of both hosts cannot be put in order",
        )


def _kernel_config() -> Iterator[Check]:
    try:
        modules = len(kernel_config()["modules"])
    except AgentError as error:
        yield check("kernel config", False, error, error.hint)
    else:
        yield check("kernel config", True, f"readable; {modules} modules are loaded")


def _types() -> Iterator[Check]:
    release = platform.release()
    detail = f"neither BTF nor headers ({release})"
    if btf := Path("/sys/kernel/btf/vmlinux").exists():
        detail = "BTF"
    elif headers := Path("/lib/modules", release, "build").exists():
        detail = "headers"
    remedy = health.install("headers") + "; only `harness trace` of this kernel needs them"
    yield check("kernel types", btf or headers, detail, remedy)


def _perf() -> Iterator[Check]:
    tool = programs.found("perf")
    counters = Path("/sys/bus/event_source/devices/cpu").exists()
    detail = f"{tool or 'not installed'}; the CPU has {'' if counters else 'no '}counters"
    remedy = health.install("perf") + "; without it there are no cycles and cache misses per packet"
    yield check("perf", bool(tool and counters), detail, remedy)
