# SPDX-License-Identifier: MIT
"""The declaration of a setting: reading, writing, verifying, its key in hosts.yaml, its texts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

from harness.agent.faults import AgentError
from harness.agent.foreign import read_text

PROC_SYS = Path("/proc/sys")
CPU = Path("/sys/devices/system/cpu")
IRQ = Path("/proc/irq")


@dataclass(frozen=True)
class Setting:
    """``write`` takes any value of ``read``; ``holds`` compares the current with a wanted value."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], None]
    holds: Callable[[Any, Any], bool] = lambda is_now, wanted: bool(is_now == wanted)


@dataclass(frozen=True)
class Whole:
    """A whole number."""

    least: int
    most: int


@dataclass(frozen=True)
class Word:
    """A word that matches ``pattern``; ``expected`` describes the pattern."""

    pattern: str
    expected: str


Value = Union[Whole, Word, type[bool]]


@dataclass(frozen=True)
class Part:
    """A key in the mapping that is a setting's value."""

    value: Value
    description: str
    required: bool = True
    """If not, null is the default and leaves it unchanged."""


@dataclass(frozen=True)
class Key:
    """A bed's key in hosts.yaml for a setting's argument; null leaves the setting alone."""

    value: Value | Mapping[str, Part]
    description: str
    default: Any = None


Asked = Mapping[str, Any]
"""Arguments of ``settings_apply`` by name, including ``interface``; None asks for nothing."""


@dataclass(frozen=True)
class Declaration:
    """Everything that the harness knows of one setting of a host.

    ``on`` returns the :class:`Setting` of an interface. The argument ``by`` of
    ``settings_apply`` (None: the setting's name) asks for it, or ``asked`` decides.
    ``wanted`` computes the new value from the current one and the arguments; None: impossible.
    """

    name: str
    on: Callable[[str], Setting]
    wanted: Callable[[Any, Asked], Any] | None = None
    by: str | None = None
    asked: Callable[[Asked, Collection[str]], bool] | None = None
    """Gets the arguments and the settings skipped so far."""
    each: bool = False
    """The argument is a mapping; each pair is set, or skipped, separately."""
    check: Callable[[Any], object] | None = None
    """Raises an AgentError if this host cannot have the value asked for."""
    absent: str | None = None
    """The reason for skipping it if it reads as None or empty: this host does not have it."""
    off_if_absent: bool = False
    """If the host does not have it, it counts as off and is not reported."""
    hint: str | None = None
    """For a setting that was refused or did not take effect."""
    title: str = ""
    """Its name in ``harness plan``."""
    shown: Callable[[Any], str] = str
    key: Key | None = None
    plain: Any = None
    """The value that a run asks of the dut, for a setting without a key."""
    compared: bool = False
    """Campaigns in which it differs cannot be compared."""
    of_nic: bool = False
    """Not every NIC has it: the report says where it was skipped."""

    @property
    def argument(self) -> str:
        return self.by or self.name


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to a file of /proc or /sys."""
    path.write_text(text + "\n", encoding="ascii")


def write_each(values: Iterable[tuple[Path, str]], same: Callable[[str, str], bool]) -> None:
    """Write each text to its file, unless the content is the same already by ``same``.

    All are tried; then the first refusal is raised. Files that do not exist are skipped.
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
    """The number in the text of a file of /proc or /sys; None for None.

    Raises:
        AgentError: the text is not a number.
    """
    if text is None:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise AgentError(f"expected a number, found {text!r:.80}") from error


def numbered(name: str, path: Callable[[str], Path], **declared: Any) -> Declaration:
    """A setting that is the number in the file ``path`` of an interface; None without the file."""

    def on(interface: str) -> Setting:
        file = path(interface)
        return Setting(
            name,
            lambda: number(read_text(file)),
            lambda value: write_text(file, str(value)),
        )

    return Declaration(name, on, **declared)


def only_off(on: bool) -> None:
    """Refuse to switch on what the receive path under test must not use."""
    if on:
        told = "RPS, RFS and threaded NAPI can only be switched off"
        raise AgentError(told, kind="configuration")


def put_back(setting: Setting, old: Any) -> str | None:
    """Restore ``setting`` to ``old``; returns why that failed, or None.

    It is not written if it holds already: an interrupt that its driver manages refuses even
    its own affinity. Exceptions from reading or writing become the reason.
    """
    with contextlib.suppress(Exception):
        if setting.read() == old:
            return None
    refused: str | None = None
    try:
        setting.write(old)
    except Exception as error:  # noqa: BLE001 - the other settings have to be restored
        refused = told(error)
    try:
        now = setting.read()
        if now == old or (refused is None and setting.holds(now, old)):
            return None
    except Exception as error:  # noqa: BLE001 - as above
        return refused or told(error)
    return refused or f"wanted {old}, is {now}"


def told(error: BaseException) -> str:
    """The message of ``error``; with the class of a library's error, whose text says little."""
    if isinstance(error, (OSError, AgentError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(": ")


def queue_files(queues: Path, name: str) -> Mapping[str, str]:
    """The file ``name`` of each receive queue, by queue."""
    texts = {path.parent.name: read_text(path) for path in sorted(queues.glob(f"rx-*/{name}"))}
    return {queue: text or "0" for queue, text in texts.items()}
