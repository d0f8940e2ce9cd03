# SPDX-License-Identifier: MIT
"""The inventory of a host: its interface, its NIC, its interrupts and its software."""

from __future__ import annotations

import ctypes
import errno
import importlib.metadata
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import cpus
from .faults import AgentError, parsing
from .foreign import printable, read_text
from .interface import in_the_way, nic
from .interface.ethtool import Ethtool
from .setting import number

NET = Path("/sys/class/net")
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000
_CPUFREQ = "/sys/devices/system/cpu"
_CPUINFO = Path("/proc/cpuinfo")
_CLOCKSOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")


def in_first_namespace() -> bool:
    """Is this process in the machine's own network namespace?"""
    try:
        return Path("/proc/1/ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        # In an ordinary user's namespace, process 1 cannot be inspected.
        return False


def see_own_interfaces() -> None:
    """Mount the /sys of this process's network namespace.

    /sys shows the network namespace in which it was mounted. A process that entered its
    namespace without `ip netns exec` still sees the machine's interfaces.
    """
    if in_first_namespace():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(_CLONE_NEWNS) != 0
        or not _made_private(libc)
        or libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None) != 0
    ):
        code = ctypes.get_errno()
        if code == errno.EBUSY:
            return  # /sys is this namespace's already
        why = os.strerror(code)
        sys.stderr.write(f"/sys may show the interfaces of another network namespace: {why}\n")


def _made_private(libc: ctypes.CDLL) -> bool:
    """Make new mounts private to this process; in a chroot, / is not a mount point."""
    return any(
        libc.mount(b"none", at, None, _MS_REC | _MS_PRIVATE, None) == 0 for at in (b"/", b"/sys")
    )


def existing(interface: str) -> str:
    """``interface`` itself.

    Raises:
        AgentError: this host (or network namespace) has no such interface.
    """
    if not re.fullmatch(r"(?!\.{1,2}$)[^/\s\0]{1,15}", interface) or not (NET / interface).exists():
        have = ", ".join(sorted(printable(path.name) for path in NET.iterdir())) or "none"
        raise AgentError(
            f"no interface {printable(interface)} on this host",
            kind="configuration",
            hint=f"the host has: {have}",
        )
    return interface


def inventory(
    *, interface: str | None = None, mac: str | None = None, command_prefix: Sequence[str] = ()
) -> dict[str, Any]:
    """The host, and its interface, named or found by its MAC address.

    ``command_prefix`` goes before netperf and netserver when they are run for their version.
    """
    if interface is None and mac is not None:
        interface = _named_by(mac)
    answer: dict[str, Any] = {
        "cpus": len(cpus.online()),
        "cpus_online": cpus.as_list(cpus.online()),
        "cpus_allowed": cpus.as_list(cpus.allowed()),
        "cpu_model": _cpu_model(),
        "governors": governors(),
        "irqbalance": irqbalance_running(),
        "versions": _versions(command_prefix),
        "clocksource": read_text(_CLOCKSOURCE),
    }
    if interface is None:
        return answer
    existing(interface)
    at = NET / interface
    driver = Ethtool(interface).driver()
    pci_id, irqs = _pci_id(at), interface_irqs(interface)
    speed = number(read_text(at / "speed"))
    return answer | {
        "interface": interface,
        "index": socket.if_nametoindex(interface),
        "mac": read_text(at / "address"),
        "driver": driver.name if driver else None,
        "bus": driver.bus if driver else None,
        "firmware": driver.firmware if driver else None,
        "pci_id": pci_id,
        "mtu": number(read_text(at / "mtu")) or 0,
        "speed_mbps": speed if speed and speed > 0 else None,
        "numa_node": number(read_text(at / "device" / "numa_node")),
        "link": read_text(at / "carrier") == "1",
        "irqs": [{"irq": irq, "name": name} for irq, name in irqs.items()],
        "rx_queues": len(list((at / "queues").glob("rx-*"))),
        "nic": nic.describe(
            at,
            driver=driver.name if driver else None,
            pci_id=pci_id,
            firmware=driver.firmware if driver else None,
            irqs=irqs,
        ),
        **_in_the_way(interface),
    }


def _in_the_way(interface: str) -> dict[str, Any]:
    """As :func:`.in_the_way.found`; None without pyroute2, which the doctor reports."""
    try:
        return in_the_way.found(interface)
    except (AgentError, OSError) as error:
        sys.stderr.write(f"cannot tell what is between {interface} and the stack: {error}\n")
        return {"packet_taps": None, "in_the_way": None}


def interface_irqs(interface: str) -> dict[int, str]:
    """The interrupts that the device of ``interface`` uses, and their names."""
    device = (NET / interface / "device").resolve()
    numbers: set[int] = set()
    # A virtio device is a child of the PCI function that owns its vectors.
    for owner in (device, device.parent):
        numbers |= {int(path.name) for path in owner.glob("msi_irqs/*") if path.name.isdigit()}
        if not numbers:
            legacy = number(read_text(owner / "irq")) or 0
            numbers |= {legacy} if legacy > 0 else set()
        if numbers:
            break
    table = parse_interrupts(read_text(Path("/proc/interrupts")) or "", numbers)
    return {int(irq): row["name"] for irq, row in table.items() if row["name"]}


@parsing("/proc/interrupts")
def parse_interrupts(text: str, wanted: set[int]) -> dict[str, dict[str, Any]]:
    """Rows of /proc/interrupts by number: ``{"24": {"name": "eth0-0", "counts": {"0": 17}}}``.

    Its columns are the online CPUs.

    Raises:
        AgentError: the text has another form.
    """
    lines = text.split("\n")
    online = [word[len("CPU") :] for word in lines[0].split() if word.startswith("CPU")]
    rows: dict[str, dict[str, Any]] = {}
    for line in lines[1:]:
        irq, _, rest = line.partition(":")
        irq = irq.strip()
        if not re.fullmatch("[0-9]{1,9}", irq) or int(irq) not in wanted:
            continue
        words = rest.split()
        # After the counts: chip, then "edge"/"level" joined to the hardware number or after it.
        tail = words[len(online) + 2 :]
        if tail and re.fullmatch(r"(?i)edge|level", tail[0]):
            tail = tail[1:]
        counts = dict(zip(online, map(int, words[: len(online)])))
        rows[irq] = {"name": " ".join(tail), "counts": counts}
    return rows


def governors() -> dict[str, str] | None:
    """The cpufreq governor of each CPU; None without cpufreq."""
    found = {
        path.parent.parent.name.removeprefix("cpu"): read_text(path)
        for path in sorted(Path(_CPUFREQ).glob("cpu[0-9]*/cpufreq/scaling_governor"))
    }
    # The governor of an offline CPU cannot be read.
    return {cpu: governor for cpu, governor in found.items() if governor} or None


def irqbalance_running() -> bool:
    """Does irqbalance run on this host?"""
    return any(read_text(path) == "irqbalance" for path in Path("/proc").glob("[0-9]*/comm"))


def _cpu_model() -> str | None:
    found = re.search(r"^model name\s*: (.+)$", read_text(_CPUINFO) or "", re.MULTILINE)
    return found[1] if found else None


def _named_by(mac: str) -> str:
    wanted = mac.lower()
    same = [
        path.name
        for path in sorted(NET.iterdir())
        if wanted in ((read_text(path / "address") or "").lower(), permanent_address(path.name))
    ]
    # A bridge, a bond or a VLAN has the address of an interface below it: prefer a device.
    for name in sorted(same, key=lambda one: not (NET / one / "device").exists()):
        return printable(name)
    have = ", ".join(
        f"{printable(p.name)} {read_text(p / 'address')}" for p in sorted(NET.iterdir())
    )
    raise AgentError(
        f"no interface with the address {mac} on this host",
        kind="configuration",
        hint=f"the host has: {have or 'none'}",
    )


def permanent_address(interface: str) -> str | None:
    """The NIC's permanent address; None if it has none."""
    try:
        return Ethtool(interface).permanent_address()
    except OSError:
        return None


def _pci_id(at: Path) -> str | None:
    device = (at / "device").resolve()
    for owner in (device, device.parent):
        vendor, model = read_text(owner / "vendor"), read_text(owner / "device")
        if vendor and model and re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:.*", owner.name):
            return f"{vendor.removeprefix('0x')}:{model.removeprefix('0x')}"
    return None


def _versions(prefix: Sequence[str]) -> dict[str, str | None]:
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "netperf": _said([*prefix, "netperf", "-V"]),
        "netserver": _said([*prefix, "netserver", "-V"]),
        "ethtool": _said(["ethtool", "--version"]),
        **{name: _module_version(name) for name in ("bcc", "pyroute2", "psutil")},
    }


def _said(command: list[str]) -> str | None:
    """The version that a program prints: the first number in its output."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    found = re.search(r"\d+\.\d[\w.]*|\b\d+\b", done.stdout + done.stderr)
    return found[0] if done.returncode == 0 and found else None


def _module_version(name: str) -> str | None:
    """The module's version, without importing it: bcc would load a compiler."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
