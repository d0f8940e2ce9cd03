# SPDX-License-Identifier: MIT
"""Facts of a host the doctor judges: its distribution, routes, clock, switches, ways back."""

from __future__ import annotations

import ctypes
import ipaddress
from pathlib import Path
from typing import Any

from harness.agent import cpus, packages, programs
from harness.agent.faults import AgentError
from harness.agent.foreign import read_text
from harness.agent.interface import reached, stacked

_CPU = Path("/sys/devices/system/cpu")
_TIMEX_BYTES = 512  # struct timex, 208 on x86-64, with room
_TIME_ERROR = 5

Check = dict[str, Any]
"""``check``, ``ok``, ``detail``, ``remedy`` (None where ok), and ``needed``: no run without it."""

Judged = tuple[bool, str, str]
"""ok, detail, remedy."""


def check(name: str, *, ok: bool, detail: object, remedy: str | None = None, needed: bool) -> Check:
    """One line of the doctor's table."""
    return {
        "check": name,
        "ok": ok,
        "detail": str(detail),
        "remedy": None if ok else remedy,
        "needed": needed,
    }


def rhel() -> bool:
    """Is this one of the Fedora family?"""
    return packages.family() == "rhel"


def install(package: str) -> str:
    """The command that installs ``package`` here, by the name the table has for it, or its own."""
    return packages.install(package, of="rhel" if rhel() else None)


def autoremove() -> str:
    """The command that removes kernels of the distribution that are not used any more."""
    return "dnf remove --oldinstallonly" if rhel() else "apt-get autoremove --purge"


def number(path: Path) -> int | None:
    """The number in a /sys file."""
    text = read_text(path)
    return int(text) if text and text.lstrip("-").isdigit() else None


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
        # One that only says "unreachable" is of lo.
        if len(words) > 9 and words[:2] == ["0" * 32, "00"] and words[9] != "lo":
            found.add(words[9])
    return found


def carried(interface: str) -> tuple[list[str], str | None]:
    """What goes over the wire of ``interface`` beside a test, and what of it cannot be told.

    Whatever is stacked above it or beside it counts: a bridge that holds it, a VLAN on it,
    the other VLAN of the card below it.
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
    why = f"ssh comes by {inside[0]}, a tunnel whose way is not to be seen" if inside else None
    return found, why


def governors_at_hand() -> bool:
    """Can the performance governor be chosen?"""
    paths = [_CPU / f"cpu{cpu}/cpufreq/scaling_available_governors" for cpu in cpus.online()]
    found = [text.split() for path in paths if (text := read_text(path)) is not None]
    return bool(found) and all("performance" in words for words in found)


def switches() -> dict[str, Judged]:
    """Turbo and SMT: they make rates wander, and are the lab's to decide."""
    no_turbo, boost = _CPU / "intel_pstate/no_turbo", _CPU / "cpufreq/boost"
    turbo = read_text(no_turbo) == "0" or read_text(boost) == "1"
    smt = read_text(_CPU / "smt/active") == "1"
    path = no_turbo if no_turbo.exists() else boost
    return {
        "turbo": (
            not turbo,
            "on" if turbo else "off, or not to be seen",
            f"for steadier rates: echo {int(path == no_turbo)} > {path}",
        ),
        "SMT": (
            not smt,
            "on" if smt else "off",
            f"for steadier rates: echo off > {_CPU}/smt/control",
        ),
    }


def clock_synchronised() -> bool | None:
    """By NTP or the like, as the kernel sees it; None where it does not say (adjtimex(2))."""
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else bool(state != _TIME_ERROR)


def recovery() -> dict[str, Judged]:
    """What brings a dead kernel back, or lets it speak."""
    watchdogs = sorted(path.name for path in Path("/sys/class/watchdog").glob("watchdog*"))
    consoles = [
        line.split()[0] for line in (read_text(Path("/proc/consoles")) or "").splitlines() if line
    ]
    serial = [name for name in consoles if not name.startswith("tty") or name.startswith("ttyS")]
    crash = read_text(Path("/sys/kernel/kexec_crash_loaded")) == "1"
    pstore = _pstore()
    return {
        "watchdog": (
            bool(watchdogs),
            ", ".join(watchdogs) or "none",
            _NO_WATCHDOG,
        ),
        "console": (
            bool(serial),
            ", ".join(consoles) or "none",
            _NO_CONSOLE,
        ),
        "crash dump": (
            not crash,
            "a crash kernel is loaded" if crash else "none is loaded",
            _CRASH,
        ),
        "pstore": (pstore, "keeps a panic's last words" if pstore else "none", _NO_PSTORE),
    }


_NO_WATCHDOG = (
    "modprobe iTCO_wdt, sp5100_tco or ipmi_watchdog: without one, a kernel that hangs "
    "needs a power cycle"
)
_NO_CONSOLE = (
    "add console=ttyS0,115200n8 (or the BMC's port) to the kernel command line, or say it as "
    "boot.console of this host in hosts.yaml, for kernels under test alone: "
    "without one, a dead kernel says nothing"
)
_CRASH = "kernels under test panic into it and take minutes to come back: systemctl disable kdump"
_NO_PSTORE = "efi-pstore, ERST or ramoops keep a panic's last words over the reset"


def _pstore() -> bool:
    try:
        said = programs.run(["findmnt", "--noheadings", "/sys/fs/pstore"], timeout_s=10)
    except AgentError:
        return False
    backend = read_text(Path("/sys/module/pstore/parameters/backend"))
    return bool(said.strip()) and backend not in (None, "", "(null)")
