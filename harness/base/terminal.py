# SPDX-License-Identifier: MIT
"""The standard streams, made such that what is said there never fails on a character.

Hides what the streams are connected to: a terminal of another encoding, a pipe that
nobody reads, a full disk, nothing at all. What cannot be written as it is gets written
as the nearest that can; what cannot be said on stderr is not said, as no campaign may
end for its progress. What cannot be written to stdout is an error.
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
    """Make stdin, stdout and stderr what the module says.

    Raises:
        InfrastructureError: stdout is closed: whatever is found would be lost.
    """
    codecs.register_error(_ERRORS, _nearest)
    codecs.register(_plain_ascii)
    closed = [number for number in range(3) if not _is_open(number)]
    for number in closed:
        # Or the next file that is opened would become this stream.
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
            "standard output is closed", hint="to have nothing shown: >/dev/null"
        )


def write_document(text: str) -> None:
    """``text``, which is a file's, to stdout: in UTF-8 whatever a terminal here would take."""
    if sys.stdout.isatty():
        sys.stdout.write(text + "\n")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode(errors="replace") + b"\n")


def finish() -> None:
    """Write out what waits to be written.

    Raises:
        OSError: stdout takes it not.
    """
    sys.stdout.flush()


def give_up() -> None:
    """Nothing more goes to stdout; what waits for it is lost, and Python's end says nothing."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()


class _Swallowing(io.RawIOBase):
    """A file descriptor; what it does not take is dropped."""

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
    """stderr that never raises; each line goes out in one piece."""

    def __init__(self, number: int) -> None:
        encoding = _named(sys.stderr)
        super().__init__(
            io.BufferedWriter(_Swallowing(number)),  # type: ignore[type-var]
            encoding=encoding,
            errors=_ERRORS,
            line_buffering=True,
        )


def _named(stream: TextIO | None) -> str:
    """The encoding to use for ``stream``; ASCII by a name that libraries do not override."""
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
    """What stands in for characters that the encoding lacks, or for bytes that are no text."""
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
