# SPDX-License-Identifier: MIT
"""The state of a host that decides what receive costs: read, changed, proven, put back.

A change is journalled before it is made and read back after it; everything is put
back in reverse order when the agent ends, and by the next agent if this one was killed.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from . import offloads, queues
from .ethtool import Ethtool
from .faults import AgentError
from .inventory import NET, existing, governors, interface_irqs, irqbalance_running, read_text
from .journal import Journal, end_holder, journalled
from .links import Links
from .offloads import FEATURES, with_offload
from .queues import with_queues, with_rule
from .setting import Setting, write_text

_CARRIER_S = 10.0
_PROC_SYS = Path("/proc/sys")
_BUSY_READ = _PROC_SYS / "net/core/busy_read"
_CPU = Path("/sys/devices/system/cpu")
# Read and recorded, never changed: a rate means little without them.
_SYSCTLS = (
    "net/core/rmem_default",
    "net/core/rmem_max",
    "net/core/netdev_max_backlog",
    "net/core/netdev_budget",
    "net/core/netdev_budget_usecs",
    "net/core/dev_weight",
    "net/core/gro_normal_batch",
    "net/core/busy_read",
    "net/core/busy_poll",
    "net/core/default_qdisc",
    "net/ipv4/ip_early_demux",
    "net/ipv4/udp_early_demux",
    "net/ipv4/conf/all/rp_filter",
)
_SWITCHES = {
    "turbo_intel_off": "intel_pstate/no_turbo",
    "turbo": "cpufreq/boost",
    "smt": "smt/control",
}


class Settings:
    """Every change this agent made, and the way back."""

    def __init__(self) -> None:
        self._changes: list[tuple[str, Setting, Any]] = []
        self._before: dict[str, dict[str, Any]] = {}
        self._journal: dict[str, Journal] = {}

    def read(self, *, interface: str) -> dict[str, Any]:
        """All settings of the host and the interface, those never changed included."""
        return _readings(existing(interface), _known(interface))

    def apply(
        self,
        *,
        interface: str,
        address: str | None = None,
        peer: dict[str, str] | None = None,
        rx_queues: int | None = None,
        steering: str | None = "auto",
        rx_ring: int | None = None,
        offloads: dict[str, bool] | None = None,
        irq_cpu: int | None = None,
        coalesce: dict[str, Any] | None = None,
        rps: bool | None = None,
        busy_read_us: int | None = None,
        pacing_bytes_per_s: int | None = None,
        irqbalance: bool | None = None,
        governor: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> dict[str, Any]:
        """Bring the host to what is asked for; None leaves a setting alone. Idempotent.

        ``steering`` brings packets into ``rx_queues`` queues: ``rss`` by the table alone,
        ``ntuple`` by a rule alone, ``auto`` by a rule only where nothing else can.
        ``offloads`` go by the names of :data:`~.offloads.FEATURES`. What the driver does
        not support is ``skipped``.

        Raises:
            AgentError: a setting was refused or did not take, or another agent works on
                this interface. Everything changed so far has been put back.
        """
        if rps:
            raise AgentError("RPS can only be switched off", kind="configuration")
        if unknown := (offloads or {}).keys() - FEATURES.keys():
            raise AgentError(f"no offload {', '.join(sorted(unknown))}", kind="configuration")
        known = _known(existing(interface))
        recovered = self._recovered(interface, known)
        before = self._before.setdefault(interface, _readings(interface, known))
        skipped: list[dict[str, str]] = []
        at = None if address is None else str(IPv4Interface(address))
        ruled = steering == "ntuple"
        # In the order in which one needs the other; what reads as None is not on this host.
        steps: list[tuple[str, bool, Callable[[Any], Any]]] = [
            ("irqbalance", irqbalance is False, lambda _: "inactive"),
            ("governor", governor is not None, lambda now: dict.fromkeys(now, governor)),
            ("ipv6_off", at is not None, lambda _: 1),
            ("rings", rx_ring is not None, lambda now: now | {"rx": rx_ring}),
            *(
                (f"offloads.{name}", True, partial(with_offload, name=name, on=on))
                for name, on in (offloads or {}).items()
            ),
            (
                "rx_queues",
                rx_queues is not None and steering in ("auto", "rss"),
                lambda now: with_queues(now, rx_queues or 1, channels=steering == "auto"),
            ),
            ("addresses", at is not None, lambda now: sorted({*now, at})),
            ("up", True, lambda _: True),
            ("neighbours", peer is not None, lambda now: now | _neighbour(peer)),
            ("coalesce", coalesce is not None, lambda now: now | (coalesce or {})),
            ("irq_affinity", irq_cpu is not None, lambda now: dict.fromkeys(now, str(irq_cpu))),
            ("rps", rps is False, lambda now: dict.fromkeys(now, "0")),
            ("busy_read_us", busy_read_us is not None, lambda _: busy_read_us),
            ("pacing_bytes_per_s", pacing_bytes_per_s is not None, lambda _: pacing_bytes_per_s),
        ]
        try:
            for name, asked, wanted_from in steps:
                setting = known[name.partition(".")[0]]
                why = self._change(interface, setting, wanted_from) if asked else None
                if why is not None:
                    skipped.append({"setting": name, "why": why})
                    ruled |= name == "rx_queues" and steering == "auto" and rx_queues == 1
            if ruled:
                to = None if at is None else str(IPv4Interface(at).ip)
                why = self._change(interface, known["ntuple"], partial(with_rule, destination=to))
                if why is not None:
                    skipped.append({"setting": "ntuple", "why": why})
        except Exception:
            self.restore()
            raise
        if at is not None and not _carrier(interface, sleep):
            skipped.append({"setting": "link", "why": f"no carrier within {_CARRIER_S:.0f} s"})
        if irq_cpu is not None:
            _stay_off(irq_cpu)
        after = _readings(interface, known)
        return {"before": before, "after": after, "skipped": skipped, "recovered": recovered}

    def restore(self) -> dict[str, Any]:
        """Put back every change, the last one first; a failure does not stop the rest."""
        restored: list[str] = []
        failed: list[dict[str, str]] = []
        while self._changes:
            _, setting, old = self._changes.pop()
            why = _put_back(setting, old)
            if why is None:
                restored.append(setting.name)
            else:
                failed.append({"setting": setting.name, "why": why})
        for journal in self._journal.values():
            journal.close(keep=bool(failed))
        self._journal.clear()
        self._before.clear()
        return {"restored": restored, "failed": failed}

    def recover(self, *, end_others: bool = False) -> dict[str, Any]:
        """Put back what agents that are gone left changed, on every interface of this host.

        ``end_others``: an agent that still holds a journal is ended, which puts it back.

        Raises:
            AgentError: another agent is at work, and is not to be ended.
        """
        restored: list[str] = []
        failed: list[dict[str, str]] = []
        for interface in journalled():
            if end_others:
                end_holder(interface)
            try:
                journal = Journal(interface)
            except OSError as error:
                failed.append({"setting": interface, "why": f"{error}: the interface is gone"})
                continue
            known = _known(interface)
            kept = len(failed)
            for name, old in reversed(journal.left):
                why = _put_back(known[name], old) if name in known else "unknown setting"
                if why is None:
                    restored.append(f"{interface} {name}")
                else:
                    failed.append({"setting": f"{interface} {name}", "why": why})
            journal.close(keep=len(failed) > kept)
        return {"restored": restored, "failed": failed}

    def _change(
        self, interface: str, setting: Setting, wanted_from: Callable[[Any], Any]
    ) -> str | None:
        """Why it does not apply to this host, or None once it holds."""
        now = setting.read()
        wanted = None if now in (None, {}) and setting.name in _ABSENT else wanted_from(now)
        if wanted is None:
            return _ABSENT[setting.name]
        if setting.holds(now, wanted):
            return None
        if (interface, setting.name) not in {(at, done.name) for at, done, _ in self._changes}:
            self._journal[interface].add(setting.name, now)
            self._changes.append((interface, setting, now))
        hint = _HINTS.get(setting.name)
        try:
            setting.write(wanted)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _UNSUPPORTED:
                return f"the driver does not support it: {error}"
            raise AgentError(
                f"{interface}: {setting.name} was refused: {error}", hint=hint
            ) from error
        after = setting.read()
        if not setting.holds(after, wanted):
            raise AgentError(
                f"{interface}: {setting.name} did not take: wanted {wanted}, is {after}", hint=hint
            )
        return None

    def _recovered(self, interface: str, known: dict[str, Setting]) -> list[str]:
        """Open the journal, and put back what an agent that was killed left in it."""
        if interface in self._journal:
            return []
        journal = self._journal[interface] = Journal(interface)
        recovered = []
        for name, old in reversed(journal.left):
            why = _put_back(known[name], old) if name in known else "unknown setting"
            sys.stderr.write(f"a killed agent left {name} changed: {why or 'put back'}\n")
            recovered.append(name)
        journal.start()
        return recovered


_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)
_ABSENT = {
    "governor": "the host has no cpufreq",
    "ipv6_off": "the kernel has no IPv6",
    "rx_queues": "the queue count is fixed and there is no indirection table",
    "ntuple": "the driver has no receive rules",
    "rings": "the driver's rings have one size",
    "offloads": "the driver cannot change it, or the kernel does not know it",
    "coalesce": "the driver has no interrupt moderation",
    "irq_affinity": "the interface has no interrupt of its own",
    "rps": "the kernel has no RPS",
    "busy_read_us": "the kernel has no busy polling",
}
_HINTS = {
    "irqbalance": "stop irqbalance on the host, or ask for `irqbalance: null`",
    "rings": "`ethtool -g` shows the largest size; many NICs take powers of two alone",
    "governor": "see /sys/devices/system/cpu/cpu0/cpufreq/scaling_available_governors",
    "irq_affinity": "an interrupt managed by its driver cannot be moved: choose another CPU",
    "addresses": "is the address used elsewhere on this host?",
    "pacing_bytes_per_s": "pacing needs the kernel's tbf (CONFIG_NET_SCH_TBF) on the generator, "
    "on an interface whose queueing nobody has set up",
}


def _known(interface: str) -> dict[str, Setting]:
    """Every setting that can be changed, by name."""
    ethtool = Ethtool(interface)
    links = Links(interface)
    conf = _PROC_SYS / "net/ipv6/conf" / interface / "disable_ipv6"
    settings = [
        Setting("irqbalance", _irqbalance, _set_irqbalance),
        Setting("governor", governors, _set_governors),
        Setting(
            "ipv6_off",
            lambda: _number(read_text(conf)),
            lambda value: write_text(conf, str(value)),
        ),
        Setting("addresses", links.addresses, links.set_addresses),
        Setting("up", links.up, links.set_up),
        Setting("neighbours", links.neighbours, links.set_neighbours),
        Setting(
            "coalesce",
            ethtool.coalesce,
            lambda value: ethtool.set_coalesce(**value),
            _coalesce_holds,
        ),
        Setting(
            "irq_affinity",
            lambda: {str(irq): _affinity(irq, "smp") for irq in interface_irqs(interface)},
            _set_affinity,
            _affinity_holds,
        ),
        Setting(
            "busy_read_us",
            lambda: _number(read_text(_BUSY_READ)),
            lambda value: write_text(_BUSY_READ, str(value)),
        ),
        Setting("pacing_bytes_per_s", links.pacing, links.set_pacing),
        *offloads.settings(interface, ethtool),
        *queues.settings(interface, ethtool),
    ]
    return {setting.name: setting for setting in settings}


def _readings(interface: str, known: dict[str, Setting]) -> dict[str, Any]:
    at = NET / interface
    ethtool = Ethtool(interface)
    return {
        "interface": interface,
        **{name: setting.read() for name, setting in known.items()},
        "irq_effective_affinity": {
            str(irq): _affinity(irq, "effective") for irq in interface_irqs(interface)
        },
        "xps": {
            path.parent.name: read_text(path)
            for path in sorted((at / "queues").glob("tx-*/xps_cpus"))
        },
        "through": ethtool.through(),
        "gro": ethtool.gro(),
        "mtu": _number(read_text(at / "mtu")),
        "napi_defer_hard_irqs": _number(read_text(at / "napi_defer_hard_irqs")),
        "gro_flush_timeout_ns": _number(read_text(at / "gro_flush_timeout")),
        "sysctl": {
            name.replace("/", "."): text
            for name in _SYSCTLS
            if (text := read_text(_PROC_SYS / name)) is not None
        },
        "cpu": {
            name: text
            for name, path in _SWITCHES.items()
            if (text := read_text(_CPU / path)) is not None
        },
    }


def _put_back(setting: Setting, old: Any) -> str | None:
    """Why ``setting`` is not as it was, or None."""
    try:
        setting.write(old)
        now = setting.read()
    except (OSError, AgentError) as error:
        return str(error)
    return None if setting.holds(now, old) else f"wanted {old}, is {now}"


def _coalesce_holds(is_now: dict[str, Any] | None, wanted: dict[str, Any]) -> bool:
    # A NIC's timer has steps of its own: drivers round, and `after` says to what.
    return (
        is_now is not None
        and is_now["adaptive_rx"] == wanted["adaptive_rx"]
        and abs(is_now["rx_usecs"] - wanted["rx_usecs"]) <= wanted["rx_usecs"] // 4
    )


def _neighbour(peer: dict[str, str] | None) -> dict[str, str]:
    return {peer["address"]: peer["mac"].lower()} if peer else {}


def _affinity(irq: int, kind: str) -> str | None:
    at = Path("/proc/irq", str(irq))
    return read_text(at / ("smp_affinity_list" if kind == "smp" else "effective_affinity_list"))


def _set_affinity(value: dict[str, str | None]) -> None:
    for irq, cpus in value.items():
        path = Path("/proc/irq", irq, "smp_affinity_list")
        if cpus is not None and path.exists():
            write_text(path, cpus)


def _affinity_holds(is_now: dict[str, str | None], wanted: dict[str, str | None]) -> bool:
    # A vector that went away with its queue has nothing to be put back.
    return all(_cpus(is_now[irq]) == _cpus(cpus) for irq, cpus in wanted.items() if irq in is_now)


def _cpus(text: str | None) -> set[int]:
    found: set[int] = set()
    for part in filter(None, (text or "").split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def _irqbalance() -> str:
    return "active" if irqbalance_running() else "inactive"


def _set_irqbalance(value: str) -> None:
    if shutil.which("systemctl") is None:
        raise OSError("irqbalance runs, and there is no systemctl to stop it with")
    verb = "start" if value == "active" else "stop"
    subprocess.run(["systemctl", verb, "irqbalance"], stdin=subprocess.DEVNULL, capture_output=True)


def _set_governors(value: dict[str, str]) -> None:
    for cpu, governor in value.items():
        write_text(_CPU / f"cpu{cpu}" / "cpufreq" / "scaling_governor", governor)


def _carrier(interface: str, sleep: Callable[[float], None]) -> bool:
    end_s = time.monotonic() + _CARRIER_S
    while read_text(NET / interface / "carrier") != "1":
        if time.monotonic() > end_s:
            return False
        sleep(0.1)
    return True


def _stay_off(irq_cpu: int) -> None:
    """The agent itself goes to the last CPU that does not receive, where there is one."""
    others = [cpu for cpu in range(os.cpu_count() or 1) if cpu != irq_cpu]
    if others:
        os.sched_setaffinity(0, others[-1:])


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
