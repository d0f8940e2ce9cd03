# SPDX-License-Identifier: MIT
"""Which namespaces this process needs, and how to allow them if the system refuses.

A generator runs in a network namespace, and without root, images are made in a user
namespace. Others try whether that works; this module names the remedy.
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
    # file below /proc/sys: (value that forbids namespaces, remedy)
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
    """Does a network namespace need a user namespace first?

    Not if this process already has the capabilities, which root in a container may lack.
    """
    wanted = (1 << _NET_ADMIN) | (1 << _NET_RAW) | (1 << _SYS_ADMIN)
    return _capabilities() & wanted != wanted


def refused() -> str | None:
    """Why no network namespace with a pair of interfaces can be made here; None: it can.

    What is not installed is not refused.
    """
    user = ["--user", "--map-root-user"] if of_users_first() else []
    made = ["unshare", *user, "--net", "--"]
    for what, command in (
        ("a network namespace", ["true"]),
        ("a veth pair", ["ip", "link", "add", "type", "veth"]),
    ):
        if not all(map(shutil.which, ("unshare", command[0]))):
            return None
        tried = process.run([*made, *command], check=False)
        if tried.returncode:
            said = process.harmless(tried.stderr).strip() or f"status {tried.returncode}"
            return f"{what} cannot be made: {said}"
    return None


def remedy(*, proc: Path = _PROC) -> str:
    """What must change on this machine to allow namespaces, as far as it can be detected."""
    changes = [
        change
        for name, (refusing, change) in _SETTINGS.items()
        if _read(proc / "sys" / name).strip() == refusing
    ]
    if changes:
        return f"as root: {'; '.join(changes)}"
    if in_chroot(proc=proc):
        return (
            "in a chroot only root may make namespaces: run it there as root, start that system "
            "with systemd-nspawn, or run it outside"
        )
    filtered = re.search(r"^Seccomp:\s*[12]$", _read(proc / "self/status"), re.MULTILINE)
    if filtered or (os.geteuid() == 0 and of_users_first()):
        return _CONTAINER
    return (
        "an ordinary user needs user namespaces: sysctl kernel.unprivileged_userns_clone=1, "
        "on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0; in a container: docker run "
        "--privileged"
    )


def remedy_for_images() -> str:
    """What must change so that this user can make Debian images, as far as it can be detected."""
    user = _user_name()
    for path, option in (("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")):
        with contextlib.suppress(OSError):
            lines = [
                line.split(":") for line in Path(path).read_text(encoding="utf-8").splitlines()
            ]
            if any(words[0] == user and len(words) == 3 for words in lines):
                continue
        return f"{path} has no range for {user}: as root, usermod {option} 200000-265535 {user}"
    if shutil.which("newuidmap") is None:
        return f"newuidmap is not installed: {process.package_hint('newuidmap')}"
    return remedy()


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def in_chroot(*, proc: Path = _PROC) -> bool:
    """Is / not a mount point, as in a plain chroot? False if that cannot be detected."""
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
