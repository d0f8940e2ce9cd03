# SPDX-License-Identifier: MIT
"""A YAML text as plain data, with the line number of each key.

Hides the YAML library. Uses only its events, so nothing in the file can construct an
object. Refuses what makes YAML dangerous or ambiguous: aliases, tags, repeated keys,
several documents, deep nesting. Plain scalars follow the core schema of YAML 1.2: ``off``
is a word, not a boolean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML, events
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

KeyPath = tuple[str | int, ...]

MAX_BYTES = 1 << 20
_MAX_DEPTH = 12
_MAX_VALUES = 2_000

_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLEANS = {form: form.lower() == "true" for word in ("true", "false")
             for form in (word, word.capitalize(), word.upper())}  # fmt: skip
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}|0o[0-7]{1,18}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,18}|[0-9]{1,18}(\.[0-9]{0,18})?)([eE][-+]?[0-9]{1,2})?")


class RefusedError(Exception):
    """The text has something that a configuration may not have; ``line`` counts from 1."""

    def __init__(self, message: str, *, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True)
class Document:
    """``data`` of dict, list, str, int, float, bool and None; ``lines`` by path from the top."""

    data: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)


def parse(raw: bytes) -> Document:
    """Read one YAML document.

    Raises:
        RefusedError: it is not text, not YAML, too large, or has something that is not allowed.
    """
    if len(raw) > MAX_BYTES:
        raise RefusedError(f"larger than {MAX_BYTES >> 20} MiB; expected a few kilobytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedError(
            "not UTF-8 text; expected YAML", line=raw.count(b"\n", 0, error.start) + 1
        ) from error
    try:
        return _Builder(YAML(typ="safe", pure=True).parse(text)).document()
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RefusedError("a control character; expected YAML text", line=line) from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise RefusedError(
            f"not valid YAML: {error.problem or error.context}",
            line=mark.line + 1 if mark else None,
        ) from error
    except (YAMLError, ValueError, OverflowError) as error:
        raise RefusedError(f"not valid YAML: {error}") from error


class _Builder:
    def __init__(self, stream: Iterator[Any]) -> None:
        self._events = stream
        self._lines: dict[KeyPath, int] = {}
        self._values = 0

    def document(self) -> Document:
        data: Any = None
        documents = 0
        for event in self._events:
            if isinstance(event, events.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise RefusedError("a second document; expected one", line=_line(event))
                data = self._value(next(self._events), ())
        return Document(data, self._lines)

    def _value(self, event: Any, path: KeyPath) -> Any:
        self._lines.setdefault(path, _line(event))
        self._values += 1
        if self._values > _MAX_VALUES or len(path) > _MAX_DEPTH:
            raise RefusedError(
                "too many values or too deeply nested; expected a small file", line=_line(event)
            )
        if isinstance(event, events.AliasEvent) or event.anchor is not None:
            raise RefusedError("an anchor or alias (& or *); expected the value", line=_line(event))
        if getattr(event, "tag", None) is not None:
            raise RefusedError(
                f"a tag ({shortened(event.tag)}); expected a plain value", line=_line(event)
            )
        if isinstance(event, events.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(item := next(self._events), events.SequenceEndEvent):
                items.append(self._value(item, (*path, len(items))))
            return items
        if isinstance(event, events.MappingStartEvent):
            return self._mapping(path)
        return _scalar(event)

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self._events), events.MappingEndEvent):
            if not isinstance(event, events.ScalarEvent) or event.anchor is not None:
                raise RefusedError("a key that is not a word; expected a name", line=_line(event))
            key = str(event.value)
            if not key.isprintable():
                raise RefusedError("a key with unprintable characters", line=_line(event))
            if key in mapping:
                raise RefusedError(
                    f"the key {shortened(key)} is repeated; first on line "
                    f"{self._lines[*path, key]}",
                    line=_line(event),
                )
            self._lines[*path, key] = _line(event)
            mapping[key] = self._value(next(self._events), (*path, key))
        return mapping


def shortened(value: object) -> str:
    """``value`` on one printable line of at most 60 characters."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:56]}…{text[-1]}"


def _line(event: events.Event) -> int:
    return int(event.start_mark.line) + 1


def _scalar(event: Any) -> str | int | float | bool | None:
    text = str(event.value)
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise RefusedError("half a surrogate pair; expected text", line=_line(event))
    if not event.implicit[0]:
        return text
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.fullmatch(text):
        return int(text, 0 if text[:2] in {"0o", "0x"} else 10)
    return float(text) if _FLOAT.fullmatch(text) else text
