# SPDX-License-Identifier: MIT
"""``--vary``: factors that are not code, from their text to what a boot is given.

Hides where a level takes effect: a setting of the dut or the burst of its wire (a bed of its
own), the command line (a boot of its own), or the configuration (a kernel of its own). Every
cell is booted, so a level needs nothing that a boot does not have. What a value may be, and the
message if it may not, are those of hosts.yaml.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from harness import cells, config
from harness.agent.settings.registry import KEYED
from harness.base.errors import ConfigurationError
from harness.config import Bed, BedSettings, HostsFile
from harness.config.document import RefusedError, parse
from harness.kernels import Image

DEFAULT = "default"
"""The level at which hosts.yaml decides."""
BURST, CMDLINE, CONFIG, QUEUES = "burst", "cmdline", "config", "rx_queues"
MAX_CELLS = 32
"""More must be a mistake: a block would take minutes, and its boots gigabytes."""

_LOOKS_LIKE = "write KEY=LEVEL,LEVEL, such as --vary burst=1,8,64 or --vary gro=on,off"
_OPTION = re.compile(r"CONFIG_[A-Z0-9_]{1,80}=(y|m|n|-?\d{1,20}|0x[0-9A-Fa-f]{1,16})", re.ASCII)
_WORD = re.compile(r"[\w./@:=+%-]{1,200}", re.ASCII)
_OF_THE_BED = ("root", "init", "mem", "console", "ro", "rw", "rootfstype")
_SWITCHES = {"on": "true", "off": "false"}


@dataclass(frozen=True)
class _Key:
    """A key that can be varied: where it is in a bed of hosts.yaml."""

    path: tuple[str, ...] = ()
    """Below the bed; empty: it is not in hosts.yaml, or of the dut."""
    switch: bool = False
    argument: str | None = None
    """The agent's argument, for a setting."""
    about: str = ""


def _keys() -> dict[str, _Key]:
    found = {
        BURST: _Key(about="most frames that the wire of the dut delivers at once"),
        QUEUES: _Key((QUEUES,), argument=QUEUES, about="receive queues in use on the dut"),
        CMDLINE: _Key(about="words for the kernel's command line"),
        CONFIG: _Key(about="options of the kernel's configuration; each level is a kernel"),
    }
    for name, one in KEYED.items():
        assert one.key is not None
        value = one.key.value
        if not isinstance(value, Mapping):
            found[name] = _Key((name,), value is bool, name, one.key.description)
            continue
        for part, of in value.items():
            known = f"{name}.{part}" if name == "sysctl" else part
            found[known] = _Key((name, part), of.value is bool, name, of.description)
    return found


KEYS: Mapping[str, _Key] = MappingProxyType(_keys())
"""What can be varied, by its name."""


@dataclass(frozen=True)
class Varied:
    """The factors of a run, and what each combination of levels means; without any, nothing."""

    factors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    _beds: Mapping[str, Bed] = field(default_factory=dict)
    """By the levels in a cell's name."""

    def cells(self, variants: Sequence[str]) -> tuple[str, ...]:
        """What is booted in each block.

        Raises:
            ConfigurationError: they are too many.
        """
        found = cells.crossed(variants, self.factors)
        if self.factors and len(found) > MAX_CELLS:
            raise ConfigurationError(
                f"--vary crosses {len(variants)} variants with "
                f"{' × '.join(str(len(levels)) for levels in self.factors.values())} levels: "
                f"{len(found)} boots in each block; at most {MAX_CELLS} are possible",
                hint="vary fewer levels, or use fewer --steps",
            )
        return found

    def bed(self, bed: Bed, cell: str) -> Bed:
        """``bed`` at the levels of ``cell``."""
        at = self._beds.get(cells.at(cells.levels_of(cell)))
        if at is None:
            return bed
        own: dict[str, Any] = {name: getattr(at, name) for name in BedSettings.model_fields}
        wire = getattr(at.dut, "wire", None)
        if wire is not None:
            own["dut"] = bed.dut.model_copy(update={"wire": wire})
        return bed.model_copy(update=own)

    def image(self, image: Image, cell: str) -> Image:
        """``image`` with the command line of ``cell``."""
        words = _level(cell, CMDLINE)
        return replace(image, cmdline=tuple(words.split())) if words else image

    def options(self, cell: str) -> tuple[str, ...]:
        """The options of the configuration of ``cell``."""
        return tuple((_level(cell, CONFIG) or "").split())

    def require_made(self, cell: str, skipped: Sequence[Mapping[str, str]]) -> None:
        """Raise if a level of ``cell`` is among the settings that the dut ``skipped``.

        Raises:
            ConfigurationError: names the key, the level and why.
        """
        why = {row["setting"]: row["why"] for row in skipped}
        for key, level in cells.levels_of(cell).items():
            of = KEYS[key]
            declared = KEYED.get(of.argument or "")
            name = declared.name if declared else of.argument or ""
            names = {name, ".".join((name, *of.path[1:]))}
            for name in names & why.keys():
                raise ConfigurationError(
                    f"--vary {key}={level}: the dut does not have it: {why[name]}",
                    hint="vary another setting, or use another bed",
                )


def _level(cell: str, key: str) -> str | None:
    level = cells.levels_of(cell).get(key)
    return None if level == DEFAULT else level


def read(texts: Sequence[str], hosts: HostsFile, bed: Bed) -> Varied:
    """The factors in ``texts``, each KEY=LEVEL,LEVEL, on ``bed`` of ``hosts``.

    Raises:
        ConfigurationError: names the option, key, level and the fix.
    """
    factors: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, levels = _parsed(text)
        if key in factors:
            raise ConfigurationError(
                f"--vary {key} is given twice", hint=f"write all levels once: --vary {key}=A,B,C"
            )
        _require_possible(key, bed)
        factors[key] = levels
    for key, levels in factors.items():
        _require_distinct(key, levels, hosts, bed)
    beds = {
        cells.at(levels): _bed(levels, hosts, bed) for levels in cells.combined(factors) if levels
    }
    return Varied(factors, beds)


def _parsed(text: str) -> tuple[str, tuple[str, ...]]:
    """The key and the levels; a single level is compared with the default."""
    name, sign, rest = text.partition("=")
    key = name.strip()
    key = next((one for one, of in KEYS.items() if of.path and ".".join(of.path) == key), key)
    if not sign:
        raise ConfigurationError(f"--vary {text!a:.80} has no levels", hint=_LOOKS_LIKE)
    if key not in KEYS:
        near = difflib.get_close_matches(key, KEYS, n=3)
        raise ConfigurationError(
            f"--vary {text!a:.80}: {key!a:.40} cannot be varied",
            hint=f"did you mean {' or '.join(near)}?" if near else f"keys: {', '.join(KEYS)}",
        )
    levels = tuple(level.strip() for level in rest.split(","))
    for level in levels:
        if not cells.LEVEL.fullmatch(level):
            wrong = "is empty" if not level else "has a bracket or a control character"
            raise ConfigurationError(f"--vary {text!a:.80}: a level {wrong}", hint=_LOOKS_LIKE)
    return key, levels if len(levels) > 1 else (DEFAULT, *levels)


def _require_possible(key: str, bed: Bed) -> None:
    """Raise unless ``key`` can be varied on ``bed`` at all."""
    if key == BURST:
        wire = getattr(bed.dut, "wire", None)
        if wire is None:
            why, hint = "is a machine, whose wire the harness cannot change", "use --bed native"
        elif wire.repeat == 1:
            why = "has a wire that delivers each frame once, so bursts are those of netperf"
            hint = f"set wire: {{repeat: auto}} of host {bed.dut_name} in hosts.yaml"
        else:
            return
        raise ConfigurationError(f"--vary burst: bed {bed.name} {why}", hint=hint)
    if key == CMDLINE and bed.kind == "hardware":
        raise ConfigurationError(
            f"--vary cmdline: bed {bed.name} is of machines, whose kernels are installed with one "
            "command line",
            hint="use --bed native or --bed virtual",
        )


def _require_distinct(key: str, levels: Sequence[str], hosts: HostsFile, bed: Bed) -> None:
    """Raise unless all ``levels`` of ``key`` are possible and none is another in other words."""
    seen: dict[object, str] = {}
    for level in levels:
        effect = _effect(key, level, hosts, bed)
        other = seen.setdefault(effect, level)
        if other is not level or levels.count(level) > 1:
            raise ConfigurationError(
                f"--vary {key}: level {level!a:.60} is the default of bed {bed.name} already"
                if other == DEFAULT != level
                else f"--vary {key}: levels {other!a:.60} and {level!a:.60} are the same",
                hint="name levels that differ",
            )


def _effect(key: str, level: str, hosts: HostsFile, bed: Bed) -> object:
    """What ``level`` makes of the bed, or of the kernel."""
    if key not in (CMDLINE, CONFIG):
        made = _bed({key: level}, hosts, bed)
        return made.model_dump_json()
    if level == DEFAULT:
        return level
    if key == CONFIG:
        for option in level.split():
            if not _OPTION.fullmatch(option):
                raise ConfigurationError(
                    f"--vary config: {option!a:.80} is not an option of a kernel",
                    hint="write it as in a .config: --vary config=CONFIG_PREEMPT_NONE=y",
                )
        return tuple(sorted(level.split()))
    for word in level.split():
        if not _WORD.fullmatch(word):
            raise ConfigurationError(
                f"--vary cmdline: {word!a:.80} is not a plain word",
                hint="use letters, digits and ._/@:=+%- only",
            )
        if word.partition("=")[0] in _OF_THE_BED:
            raise ConfigurationError(
                f"--vary cmdline: {word!a:.80} is set by the bed itself", hint="leave it out"
            )
    return tuple(level.split())


def _bed(levels: Mapping[str, str], hosts: HostsFile, bed: Bed) -> Bed:
    """``bed`` of ``hosts`` with ``levels``, checked as hosts.yaml is."""
    values: dict[tuple[str | int, ...], Any] = {}
    for key, level in levels.items():
        if level == DEFAULT or key in (CMDLINE, CONFIG):
            continue
        of = KEYS[key]
        path = ("beds", bed.name, *of.path) if of.path else ("hosts", bed.dut_name, "wire", key)
        values[path] = _value(_SWITCHES.get(level, level) if of.switch else level)
    try:
        return config.bed(config.changed(hosts, values) if values else hosts, bed.name)
    except (ConfigurationError, RefusedError) as error:
        told = " ".join(f"{key}={level}" for key, level in levels.items())
        about = "; ".join(f"{key}: {KEYS[key].about}" for key in levels)
        hint = getattr(error, "hint", None) or about
        raise ConfigurationError(f"--vary {told}: {error}", hint=hint) from error


def _value(text: str) -> Any:
    """``text`` as a value in hosts.yaml; what is no plain value stays text."""
    value = parse(f"value: {text}".encode()).data["value"]
    return text if isinstance(value, dict | list) else value


def confounded(varied: Varied, bed: Bed) -> Iterator[str]:
    """What the design cannot tell apart, for ``harness plan``."""
    if len(varied.factors) > 1:
        yield (
            f"how {' and '.join(varied.factors)} act together is not judged: what one does is "
            "averaged over the levels of the others"
        )
    if BURST in varied.factors:
        yield (
            "burst: while the kernel waits for the next burst the receiver is not saturated, and "
            "its rate is void; CPU time per packet is judged beside it"
        )
        coalesce = bed.tuning()["coalesce"]
        if coalesce is None or coalesce["rx_usecs"] or coalesce["adaptive_rx"]:
            yield (
                "burst and interrupt moderation are confounded: each burst waits for the hold-off; "
                f"set coalesce: {{adaptive_rx: false, rx_usecs: 0}} of bed {bed.name} in hosts.yaml"
            )
    if CONFIG in varied.factors:
        yield (
            "config: its effect on the baseline includes that functions lie elsewhere; "
            "the layouts of the blocks average that"
        )
