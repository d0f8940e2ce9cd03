# SPDX-License-Identifier: MIT
"""What a run needs of this machine, checked before anything is made, reported in one message.

If there is a cheap way to use the thing that is needed, the check uses it and reports its
error message; the rest is inspected. Comes before campaigns in the flow.
"""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from harness import images
from harness.base import cache, namespaces, process, runtime
from harness.base.errors import HarnessError, InfrastructureError
from harness.beds.local import netns, nic_model
from harness.beds.machine.doctor import Finding
from harness.config import Bed, UmlHost
from harness.kernels import Kernels

_TO_RUN = ("env", "prlimit", "setpriv", "sh", "taskset")
_TO_SEND = ("ip", "nsenter", "ssh", "ssh-keygen", "sysctl", "unshare")
_TO_BUILD = (
    "gcc", "make", "ld", "as", "objcopy", "objdump", "readelf", "flex", "bison", "bc", "pahole",
    "depmod", "mksquashfs", "tar", "xz", "cp",
)  # fmt: skip
_TO_PROBE = ("gcc", "objdump")
_TO_MAKE_IMAGES = ("mmdebstrap", "genext2fs", "ssh-keygen", "tar")
_TO_MAKE_MACHINES = ("debugfs", "e2fsck", "resize2fs", "tune2fs", "sfdisk", "dd")
_HEADERS = "#include <gelf.h>\n#include <openssl/ssl.h>\n"
_MIB, _GIB = 1 << 20, 1 << 30
# Measured sizes: a source with its objects, a kernel, the working space of mmdebstrap.
_BUILD_BYTES, _KERNEL_BYTES = 6 * _GIB, 80 * _MIB
_IMAGE_BYTES = {"guest image": 2 * _GIB, "tools root": _GIB, "machine image": 4 * _GIB}
_TEMPORARY_BYTES = 64 * _MIB
_LIMITS = (
    # limit of a process, least value, its name, its option of ulimit
    (resource.RLIMIT_NOFILE, 256, "open files", "-n"),
    (resource.RLIMIT_NPROC, 256, "processes of a user", "-u"),
    (resource.RLIMIT_FSIZE, 2 * _GIB, "bytes of a file", "-f"),
    (resource.RLIMIT_AS, 8 * _GIB, "bytes of address space", "-v"),
    (resource.RLIMIT_DATA, 4 * _GIB, "bytes of data", "-d"),
    (resource.RLIMIT_CPU, 3600, "seconds of CPU", "-t"),
)
_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
_MIRROR_S = 30.0
_KEYRINGS = (
    "usr/share/keyrings/debian-archive-*.gpg",
    "usr/share/keyrings/debian-archive-*.pgp",
    "etc/apt/trusted.gpg.d/debian-archive-*.gpg",
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What this machine has to do, as far as needs depend on it."""

    guests: bool
    """Does it run guests? If not, it at most builds kernels."""
    probes: bool = False
    """Does it compile probes for user-mode kernels?"""
    namespaces: bool = True
    """Are they reached by ssh, and their load sent from a network namespace? If not, they are
    user-mode kernels that need neither."""
    guests_mib: int = 0
    """Memory of all guests that are up together."""
    kernels: Callable[[], int] | None = None
    """Returns how many kernels must be built, or raises why this is not known. None: none."""
    machines: Literal["kept", "to be made"] | None = None
    """Whether the image of a rack's machines is in the cache; None: there is no rack."""
    results: Path | None = None
    """The directory for results."""


def of_kernels(
    wanted: Kernels,
    *,
    results: Path | None = None,
    bed: Bed | None = None,
    together: int = 1,
) -> Job:
    """The job to build kernels and, with ``bed``, to boot them there, ``together`` at a time."""
    guest_mib = bed.guest_mib if bed else None
    return Job(
        guests=guest_mib is not None,
        probes=guest_mib is not None and wanted.arch == "um",
        namespaces=bed is None or not isinstance(bed.generator, UmlHost),
        guests_mib=together * (guest_mib or 0),
        kernels=wanted.missing,
        results=results,
    )


def require(job: Job) -> None:
    """Raise unless this machine has everything that ``job`` needs.

    Raises:
        InfrastructureError: names everything that is missing, each with its remedy.
        ConfigurationError: the requested kernels do not exist.
    """
    lacking = [row for row in examine(job) if row.needed and not row.ok]
    if not lacking:
        return
    if len(lacking) == 1:
        [row] = lacking
        raise InfrastructureError(f"this machine: {row.check}: {row.detail}", hint=row.remedy)
    lines = [f"this machine lacks {len(lacking)} things that are needed:"]
    for row in lacking:
        lines.append(f"  {row.check}: {row.detail}")
        lines += [f"    → {row.remedy}"] if row.remedy else []
    raise InfrastructureError(
        "\n".join(lines), hint="nothing was made yet; `harness doctor` shows all checks"
    )


def require_memory(guests_mib: int) -> None:
    """Raise an :class:`InfrastructureError` if guests that run together do not fit."""
    row = _memory(guests_mib)
    if not row.ok:
        raise InfrastructureError(f"this machine: {row.check}: {row.detail}", hint=row.remedy)


def examine(job: Job) -> Iterator[Finding]:
    """All checks; a failed check may make later ones impossible.

    Raises:
        ConfigurationError: the requested kernels do not exist.
    """
    if job.guests:
        yield _processor()
    if job.namespaces:
        yield _user()
    yield from _directories(job)
    number, about_kernels = _kernels(job)
    yield from about_kernels
    lacking = images.lacking(tools=job.namespaces) if job.guests else []
    if job.machines == "to be made":
        lacking.append("machine image")
    yield _programs(job, number, lacking)
    if number:
        yield _headers()
    if job.guests:
        yield from _guests(job, lacking)
    yield _disk("disk", cache.root(), _bytes(number, [] if os.geteuid() else lacking))
    if lacking and os.geteuid():
        yield _disk_for_images(lacking)
    yield from _limits()


def _guests(job: Job, lacking: list[str]) -> Iterator[Finding]:
    if job.namespaces:
        yield _namespace()
    elif why := namespaces.refused():
        detail = f"{why}; so a second user-mode kernel sends"
        yield Finding(check="network namespace", ok=False, detail=detail, needed=False)
    if lacking:
        yield _images(lacking, unpacked=not job.namespaces)
        yield from _mirror()
    if job.namespaces and (tools := images.kept_tools()) is not None:
        yield _tools(tools)
    yield _data_path()
    yield _memory(job.guests_mib)


def _data_path() -> Finding:
    """Python does the same, at several times the cost of a frame."""
    compiled, detail = nic_model.data_path()
    remedy = None if compiled else "say make, which compiles it (it needs a C compiler)"
    return Finding(
        check="NIC model's data path", ok=compiled, detail=detail, remedy=remedy, needed=False
    )


def _processor() -> Finding:
    found = platform.machine()
    return Finding(
        check="processor",
        ok=found == "x86_64",
        detail=found,
        remedy=None if found == "x86_64" else "use an x86-64 machine, as guests and kernels are",
    )


def _user() -> Finding:
    """OpenSSH does not work for an unknown user, as in some containers."""
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        said = f"uid {os.geteuid()} is not in passwd, and ssh works only for known users"
        return _failed("user", said, "run it as a user of this system, or add one with that uid")
    return Finding(check="user", ok=True, detail=name)


def _directories(job: Job) -> Iterator[Finding]:
    yield _cache()
    try:
        made = runtime.made(name_bytes=0)
        made.rmdir()
        free = shutil.disk_usage(tempfile.gettempdir()).free
    except (InfrastructureError, OSError) as error:
        yield _failed("temporary files", error, "set TMPDIR to a writable directory")
    else:
        yield Finding(
            check="temporary files",
            ok=free >= _TEMPORARY_BYTES,
            detail=f"{free // _MIB} MiB are free in {tempfile.gettempdir()}",
            remedy=None if free >= _TEMPORARY_BYTES else "free some space, or set TMPDIR",
        )
    if job.results is not None:
        yield _results(job.results)


def _cache() -> Finding:
    """Can files in the cache be written, locked and executed?"""
    root = cache.root()
    remedy = "name another place in RECEIVE_BATCHING_CACHE"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            cache.locked(root / "needs", what="a check"),
            tempfile.TemporaryDirectory(prefix=".needs-", dir=root) as scratch,
        ):
            script = Path(scratch) / "script"
            script.write_text("#!/bin/sh\n", encoding="ascii")
            script.chmod(0o700)
            if not os.access(script, os.X_OK):
                detail = f"files in {root} cannot be executed (mounted noexec?)"
                return _failed("cache", detail, remedy)
            process.run([str(script)])
    except OSError as error:
        return _failed("cache", f"{root}: {error.strerror}", remedy)
    except HarnessError as error:
        return _failed("cache", error.message, remedy)
    return Finding(check="cache", ok=True, detail=str(root))


def _results(directory: Path) -> Finding:
    there = next(path for path in (directory, *directory.parents) if path.exists())
    ok = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    return Finding(
        check="results",
        ok=ok,
        detail=str(directory) if ok else f"{there} is not a directory that you may write to",
        remedy=None if ok else "name another directory with --out",
    )


def _kernels(job: Job) -> tuple[int, list[Finding]]:
    """How many kernels must be built, and the finding about them."""
    if job.kernels is None:
        return 0, []
    try:
        number = job.kernels()
    except InfrastructureError as error:
        return 1, [Finding(check="kernels", ok=False, detail=error.message, remedy=error.hint)]
    said = f"{number} to be built" if number else "all in the cache"
    return number, [Finding(check="kernels", ok=True, detail=said)]


def _programs(job: Job, number: int, lacking: list[str]) -> Finding:
    wanted = {*(_TO_RUN if job.guests else ("ssh",))}
    wanted |= {*_TO_SEND} if job.guests and job.namespaces else set()
    wanted |= {*_TO_BUILD} if number else set()
    wanted |= {*_TO_PROBE} if job.probes else set()
    wanted |= {*_TO_MAKE_IMAGES} if lacking else set()
    wanted |= {"newuidmap"} if lacking and os.geteuid() and job.namespaces else set()
    wanted |= {*_TO_MAKE_MACHINES} if job.machines else set()
    missing = sorted(name for name in wanted if shutil.which(name) is None)
    if not missing:
        return Finding(check="programs", ok=True, detail=f"all {len(wanted)} are installed")
    hint = process.package_hint(*missing) or ""
    if shutil.which("apt-get") is None:
        packages = hint.removeprefix("apt-get install ")
        hint = f"install them with your package manager; in Debian the packages are {packages}"
    return Finding(
        check="programs", ok=False, detail=f"not installed: {', '.join(missing)}", remedy=hint
    )


def _headers() -> Finding:
    """The headers that the kernel's own build tools include."""
    remedy = "apt-get install libelf-dev libssl-dev libc6-dev"
    try:
        said = process.run(["gcc", "-E", "-x", "c", "-"], stdin=_HEADERS, check=False)
    except InfrastructureError as error:
        return _failed("headers", error, "apt-get install gcc")
    if said.returncode:
        lines = [line for line in said.stderr.splitlines() if "error:" in line] or [said.stderr]
        return _failed("headers", lines[0].strip(), remedy)
    return Finding(check="headers", ok=True, detail="those of libelf and OpenSSL are installed")


def _namespace() -> Finding:
    """Starts a generator's namespace, with its wire and an agent in it."""
    with tempfile.TemporaryDirectory(prefix="rb-needs-") as scratch:
        try:
            namespace = netns.start(log=Path(scratch) / "log")
        except HarnessError as error:
            remedy = error.hint or namespaces.remedy()
            remedy += "; or use the native bed, which needs none (--bed native)"
            return _failed("network namespace", error.message, remedy)
        with contextlib.closing(namespace.agent):
            pass
    how = "in a user namespace" if namespaces.of_users_first() else "as root"
    return Finding(check="network namespace", ok=True, detail=f"can be created {how}")


def _images(lacking: list[str], *, unpacked: bool = False) -> Finding:
    """May mmdebstrap do its work? ``unpacked``: packages that are only unpacked will do."""
    what = "making images"
    if shutil.which("mmdebstrap") is None:
        return _failed(what, "mmdebstrap is not installed", "apt-get install mmdebstrap")
    why = images.refused()
    if why and not unpacked:
        root = os.geteuid() == 0
        return _failed(what, why, namespaces.remedy() if root else namespaces.remedy_for_images())
    if why:
        detail = f"its packages are only unpacked, because more is refused: {why}"
        return Finding(check=what, ok=True, detail=detail)
    return Finding(check=what, ok=True, detail=f"allowed: {' and '.join(lacking)}")


def _mirror() -> Iterator[Finding]:
    """Can apt download a file from the mirror, with its own proxy settings?"""
    helper, mirror = Path("/usr/lib/apt/apt-helper"), images.mirror()
    if mirror is None or not helper.exists():
        return
    address = f"{mirror}/dists/{images.SUITE}/InRelease"
    with tempfile.TemporaryDirectory(prefix="rb-needs-") as scratch:
        command = [str(helper), "-oAPT::Sandbox::User=", "download-file", address, f"{scratch}/got"]
        try:
            process.run(command, timeout_s=_MIRROR_S)
        except InfrastructureError as error:
            said = error.message.splitlines()[-1].lstrip(" |")
            remedy = "make the mirror reachable, if necessary with apt's proxy setting"
            yield _failed("Debian mirror", f"{address}: {said}", remedy)
            return
        yield _signature(Path(scratch) / "got", mirror)


def _signature(release: Path, mirror: str) -> Finding:
    """Does a keyring of this system have the key of ``release``? Ubuntu's keyrings are older.

    Without gpgv, mmdebstrap makes this check.
    """
    rings = [str(ring) for pattern in _KEYRINGS for ring in sorted(Path("/").glob(pattern))]
    command = ["gpgv", "--status-fd", "1", *(f"--keyring={ring}" for ring in rings), str(release)]
    if shutil.which("gpgv") and "GOODSIG" not in process.run(command, check=False).stdout:
        return _failed(
            "Debian mirror",
            f"this system's debian-archive-keyring has no key of Debian {images.SUITE}",
            f"install the package debian-archive-keyring of Debian {images.SUITE} or newer from "
            f"{mirror}/pool/main/d/debian-archive-keyring/",
        )
    return Finding(check="Debian mirror", ok=True, detail=mirror)


def _tools(tools: images.Tools) -> Finding:
    """Do QEMU and netperf of the cache run on this machine?"""
    try:
        process.run(tools.qemu(["--version"]))
        process.run([*tools.netperf_prefix(), "netperf", "-V"])
    except InfrastructureError as error:
        remedy = f"remove {tools.root}; it is then made again" if tools.root else None
        return _failed("QEMU and netperf", error, remedy)
    where = str(tools.root) if tools.root else "this system's own"
    return Finding(check="QEMU and netperf", ok=True, detail=where)


def _memory(guests_mib: int) -> Finding:
    free_mib = min(psutil.virtual_memory().available, _cgroup_bytes()) // _MIB
    ok = free_mib >= guests_mib
    return Finding(
        check="memory",
        ok=ok,
        detail=f"{free_mib} MiB are free, the guests that run together need {guests_mib}",
        remedy=None
        if ok
        else "use fewer --steps or --vary levels, or a lower memory_mib in hosts.yaml",
    )


def _cgroup_bytes(root: Path = Path("/sys/fs/cgroup")) -> int:
    """The memory limit of a container's control group; a huge number without one."""
    bounds = [1 << 62]
    for name in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" means no limit
            bounds.append(int((root / name).read_text(encoding="ascii")))
    return min(bounds)


def _bytes(number: int, lacking: list[str]) -> int:
    building = _BUILD_BYTES + number * _KERNEL_BYTES if number else 0
    return building + sum(_IMAGE_BYTES[name] for name in lacking)


def _disk(check: str, where: Path, wanted: int) -> Finding:
    there = next(path for path in (where, *where.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    ok = free >= wanted
    return Finding(
        check=check,
        ok=ok,
        detail=f"{free / _GIB:.1f} GiB are free for {where}, up to {wanted / _GIB:.1f} are needed",
        remedy=None if ok else "free some space, or name another place in RECEIVE_BATCHING_CACHE",
    )


def _disk_for_images(lacking: list[str]) -> Finding:
    """An ordinary user's images may be made on another disk than the cache."""
    try:
        return _disk("disk to make images", images.open_to_all(), _bytes(0, lacking))
    except InfrastructureError as error:
        return _failed("disk to make images", error, error.hint)


def _limits() -> Iterator[Finding]:
    low = []
    for limit, least, what, option in _LIMITS:
        soft, _ = resource.getrlimit(limit)
        unlimited = soft == resource.RLIM_INFINITY
        if not unlimited and soft < least and not (what.startswith("proc") and not os.geteuid()):
            low.append((f"{soft} {what}, {least} are needed", f"ulimit {option}"))
    yield Finding(
        check="limits",
        ok=not low,
        detail="; ".join(said for said, _ in low) or "none too low",
        remedy=f"raise them: {', '.join(option for _, option in low)}" if low else None,
    )


def _failed(check: str, why: HarnessError | OSError | str, remedy: str | None) -> Finding:
    if isinstance(why, HarnessError):
        return Finding(check=check, ok=False, detail=why.message, remedy=why.hint or remedy)
    return Finding(check=check, ok=False, detail=str(why), remedy=remedy)
