# SPDX-License-Identifier: MIT
"""The packages of programs and modules, by distribution.

None in the table: the distribution has no package, and :data:`_SOURCES` says what to do.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from itertools import zip_longest
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
"""By the words of ID and ID_LIKE; Ubuntu comes first, because it is also like Debian."""
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
"""Programs whose package has another name."""
_BESIDE: Mapping[tuple[str, str], str] = {
    ("netperf", "debian"): " (section non-free of the sources)",
    ("netperf", "ubuntu"): " (section multiverse of the sources)",
    ("perf", "ubuntu"): " linux-tools-common",
    ("pyroute2", "rhel"): " (on RHEL from EPEL)",
}
_SOURCES: Mapping[str, str] = {
    "netperf": "this distribution has no package of netperf; build netperf 2.7 from source: "
    "./configure CFLAGS='-O2 -fcommon' && make install (gcc 10 and later need -fcommon)",
}


def family(text: str | None = None) -> str | None:
    """The family of the distribution in ``text``, an os-release(5), or of this host, if known."""
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

    ``what`` is a name in the table, or else the name of a package.
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
    """A hint for a message: how to install ``what``, a program or a module, on the host."""
    what = _HAS.get(what, what)
    command = install(what)
    if command == _SOURCES.get(what):
        return f"on the host: {command}"
    names = _NAMES.get(what, {})
    name = (names.get(family() or "debian") or what).format(release=platform.release())
    return f"install the package {name} on the host: {command}"


def as_numbers(version: str | None) -> tuple[int, ...]:
    """A version as numbers to compare: ``2.10`` is later than ``2.7``; () if it has none."""
    found = re.search(r"\d+(?:\.\d+)*", version or "")
    # int() refuses very long numbers, and no version has a part of more than nine digits.
    return tuple(int(part[:9]) for part in found[0].split(".")) if found else ()


def at_least(version: str | None, least: str) -> bool:
    """Is ``version`` at least ``least``? ``2.7`` and ``2.7.0`` are the same."""
    pairs = [*zip_longest(as_numbers(version), as_numbers(least), fillvalue=0)]
    one, other = zip(*pairs)
    return bool(as_numbers(version)) and one >= other
