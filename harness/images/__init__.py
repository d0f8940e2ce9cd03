# SPDX-License-Identifier: MIT
"""The two Debian systems a virtual bed needs, made once by mmdebstrap and kept.

The *guest image* is the disk every guest boots copy-on-write; the *tools root*
is a directory with a QEMU that has vfio-user-pci and with netperf, for machines
whose own are missing or too old. Neither needs root, given user namespaces.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import cache, process
from harness.errors import InfrastructureError
from harness.progress import Progress

SUITE = "trixie"
GUEST_USER = "harness"
_GUEST_SETUP = Path(__file__).with_name("guest-setup.sh")
_TOOLS_SETUP = Path(__file__).with_name("tools-setup.sh")
_GUEST_PACKAGES = (
    "procps", "iproute2", "ethtool", "openssh-server", "sudo", "netperf",
    "bpftrace",  # what the probes are held against
    "nftables", "iputils-ping", "socat",  # what the behaviour tests use, and for the
    "conntrack", "iptables", "jq", "netsniff-ng", "tcpdump",  # kernel's own tests of its network
    "python3", "python3-bpfcc", "python3-psutil", "python3-pyroute2",
)  # fmt: skip
_UNREAD = ("man", "doc", "locale", "info")
_SCRATCH = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 (inside the root alone)
_UNSHARE_HINT = (
    "an ordinary user needs user namespaces (sysctl kernel.unprivileged_userns_clone=1, on Ubuntu "
    "kernel.apparmor_restrict_unprivileged_userns=0), the package uidmap and a line in /etc/subuid"
)


@dataclass(frozen=True, kw_only=True)
class GuestImage:
    """A bootable disk and what is needed to log in to it as :data:`GUEST_USER`."""

    directory: Path

    @property
    def disk(self) -> Path:
        """A raw ext2 file system; guests never write to it."""
        return self.directory / "guest.ext2"

    @property
    def key(self) -> Path:
        """The private key that the guest's user accepts."""
        return self.directory / "client_key"

    @property
    def host_key(self) -> str:
        """The guest's public host key, as ``TYPE BASE64``."""
        return " ".join((self.directory / "host_key.pub").read_text(encoding="utf-8").split()[:2])


@contextmanager
def made_meanwhile() -> Iterator[None]:
    """Make what is not kept yet in a process of its own while something else is done.

    What fails there fails again, and is told, when it is asked for.
    """
    if _guest_home().is_dir() and _tools_home().is_dir():
        yield
        return
    maker = process.start(
        ["setpriv", "--pdeathsig=TERM", "--", sys.executable, "-m", "harness.images"],
        hint="apt-get install util-linux",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.end(maker)


def _guest_home() -> Path:
    key = cache.digest(SUITE, _GUEST_PACKAGES, _GUEST_SETUP.read_text(encoding="utf-8"))
    return cache.root() / "guests" / key


def _tools_home() -> Path:
    return cache.root() / "tools" / cache.digest(SUITE, _TOOLS_SETUP.read_text(encoding="utf-8"))


def guest_image(progress: Progress) -> GuestImage:
    """The guest image, made if it is not kept yet."""

    def make(making: Path) -> None:
        with progress.task("guest image"):
            make_key(making / "client_key", "harness")
            make_key(making / "host_key", "guest")
            debootstrap(
                making / "guest.ext2",
                _GUEST_PACKAGES,
                _GUEST_SETUP,
                {
                    "AUTHORIZED_KEY": (making / "client_key.pub")
                    .read_text(encoding="utf-8")
                    .strip(),
                    "HOST_KEY": (making / "host_key").read_text(encoding="utf-8"),
                    "GUEST_USER": GUEST_USER,
                },
            )
            (making / "host_key").unlink()

    return GuestImage(directory=cache.entry(_guest_home(), make, what="the guest image"))


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Where QEMU and netperf are run from: this system, or a root of their own."""

    root: Path | None

    def qemu(self, arguments: list[str], *, shared: list[Path]) -> list[str]:
        """The command for QEMU; ``shared`` are directories it has to see (all writable)."""
        if self.root is None:
            return ["qemu-system-x86_64", *arguments]
        bound = [word for path in _SCRATCH for word in ("--tmpfs", path)]
        bound += [word for path in shared for word in ("--bind", str(path), str(path))]
        return [
            "bwrap", "--die-with-parent", "--bind", str(self.root), "/", "--dev", "/dev",
            *(["--dev-bind", "/dev/kvm", "/dev/kvm"] if os.access("/dev/kvm", os.W_OK) else []),
            "--proc", "/proc", "--ro-bind", "/sys", "/sys",
            *bound, "qemu-system-x86_64", *arguments,
        ]  # fmt: skip

    def netperf_prefix(self) -> list[str]:
        """What goes before ``netperf`` for a process that may chroot."""
        return [] if self.root is None or shutil.which("netperf") else ["chroot", str(self.root)]


def tools(progress: Progress) -> Tools:
    """A QEMU with vfio-user-pci and a netperf: the system's own if it has both."""
    if shutil.which("netperf") and _has_vfio_user(["qemu-system-x86_64"]):
        return Tools(root=None)

    def make(making: Path) -> None:
        with progress.task("tools root (QEMU, netperf)"):
            archive = making / "root.tar"
            debootstrap(archive, ("netperf",), _TOOLS_SETUP, {"SUITE": SUITE})
            (making / "root").mkdir()
            process.run(
                ["tar", "--extract", "--no-same-owner", "--exclude=./dev/*", f"--file={archive}",
                 f"--directory={making / 'root'}"]
            )  # fmt: skip
            archive.unlink()

    home = cache.entry(_tools_home(), make, what="the tools root")
    found = Tools(root=home / "root")
    if not _has_vfio_user(found.qemu([], shared=[])):
        raise InfrastructureError(
            "the QEMU of the tools root has no vfio-user-pci", hint=_UNSHARE_HINT
        )
    return found


def _has_vfio_user(qemu: list[str]) -> bool:
    if shutil.which(qemu[0]) is None:
        return False
    devices = process.run([*qemu, "-device", "help"], check=False)
    return '"vfio-user-pci"' in devices.stdout


def make_key(path: Path, comment: str) -> None:
    """A new ed25519 key pair without a passphrase: ``path`` and ``path``.pub."""
    process.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)],
        hint="apt-get install openssh-client",
    )


def debootstrap(
    target: Path,
    packages: tuple[str, ...],
    setup: Path,
    env: dict[str, str],
    *,
    copied_out: Sequence[tuple[str, Path]] = (),
) -> None:
    """Make a Debian system of ``packages`` in ``target``, a tar or ext2 file by its suffix.

    The script ``setup`` runs on its root with ``env``; of the whole, each first of
    ``copied_out`` is copied into the directory that is its second.

    Raises:
        InfrastructureError: mmdebstrap is missing or failed.
    """
    command = [
        "mmdebstrap", "--variant=minbase", f"--include={','.join(packages)}",
        *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in _UNREAD),
        f"--customize-hook={setup}",
        *(f"--customize-hook=copy-out {path} {to}" for path, to in copied_out),
        SUITE, str(target), *_mirror(),
    ]  # fmt: skip
    process.run(
        command,
        env={**process.environment(), **env, "TMPDIR": str(target.parent)},
        hint=_UNSHARE_HINT,
    )


def _mirror() -> list[str]:
    """The Debian mirror this machine's apt already uses; none: mmdebstrap's own default."""
    targets = process.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(ORIGIN) $(SUITE) $(REPO_URI)",
            "Created-By: Packages",
        ],
        check=False,
    )
    for line in targets.stdout.splitlines():
        found = re.fullmatch(r"Debian (?:old)*stable (\S+)", line.strip())
        if found:
            return [found.group(1)]
    return []
