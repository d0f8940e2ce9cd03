# SPDX-License-Identifier: MIT
"""What a run needs of a host, looked at without changing anything; each lack with its remedy."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from harness.agent import cpus, packages, programs
from harness.agent.boot import Boot
from harness.agent.boot.kernel_config import kernel_config
from harness.agent.boot.kernels import Kernels
from harness.agent.faults import AgentError
from harness.agent.interface import in_the_way
from harness.agent.inventory import inventory

from . import around, card, health
from .health import Check, check

_ROLES = ("dut", "generator")
_LEAST_KERNELS = 2
"""The one that runs, and the one that is booted next."""
_VAR_MIB, _GENERATOR_VAR_MIB = 1024, 64
_CLOCK_S = 120.0


class Doctor:
    """The call. ``boot`` is asked what the host can boot, ``kernels`` what there is room for."""

    def __init__(self, boot: Boot, kernels: Kernels) -> None:
        self._boot = boot
        self._kernels = kernels
        self._checks: list[Check] = []

    def examine(
        self, *, interface: str, role: str, irq_cpu: int | None = None, now_s: float | None = None
    ) -> list[Check]:
        """All checks of a host in its ``role``; ``now_s`` is the controller's time of day.

        A check that itself fails is one that is not ok.
        """
        if role not in _ROLES:
            raise AgentError(f"no role {role!r:.40}", kind="configuration", hint="dut, generator")
        dut: Literal["dut", "generator"] = "dut" if role == "dut" else "generator"
        self._checks = []
        steps: list[tuple[str, Callable[[], object]]] = [
            ("python", lambda: self._python(dut)),
            ("interface", lambda: self._checks.extend(card.checks(interface, dut, irq_cpu))),
            ("around", lambda: self._checks.extend(around.checks(interface, dut))),
            ("netperf", lambda: self._netperf(dut)),
            ("ssh", lambda: self._apart_from_ssh(interface)),
            ("between NIC and stack", lambda: self._in_the_way(interface)),
            ("CPUs", lambda: self._cpus(dut, irq_cpu)),
            ("clock", lambda: self._clock(now_s)),
            ("disk", lambda: self._disk(dut)),
        ]
        if dut == "dut":
            steps += [
                ("kernel config", self._kernel_config),
                ("types", self._types),
                ("boot", self._booting),
                ("recovery", self._recovery),
                ("perf", self._perf),
            ]
        for name, step in steps:
            try:
                step()
            except Exception as error:  # noqa: BLE001 - the others tell something all the same
                self._add(
                    name,
                    ok=False,
                    detail=f"{type(error).__name__}: {error}",
                    remedy="the check itself failed: look at this by hand",
                    needed=False,
                )
        return self._checks

    def _add(
        self, name: str, *, ok: bool, detail: object, remedy: str | None = None, needed: bool
    ) -> None:
        self._checks.append(check(name, ok=ok, detail=detail, remedy=remedy, needed=needed))

    def _python(self, role: str) -> None:
        self._add(
            "python",
            ok=sys.version_info >= (3, 9),
            detail=platform.python_version(),
            remedy="the agent needs /usr/bin/python3 of version 3.9 or later",
            needed=True,
        )
        for module in ("psutil", "pyroute2", *(["bcc"] if role == "dut" else [])):
            there = importlib.util.find_spec(module) is not None
            self._add(
                module,
                ok=there,
                detail="there" if there else f"python3 cannot import {module}",
                remedy=health.install(module),
                needed=True,
            )

    def _netperf(self, role: str) -> None:
        program = "netserver" if role == "dut" else "netperf"
        version = inventory()["versions"][program]
        self._add(
            program,
            ok=version is not None,
            detail=version or "not installed",
            remedy=health.install("netperf"),
            needed=True,
        )
        if version is not None and program == "netperf":
            self._add(
                "netperf version",
                ok=packages.at_least(version, "2.7"),
                detail=version,
                remedy="2.7 or later: older ones pace and report otherwise",
                needed=False,
            )

    def _apart_from_ssh(self, interface: str) -> None:
        through, why = health.carried(interface)
        self._add(
            "apart from ssh",
            ok=not through,
            detail=f"{interface} carries {' and '.join(through)}"
            if through
            else f"yes, as far as can be seen: {why}"
            if why
            else "yes",
            remedy="the test interface needs a network of its own",
            needed=True,
        )

    def _in_the_way(self, interface: str) -> None:
        found = in_the_way.found(interface)
        stops = [tap["in_path"] for tap in found["packet_taps"]]
        stops += [one["stops"] for one in found["in_the_way"]]
        rows = [*found["packet_taps"], *found["in_the_way"]]
        self._add(
            "between NIC and stack",
            ok=not any(stops),
            detail="; ".join(row["detail"] for row in rows) or "nothing of others",
            remedy="; ".join(row["remedy"] for row in rows),
            needed=True,
        )

    def _cpus(self, role: str, irq_cpu: int | None) -> None:
        found = inventory()
        if irq_cpu is not None:
            online = irq_cpu in cpus.online()
            self._add(
                "the interrupt's CPU",
                ok=online,
                detail=f"CPU {irq_cpu} is {'online' if online else 'not online'}",
                remedy=f"choose placement.irq_cpu of those online: {found['cpus_online']}",
                needed=True,
            )
        self._add(
            "CPUs",
            ok=found["cpus"] >= 2,
            detail=f"{found['cpus']} online ({found['cpus_online']}), "
            f"clocksource {found['clocksource']}",
            remedy="one CPU receives; what watches it needs another",
            needed=False,
        )
        governors = set((found["governors"] or {}).values())
        self._add(
            "governor",
            ok=not governors or "performance" in governors or bool(health.governors_at_hand()),
            detail=", ".join(sorted(governors)) or "the host has no cpufreq",
            remedy="allow the performance governor: cpupower frequency-set -g performance",
            needed=False,
        )
        for what, (ok, detail, remedy) in health.switches().items():
            self._add(what, ok=ok, detail=detail, remedy=remedy, needed=False)
        if role != "dut":
            return
        running = found["irqbalance"]
        can_stop = not running or programs.found("systemctl") is not None
        self._add(
            "irqbalance",
            ok=can_stop,
            detail="runs; a trial stops it meanwhile" if running else "does not run",
            remedy="stop it: nothing here can",
            needed=False,
        )

    def _clock(self, now_s: float | None) -> None:
        synchronised = health.clock_synchronised()
        self._add(
            "clock",
            ok=synchronised is not False,
            detail={True: "synchronised", False: "not synchronised", None: "unknown"}[synchronised],
            remedy=health.install("chrony") + ", and start it",
            needed=False,
        )
        if now_s is not None:
            off_s = time.time() - now_s
            self._add(
                "time of day",
                ok=abs(off_s) < _CLOCK_S,
                detail=f"{off_s:+.1f} s from the controller's",
                remedy="set the clocks: records of both could not be put in order",
                needed=False,
            )

    def _disk(self, role: str) -> None:
        places = {"/var": _VAR_MIB if role == "dut" else _GENERATOR_VAR_MIB}
        if role == "dut":
            places |= {"/lib/modules": _VAR_MIB}
            self._boot_room()
        for path, mib in places.items():
            there = next(at for at in (Path(path), *Path(path).parents) if at.exists())
            status = os.statvfs(there)
            free = status.f_bavail * status.f_frsize >> 20
            self._add(
                f"space in {path}",
                ok=free >= mib,
                detail=f"{free} MiB free",
                remedy=f"free {mib} MiB; `harness hosts clean` removes kernels of the harness",
                needed=True,
            )

    def _boot_room(self) -> None:
        """A campaign boots one kernel while another runs; the more fit, the fewer are sent anew."""
        room = self._kernels.room()
        fit = room["fit"] + room["ours"]
        self._add(
            "space in /boot",
            ok=fit >= _LEAST_KERNELS,
            detail=f"{room['free_mib']} MiB free; {fit} kernels of ours fit, some "
            f"{room['each_mib']} MiB each. A campaign has one for each step and layout, and "
            "removes those that are not needed next where they do not fit all",
            remedy=f"free {_LEAST_KERNELS * room['each_mib']} MiB: old kernels of the "
            f"distribution ({health.autoremove()})",
            needed=True,
        )

    def _kernel_config(self) -> None:
        try:
            detail = f"readable; {len(kernel_config()['modules'])} modules are loaded"
            ok, remedy = True, None
        except AgentError as error:
            ok, detail, remedy = False, str(error), error.hint
        self._add("kernel config", ok=ok, detail=detail, remedy=remedy, needed=False)

    def _types(self) -> None:
        release = platform.release()
        btf = Path("/sys/kernel/btf/vmlinux").exists()
        headers = Path("/lib/modules", release, "build").exists()
        self._add(
            "kernel types",
            ok=btf or headers,
            detail="BTF"
            if btf
            else "headers"
            if headers
            else f"neither BTF nor headers ({release})",
            remedy=health.install("headers") + "; only `harness trace` of this kernel needs them",
            needed=False,
        )

    def _booting(self) -> None:
        can = self._boot.can()
        self._add(
            "kexec",
            ok=can["kexec"],
            detail=can["kexec_why"] or "can",
            remedy=health.install("kexec-tools") + ", or boot by one-shot",
            needed=False,
        )
        self._add(
            "boot loader",
            ok=can["loader"] is not None,
            detail=can["loader_why"] or can["loader"],
            remedy="or boot by kexec",
            needed=False,
        )
        self._add(
            "a way to boot",
            ok=can["kexec"] or can["loader"] is not None,
            detail="kexec" if can["kexec"] else "one-shot" if can["loader"] else "none",
            remedy="one of the two above",
            needed=True,
        )
        maker = programs.found("mkinitramfs") or programs.found("dracut")
        self._add(
            "initramfs",
            ok=maker is not None,
            detail=maker or "neither mkinitramfs nor dracut",
            remedy=health.install("initramfs"),
            needed=True,
        )
        state = self._boot.state()
        self._add(
            "default boot",
            ok=state["default_untouched"],
            detail="as it was" if state["default_untouched"] else state["default"],
            remedy="`harness restore` disarms what is ours; then set the default anew",
            needed=True,
        )
        waits = state["one_shot_pending"]
        self._add(
            "one-shot boot",
            ok=waits is None,
            detail=f"{waits} boots next" if waits else "none waits",
            remedy="`harness restore` disarms one of ours",
            needed=False,
        )

    def _recovery(self) -> None:
        for what, (ok, detail, remedy) in health.recovery().items():
            self._add(what, ok=ok, detail=detail, remedy=remedy, needed=False)

    def _perf(self) -> None:
        tool = programs.found("perf")
        counters = Path("/sys/bus/event_source/devices/cpu").exists()
        self._add(
            "perf",
            ok=bool(tool and counters),
            detail=f"{tool or 'not installed'}; the CPU {'has' if counters else 'lacks'} counters",
            remedy=health.install("perf") + "; without it, no cycles and cache misses per packet",
            needed=False,
        )
