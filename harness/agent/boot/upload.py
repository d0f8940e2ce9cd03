# SPDX-License-Identifier: MIT
"""Files that a user uploaded for root to install.

They are not trusted: only the user's own plain files are accepted, no link is followed, and
an archive can write only below its target directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from harness.agent.faults import AgentError

NAMES = ("bzImage", "config", "modules.tar")
_MEMBERS = 100_000
_CONFIG = 2 << 20
_GZIP_LEAST = 18


@contextlib.contextmanager
def opened(directory: str, uid: int) -> Iterator[Upload]:
    """The files :data:`NAMES` of ``directory``.

    Raises:
        AgentError: one is missing, not a plain file, not owned by ``uid``, or writable by
            others.
    """
    if not isinstance(directory, str) or not Path(directory).is_absolute():
        raise AgentError(f"{directory!r:.80} is not an absolute path", kind="configuration")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.ExitStack() as held:
        files: dict[str, BinaryIO] = {}
        try:
            at = os.open(directory, flags | os.O_DIRECTORY)
            held.callback(os.close, at)
            _check(directory, os.fstat(at), stat.S_ISDIR, uid)
            for name in NAMES:
                # O_NONBLOCK: opening a pipe would wait for a writer.
                handle = os.open(name, flags | os.O_NONBLOCK, dir_fd=at)
                files[name] = held.enter_context(os.fdopen(handle, "rb"))
                _check(name, os.fstat(handle), stat.S_ISREG, uid)
        except OSError as error:
            raise AgentError(
                f"{directory}: {error.filename}: {error.strerror}", kind="configuration"
            ) from error
        yield Upload(files)


def _check(name: str, found: os.stat_result, right: Callable[[int], bool], uid: int) -> None:
    if not right(found.st_mode):
        raise AgentError(f"{name} is not a plain file or directory", kind="configuration")
    if found.st_uid != uid:
        raise AgentError(
            f"{name} belongs to uid {found.st_uid}, not to {uid}, the caller", kind="configuration"
        )
    if found.st_mode & 0o022:
        raise AgentError(f"others may write to {name}", kind="configuration")


class Upload:
    """The three open files."""

    def __init__(self, files: dict[str, BinaryIO]) -> None:
        self._files = files

    @property
    def image(self) -> BinaryIO:
        """The bzImage, positioned at its start."""
        self._files["bzImage"].seek(0)
        return self._files["bzImage"]

    def takes_initramfs(self) -> bool:
        """Does the kernel support an initramfs? Not necessarily, if its drivers are built in."""
        self._files["config"].seek(0)
        return b"\nCONFIG_BLK_DEV_INITRD=y\n" in b"\n" + self._files["config"].read(_CONFIG)

    def size(self, name: str) -> int:
        """The size of a file in bytes."""
        return os.fstat(self._files[name].fileno()).st_size

    def digest(self) -> str:
        """SHA-256 over all three files."""
        whole = hashlib.sha256()
        for name in NAMES:
            whole.update(f"{name} {self.size(name)}\n".encode())
            for chunk in self._chunks(name):
                whole.update(chunk)
        return whole.hexdigest()

    def copy(self, name: str, to: Path) -> None:
        """Copy to a new file, which is on disk when this returns."""
        with to.open("xb") as file:
            for chunk in self._chunks(name):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        to.chmod(0o644)

    def unpacked_bytes(self) -> int:
        """The unpacked size that modules.tar claims; :meth:`unpack` enforces it.

        Raises:
            AgentError: it is not gzipped.
        """
        file = self._files["modules.tar"]
        file.seek(0)
        if file.read(2) != b"\x1f\x8b" or self.size("modules.tar") < _GZIP_LEAST:
            raise _no_modules("it is not gzipped")
        file.seek(-4, os.SEEK_END)
        (size,) = struct.unpack("<I", file.read(4))
        return int(size)

    def unpack(self, release: str, to: Path) -> None:
        """Unpack modules.tar, whose paths are under lib/modules/``release``, into ``to``.

        Raises:
            AgentError: the archive is invalid; files unpacked so far remain.
        """
        left = self.unpacked_bytes()
        made = {to}
        with _of_an_archive():
            self._unpack(release, to, left, made)

    def _unpack(self, release: str, to: Path, left: int, made: set[Path]) -> None:
        for member, inside in self._members(release):
            path = to / inside
            directory = path if member.isdir() else path.parent
            if directory not in made:
                directory.mkdir(mode=0o755, parents=True, exist_ok=True)
                made.add(directory)
            if member.isdir():
                continue
            left -= member.size
            if left < 0:
                raise _no_modules("it holds more than it says")
            source = self._tar.extractfile(member)
            assert source is not None
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with os.fdopen(handle, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)

    def _members(self, release: str) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
        """The archive's directories and plain files; links are refused, as they could lead out."""
        self._files["modules.tar"].seek(0)
        top = PurePosixPath("lib/modules", release)
        count = 0
        with tarfile.open(fileobj=self._files["modules.tar"], mode="r:gz") as self._tar:
            for member in self._tar:
                count += 1
                path = PurePosixPath(member.name)
                if path in (top / "build", top / "source") and member.issym():
                    continue  # links to the directories of the build
                if path in top.parents and member.isdir():
                    continue
                if (
                    count > _MEMBERS
                    or ".." in path.parts
                    or path.is_absolute()
                    or (top not in (path, *path.parents))
                ):
                    raise _no_modules(f"{member.name!r:.120} is not under {top}")
                if not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
                    raise _no_modules(f"{member.name!r:.120} is not a plain file")
                yield member, path.relative_to(top)

    def _chunks(self, name: str) -> Iterator[bytes]:
        file = self._files[name]
        file.seek(0)
        while chunk := file.read(1 << 20):
            yield chunk


@contextlib.contextmanager
def _of_an_archive() -> Iterator[None]:
    """Turn the exceptions of a corrupt archive into an AgentError."""
    try:
        yield
    except FileExistsError as error:
        raise _no_modules(f"it has {error.filename!r:.120} twice") from error
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError, struct.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _no_modules(str(error)) from error


def _no_modules(why: str) -> AgentError:
    return AgentError(f"modules.tar: {why}", kind="configuration")


def version_of(image: BinaryIO) -> str:
    """The version in a bzImage (Documentation/arch/x86/boot.rst, kernel_version)."""
    head = image.read(0x10000)
    if len(head) < 0x210 or head[0x202:0x206] != b"HdrS":
        raise AgentError("bzImage is not an x86 kernel", kind="configuration")
    (at,) = struct.unpack_from("<H", head, 0x20E)
    text, end, _ = head[at + 0x200 :].partition(b"\0")
    if not at or not end:
        raise AgentError("the bzImage does not state its version", kind="configuration")
    return text[:200].decode("ascii", "replace")
