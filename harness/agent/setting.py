# SPDX-License-Identifier: MIT
"""What a setting is: how it is read, written and proven, its key in hosts.yaml, and its words."""

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
    """``write`` takes any value ``read`` gives; ``holds`` compares what is with what is wanted."""

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
    """A word of a pattern, which ``expected`` tells in words."""

    pattern: str
    expected: str


Value = Union[Whole, Word, type[bool]]


@dataclass(frozen=True)
class Part:
    """A key within the mapping that is a setting's value."""

    value: Value
    description: str
    required: bool = True
    """Else null, its default, leaves it as it is."""


@dataclass(frozen=True)
class Key:
    """The key of a bed in hosts.yaml, of a setting's argument; null leaves it alone."""

    value: Value | Mapping[str, Part]
    description: str
    default: Any = None


Asked = Mapping[str, Any]
"""Arguments of ``settings_apply`` by name, ``interface`` among them; None asks for nothing."""


@dataclass(frozen=True)
class Declaration:
    """One setting of a host, wherever the harness has to know of it.

    ``on`` an interface it is a :class:`Setting`. It is asked for by the argument ``by``
    of ``settings_apply``, its name unless that is another, or when ``asked`` says so.
    ``wanted`` makes of what is and of what is asked what is to be; None: not to be had.
    """

    name: str
    on: Callable[[str], Setting]
    wanted: Callable[[Any, Asked], Any] | None = None
    by: str | None = None
    asked: Callable[[Asked, Collection[str]], bool] | None = None
    """By the arguments, and by which settings were skipped before."""
    each: bool = False
    """What is asked for is a mapping, each pair of which is set, or skipped, by itself."""
    check: Callable[[Any], object] | None = None
    """Raises an AgentError where what is asked for cannot be set on this host."""
    absent: str | None = None
    """What is said where it reads as None or as nothing: this host has it not."""
    off_if_absent: bool = False
    """Then it counts as off, which is nothing to tell."""
    hint: str | None = None
    """For one that was refused or did not take."""
    title: str = ""
    """As ``harness plan`` calls it."""
    shown: Callable[[Any], str] = str
    key: Key | None = None
    plain: Any = None
    """What a run asks of the dut where hosts.yaml has no key for it."""
    compared: bool = False
    """Campaigns in which it differs cannot be compared."""
    of_nic: bool = False
    """NICs differ in whether they have it: the report says where it was skipped."""

    @property
    def argument(self) -> str:
        return self.by or self.name


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


def numbered(name: str, path: Callable[[str], Path], **declared: Any) -> Declaration:
    """The number in the file ``path`` of an interface; None where there is no such file."""

    def on(interface: str) -> Setting:
        file = path(interface)
        return Setting(
            name,
            lambda: number(read_text(file)),
            lambda value: write_text(file, str(value)),
        )

    return Declaration(name, on, **declared)


def only_off(on: bool) -> None:
    """Refuse to switch on what a plain receive path has not."""
    if on:
        told = "RPS, RFS and threaded NAPI can only be switched off"
        raise AgentError(told, kind="configuration")


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
