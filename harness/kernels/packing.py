# SPDX-License-Identifier: MIT
"""Packs a kernel's /lib/modules/RELEASE: a squashfs for guests, a tar for machines."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base import cache, process

if TYPE_CHECKING:
    from harness.kernels.build import Image

_HINT = "apt-get install squashfs-tools"
_FORM = 1
_COMPRESSION = 6


def add_headers(origins: list[Path], directory: Path) -> None:
    """Copy the headers of ``origins`` to ``directory/build``, where bcc looks for them."""
    for origin in origins:
        for part in ("include", "arch/x86/include"):
            shutil.copytree(
                origin / part,
                directory / "build" / part,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("config", "*.cmd", "dt-bindings"),
            )


def squash(directory: Path, packed: Path) -> None:
    """Make the squashfs ``packed`` of ``directory``, owned by root."""
    options = ["-comp", "zstd", "-Xcompression-level", "3", "-all-root", "-quiet", "-no-progress"]
    process.run(["mksquashfs", str(directory), str(packed), *options], hint=_HINT)


def packed(image: Image) -> Path:
    """A directory with ``image`` for a machine: ``bzImage``, ``config`` and ``modules.tar``.

    ``modules.tar`` is gzipped and has ``lib/modules/RELEASE`` with modules and headers, owned
    by root; the same image gives the same bytes.
    """

    def make(making: Path) -> None:
        shutil.copyfile(image.kernel, making / "bzImage")
        shutil.copyfile(image.directory / "config", making / "config")
        with tempfile.TemporaryDirectory(dir=making.parent) as scratch:
            tree = Path(scratch) / "tree"
            unsquash = ["unsquashfs", "-no-progress", "-no-xattrs", "-dest", str(tree)]
            process.run([*unsquash, str(image.headers)], hint=_HINT)
            _tar(tree, f"lib/modules/{image.release}", making / "modules.tar")

    where = cache.root() / "packed" / cache.digest(_FORM, image.directory.name, image.image_sha256)
    return cache.entry(where, make, what=f"kernel {image.release} packed for a machine")


def _tar(tree: Path, name: str, made: Path) -> None:
    with (
        made.open("wb") as file,
        gzip.GzipFile("", "wb", _COMPRESSION, file, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        # tarfile adds a directory's entries sorted by name.
        tar.add(tree, name, filter=_plain)


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mtime = 0
    member.mode = 0o755 if member.isdir() else 0o644
    return member
