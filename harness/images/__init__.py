# SPDX-License-Identifier: MIT
"""The two Debian systems a virtual bed needs, made once by mmdebstrap and kept.

The *guest image* is the disk that every guest boots copy-on-write; the *tools root* is a
directory with netperf and a QEMU that has vfio-user-pci, for machines whose own are missing or
too old. With user namespaces neither needs root. Where those are forbidden, the guest image of
user-mode kernels is *unpacked*: no script of a package runs, and its users are not set up.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.base import cache, namespaces, process
from harness.base.errors import InfrastructureError
from harness.base.progress import Progress

SUITE = "trixie"
GUEST_USER = "harness"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_GUEST_SETUP = Path(__file__).with_name("guest-setup.sh")
_TOOLS_SETUP = Path(__file__).with_name("tools-setup.sh")
_UNPACKED_SETUP = Path(__file__).with_name("unpacked-setup.sh")
_GUEST_PACKAGES = (
    "procps", "iproute2", "ethtool", "openssh-server", "sudo", "netperf",
    "bpftrace",  # the reference for the probes
    "nftables", "iputils-ping", "socat",  # the behaviour tests, and
    "conntrack", "iptables", "jq", "netsniff-ng", "tcpdump",  # the kernel's net selftests
    "python3", "python3-bpfcc", "python3-psutil", "python3-pyroute2",
)  # fmt: skip
_NOWHERE = Path(os.devnull)
_UNREAD = ("man", "doc", "locale", "info")
_IN_MEMORY = "/dev/shm"  # noqa: S108 (QEMU unlinks its files there at once)
_WRITTEN_BYTES = 1 << 30
_DEVICES = ("-device", "help")


@dataclass(frozen=True, kw_only=True)
class GuestImage:
    """A bootable disk, and the keys to log in as :data:`GUEST_USER`."""

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
def made_meanwhile(*, tools: bool = True) -> Iterator[None]:
    """Make missing images in another process while the caller does something else.

    Without ``tools`` only the guest image of user-mode kernels. A failure there is not
    reported: it occurs again when the caller asks for the image.
    """
    if not lacking(tools=tools):
        yield
        return
    wanted = ["tools"] if tools else []
    maker = process.start(
        ["setpriv", "--pdeathsig=TERM", "--", sys.executable, "-m", "harness.images", *wanted],
        hint="apt-get install util-linux",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.end(maker)


def lacking(*, tools: bool = True) -> list[str]:
    """The systems that still have to be made.

    Without ``tools`` only the guest image of user-mode kernels. No tools root if this system's
    own tools do.
    """
    made = _guest_home().is_dir() or (not tools and _unpacked_home().is_dir())
    guest = [] if made else ["guest image"]
    enough = not tools or _tools_home().is_dir() or own_tools()
    return guest if enough else [*guest, "tools root"]


def kept_tools() -> Tools | None:
    """The tools, if they do not have to be made first."""
    home = _tools_home()
    return own_tools() or (Tools(root=home / "root") if home.is_dir() else None)


def _guest_home() -> Path:
    key = cache.digest(SUITE, _GUEST_PACKAGES, _GUEST_SETUP.read_text(encoding="utf-8"))
    return cache.root() / "guests" / key


def _unpacked_home() -> Path:
    key = cache.digest(SUITE, _GUEST_PACKAGES, _UNPACKED_SETUP.read_text(encoding="utf-8"))
    return cache.root() / "guests" / key


def _tools_home() -> Path:
    return cache.root() / "tools" / cache.digest(SUITE, _TOOLS_SETUP.read_text(encoding="utf-8"))


def guest_image(progress: Progress, *, by_ssh: bool = True) -> GuestImage:
    """The guest image, made if it is not kept yet.

    For guests that are not reached ``by_ssh`` it is unpacked if no more is allowed.
    """
    if not by_ssh and not _guest_home().is_dir() and refused():
        return _unpacked(progress)

    def make(making: Path) -> None:
        with progress.task("guest image"):
            make_key(making / "client_key", "harness")
            make_key(making / "host_key", "guest")
            public = (making / "client_key.pub").read_text(encoding="utf-8")
            debootstrap(
                making / "guest.ext2",
                _GUEST_PACKAGES,
                _GUEST_SETUP,
                {
                    "AUTHORIZED_KEY": public.strip(),
                    "HOST_KEY": (making / "host_key").read_text(encoding="utf-8"),
                    "GUEST_USER": GUEST_USER,
                },
            )
            (making / "host_key").unlink()

    return GuestImage(directory=cache.entry(_guest_home(), make, what="the guest image"))


def _unpacked(progress: Progress) -> GuestImage:
    """The guest image whose packages are unpacked and not configured; this needs no right.

    mmdebstrap's fakechroot mode would configure them, but only with the same C library inside
    and outside.
    """

    def make(making: Path) -> None:
        with progress.task("guest image (packages only unpacked)"):
            disk = {"DISK": str(making / "guest.ext2")}
            debootstrap(_NOWHERE, _GUEST_PACKAGES, _UNPACKED_SETUP, disk)

    return GuestImage(directory=cache.entry(_unpacked_home(), make, what="the guest image"))


def refused() -> str | None:
    """Why mmdebstrap may not make a whole system; None: it may, or it is not installed.

    This is the check that mmdebstrap itself makes.
    """
    command = ["mmdebstrap", "--unshare-helper", "true"]
    if os.geteuid() == 0:
        command = ["unshare", "--mount", "--propagation", "unchanged", "--", "true"]
    if shutil.which(command[0]) is None:
        return None
    tried = process.run(command, check=False)
    said = process.harmless(tried.stderr).strip().splitlines() or ["no error message"]
    return "; ".join(said[:3]) if tried.returncode else None


@dataclass(frozen=True, kw_only=True)
class Tools:
    """QEMU and netperf of this system, or of the tools root.

    Programs of the tools root are started by its own dynamic loader, with its libraries. That
    needs no privilege and no namespace, so it also works in a chroot or a container.
    """

    root: Path | None

    def qemu(self, arguments: Sequence[str]) -> list[str]:
        """The command for QEMU."""
        if self.root is None:
            return ["qemu-system-x86_64", *arguments]
        share = self.root / "usr/share"
        return [
            "env", f"QEMU_MODULE_DIR={self._libraries}/qemu", f"TMPDIR={_scratch()}",
            *self._loader, "--argv0", "qemu-system-x86_64",
            str(self.root / "usr/bin/qemu-system-x86_64"),
            "-L", str(share / "qemu"), "-L", str(share / "seabios"), *arguments,
        ]  # fmt: skip

    def netperf_prefix(self) -> list[str]:
        """The words to put before ``netperf``."""
        if self.root is None or shutil.which("netperf"):
            return []
        loader = process.quoted([*self._loader, f"{self.root}/usr/bin/"])
        return ["sh", "-c", f'exec {loader}"$0" "$@"']

    @property
    def _libraries(self) -> str:
        return f"{self.root}/usr/lib/x86_64-linux-gnu"

    @property
    def _loader(self) -> list[str]:
        loader = f"{self.root}/usr/lib64/ld-linux-x86-64.so.2"
        return [loader, "--inhibit-cache", "--library-path", self._libraries]


def _scratch() -> str:
    """The directory for what a guest writes to its disk: in memory, if there is enough."""
    with contextlib.suppress(OSError):
        if os.access(_IN_MEMORY, os.W_OK) and shutil.disk_usage(_IN_MEMORY).free > _WRITTEN_BYTES:
            return _IN_MEMORY
    return tempfile.gettempdir()


def tools(progress: Progress) -> Tools:
    """A QEMU with vfio-user-pci and a netperf: the system's own if it has both."""
    if own := own_tools():
        return own

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
    # Fails with QEMU's own message if it cannot run at all.
    if not _has_vfio_user(process.run(found.qemu(_DEVICES)).stdout):
        raise InfrastructureError(
            f"the QEMU in {home} has no vfio-user-pci",
            hint="remove that directory, so that it is made again, and check that the mirror has "
            f"{SUITE}-backports",
        )
    return found


def own_tools() -> Tools | None:
    """This system's own QEMU and netperf, if they are usable."""
    if shutil.which("netperf") is None or shutil.which("qemu-system-x86_64") is None:
        return None
    own = Tools(root=None)
    return own if _has_vfio_user(process.run(own.qemu(_DEVICES), check=False).stdout) else None


def _has_vfio_user(devices: str) -> bool:
    return '"vfio-user-pci"' in devices


def make_key(path: Path, comment: str) -> None:
    """A new ed25519 key pair without a passphrase: ``path`` and ``path``.pub."""
    process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)])


def debootstrap(
    target: Path,
    packages: tuple[str, ...],
    setup: Path,
    env: dict[str, str],
    *,
    copied_out: Sequence[tuple[str, Path]] = (),
) -> None:
    """Make a Debian system of ``packages`` in ``target``, a tar or ext2 file by its suffix.

    If that is /dev/null, the packages are only unpacked, and ``setup`` makes what is wanted. The
    script ``setup`` runs on its root with ``env``. ``copied_out`` are pairs: a path in the
    new system and the directory to copy it to.

    Raises:
        InfrastructureError: mmdebstrap is missing or failed.
    """
    with _room_for_root(target) as room:
        # Hooks run as root of the user namespace, who may not be able to read our directory.
        hook = Path(shutil.copy(setup, room / setup.name))
        hook.chmod(0o755)
        how, stage = ["--variant=minbase"], "customize"
        if target == _NOWHERE:
            how = ["--mode=chrootless", "--variant=extract", "--include=?essential"]
            stage = "extract"  # the last one of this variant
        command = [
            "mmdebstrap", *how, f"--include={','.join(packages)}",
            # Ubuntu trusts only its own keys, and without gpg mmdebstrap finds no other keyring.
            *([f"--keyring={_KEYRING}"] if Path(_KEYRING).exists() else []),
            *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in _UNREAD),
            f"--{stage}-hook={process.quoted([str(hook)])} \"$1\"",
            *(f"--customize-hook=copy-out {path} {to}" for path, to in copied_out),
            SUITE, str(target), *filter(None, [mirror()]),
        ]  # fmt: skip
        process.run(
            command,
            cwd=room,
            env={**process.environment(), **env, "TMPDIR": str(room)},
            hint=None if os.geteuid() == 0 else namespaces.remedy_for_images(),
        )


@contextmanager
def _room_for_root(target: Path) -> Iterator[Path]:
    """A scratch directory for making ``target``; leftovers of a killed process are removed.

    Without root the new system's users are those of /etc/subuid, who cannot enter a home
    directory; then the directory is elsewhere.
    """
    name = f"rb-root-{os.geteuid()}-{cache.digest(str(cache.root()), target.name)}-"
    base = target.parent if os.geteuid() == 0 and target != _NOWHERE else open_to_all()
    for left in base.glob(f"{name}*"):
        if _own(left):
            _remove_root(left)
    room = Path(tempfile.mkdtemp(prefix=name, dir=base))
    room.chmod(0o755)
    try:
        yield room
    finally:
        _remove_root(room)


def _own(path: Path) -> bool:
    return path.stat().st_uid == os.geteuid()


def open_to_all() -> Path:
    """The directory with the most free space that users of /etc/subuid can enter."""
    known = dict.fromkeys([cache.root(), Path(tempfile.gettempdir()), Path("/var/tmp")])  # noqa: S108 (mkdtemp is private)
    reached = [
        path
        for path in known
        if os.access(path, os.W_OK)
        and all(part.stat().st_mode & stat.S_IXOTH for part in (path, *path.parents))
    ]
    if not reached:
        raise InfrastructureError(
            f"no directory to make a Debian system in; tried {', '.join(map(str, known))}",
            hint="set TMPDIR to a directory that you can write to and all users can enter",
        )
    return max(reached, key=lambda path: shutil.disk_usage(path).free)


def _remove_root(room: Path) -> None:
    shutil.rmtree(room, ignore_errors=True)
    if room.exists():  # files that belong to users of /etc/subuid
        helper = ["mmdebstrap", "--unshare-helper", "rm", "-rf"]
        process.run([*helper, *map(str, room.iterdir())], check=False)
        shutil.rmtree(room, ignore_errors=True)


def mirror() -> str | None:
    """The Debian mirror that this machine's apt uses; None: mmdebstrap chooses."""
    form = "$(ORIGIN) $(SUITE) $(REPO_URI)"
    with contextlib.suppress(InfrastructureError):  # a system without apt
        targets = process.run(
            ["apt-get", "indextargets", "--format", form, "Created-By: Packages"], check=False
        )
        for line in targets.stdout.splitlines():
            if found := re.fullmatch(r"Debian (?:old)*stable (\S+?)/*", line.strip()):
                return found.group(1)
    return None
