# SPDX-License-Identifier: MIT
"""Which namespaces this process may make, and what refuses them where it may not.

A generator's network is a namespace, and without root images are made in one of users. Whether
they can be had is settled by trying; here is what is asked for, and what to change.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
from pathlib import Path

from harness.base import process

_PROC = Path("/proc")
_NET_ADMIN, _NET_RAW, _SYS_ADMIN = 12, 13, 21  # include/uapi/linux/capability.h
_SETTINGS = {
    # value that refuses, of a file below /proc/sys: what to do
    "kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone=1"),
    "user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces=10000"),
    "user/max_net_namespaces": ("0", "sysctl user.max_net_namespaces=10000"),
    "user/max_mnt_namespaces": ("0", "sysctl user.max_mnt_namespaces=10000"),
    "kernel/apparmor_restrict_unprivileged_userns": (
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
}
_CONTAINER = (
    "allow this container namespaces (docker run --privileged, or --security-opt "
    "seccomp=unconfined --security-opt apparmor=unconfined --cap-add SYS_ADMIN --cap-add NET_ADMIN)"
)


def of_users_first() -> bool:
    """Does it take a namespace of users to get root's rights in one of networks?

    Not with those rights outside, which a container's root may lack.
    """
    wanted = (1 << _NET_ADMIN) | (1 << _NET_RAW) | (1 << _SYS_ADMIN)
    return _capabilities() & wanted != wanted


def remedy(*, proc: Path = _PROC) -> str:
    """What has to change on this machine for namespaces to be had, as far as can be seen."""
    changes = []
    for name, (refusing, change) in _SETTINGS.items():
        if _read(proc / "sys" / name).strip() == refusing:
            changes.append(change)
    if changes:
        return f"as root: {'; '.join(changes)}"
    if in_chroot(proc=proc):
        return (
            "in a chroot only root may make namespaces: run it as root there, start that system by "
            "systemd-nspawn, or run it outside"
        )
    status = _read(proc / "self/status")
    if re.search(r"^Seccomp:\s*[12]$", status, re.MULTILINE):
        return _CONTAINER
    if os.geteuid() == 0 and of_users_first():
        return _CONTAINER
    return (
        "an ordinary user needs user namespaces: sysctl kernel.unprivileged_userns_clone=1, "
        "on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0; in a container: docker run "
        "--privileged"
    )


def remedy_for_images() -> str:
    """What has to change for this user to make a Debian system, as far as can be seen."""
    user = _user_name()
    for path, option in (("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")):
        with contextlib.suppress(OSError):
            lines = [
                line.split(":") for line in Path(path).read_text(encoding="utf-8").splitlines()
            ]
            if any(words[0] == user and len(words) == 3 for words in lines):
                continue
        return f"{path} has no range for {user}: usermod {option} 200000-265535 {user}, as root"
    if shutil.which("newuidmap") is None:
        return f"newuidmap is not installed: {process.package_hint('newuidmap')}"
    return remedy()


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def in_chroot(*, proc: Path = _PROC) -> bool:
    """Is / no mount point, as in a plain chroot? False where that cannot be seen."""
    mounts = [line.split() for line in _read(proc / "self/mountinfo").splitlines()]
    return bool(mounts) and all(len(words) > 4 and words[4] != "/" for words in mounts)


def _capabilities() -> int:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", _read(_PROC / "self/status"), re.MULTILINE)
    return int(found[1], 16) if found else 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
