# SPDX-License-Identifier: MIT
"""The only gateway to other programs on this machine.

Commands are argument lists, never shell text. Each runs in its own session, so that it
can be ended together with its children and its signals do not reach us. Its environment
contains no variables of the user's shell that change its behaviour. A program that cannot
be started or that fails becomes an :class:`InfrastructureError` with its name and the end
of its output.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from harness.base.errors import InfrastructureError

_TAIL_LINES = 15
_CHUNK = 1 << 16
# Control sequences of ECMA-48; control strings, such as titles, only if they are short.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}[@-~]"
    r"|(?:\x1b[PX\]^_]|[\x90\x98\x9d-\x9f])[^\x00-\x1f\x7f-\x9f]{0,256}(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]{0,8}[0-~]"
)
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)
_LAST_WORDS_S = 1.0
_SYSTEM = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")

PACKAGES = {
    # of Debian and Ubuntu
    "apt-get": "apt", "as": "binutils", "bc": "bc", "bison": "bison", "cp": "coreutils",
    "debugfs": "e2fsprogs", "depmod": "kmod", "distcc": "distcc", "e2fsck": "e2fsprogs",
    "flex": "flex", "gcc": "gcc", "genext2fs": "genext2fs", "git": "git", "ip": "iproute2",
    "ld": "binutils", "make": "make", "mksquashfs": "squashfs-tools",
    "mmdebstrap": "mmdebstrap", "newuidmap": "uidmap", "nsenter": "util-linux",
    "objcopy": "binutils", "objdump": "binutils", "openssl": "openssl", "pahole": "dwarves",
    "perl": "perl", "readelf": "binutils", "resize2fs": "e2fsprogs", "setpriv": "util-linux",
    "sfdisk": "fdisk", "ssh": "openssh-client", "ssh-agent": "openssh-client",
    "ssh-keygen": "openssh-client", "sysctl": "procps", "tar": "tar", "taskset": "util-linux",
    "tune2fs": "e2fsprogs", "unshare": "util-linux", "unsquashfs": "squashfs-tools",
    "xz": "xz-utils",
}  # fmt: skip
"""The package of each program that is started on this machine."""


def search_path(given: str | None) -> str:
    """``given``, a value of $PATH, followed by the system directories that it lacks.

    The PATH of an ordinary user lacks sbin, where ip, depmod and chroot may be.
    """
    own = given.split(os.pathsep) if given else []
    return os.pathsep.join([*own, *(part for part in _SYSTEM if part not in own)])


# Set at import, because every program that is started inherits it.
os.environ["PATH"] = search_path(os.environ.get("PATH"))


def package_hint(*programs: str) -> str | None:
    """How to install ``programs``, as far as their packages are known."""
    names = [program.rpartition("/")[2] for program in programs]
    packages = {PACKAGES[name] for name in names if name in PACKAGES}
    return f"apt-get install {' '.join(sorted(packages))}" if packages else None


# Variables that change the behaviour of the programs we start: search paths, default
# options, the language of messages.
_STEERING = re.compile(
    r"GIT_.*|LC_.*|LANG|LANGUAGE"
    r"|MAKE.*|MFLAGS|GNUMAKEFLAGS"
    r"|BASH_.*|ENV|CDPATH|GLOBIGNORE|SHELLOPTS|BASHOPTS|POSIXLY_CORRECT"
    r"|PERL.*|PYTHON(?!PATH$|HOME$|DONTWRITEBYTECODE$|PYCACHEPREFIX$).*"
    r"|TAR_OPTIONS|GZIP|XZ_OPT|XZ_DEFAULTS|ZSTD_.*|GREP_.*|LESS.*"
)
# Variables that a compiler may see. Any other could change its output, and nobody can list
# them all: ARCH, CC, KCFLAGS, LOCALVERSION, CPATH, SOURCE_DATE_EPOCH …
_BUILDING = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|TMPDIR|SSH_AUTH_SOCK|LD_LIBRARY_PATH|LD_PRELOAD"
    r"|XDG_.*|DISTCC_.*|CCACHE_(?!COMPILER|PREFIX|PATH$).*|(?i:https?|no|all)_(?i:proxy)"
)


def environment() -> dict[str, str]:
    """The environment for programs: ours without variables that change their behaviour."""
    kept = {name: text for name, text in os.environ.items() if not _STEERING.fullmatch(name)}
    return kept | {"LC_ALL": "C"}


def building() -> dict[str, str]:
    """The environment for compilers: only paths, user, proxies, distcc and ccache."""
    kept = {name: text for name, text in os.environ.items() if _BUILDING.fullmatch(name)}
    return kept | {"LC_ALL": "C"}


def quoted(command: Sequence[str]) -> str:
    """``command`` as one line that a shell parses to the same arguments."""
    return shlex.join(command)


def harmless(text: str) -> str:
    """``text`` without terminal control; line breaks stay.

    Escape sequences are removed; other control characters, and those that change the
    writing direction, are shown as their code.
    """
    text = _ESCAPES.sub("", text).replace("\r\n", "\n")
    return _UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout_s: float | None = None,
    tail_bytes: int | None = None,
    check: bool = True,
    hint: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``command`` to its end and return its output.

    With ``tail_bytes`` only the end of the output is kept, and background processes that it
    leaves are not waited for. Without ``env`` its environment is :func:`environment`.

    Raises:
        InfrastructureError: it cannot be started, ran longer than ``timeout_s``, or
            ended with a status other than 0 although ``check`` is set.
    """
    started = start(
        command,
        cwd=cwd,
        env=env,
        hint=hint,
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )
    try:
        if tail_bytes is None:
            out, err = started.communicate(stdin, timeout=timeout_s)
        else:
            given = None if stdin is None else stdin.encode()
            out, err = (
                tail.decode(errors="replace")
                for tail in tails(started, given, timeout_s=timeout_s, tail_bytes=tail_bytes)
            )
    except subprocess.TimeoutExpired as error:
        end(started)
        raise InfrastructureError(
            f"no end after {timeout_s:.0f} s: {quoted(command)}", hint=hint
        ) from error
    except BaseException:
        end(started)
        raise
    done = subprocess.CompletedProcess(list(command), started.returncode, out, err)
    if check and done.returncode != 0:
        raise failed(command, done.returncode, done.stderr or done.stdout, hint=hint)
    return done


def start(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    hint: str | None = None,
    **options: Any,
) -> subprocess.Popen[Any]:
    """Start ``command`` with the ``options`` of Popen, in its own session.

    Raises:
        InfrastructureError: it cannot be started; ``hint`` is for a missing program.
    """
    try:
        return subprocess.Popen(
            list(command),
            cwd=cwd,
            env=environment() if env is None else env,
            **{"start_new_session": True, **options},
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL among the words
        raise not_started(command, error, cwd=cwd, hint=hint) from error


def not_started(
    command: Sequence[str],
    error: OSError | ValueError,
    *,
    cwd: Path | None = None,
    hint: str | None = None,
) -> InfrastructureError:
    """The error for a command that could not be started because of ``error``."""
    program = harmless(command[0])
    if not isinstance(error, OSError):
        return InfrastructureError(f"{program!a} cannot be started: {error}")
    if cwd is not None and not cwd.is_dir():
        return InfrastructureError(f"{program} cannot be started in {cwd}: no such directory")
    if error.errno == errno.ENOENT:
        if shutil.which(command[0]) is None:
            return InfrastructureError(
                f"{program} is not installed", hint=hint or package_hint(command[0])
            )
        return InfrastructureError(
            f"{program} cannot be started: the interpreter it names is not installed",
            hint="its first line, #!…, must name an installed program",
        )
    hints = {
        errno.ENOEXEC: "a script needs a first line that names its interpreter, as #!/bin/sh",
        errno.EACCES: f"make it executable: chmod +x {program}",
        errno.E2BIG: "shorten its arguments or the environment",
        errno.EAGAIN: "raise the limit of processes: ulimit -u",
        errno.ENOMEM: "free some memory",
        errno.EMFILE: "raise the limit of open files: ulimit -n",
    }
    why = {errno.ENOEXEC: "not an executable format"}
    return InfrastructureError(
        f"{program} cannot be started: {why.get(error.errno or 0) or error.strerror or error}",
        hint=hints.get(error.errno or 0, hint),
    )


def tails(
    started: subprocess.Popen[Any],
    stdin: bytes | None,
    *,
    timeout_s: float | None,
    tail_bytes: int,
) -> tuple[bytes, bytes]:
    """The last bytes of what ``started`` writes to stdout and stderr until it ends.

    Raises:
        subprocess.TimeoutExpired: it has not ended in time, and is still running.
    """
    kept = (bytearray(), bytearray())

    def follow(stream: IO[Any], tail: bytearray) -> None:
        while chunk := os.read(stream.fileno(), _CHUNK):
            tail += chunk
            del tail[:-tail_bytes]

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), started.stdin or contextlib.nullcontext() as to:
            if to is not None:
                getattr(to, "buffer", to).write(stdin or b"")

    assert started.stdout is not None
    assert started.stderr is not None
    threads = [
        threading.Thread(target=follow, args=args, daemon=True)
        for args in zip((started.stdout, started.stderr), kept, strict=True)
    ]
    for thread in threads:
        thread.start()
    threading.Thread(target=feed, daemon=True).start()
    started.wait(timeout_s)
    until = time.monotonic() + _LAST_WORDS_S
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return bytes(kept[0]), bytes(kept[1])


def end(process: subprocess.Popen[Any], *, grace_s: float = 3.0) -> None:
    """End ``process``, the leader of its own session, and everything it started."""
    import psutil

    # Children in other sessions can no longer be found once it has ended.
    tree = []
    with contextlib.suppress(psutil.Error):
        if process.returncode is None:
            tree = psutil.Process(process.pid).children(recursive=True)
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(timeout=patience_s)
        except subprocess.TimeoutExpired:
            continue
    for left in tree:
        with contextlib.suppress(psutil.Error):
            left.kill()


def failed(
    command: Sequence[str], status: int, output: str, *, hint: str | None = None
) -> InfrastructureError:
    """The error for a command that wrote ``output`` and ended with ``status``."""
    tail = "\n".join(f"  | {line}" for line in harmless(output).strip().splitlines()[-_TAIL_LINES:])
    return InfrastructureError(
        f"{quoted(command)} ended with status {status}" + (f"\n{tail}" if tail else ""), hint=hint
    )
