# SPDX-License-Identifier: MIT
"""Facts about a host for the doctor: distribution, routes, clock, switches, recovery."""

from __future__ import annotations

import ctypes
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.agent import cpus, packages, programs
from harness.agent.faults import AgentError
from harness.agent.foreign import read_text
from harness.agent.interface import reached, stacked

_CPU = Path("/sys/devices/system/cpu")
_TIMEX_BYTES = 512  # struct timex has 208 on x86-64
_TIME_ERROR = 5

Check = dict[str, Any]
"""``check``, ``ok``, ``detail``, ``remedy`` (None if ok) and ``needed``: a run needs it."""


def check(
    name: str, ok: bool, detail: object, remedy: str | None = None, *, needed: bool = False
) -> Check:
    """One line of the doctor's table."""
    return {
        "check": name,
        "ok": ok,
        "detail": str(detail),
        "remedy": None if ok else remedy,
        "needed": needed,
    }


def rhel() -> bool:
    """Does this distribution belong to the Fedora family?"""
    return packages.family() == "rhel"


def install(package: str) -> str:
    """The command that installs ``package``, a name of the table in :mod:`.packages` or its own."""
    return packages.install(package, of="rhel" if rhel() else None)


def autoremove() -> str:
    """The command that removes old kernels of the distribution."""
    return "dnf remove --oldinstallonly" if rhel() else "apt-get autoremove --purge"


def default_routes(text: str | None = None, text_v6: str | None = None) -> set[str]:
    """Interfaces with a default route, from /proc/net/route and ipv6_route."""
    rows = (text if text is not None else read_text(Path("/proc/net/route")) or "").splitlines()
    found = set()
    for row in rows[1:]:
        words = row.split()
        if len(words) > 7 and words[1] == words[7] == "00000000":
            found.add(words[0])
    if text_v6 is None:
        text_v6 = (read_text(Path("/proc/net/ipv6_route")) or "") if text is None else ""
    for row in text_v6.splitlines():
        words = row.split()
        # An "unreachable" route belongs to lo.
        if len(words) > 9 and words[:2] == ["0" * 32, "00"] and words[9] != "lo":
            found.add(words[9])
    return found


def carried(interface: str) -> tuple[list[str], str | None]:
    """What else uses the wire of ``interface``, and why there may be more; None: there is not.

    Interfaces stacked on it or beside it count: its bridge, a VLAN on it, another VLAN of the
    card below it.
    """
    table = stacked.interfaces()
    wire = stacked.together([interface], table)
    reached_by = reached.connections()
    found = [
        f"{what} ({wire[name]})" if name != interface else what
        for what, names in (
            ("the default route", default_routes()),
            ("this ssh connection", reached.interfaces(table, reached_by)),
        )
        for name in sorted(names)
        if name in wire
    ]
    inside = [one.local for one in reached_by if ipaddress.ip_address(one.local).is_loopback]
    why = f"ssh comes from {inside[0]}, a tunnel whose route is unknown" if inside else None
    return found, why


def governors_at_hand() -> bool:
    """Is the performance governor available on every CPU?"""
    paths = [_CPU / f"cpu{cpu}/cpufreq/scaling_available_governors" for cpu in cpus.online()]
    found = [text.split() for path in paths if (text := read_text(path)) is not None]
    return bool(found) and all("performance" in words for words in found)


def switches() -> Iterator[Check]:
    """Turbo and SMT: both make rates vary, and the lab decides about them."""
    no_turbo, boost = _CPU / "intel_pstate/no_turbo", _CPU / "cpufreq/boost"
    turbo = read_text(no_turbo) == "0" or read_text(boost) == "1"
    smt = read_text(_CPU / "smt/active") == "1"
    path = no_turbo if no_turbo.exists() else boost
    steadier = f"for steadier rates: echo {int(path == no_turbo)} > {path}"
    yield check("turbo", not turbo, "on" if turbo else "off or unknown", steadier)
    steadier = f"for steadier rates: echo off > {_CPU}/smt/control"
    yield check("SMT", not smt, "on" if smt else "off", steadier)


def clock_synchronised() -> bool | None:
    """Is the kernel's clock synchronised, by NTP for example (adjtimex(2))? None: unknown."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else bool(state != _TIME_ERROR)


def recovery() -> Iterator[Check]:
    """What restarts a machine whose kernel died, and what reports why it died."""
    watchdogs = sorted(path.name for path in Path("/sys/class/watchdog").glob("watchdog*"))
    consoles = [
        line.split()[0] for line in (read_text(Path("/proc/consoles")) or "").splitlines() if line
    ]
    serial = [name for name in consoles if not name.startswith("tty") or name.startswith("ttyS")]
    crash = read_text(Path("/sys/kernel/kexec_crash_loaded")) == "1"
    pstore = _pstore()
    yield check("watchdog", bool(watchdogs), ", ".join(watchdogs) or "none", _NO_WATCHDOG)
    yield check("console", bool(serial), ", ".join(consoles) or "none", _NO_CONSOLE)
    loaded = "a crash kernel is loaded" if crash else "none is loaded"
    yield check("crash dump", not crash, loaded, _CRASH)
    yield check("pstore", pstore, "keeps the log of a panic" if pstore else "none", _NO_PSTORE)


_NO_WATCHDOG = (
    "modprobe iTCO_wdt, sp5100_tco or ipmi_watchdog: without one, a kernel that hangs "
    "needs a power cycle"
)
_NO_CONSOLE = (
    "add console=ttyS0,115200n8 (or the BMC's port) to the kernel command line, or, only for "
    "kernels under test, as boot.console of this host in hosts.yaml: without a serial console, "
    "a dead kernel reports nothing"
)
_CRASH = "a panic would boot it, which takes minutes: systemctl disable kdump"
_NO_PSTORE = "efi-pstore, ERST or ramoops keep the log of a panic over the reset"


def _pstore() -> bool:
    try:
        said = programs.run(["findmnt", "--noheadings", "/sys/fs/pstore"], timeout_s=10)
    except AgentError:
        return False
    backend = read_text(Path("/sys/module/pstore/parameters/backend"))
    return bool(said.strip()) and backend not in (None, "", "(null)")
