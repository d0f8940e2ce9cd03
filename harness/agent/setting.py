# SPDX-License-Identifier: MIT
"""What a setting is: a way to read it, and a way to write what was read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.agent.faults import AgentError
from harness.agent.foreign import read_text


@dataclass(frozen=True)
class Setting:
    """``write`` takes any value ``read`` gives; ``holds`` compares what is with what is wanted."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]
    holds: Callable[[Any, Any], bool] = lambda is_now, wanted: bool(is_now == wanted)


def write_text(path: Path, text: str) -> None:
    """``text`` into a file of /proc or /sys."""
    path.write_text(text + "\n", encoding="ascii")


def write_each(values: Iterable[tuple[Path, str]], same: Callable[[str, str], bool]) -> None:
    """Each text into its file, where what stands there is not the same by ``same`` already.

    One that is refused does not keep the others from being written; the first refusal
    is raised once all were tried. Files that are gone are left out.
    """
    refused: OSError | None = None
    for path, text in values:
        try:
            now = read_text(path)
            if not path.exists() or (now is not None and same(now, text)):
                continue
            write_text(path, text)
        except OSError as error:
            refused = refused or error
    if refused is not None:
        raise refused


def number(text: str | None) -> int | None:
    """The number in a file of /proc or /sys.

    Raises:
        AgentError: there is something else in it.
    """
    if text is None:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise AgentError(f"expected a number, found {text!r:.80}") from error


def numbered(name: str, path: Path) -> Setting:
    """The number in the file ``path``; None where there is no such file."""
    return Setting(
        name,
        lambda: number(read_text(path)),
        lambda value: write_text(path, str(value)),
    )


def put_back(setting: Setting, old: Any) -> str | None:
    """Why ``setting`` is not as it was, or None once it is.

    One that holds already is not written: an interrupt that its driver manages refuses
    its own affinity. Whatever reading or writing raises is a reason, and ends nothing.
    """
    with contextlib.suppress(Exception):
        if setting.read() == old:
            return None
    refused: str | None = None
    try:
        setting.write(old)
    except Exception as error:  # noqa: BLE001 - the other settings have to be put back
        refused = told(error)
    try:
        now = setting.read()
        if now == old or (refused is None and setting.holds(now, old)):
            return None
    except Exception as error:  # noqa: BLE001 - as above
        return refused or told(error)
    return refused or f"wanted {old}, is {now}"


def told(error: BaseException) -> str:
    """``error`` in words; those of a library without the name of its class say little."""
    if isinstance(error, (OSError, AgentError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(": ")


def queue_files(queues: Path, name: str) -> Mapping[str, str]:
    """The file ``name`` of each receive queue, by queue."""
    texts = {path.parent.name: read_text(path) for path in sorted(queues.glob(f"rx-*/{name}"))}
    return {queue: text or "0" for queue, text in texts.items()}
