# SPDX-License-Identifier: MIT
"""Kernels of the harness on a host: installed beside the distribution's, listed, removed.

The image is in /boot/receive-batching/RELEASE, not in /boot itself: programs that regenerate
the boot loader's menu, after a kernel update for example, would list each /boot/vmlinuz-* and
make the newest one the default.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.agent import packages, programs
from harness.agent.faults import AgentError
from harness.agent.setting import told

from . import cmdline
from .loaders import loader_of
from .record import Places, Record, changing, synced
from .upload import Upload, opened, version_of

_RELEASE = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+~-]{0,63}")
_INITRAMFS_S = 300.0
_DEPMOD_S = 120.0
_SPARE = 16 << 20
_HINT_SPACE = "free some space there; `harness hosts clean` removes older kernels of the harness"


def a_release(release: object) -> str:
    """``release``, checked: it becomes part of paths and boot entries.

    Raises:
        AgentError: it is not a safe kernel release.
    """
    if not isinstance(release, str) or not _RELEASE.fullmatch(release) or ".." in release:
        raise AgentError(f"{release!r:.80} is not a kernel release", kind="configuration")
    return release


class Kernels:
    """The calls ``kernel_*``; uploaded files have to belong to ``sudo_uid``."""

    def __init__(self, places: Places | None = None, *, sudo_uid: int | None = None) -> None:
        self._places = places or Places()
        uid = os.environ.get("SUDO_UID", "") if sudo_uid is None else str(sudo_uid)
        self._uid = int(uid) if uid.isdigit() else os.getuid()

    def install(
        self,
        *,
        release: str,
        directory: str,
        cmdline_add: Sequence[str] = (),
        may_go: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Install ``bzImage``, ``config`` and ``modules.tar`` of ``directory`` as ``release``.

        If the same content is installed, only the boot entry is updated. If space is short,
        kernels of the harness in ``may_go`` are removed one by one, never the running one.

        Raises:
            AgentError: a file is invalid, there is not enough space, or something that is not
                of the harness would be replaced. Nothing is left installed.
        """
        a_release(release)
        with (
            _refusals(release),
            changing(self._places) as record,
            opened(directory, self._uid) as upload,
        ):
            if version_of(upload.image).split(" ")[0] != release:
                raise AgentError(
                    f"the version of the bzImage is {version_of(upload.image)[:80]!r}, "
                    f"not {release}",
                    kind="configuration",
                )
            known_good = self._known_good(record)
            words = cmdline.composed(known_good["cmdline"], cmdline_add, release)
            initramfs = upload.takes_initramfs()
            if not initramfs:
                words = cmdline.mounted_by_kernel(words, self._root_partition())
            digest = upload.digest()
            there = record.data["kernels"].get(release)
            if there and there["complete"] and there["digest"] == digest:
                there["cmdline"] = words
                record.save()
                self._entries(record)
                return {"release": release, "kept": True, **there}
            if release == self._places.release():
                raise AgentError(f"{release} is running: it cannot be replaced")
            if there:
                self._take_away(record, [release])
                record.data["known_good"] = known_good
            self._refuse_to_replace(release)
            evicted = self._make_room(record, upload, [a_release(one) for one in may_go])
            record.data["known_good"] = known_good  # removing the last kernel clears it
            entry = {"cmdline": words, "digest": digest, "complete": False}
            record.data["kernels"][release] = entry
            try:
                record.save()
                self._put(upload, release, initramfs=initramfs)
                entry["complete"] = True
                record.save()
                self._entries(record)
            except BaseException as error:
                self._taken_back(record, release, error)
                raise
            return {"release": release, "kept": False, "evicted": evicted, **entry}

    def _taken_back(self, record: Record, release: str, error: BaseException) -> None:
        """Remove ``release``; raise an AgentError if ``error`` is another or something is left."""
        why = "; ".join(self._removed(record, [release]))
        if not isinstance(error, Exception) or (isinstance(error, AgentError) and not why):
            return
        message = str(error) if isinstance(error, AgentError) else f"{release}: {told(error)}"
        raise AgentError(
            message + (f"\n  and this could not be removed: {why}" if why else ""),
            kind=error.kind if isinstance(error, AgentError) else "infrastructure",
            hint=error.hint if isinstance(error, AgentError) else None,
        ) from error

    def installed(self) -> list[dict[str, Any]]:
        """Every kernel of the harness on this host, incomplete ones included."""
        record = Record(self._places)
        return [{"release": release, **entry} for release, entry in record.data["kernels"].items()]

    def remove(self, *, releases: Sequence[str] | None = None) -> dict[str, Any]:
        """Remove ``releases`` (None: all of the harness) with their boot entries.

        Raises:
            AgentError: one of them is running.
        """
        with _refusals("the harness's kernels"), changing(self._places) as record:
            ours = record.data["kernels"]
            gone = [a_release(r) for r in (ours if releases is None else releases)]
            running = self._places.release()
            if running in gone and running in ours:
                raise AgentError(
                    f"{running} is running: it cannot be removed",
                    hint="boot the known-good kernel first: `harness restore` or a power cycle",
                )
            gone = [release for release in gone if release in ours]
            self._take_away(record, gone)
            return {"removed": gone, "left": sorted(record.data["kernels"])}

    def _known_good(self, record: Record) -> dict[str, Any]:
        """The boot from which command lines are derived; recorded before the first kernel."""
        known: dict[str, Any] | None = record.data["known_good"]
        if known is not None:
            return known
        line = self._places.text("proc/cmdline") or ""
        if cmdline.is_ours(line):
            raise AgentError(
                "this host runs a kernel of the harness, and no record says which was before",
                hint="boot its own kernel first",
            )
        loader = loader_of(self._places)
        known = {
            "release": self._places.release(),
            "cmdline": cmdline.known_good(line),
            "default": loader.default() if loader else None,
        }
        record.data["known_good"] = known
        return known

    def _refuse_to_replace(self, release: str) -> None:
        for path in self._paths(release):
            if os.path.lexists(path):
                raise AgentError(
                    f"{path} exists and is not of this harness",
                    kind="configuration",
                    hint="it is left alone: give the kernel another name",
                )

    def _make_room(self, record: Record, upload: Upload, may_go: Sequence[str]) -> list[str]:
        """Remove kernels in ``may_go`` until the upload fits; returns those removed.

        Raises:
            AgentError: it would not fit without all of them; nothing is removed.
        """
        left = [
            one
            for one in dict.fromkeys(may_go)
            if one in record.data["kernels"] and one != self._places.release()
        ]
        needed = self._needed(upload)
        self._require_fits(needed, [path for one in left for path in self._paths(one)])
        gone: list[str] = []
        while True:
            try:
                self._require_fits(needed)
            except AgentError:
                if not left:
                    raise
                gone.append(left.pop(0))
                self._take_away(record, gone[-1:])
            else:
                return gone

    def room(self) -> dict[str, Any]:
        """How many more kernels fit in /boot, each assumed as large as the distribution's.

        ``ours`` are installed; each of them except the running one can be replaced.
        """
        images = [
            path.stat().st_size for path in self._places.boot.glob("vmlinuz-*") if path.is_file()
        ]
        each = max(images, default=16 << 20) + self._initramfs_bytes() * 5 // 4
        free = shutil.disk_usage(self._places.boot).free
        return {
            "each_mib": -(-each >> 20),
            "free_mib": free >> 20,
            "fit": max(0, free - _SPARE) // each,
            "ours": len(self.installed()),
        }

    def _initramfs_bytes(self) -> int:
        """An estimate: the size of the largest other one."""
        others = [
            path.stat().st_size
            for pattern in ("initrd.img-*", "initramfs-*.img")
            for path in self._places.boot.glob(pattern)
            if path.is_file() and "rescue" not in path.name
        ]
        return max(others, default=64 << 20)

    def _needed(self, upload: Upload) -> dict[Path, int]:
        modules_bytes, initramfs = upload.unpacked_bytes(), self._initramfs_bytes()
        # The state directory itself may not exist yet.
        var = self._places.state.parent.parent
        return {
            self._places.boot: upload.size("bzImage") + upload.size("config") + initramfs * 5 // 4,
            self._places.modules: modules_bytes + modules_bytes // 10,
            var: modules_bytes + 2 * initramfs,
        }

    def _require_fits(self, need: dict[Path, int], gone: Sequence[Path] = ()) -> None:
        """Raise an AgentError if there is not enough space, even without the files ``gone``."""
        freed: dict[int, int] = {}
        for top in gone:
            for path in (top, *top.rglob("*")) if top.is_dir() else (top,):
                with contextlib.suppress(OSError):
                    status = path.lstat()
                    freed[status.st_dev] = freed.get(status.st_dev, 0) + status.st_blocks * 512
        by_device: dict[int, tuple[list[str], int]] = {}
        for path, size in need.items():
            names, sum_ = by_device.get(path.stat().st_dev, ([], _SPARE))
            by_device[path.stat().st_dev] = ([*names, str(path)], sum_ + size)
        for device, (names, size) in by_device.items():
            free = shutil.disk_usage(names[0]).free + freed.get(device, 0)
            if free < size:
                raise AgentError(
                    f"no room: {' and '.join(names)} need {size >> 20} MiB, "
                    f"{free >> 20} MiB are free",
                    hint=_HINT_SPACE,
                )

    def _put(self, upload: Upload, release: str, *, initramfs: bool) -> None:
        kernel, modules = self._places.kernels / release, self._places.modules / release
        self._places.modules.mkdir(parents=True, exist_ok=True)
        modules.mkdir(mode=0o755)
        upload.unpack(release, modules)
        base = [] if self._places.root == Path("/") else ["--basedir", str(self._places.root)]
        programs.run(["depmod", *base, release], timeout_s=_DEPMOD_S)
        kernel.parent.mkdir(mode=0o755, exist_ok=True)
        kernel.mkdir(mode=0o755)
        upload.copy("bzImage", kernel / "vmlinuz")
        # mkinitramfs reads the compressions that this kernel supports from it.
        upload.copy("config", self._places.boot / f"config-{release}")
        if initramfs:
            self._initramfs(release, kernel)
            synced(kernel / "initrd.img")
        for path in (kernel, kernel.parent, modules, modules.parent):
            synced(path)
        os.sync()

    def _root_partition(self) -> str:
        said = programs.run(
            ["findmnt", "--noheadings", "--output", "PARTUUID", "--target", "/"], timeout_s=10
        ).strip()
        if not re.fullmatch(r"[0-9A-Za-z-]{4,64}", said):
            raise AgentError(
                "this kernel takes no initramfs, and cannot find the root file system by itself: "
                "that is not on a partition with a PARTUUID",
                kind="configuration",
                hint="configure kernels after this host's own: kernel: {config: host}",
            )
        return said

    def _initramfs(self, release: str, kernel: Path) -> None:
        """Make the initramfs with the distribution's program, in a scratch directory."""
        scratch = self._places.state / "tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True, mode=0o700)
        to = str(kernel / "initrd.img")
        if programs.found("mkinitramfs"):
            command = ["mkinitramfs", "-o", to, release]
        elif programs.found("dracut"):
            command = ["dracut", "--force", "--tmpdir", str(scratch), to, release]
        else:
            hint = packages.install("initramfs")
            raise AgentError("this host has no program to make an initramfs", hint=hint)
        try:
            programs.run(command, timeout_s=_INITRAMFS_S, env={"TMPDIR": str(scratch)})
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if not (kernel / "initrd.img").is_file():
            raise AgentError(f"{command[0]} made no initramfs for {release}")

    def _entries(self, record: Record) -> None:
        """Write boot entries for complete kernels, if the loader is safe to use."""
        loader = loader_of(self._places)
        if loader is not None:
            loader.entries(record.complete() if loader.why_not() is None else {})

    def _take_away(self, record: Record, releases: Sequence[str]) -> None:
        """As :meth:`_removed`.

        Raises:
            AgentError: some of it could not be removed; the record says what is left.
        """
        if why := self._removed(record, releases):
            raise AgentError(
                f"not removed: {'; '.join(why)}",
                hint="fix that; then `harness hosts clean` removes the rest",
            )

    def _removed(self, record: Record, releases: Sequence[str]) -> list[str]:
        """Remove the boot entries, then the files, then the record of ``releases``.

        A failure does not stop the rest: it is returned, and the release stays in the record.
        """
        failed: list[str] = []

        def tried(act: Callable[[], object]) -> bool:
            try:
                act()
            except Exception as error:  # noqa: BLE001 - the rest has to be removed all the same
                failed.append(told(error))
                return False
            return True

        for release in releases:
            record.data["kernels"][release]["complete"] = False
        # A failure for lack of space does not matter: what follows frees some.
        tried(record.save)
        failed.clear()
        tried(lambda: self._disarm(releases))
        tried(lambda: self._entries(record))
        if failed:
            # The loader's message does not say that it is about entries.
            failed[-1] = f"boot entries: {failed[-1]}"
        armed = record.data["armed"]
        if armed is not None and armed["release"] in releases:
            record.data["armed"] = None
        kept = bool(failed)
        for release in releases:
            whole = [tried(functools.partial(_remove, path)) for path in self._paths(release)]
            if all(whole) and not kept:
                del record.data["kernels"][release]
        if not record.data["kernels"]:
            shutil.rmtree(self._places.state / "tmp", ignore_errors=True)
        with contextlib.suppress(OSError):
            self._places.kernels.rmdir()
        os.sync()
        tried(record.save)
        return failed

    def _disarm(self, releases: Sequence[str]) -> None:
        loader = loader_of(self._places)
        if loader is not None and loader.pending() in releases:
            loader.disarm()

    def _paths(self, release: str) -> tuple[Path, Path, Path]:
        """All files and directories of an installed kernel."""
        places = self._places
        config = places.boot / f"config-{release}"
        return places.kernels / release, config, places.modules / release


@contextlib.contextmanager
def _refusals(of: str) -> Iterator[None]:
    """Turn errors of the system into an AgentError."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise AgentError(f"{of}: {told(error)}") from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
