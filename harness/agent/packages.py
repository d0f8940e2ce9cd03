# SPDX-License-Identifier: MIT
"""What a program or a module is called where it is installed from, by distribution.

The one table of it. What a distribution has not got is None there, and :data:`_SOURCES`
says how else it is had.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path

from .foreign import read_text

_OS_RELEASE = (Path("/etc/os-release"), Path("/usr/lib/os-release"))
_FAMILIES: Mapping[str, tuple[str, ...]] = {
    "ubuntu": ("ubuntu",),
    "debian": ("debian",),
    "rhel": ("rhel", "fedora", "centos", "rocky", "almalinux", "ol", "amzn"),
    "suse": ("suse", "opensuse", "sles"),
    "arch": ("arch",),
}
"""By the words of ID and ID_LIKE; Ubuntu is like Debian, and comes first."""
_INSTALLERS: Mapping[str, str] = {
    "ubuntu": "apt-get install",
    "debian": "apt-get install",
    "rhel": "dnf install",
    "suse": "zypper install",
    "arch": "pacman -S",
}
_NAMES: Mapping[str, Mapping[str, str | None]] = {
    #              Debian, Ubuntu, RHEL and Fedora, SUSE, Arch
    what: dict(zip(("debian", "ubuntu", "rhel", "suse", "arch"), names))
    for what, *names in (
        ("netperf", "netperf", "netperf", None, None, None),
        ("psutil", "python3-psutil", "python3-psutil", "python3-psutil", "python3-psutil",
         "python-psutil"),
        ("pyroute2", "python3-pyroute2", "python3-pyroute2", "python3-pyroute2",
         "python3-pyroute2", "python-pyroute2"),
        ("bcc", "python3-bpfcc", "python3-bpfcc", "python3-bcc", "python3-bcc", "python-bcc"),
        ("perf", "linux-perf", "linux-tools-{release}", "perf", "perf", "perf"),
        ("headers", "linux-headers-{release}", "linux-headers-{release}",
         "kernel-devel-{release}", "kernel-default-devel", "linux-headers"),
        ("initramfs", "initramfs-tools", "initramfs-tools", "dracut", "dracut", "dracut"),
        ("grub", "grub-common", "grub-common", "grub2-tools", "grub2", "grub"),
        ("kexec-tools",) + ("kexec-tools",) * 5,
        ("ethtool",) + ("ethtool",) * 5,
        ("chrony",) + ("chrony",) * 5,
        ("util-linux",) + ("util-linux",) * 5,
        ("kmod",) + ("kmod",) * 5,
    )
}  # fmt: skip
_HAS: Mapping[str, str] = {
    "chroot": "coreutils",
    "netserver": "netperf",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
"""Programs that are not called as their package is."""
_BESIDE: Mapping[tuple[str, str], str] = {
    ("netperf", "debian"): " (section non-free of the sources)",
    ("netperf", "ubuntu"): " (section multiverse of the sources)",
    ("perf", "ubuntu"): " linux-tools-common",
    ("pyroute2", "rhel"): " (on RHEL from EPEL)",
}
_SOURCES: Mapping[str, str] = {
    "netperf": "build netperf 2.7 from its source, this distribution has no package: "
    "./configure CFLAGS='-O2 -fcommon' && make install (gcc 10 and later need -fcommon)",
}


def family(text: str | None = None) -> str | None:
    """Of the distribution in ``text``, an os-release(5), or of this host; None: unknown."""
    if text is None:
        text = next((found for path in _OS_RELEASE if (found := read_text(path))), "")
    said = dict(re.findall(r"^(ID|ID_LIKE)=(.*)$", text, re.MULTILINE))
    words = [
        word.partition("-")[0]
        for key in ("ID", "ID_LIKE")
        for word in said.get(key, "").strip("\r \"'").lower().split()
    ]
    return next((name for word in words for name, ids in _FAMILIES.items() if word in ids), None)


def install(what: str, *, of: str | None = None, release: str | None = None) -> str:
    """The command that installs ``what`` here, or on the family ``of``.

    ``what`` is a name of the table, or else a package's own.
    """
    found = of or family()
    names = _NAMES.get(what)
    installer = _INSTALLERS.get(found or "", "install the package")
    if names is None:
        return f"{installer} {what}"
    name = names[found or "debian"]
    if name is None:
        return _SOURCES[what]
    name = name.format(release=release or platform.release())
    return f"{installer} {name}{_BESIDE.get((what, found or ''), '')}"


def hint(what: str) -> str:
    """How whoever looks after a host gets ``what``, a program or a module, for a message."""
    what = _HAS.get(what, what)
    command = install(what)
    if command == _SOURCES.get(what):
        return f"on the host: {command}"
    names = _NAMES.get(what, {})
    name = (names.get(family() or "debian") or what).format(release=platform.release())
    return f"install the package {name} on the host: {command}"


def as_numbers(version: str | None) -> tuple[int, ...]:
    """A version to be compared: ``2.10`` is later than ``2.7``; what is none is before all."""
    found = re.search(r"\d+(?:\.\d+)*", version or "")
    # No version has a part of more digits; longer ones are not for int().
    return tuple(int(part[:9]) for part in found[0].split(".")) if found else ()


def at_least(version: str | None, least: str) -> bool:
    """Is ``version`` that of ``least`` or a later one? ``2.7`` and ``2.7.0`` are the same."""
    one, other = as_numbers(version), as_numbers(least)
    length = max(len(one), len(other))
    return bool(one) and _filled(one, length) >= _filled(other, length)


def _filled(numbers: tuple[int, ...], length: int) -> tuple[int, ...]:
    return numbers + (0,) * (length - len(numbers))
