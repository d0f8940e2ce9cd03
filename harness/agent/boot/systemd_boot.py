# SPDX-License-Identifier: MIT
"""systemd-boot: an entry file for each release, and the one-shot in an EFI variable."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.agent import programs
from harness.agent.faults import AgentError

from . import cmdline
from .record import Places, synced, written

_GUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_PREFIX = "receive-batching-"


class SystemdBoot:
    """The systemd-boot of one host, a :class:`.Loader`."""

    name = "systemd-boot"

    def __init__(self, places: Places) -> None:
        self._places = places

    def runs(self) -> bool:
        """Did systemd-boot start this boot?"""
        return (self._variable("LoaderInfo") or "").startswith("systemd-boot")

    def why_not(self) -> str | None:
        if not self.runs():
            return "this boot was not started by systemd-boot"
        if programs.found("bootctl") is None:
            return "bootctl is not installed"
        try:
            self._partition()
        except AgentError as error:
            return str(error)
        default = self._variable("LoaderEntryDefault") or self._configured()
        if default is None or not fixed(default):
            return (
                ("no default entry is set" if default is None else f"the default is {default}")
                + ", so a new entry could become the default: set `default` in "
                "loader/loader.conf to one entry, without * ? [ and @saved"
            )
        return None

    def default(self) -> dict[str, Any]:
        return {
            "LoaderEntryDefault": self._variable("LoaderEntryDefault"),
            "loader.conf": self._configured(),
        }

    def pending(self) -> str | None:
        entry = self._variable("LoaderEntryOneShot")
        return entry.removeprefix(_PREFIX).removesuffix(".conf") if entry else None

    def taken(self) -> str | None:
        return None  # systemd-boot does not record it

    def entries(self, wanted: Mapping[str, Sequence[str]]) -> None:
        at = self._partition()
        directory = at / "loader/entries"
        kernels = at / "receive-batching"
        apart = kernels.resolve() != self._places.kernels.resolve()
        for path in sorted(directory.glob(f"{_PREFIX}*.conf")):
            if path.name[len(_PREFIX) : -len(".conf")] not in wanted:
                path.unlink()
        if apart and kernels.is_dir():
            for left in kernels.iterdir():
                if left.name not in wanted:
                    shutil.rmtree(left)
            with contextlib.suppress(OSError):
                kernels.rmdir()
        for release, words in wanted.items():
            if apart:
                self._copy(release, kernels / release)
            written(
                directory / f"{_PREFIX}{release}.conf",
                f"title receive-batching {release}\n"
                f"version {release}\n"
                f"linux /receive-batching/{release}/vmlinuz\n"
                + f"initrd /receive-batching/{release}/initrd.img\n"
                * (self._places.kernels / release / "initrd.img").is_file()
                + f"options {cmdline.for_kernel(words)}\n",
                mode=0o644,
            )
        if directory.is_dir():
            synced(directory)

    def arm(self, release: str) -> None:
        programs.run(["bootctl", "set-oneshot", f"{_PREFIX}{release}.conf"], timeout_s=10)
        if self.pending() != release:
            raise AgentError("the firmware did not store the one-shot entry")

    def disarm(self) -> None:
        if (self._variable("LoaderEntryOneShot") or "").startswith(_PREFIX):
            programs.run(["bootctl", "set-oneshot", ""], timeout_s=10)

    def _copy(self, release: str, to: Path) -> None:
        source = self._places.kernels / release
        names = [name for name in ("vmlinuz", "initrd.img") if (source / name).is_file()]
        need = sum((source / name).stat().st_size for name in names)
        free = shutil.disk_usage(self._partition()).free
        if free < need + (4 << 20):
            raise AgentError(
                f"{self._partition()} has {free >> 20} MiB free, {release} needs {need >> 20}",
                hint="free some space on the boot partition",
            )
        to.mkdir(parents=True, exist_ok=True)
        for name in names:
            # Replaced atomically: an entry may name it already.
            part = to / f".{name}.part"
            try:
                shutil.copyfile(source / name, part)
                synced(part)
                part.replace(to / name)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def _partition(self) -> Path:
        """The partition of the entries: XBOOTLDR or the ESP."""
        said = programs.run(["bootctl", "--print-boot-path"], timeout_s=10).strip()
        path = Path(said)
        if not path.is_absolute() or not (path / "loader").is_dir():
            raise AgentError(f"{said or 'bootctl'} names no boot partition with a loader directory")
        return path

    def _configured(self) -> str | None:
        # loader.conf is on the ESP, which is also the boot partition if there is no XBOOTLDR.
        for option in ("--print-esp-path", "--print-boot-path"):
            try:
                at = Path(programs.run(["bootctl", option], timeout_s=10).strip())
                text = (at / "loader/loader.conf").read_text(encoding="utf-8", errors="replace")
            except (AgentError, OSError):
                continue
            if found := re.findall(r"^\s*default\s+(\S+)", text, re.MULTILINE):
                return str(found[-1])
        return None

    def _variable(self, name: str) -> str | None:
        path = self._places.root / f"sys/firmware/efi/efivars/{name}-{_GUID}"
        try:
            # Four bytes of attributes, then UTF-16 with a terminating NUL.
            return path.read_bytes()[4:].decode("utf-16-le", "replace").rstrip("\0") or None
        except OSError:
            return None


def fixed(default: str) -> bool:
    """Does ``default`` name an entry that an entry of the harness cannot replace?

    It may be a pattern, and systemd-boot takes the first entry that matches it, or
    ``@saved``, the entry that was booted last (loader.conf(5)).
    """
    literal = re.split(r"[*?\[\\]", default.lower(), maxsplit=1)[0]
    if literal == default.lower():
        return not literal.startswith(("@", _PREFIX))
    return not (_PREFIX.startswith(literal) or literal.startswith(_PREFIX))


def secure_boot(places: Places) -> bool:
    """Does the firmware refuse unsigned kernels?"""
    variable = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    try:
        content = (places.root / "sys/firmware/efi/efivars" / variable).read_bytes()
    except OSError:
        return False
    return content[-1:] == b"\1"
