# SPDX-License-Identifier: MIT
"""Finds the configuration that GRUB reads when the firmware starts it.

A machine may have several: /boot/grub, /boot/grub2, one on the EFI system partition, and
those of other distributions. On EFI the firmware says which loader it started, and the
grub.cfg beside that loader says where its configuration is. Without EFI the configuration
has to name the kernel that GRUB started. A directory's name alone proves nothing.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import NamedTuple

from harness.agent import programs
from harness.agent.faults import AgentError, parsing
from harness.agent.foreign import kept, read_bytes

from . import mounts
from .record import Places

_GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
"""EFI_GLOBAL_VARIABLE."""
_MEDIA, _FILE_PATH = 4, 4
"""Type and subtype of the device path node with a file's path (UEFI 2.10, 10.3)."""
_ESPS = ("boot/efi", "efi", "boot")
_GRUB_LOADER = re.compile(r"(shim|grub|boot(x64|ia32|aa64))\w*\.efi", re.IGNORECASE)
_SEARCH = re.compile(r"^\s*search(?:\.fs_uuid|\b.*--fs-uuid\b.*)\s.*$", re.MULTILINE)
_UUID = re.compile(r"(?<![\w=/-])[0-9A-Fa-f]{2,}(?:-[0-9A-Fa-f]{2,})+(?![\w-])")
_PREFIX = re.compile(r"^\s*set\s+prefix=(?:\(\$\{?\w+\}?\))?(.*)$", re.MULTILINE)


class Pointer(NamedTuple):
    """Where a short grub.cfg beside a loader says the real configuration is."""

    uuid: str | None
    path: str


class Reads(NamedTuple):
    """The directory of the configuration, and why it is not certain."""

    directory: Path | None
    why_not: str | None


def directory_read(places: Places) -> Reads:
    """The directory of this machine's grub.cfg, if any; with ``why_not`` it is a guess."""
    there = [at for at in (places.boot / "grub2", places.boot / "grub") if _full(at / "grub.cfg")]
    efi = places.root / "sys/firmware/efi"
    guess = there[0] if there else None
    if not efi.is_dir():
        if len(there) < 2:
            return Reads(guess, None)
        booted = [at for at in there if named_there(places, at)]
        why = None if len(booted) == 1 else f"{' and '.join(map(str, there))} both hold a grub.cfg"
        return Reads(booted[0] if booted else guess, why)
    beside, why = _beside_the_loader(places, efi)
    if beside is None:
        return Reads(guess, why)
    if _full(beside):
        return Reads(beside.parent, None)
    pointer = parse_pointer(kept(read_bytes(beside) or b""))
    if pointer is None:
        return Reads(guess, f"{beside} does not say where the configuration is")
    for at in there:
        if _points_to(pointer, at):
            return Reads(at, None)
    where = f"{pointer.path} of the file system {pointer.uuid or 'it is on'}"
    why = f"{beside} makes the firmware's GRUB read {where}, which belongs to another system"
    return Reads(guess, why)


def named_there(places: Places, directory: Path) -> bool:
    """Does the configuration in ``directory`` name the kernel that GRUB started?

    True if no loader started the running kernel, after a kexec.
    """
    line = kept(read_bytes(places.root / "proc/cmdline") or b"")
    found = re.search(r"(?:^|\s)BOOT_IMAGE=(?:\([^)]*\))?(\S+)", line)
    if found is None:
        return True
    texts = [directory / "grub.cfg", directory / "custom.cfg"]
    texts += sorted((places.boot / "loader/entries").glob("*.conf"))
    name = found[1].rpartition("/")[2]
    return any(
        re.search(rf"(?<![\w.+~-]){re.escape(name)}(?![\w.+~-])", kept(read_bytes(path) or b""))
        for path in texts
    )


@parsing("the firmware's boot entry")
def parse_load_option(content: bytes) -> str | None:
    """The path of the loader in a Boot#### variable, ``\\EFI\\debian\\shimx64.efi``.

    ``content`` begins with the four bytes of attributes that efivarfs adds. None if the
    entry names no file.
    """
    (length,) = struct.unpack_from("<H", content, 8)
    at = 10
    while content[at : at + 2] != b"\0\0":
        if at + 2 > len(content):
            raise ValueError("its description has no end")
        at += 2
    at += 2
    end = at + length
    parts = []
    while at + 4 <= min(end, len(content)):
        kind, subtype, size = struct.unpack_from("<BBH", content, at)
        if size < 4:
            raise ValueError("a node without a length")
        if (kind, subtype) == (_MEDIA, _FILE_PATH):
            text = content[at + 4 : at + size].decode("utf-16-le", "replace")
            parts.append(text.partition("\0")[0])
        at += size
    return "\\".join(parts).replace("\\\\", "\\") or None


def parse_pointer(text: str) -> Pointer | None:
    """The UUID a short grub.cfg searches for and the directory it continues in, if any."""
    prefix = _PREFIX.findall(text)
    search = _SEARCH.findall(text)
    uuids = [found for line in search for found in _UUID.findall(line)]
    if not prefix:
        return None
    path = "".join(re.findall(r"[^'\"\s]+", prefix[-1]))
    return Pointer(uuids[-1] if uuids else None, path) if path.startswith("/") else None


def _full(path: Path) -> bool:
    """Is ``path`` a configuration, and not a file that only points to one?"""
    content = read_bytes(path)
    if content is None:
        return False
    text = kept(content)
    return "menuentry" in text or "blscfg" in text or parse_pointer(text) is None


def _beside_the_loader(places: Places, efi: Path) -> tuple[Path | None, str | None]:
    """The grub.cfg beside the loader that the firmware started."""
    variables = efi / "efivars"
    current = read_bytes(variables / f"BootCurrent-{_GLOBAL}")
    number = current[4:6] if current is not None and len(current) >= 6 else None
    entry = (
        read_bytes(variables / f"Boot{struct.unpack('<H', number)[0]:04X}-{_GLOBAL}")
        if number
        else None
    )
    esps = [at for name in _ESPS if (at := _within(places.root / name, "EFI")) is not None]
    if entry is not None:
        try:
            loader = parse_load_option(entry)
        except AgentError as error:
            return None, str(error)
        if loader is None:
            return None, "the firmware's boot entry names no file"
        *directories, file = [part for part in loader.split("\\") if part]
        if not _GRUB_LOADER.fullmatch(file):
            return None, f"the firmware started {loader}, which is not GRUB"
        for esp in esps:
            here: Path | None = esp.parent
            for name in directories:
                here = _within(here, name) if here else None
            if here is not None and (here / "grub.cfg").is_file():
                return here / "grub.cfg", None
        if [name.lower() for name in directories] != ["efi", "boot"]:
            return None, f"there is no grub.cfg beside {loader}, which the firmware started"
    # The fallback loader, or firmware that does not say: a single candidate is the answer.
    found = sorted({path for esp in esps for path in esp.glob("*/grub.cfg")})
    if len(found) == 1:
        return found[0], None
    names = ", ".join(map(str, found)) or "none"
    return None, f"it is unknown which GRUB the firmware started; grub.cfg of loaders: {names}"


def _within(directory: Path, name: str) -> Path | None:
    """``name`` in ``directory`` in any case, since FAT ignores case."""
    try:
        return next(
            (at for at in sorted(directory.iterdir()) if at.name.lower() == name.lower()), None
        )
    except OSError:
        return None


def _points_to(pointer: Pointer, directory: Path) -> bool:
    try:
        mount = mounts.mount_of(directory)
        if pointer.uuid is None or (mount.uuid or "").lower() != pointer.uuid.lower():
            return False
        tool = programs.found("grub-mkrelpath", "grub2-mkrelpath")
        if tool is None:
            return False
        relative = programs.run([tool, str(directory)], timeout_s=10).strip()
    except AgentError:
        return False
    return relative.rstrip("/") == pointer.path.rstrip("/")
