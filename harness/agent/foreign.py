# SPDX-License-Identifier: MIT
"""Files that somebody else wrote: of any encoding, there or not, and given back unchanged.

``read_text`` is for looking at one, and its text can be printed and sent. ``kept`` is
for changing one: what is not ours goes through it byte for byte.
"""

from __future__ import annotations

from pathlib import Path


def read_text(path: Path) -> str | None:
    """The text of a file without its last newline; None where there is none.

    Some attributes exist and refuse to be read, the speed of a link that is down among them.
    """
    content = read_bytes(path)
    return None if content is None else shown(content).strip()


def read_bytes(path: Path) -> bytes | None:
    """The content of a file; None where there is none to be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError):  # a path with a NUL is none
        return None


def shown(content: bytes) -> str:
    """``content`` as text that can be printed, whatever it is."""
    return content.decode("utf-8", "replace")


def kept(content: bytes) -> str:
    """``content`` as text of which :func:`given_back` makes the same bytes again."""
    return content.decode("utf-8", "surrogateescape")


def given_back(text: str) -> bytes:
    """The bytes that ``text``, of :func:`kept` and of our own, stands for."""
    return text.encode("utf-8", "surrogateescape")


def printable(text: str) -> str:
    """``text``, such as a file's name, without what no encoding has."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
