# SPDX-License-Identifier: MIT
"""Files of others, in any encoding: read for display, or edited without changing other bytes.

``read_text`` is for display: its text can be printed and sent. ``kept`` is for editing: it
preserves every byte.
"""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str | None:
    """The stripped text of a file; None if it cannot be read.

    Some attributes of /sys exist but cannot be read, such as the speed of a link that is down.
    """
    content = read_bytes(path)
    return None if content is None else shown(content).strip()


def read_bytes(path: Path) -> bytes | None:
    """The content of a file; None if it cannot be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None


def shown(content: bytes) -> str:
    """``content`` as printable text; bytes that are not UTF-8 are replaced."""
    return content.decode("utf-8", "replace")


def kept(content: bytes) -> str:
    """``content`` as text that :func:`given_back` turns into the same bytes."""
    return content.decode("utf-8", "surrogateescape")


def given_back(text: str) -> bytes:
    """The bytes of ``text``, which comes from :func:`kept` or from us."""
    return text.encode("utf-8", "surrogateescape")


def printable(text: str) -> str:
    """``text``, such as a file's name, without characters that cannot be encoded."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
