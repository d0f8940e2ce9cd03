# SPDX-License-Identifier: MIT
"""Reads ``hosts.yaml`` into models: first in the flow.

Hides how an error gets its line and wording. All errors of a file are reported together,
each as ``FILE:LINE: KEY: what is wrong; expected what is right``.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from harness.base.errors import ConfigurationError
from harness.base.resources import shipped
from harness.config import addresses
from harness.config.document import MAX_BYTES, Document, KeyPath, RefusedError, parse, shortened
from harness.config.fields import EXPECTED
from harness.config.models import (
    DUTS,
    Bed,
    BedEntry,
    BedSettings,
    Host,
    HostsFile,
    LabgridHost,
    NetnsHost,
    QemuHost,
    SshHost,
    UmlHost,
)

_MAX_ERRORS = 10
_WORDS = {
    # The words of pydantic, and those of YAML.
    "Input should be ": "",
    "a valid ": "a ",
    "a boolean": "true or false",
    "an object": "a mapping",
    "a dictionary": "a mapping",
    "a array": "a list",
    "a tuple": "a list",
    "a string": "text",
    "integer": "whole number",
    "None": "null",
}
_SECRET = re.compile(
    r"pass(wd|word|phrase|code)?$|password|secret|token|credential|(api|private|access)_?key",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Problem:
    path: KeyPath
    text: str
    hint: str | None = None


def locate(path: Path | None = None) -> Path:
    """``path`` if given, else ``hosts.yaml`` in this directory, else the one that ships."""
    if path is not None:
        return path
    here = Path("hosts.yaml")
    # Also a dangling link: the user meant it, and load() reports what is wrong with it.
    return here if os.path.lexists(here) else shipped("hosts.yaml")


def load(path: Path) -> HostsFile:
    """Read and validate a hosts file; relative paths in it start from its directory.

    Raises:
        ConfigurationError: with every error found (at most ten are shown).
    """
    raw = _content(path)
    try:
        document = parse(raw)
    except RefusedError as error:
        line = f":{error.line}" if error.line else ""
        raise ConfigurationError(f"{path}{line}: {error}") from error
    if not isinstance(document.data, dict):
        raise ConfigurationError(f"{path}: no keys; expected version, beds and hosts")
    if secrets := list(_secrets(document.data)):
        raise _error(path, document, secrets)
    try:
        hosts = HostsFile.model_validate_json(
            # JSON, because strict models read addresses and paths from nothing else.
            json.dumps(document.data),
            context={"home": Path.cwd() if _is_stream(path) else path.absolute().parent},
        )
    except ValidationError as error:
        raise _error(path, document, _told(document, error)) from error
    if problems := list(_unfit(hosts)):
        raise _error(path, document, problems)
    return hosts


def changed(hosts: HostsFile, values: Mapping[KeyPath, Any]) -> HostsFile:
    """``hosts`` with other values at these keys, checked as if the file had them.

    In a mapping that the file leaves null, switches that are not named are off.

    Raises:
        ConfigurationError: says only what is wrong with a value, not where.
    """
    data: Any = hosts.model_dump(mode="json")
    for path, value in values.items():
        inner = data
        for depth, part in enumerate(path[:-1], start=1):
            if inner[part] is None:
                inner[part] = {
                    name: False
                    for model in _owners((*path[:depth], ""))
                    for name, field in model.model_fields.items()
                    if field.is_required() and field.annotation is bool
                }
            inner = inner[part]
        inner[path[-1]] = value
    document = parse(json.dumps(data).encode())
    try:
        # Its paths are absolute already.
        found = HostsFile.model_validate_json(json.dumps(data), context={"home": Path("/")})
        problems = list(_unfit(found))
    except ValidationError as error:
        problems = _told(document, error)
    if problems:
        hint = next((problem.hint for problem in problems if problem.hint), None)
        raise ConfigurationError("; ".join(problem.text for problem in problems), hint=hint)
    return found


def _content(path: Path) -> bytes:
    """The bytes of ``path``, a regular file or a stream such as /dev/stdin."""
    hint = "name another file with --hosts; `harness hosts schema` lists its keys"
    try:
        # O_NONBLOCK: refuse a FIFO instead of waiting for it.
        flags = os.O_RDONLY | os.O_CLOEXEC | (0 if _is_stream(path) else os.O_NONBLOCK)
        with open(os.open(path, flags), "rb") as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode) and not _is_stream(path):
                raise ConfigurationError(f"cannot read {path}: not a regular file", hint=hint)
            return file.read(MAX_BYTES + 1)
    except ValueError as error:  # a NUL
        raise ConfigurationError(f"cannot read {str(path)!a}: {error}", hint=hint) from error
    except OSError as error:
        why = error.strerror or str(error)
        if path.is_symlink() and error.errno == errno.ENOENT:
            why = f"it is a link to {os.readlink(path)}, which does not exist"  # noqa: PTH115
            hint = "fix the link, mount the file system with the file, or use --hosts"
        raise ConfigurationError(f"cannot read {path}: {why}", hint=hint) from error


def _is_stream(path: Path) -> bool:
    return str(path).startswith(("/dev/stdin", "/dev/fd/", "/proc/self/fd/"))


def bed(hosts: HostsFile, name: str | None = None) -> Bed:
    """The bed ``name`` (the default bed when None) with both of its hosts."""
    name = hosts.default_bed if name is None else name
    if name not in hosts.beds:
        raise ConfigurationError(
            f"no bed is named {shortened(name)}; expected {_one_of(hosts.beds)}",
            hint=_did_you_mean(name, hosts.beds),
        )
    entry = hosts.beds[name]
    dut, generator = hosts.hosts[entry.dut], hosts.hosts[entry.generator]
    if isinstance(dut, NetnsHost) or isinstance(generator, QemuHost):
        raise ConfigurationError(f"the hosts of bed {name} do not fit their roles")
    return Bed(
        **{field: getattr(entry, field) for field in BedSettings.model_fields},
        name=name,
        dut_name=entry.dut,
        dut=dut,
        generator_name=entry.generator,
        generator=generator,
        labgrid=entry.labgrid,
    )


def beds(hosts: HostsFile, name: str | None, names: Sequence[str]) -> tuple[Bed, ...]:
    """The beds ``names``, to be used at the same time; without ``names``, the bed ``name``.

    Raises:
        ConfigurationError: they share something, or have different settings.
    """
    if name is not None and names:
        raise ConfigurationError("--bed and --beds exclude each other")
    found = tuple(bed(hosts, one) for one in names or (name,))
    if len(found) < 2:
        return found
    used: dict[object, str] = {}
    tested: dict[object, str] = {}
    for one in found:
        if one.kind != "hardware":
            raise ConfigurationError(
                f"bed {one.name} is {one.kind}; only beds of machines can be used at the same time",
                hint="other beds would share the CPUs of this machine",
            )
        for called, side in ((one.dut_name, one.dut), (one.generator_name, one.generator)):
            where = addresses.machine_of(side) if isinstance(side, SshHost) else called
            if other := used.get(where):
                raise ConfigurationError(
                    f"bed {one.name} is named twice"
                    if other == one.name
                    else f"beds {other} and {one.name} share host {called}"
                )
            used[where] = one.name
            if other := tested.get(side.address.ip):
                raise ConfigurationError(
                    f"beds {other} and {one.name} both use the address {side.address.ip}",
                    hint="beds that are used at the same time need different networks, such as "
                    "198.18.1.0/24 and 198.18.2.0/24",
                )
            tested[side.address.ip] = one.name
        for field in BedSettings.model_fields:
            if getattr(one, field) != getattr(found[0], field):
                raise ConfigurationError(
                    f"beds {found[0].name} and {one.name} differ in {field}",
                    hint="beds that are used at the same time need the same settings",
                )
    return found


def host(hosts: HostsFile, name: str) -> Host:
    """The host ``name``."""
    if name not in hosts.hosts:
        raise ConfigurationError(
            f"no host is named {shortened(name)}; expected {_one_of(hosts.hosts)}",
            hint=_did_you_mean(name, hosts.hosts),
        )
    return hosts.hosts[name]


def machine(hosts: HostsFile, name: str) -> SshHost:
    """The machine ``name``, which is reached by ssh.

    Raises:
        ConfigurationError: there is no such host, or its kind is not ssh.
    """
    found = host(hosts, name)
    if isinstance(found, SshHost):
        return found
    if isinstance(found, LabgridHost):
        raise ConfigurationError(
            f"host {name} is of kind labgrid: its address is known only while its place is acquired"
        )
    known = [key for key, one in hosts.hosts.items() if isinstance(one, SshHost)]
    raise ConfigurationError(
        f"host {name} is of kind {found.kind}; expected a machine of kind ssh",
        hint=f"hosts of kind ssh: {', '.join(known)}" if known else "hosts.yaml has none",
    )


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a hosts file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **HostsFile.model_json_schema(),
        "title": "hosts.yaml of the receive-batching harness",
    }


def _secrets(value: Any, path: KeyPath = ()) -> Iterator[_Problem]:
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _secrets(inner, (*path, number))
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        named_by_user = path in {("beds",), ("hosts",)} and isinstance(inner, dict)
        told_elsewhere = isinstance(inner, dict) and set(inner) <= {"env", "file", "keyring"}
        if _SECRET.search(key) and not named_by_user and not told_elsewhere:
            yield _Problem(
                (*path, key),
                "looks like a secret; expected none in this file",
                "keep ssh keys in your ssh agent, give a BMC's password as password: "
                "{env: VARIABLE}, and consider the secret in this file compromised",
            )
        yield from _secrets(inner, (*path, key))


def _told(document: Document, error: ValidationError) -> list[_Problem]:
    """The errors of pydantic in our words, one for each key."""
    texts: dict[KeyPath, list[str]] = {}
    hints: dict[KeyPath, str | None] = {}
    for detail in error.errors(include_url=False):
        loc = detail["loc"]
        missing = detail["type"] == "missing"
        path = _path(document, loc[:-1] if missing else loc)
        text = _text(detail, loc)
        if missing:
            path = (*path, loc[-1])
        elif detail["type"].startswith("union_tag"):
            path = _path(document, (*loc, "kind"))
        elif detail["type"] == "extra_forbidden":
            hints[path] = _did_you_mean(str(loc[-1]), _fields(loc))
        if text not in texts.setdefault(path, []):
            texts[path].append(text)
    return [
        _Problem(path, _merged(alternatives), hints.get(path))
        for path, alternatives in texts.items()
        # If an error inside a mapping is reported, "not the word auto" is noise.
        if not any(other[: len(path)] == path and other != path for other in texts)
    ]


def _text(detail: Any, loc: KeyPath) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    value = _shown(detail["input"], loc)
    if kind == "missing":
        return f"missing; expected {_description(loc)}"
    if kind == "extra_forbidden":
        return f"unknown key; expected {_one_of(_fields(loc))}"
    if kind.startswith("union_tag"):
        return f"unknown kind; expected kind: {context.get('expected_tags', 'qemu, netns or ssh')}"
    if kind == "by_key":
        return str(detail["msg"])
    if kind == "string_pattern_mismatch":
        return f"{value} is not usable; expected {EXPECTED[context['pattern']]}"
    if loc[-1] == "address":
        return f"{value} is not usable; expected {_description(loc)}"
    if kind == "value_error":
        return str(context["error"])
    if kind in {"too_short", "too_long"}:
        return f"{value} is not usable; expected 1 to 64 items"
    expected = detail["msg"].partition(", got ")[0].partition(", unable ")[0]
    for theirs, ours in _WORDS.items():
        expected = expected.replace(theirs, ours)
    return f"{value} is not usable; expected {expected}"


def _shown(value: Any, loc: KeyPath) -> str:
    """``value`` in the words of YAML, but nothing of it where it may be a secret."""
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    secret = any(_SECRET.search(str(part)) for part in loc[2:])  # after the host's own name
    if isinstance(value, str) and ":" in value:
        secret = secret or "@" in value or loc[-1] == "user"
    return "the value" if secret else shortened(value)


def _merged(alternatives: list[str]) -> str:
    first, *others = alternatives
    return first + "".join(f" or {other.partition('; expected ')[2]}" for other in others)


def _path(document: Document, loc: Iterable[str | int]) -> KeyPath:
    """``loc`` without the parts that name a member of a union instead of a key."""
    path: KeyPath = ()
    for part in loc:
        if (*path, part) in document.lines:
            path = (*path, part)
    return path


def _owners(loc: KeyPath) -> list[type[BaseModel]]:
    """The models that may hold the last key of ``loc``."""
    models: list[type[BaseModel]] = [HostsFile]
    for part in loc[:-1]:
        inner = [
            found
            for model in models
            if part in model.model_fields
            for found in _models_in(model.model_fields[str(part)])
        ]
        tagged = [model for model in models if part in _tags(model)]
        models = inner or tagged or models
    return models


def _models_in(annotated: Any) -> list[type[BaseModel]]:
    annotation = getattr(annotated, "annotation", annotated)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _models_in(inner)]


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation) if kind else (f"with {next(iter(model.model_fields))}",)


def _fields(loc: KeyPath) -> list[str]:
    return [field for model in _owners(loc) for field in model.model_fields]


def _description(loc: KeyPath) -> str:
    for model in _owners(loc):
        field = model.model_fields.get(str(loc[-1]))
        if field is not None and field.description:
            return field.description
    return "a value"


def _unfit(hosts: HostsFile) -> Iterator[_Problem]:
    """What the models cannot check: unknown names, hosts that do not fit together."""
    if hosts.default_bed not in hosts.beds:
        yield _unknown(("default_bed",), "bed", hosts.default_bed, hosts.beds)
    for name, host in hosts.hosts.items():
        for key, text in addresses.of_host(host):
            yield _Problem(("hosts", name, *key), text)
    for name, entry in hosts.beds.items():
        lost = [role for role in ("dut", "generator") if getattr(entry, role) not in hosts.hosts]
        for role in lost:
            yield _unknown(("beds", name, role), "host", getattr(entry, role), hosts.hosts)
        if not lost:
            yield from _unfit_bed(hosts, ("beds", name), entry)


def _unfit_bed(hosts: HostsFile, path: KeyPath, entry: BedEntry) -> Iterator[_Problem]:
    dut, generator = hosts.hosts[entry.dut], hosts.hosts[entry.generator]
    roles = {"dut": DUTS, "generator": dut.generators}
    for role, host in (("dut", dut), ("generator", generator)):
        if host.kind not in roles[role]:
            of = f" to a {dut.kind} dut" if role == "generator" else ""
            yield _Problem(
                (*path, role),
                f"{getattr(entry, role)} is of kind {host.kind}, which cannot be a "
                f"{role}{of}; expected a host of kind {' or '.join(roles[role])}",
            )
            return
    if entry.dut == entry.generator:
        yield _Problem((*path, "generator"), "the dut itself; expected another host")
        return
    both = dut.address, generator.address
    fit = both[0].network == both[1].network and both[0].ip != both[1].ip
    if not fit and not any(map(addresses.of_test, both)):
        yield _Problem(
            (*path, "generator"),
            f"{generator.address} does not reach the dut's {dut.address}; "
            "expected two addresses in one network",
        )
    for key, text in addresses.shared(dut, generator):
        yield _Problem(("hosts", entry.generator, key), text)
    for role, host in (("dut", dut), ("generator", generator)):
        if isinstance(host, LabgridHost) and entry.labgrid is None:
            yield _Problem(
                (*path, role),
                f"{getattr(entry, role)} is of kind labgrid; expected a labgrid place in the bed",
                "add labgrid: {place: NAME} to the bed",
            )
    if entry.steering == "ntuple" and entry.rx_queues != 1:
        yield _Problem(
            (*path, "steering"), "a rule steers to one queue; expected rx_queues: 1 with it"
        )
    if isinstance(dut, QemuHost | UmlHost):
        if entry.labgrid:
            yield _Problem((*path, "labgrid"), "its hosts are on this machine; expected none")
        yield from _unfit_guest(path, entry, dut)
    elif entry.cpus != "auto":
        yield _Problem((*path, "cpus"), "there is no guest; expected auto")


def _unfit_guest(path: KeyPath, entry: BedEntry, dut: QemuHost | UmlHost) -> Iterator[_Problem]:
    place = entry.placement
    for key, cpu in (("irq_cpu", place.irq_cpu), ("netserver_cpu", place.netserver_cpu)):
        if isinstance(cpu, int) and cpu >= dut.vcpus:
            known = f"0 to {dut.vcpus - 1}" if dut.vcpus > 1 else "0, its only CPU"
            yield _Problem(
                (*path, "placement", key), f"{entry.dut} has no CPU {cpu}; expected {known}"
            )
    if entry.rx_queues > dut.vcpus:
        yield _Problem(
            (*path, "rx_queues"),
            f"more than the {dut.vcpus} vCPUs of {entry.dut}; expected 1 to {dut.vcpus}"
            if dut.vcpus > 1
            else f"{entry.dut} has one CPU; expected 1",
        )
    if place.netperf_cpus != "auto":
        yield _Problem(
            (*path, "placement", "netperf_cpus"),
            f"{entry.generator} runs on this machine; expected auto here and netperf in cpus",
        )


def _unknown(path: KeyPath, what: str, name: str, known: Iterable[str]) -> _Problem:
    return _Problem(
        path,
        f"no {what} is named {shortened(name)}; expected {_one_of(known)}",
        _did_you_mean(name, known),
    )


def _one_of(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


def _did_you_mean(name: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, sorted(set(known)), n=1)
    return f"did you mean {close[0]}?" if close else None


def _key(part: str | int) -> str:
    text = str(part)
    return text if text.isascii() and len(text) <= 60 else shortened(text)


def _error(path: Path, document: Document, problems: list[_Problem]) -> ConfigurationError:
    """One error for ``problems``, in the order of the file."""

    def line(problem: _Problem) -> int:
        return next(
            document.lines[problem.path[:length]]
            for length in range(len(problem.path), -1, -1)
            if problem.path[:length] in document.lines
        )

    ordered = sorted(problems, key=line)
    told = [
        f"{path}:{line(problem)}: {'.'.join(map(_key, problem.path))}: {problem.text}"
        for problem in ordered[:_MAX_ERRORS]
    ]
    if len(ordered) > _MAX_ERRORS:
        told.append(f"and {len(ordered) - _MAX_ERRORS} more")
    hints = list(dict.fromkeys(problem.hint for problem in ordered if problem.hint))
    return ConfigurationError(
        "\n".join(told),
        hint="; ".join(hints[:3]) or "`harness hosts schema` lists the keys of the file",
    )
