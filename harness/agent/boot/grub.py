# SPDX-License-Identifier: MIT
"""GRUB: entries of the harness in custom.cfg, and the one-shot in grubenv.

grub.cfg and the default are never written. A one-shot is safe only if grub.cfg clears
``next_entry`` and reads custom.cfg, and if GRUB can write to grubenv.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.agent import programs
from harness.agent.faults import AgentError
from harness.agent.foreign import kept, read_bytes

from . import cmdline
from .firmware import directory_read, named_there
from .mounts import mount_of, why_grub_cannot_write
from .record import Places, synced, written

_BEGIN = "### BEGIN receive-batching (written by its harness, removed with its kernels) ###\n"
_END = "### END receive-batching ###\n"
_SECTION = re.compile(re.escape(_BEGIN) + r".*?" + re.escape(_END), re.DOTALL)
_ENV_BYTES = 1024
_ENV_HEADER = b"# GRUB Environment Block\n"
_PREFIX = "receive-batching-"
_TAKEN = "receive_batching_taken"


class Grub:
    """The GRUB of one host, a :class:`.Loader`."""

    name = "grub"

    def __init__(self, places: Places) -> None:
        self._places = places
        self.directory, self._why_unsure = directory_read(places)

    def why_not(self) -> str | None:
        if self.directory is None:
            return "no grub.cfg in /boot/grub or /boot/grub2"
        if programs.found("grub-editenv", "grub2-editenv") is None:
            return "grub-editenv is not installed"
        text = self._configuration()
        if 'default="${next_entry}"' not in text or "save_env next_entry" not in text:
            return "grub.cfg has no one-shot entry (next_entry): regenerate it with update-grub"
        if "custom.cfg" not in text:
            return "grub.cfg does not read custom.cfg: /etc/grub.d/41_custom is missing or off"
        if self._why_unsure is not None:
            return f"it is unclear which configuration GRUB reads: {self._why_unsure}"
        if not named_there(self._places, self.directory):
            return (
                f"{self.directory}/grub.cfg does not name the kernel that GRUB started: "
                "GRUB reads another configuration"
            )
        return self._env_not_writable()

    def default(self) -> dict[str, Any]:
        text = self._configuration()
        chosen = re.findall(r"^\s*set default=(.*)$", text, re.MULTILINE)
        file = self._places.text("etc/default/grub") or ""
        wanted = re.findall(r"^\s*GRUB_DEFAULT=(.*)$", file, re.MULTILINE)
        return {
            "saved_entry": self._env().get("saved_entry"),
            "GRUB_DEFAULT": wanted[-1].strip("'\"") if wanted else None,
            "grub.cfg": chosen,
        }

    def pending(self) -> str | None:
        entry = self._env().get("next_entry")
        return entry.removeprefix(_PREFIX) if entry else None

    def taken(self) -> str | None:
        return self._env().get(_TAKEN)  # set by the entry itself

    def entries(self, wanted: Mapping[str, Sequence[str]]) -> None:
        assert self.directory is not None
        path = (self.directory / "custom.cfg").resolve()
        there = path.is_file()
        old = kept(path.read_bytes()) if there else ""
        theirs = _SECTION.sub("", old)
        if not wanted:
            if self.taken():
                self._edit("unset", _TAKEN)
            if theirs == old:
                return
            if theirs:
                written(path, theirs, mode=path.stat().st_mode & 0o777)
            else:
                path.unlink()
                synced(path.parent)
            return
        ours = "".join(self._entry(release, words) for release, words in wanted.items())
        newline = "" if not theirs or theirs.endswith("\n") else "\n"
        text = f"{theirs}{newline}{_BEGIN}{ours}{_END}"
        if text != old:
            written(path, text, mode=path.stat().st_mode & 0o777 if there else 0o644)

    def arm(self, release: str) -> None:
        self._edit("unset", _TAKEN)
        self._edit("set", f"next_entry={_PREFIX}{release}")
        if self.pending() != release:
            raise AgentError(f"grub-editenv did not set next_entry in {self._grubenv()}")

    def disarm(self) -> None:
        if self._env().get("next_entry", "").startswith(_PREFIX):
            self._edit("unset", "next_entry")

    def _entry(self, release: str, words: Sequence[str]) -> str:
        directory = self._places.kernels / release
        mount = mount_of(directory)
        uuid = mount.uuid
        if not uuid or not re.fullmatch(r"[0-9A-Za-z-]{4,64}", uuid):
            raise AgentError(f"the file system of {directory} has no UUID: {uuid}")
        relative = programs.found("grub-mkrelpath", "grub2-mkrelpath")
        if relative is None:
            raise AgentError("grub-mkrelpath is not installed on this host")
        at = programs.run([relative, str(directory)], timeout_s=10).strip()
        if mount.root != "/" and mount.type != "btrfs" and not at.startswith(f"{mount.root}/"):
            raise AgentError(
                f"{relative} says that {directory} is {at or '/'}, but {mount.root} of "
                f"{mount.source} is mounted there",
                hint="mount the file system itself at /boot, not one of its directories (bind)",
            )
        initramfs = (directory / "initrd.img").is_file()
        return (
            f"menuentry 'receive-batching {release}' --unrestricted --id '{_PREFIX}{release}' {{\n"
            f"\tset {_TAKEN}='{release}'\n\tsave_env {_TAKEN}\n"
            f"\tsearch --no-floppy --fs-uuid --set=root {uuid}\n"
            f"\tlinux '{at}/vmlinuz' {cmdline.for_grub(words)}\n"
            + f"\tinitrd '{at}/initrd.img'\n" * initramfs
            + "}\n"
        )

    def _configuration(self) -> str:
        assert self.directory is not None
        return kept(read_bytes(self.directory / "grub.cfg") or b"")

    def _grubenv(self) -> Path:
        assert self.directory is not None
        return (self.directory / "grubenv").resolve()

    def _env(self) -> dict[str, str]:
        text = kept(read_bytes(self._grubenv()) or b"")
        return dict(
            line.split("=", 1) for line in text.split("\n") if "=" in line and line[0] != "#"
        )

    def _edit(self, *words: str) -> None:
        at = self._grubenv()
        tool = programs.found("grub-editenv", "grub2-editenv")
        if tool is None:
            raise AgentError("grub-editenv is not installed on this host")
        programs.run([tool, str(at), *words], timeout_s=10)
        synced(at)
        synced(at.parent)

    def _env_not_writable(self) -> str | None:
        at = self._grubenv()
        try:
            # A file just written has no blocks before it is on disk.
            synced(at)
            content, status = at.read_bytes(), at.stat()
        except OSError as error:
            return f"{at}: {error.strerror}; create it with grub-editenv {at} create"
        if len(content) != _ENV_BYTES or not content.startswith(_ENV_HEADER):
            return f"{at} is not a GRUB environment block of {_ENV_BYTES} bytes"
        if status.st_blocks * 512 < _ENV_BYTES:
            return f"{at} is sparse or stored in its inode: GRUB cannot clear a one-shot there"
        return why_grub_cannot_write(at)
