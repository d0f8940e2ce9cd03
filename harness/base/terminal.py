# SPDX-License-Identifier: MIT
"""The standard streams, prepared so that output never fails because of a character.

Hides what the streams are connected to: a terminal with another encoding, a pipe without
a reader, a full disk, nothing at all. A character that cannot be written is replaced by a
similar one. Failed writes to stderr are ignored, because progress must not end a campaign;
failed writes to stdout are errors.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from typing import TextIO

from harness.base.errors import InfrastructureError

_NEAREST = str.maketrans(
    {
        "—": "-", "–": "-", "…": "...", "→": "->", "×": "x", "·": "-", "µ": "u", "±": "+-",
        "“": '"', "”": '"', "’": "'", "•": "*", "━": "=", "╸": "=", "╺": "=", "─": "-",
        "▁": "_", "▂": ".", "▃": ":", "▄": "-", "▅": "=", "▆": "+", "▇": "*", "█": "#",
    }
)  # fmt: skip
_ERRORS = "harness-nearest"
_ASCII = "harness-ascii"


def prepare() -> None:
    """Prepare stdin, stdout and stderr.

    Raises:
        InfrastructureError: stdout is closed, so results would be lost.
    """
    codecs.register_error(_ERRORS, _nearest)
    codecs.register(_plain_ascii)
    closed = [number for number in range(3) if not _is_open(number)]
    for number in closed:
        # Otherwise the next opened file would become this stream.
        os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(number, True)
    if sys.stdin is None or 0 in closed:
        sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = _Tolerant(2)
    if sys.stdout is None or 1 in closed:
        sys.stdout = open(1, "w", encoding="utf-8", errors=_ERRORS, closefd=False)  # noqa: SIM115
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding=_named(sys.stdout), errors=_ERRORS)
    if 1 in closed:
        raise InfrastructureError(
            "standard output is closed", hint="to discard the output use >/dev/null"
        )


def write_document(text: str) -> None:
    """Write ``text``, the content of a file, to stdout; in UTF-8 unless it is a terminal."""
    if sys.stdout.isatty():
        sys.stdout.write(text + "\n")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode(errors="replace") + b"\n")


def finish() -> None:
    """Flush stdout.

    Raises:
        OSError: it cannot be written.
    """
    sys.stdout.flush()


def give_up() -> None:
    """Discard all further output to stdout, so that Python reports no error when it exits."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()


class _Swallowing(io.RawIOBase):
    """A file descriptor; failed writes are dropped."""

    mode = "wb"
    name = "<stderr>"

    def __init__(self, number: int) -> None:
        self._number = number

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: bytes) -> int:  # type: ignore[override]
        with contextlib.suppress(OSError):
            left = memoryview(data)
            while left:
                left = left[os.write(self._number, left) :]
        return len(data)


class _Tolerant(io.TextIOWrapper):
    """stderr that never raises; each line is written in one piece."""

    def __init__(self, number: int) -> None:
        encoding = _named(sys.stderr)
        super().__init__(
            io.BufferedWriter(_Swallowing(number)),  # type: ignore[type-var]
            encoding=encoding,
            errors=_ERRORS,
            line_buffering=True,
        )


def _named(stream: TextIO | None) -> str:
    """The encoding for ``stream``; ASCII gets a name that libraries do not override."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return _ASCII if codecs.lookup(encoding).name == "ascii" else encoding


def _plain_ascii(name: str) -> codecs.CodecInfo | None:
    if name.replace("_", "-") != _ASCII:
        return None
    plain = codecs.lookup("ascii")
    return codecs.CodecInfo(
        name=_ASCII,
        encode=plain.encode,
        decode=plain.decode,
        incrementalencoder=plain.incrementalencoder,
        incrementaldecoder=plain.incrementaldecoder,
        streamreader=plain.streamreader,
        streamwriter=plain.streamwriter,
    )


def _nearest(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replaces characters that the encoding lacks, and bytes that are not text."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    shown = "".join(
        f"\\x{ord(one) - 0xDC00:02x}" if 0xDC80 <= ord(one) < 0xDD00 else one.translate(_NEAREST)
        for one in text
    )
    return "".join(one if one.isascii() else "?" for one in shown), error.end


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
