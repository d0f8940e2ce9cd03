# SPDX-License-Identifier: MIT
"""A load named on the command line, in place of the one in hosts.yaml."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import get_args

from pydantic import ValidationError

from harness.base.errors import ConfigurationError
from harness.config.models import HostsFile, Load

_KINDS = get_args(Load.model_fields["kind"].annotation)
_KEYS = ("streams", "message_bytes")
_USUAL = {"tcp": {"message_bytes": 16384}}
"""What a kind has in place of hosts.yaml's value, which is that of another kind."""


def with_load(hosts: HostsFile, text: str | None) -> HostsFile:
    """``hosts`` with the load of ``text``, such as ``udp6,streams=4``; None: as it is.

    What ``text`` does not name stays as hosts.yaml has it.

    Raises:
        ConfigurationError: an unknown kind or key, or a value that is not possible.
    """
    if text is None:
        return hosts
    asked: dict[str, object] = {}
    for index, part in enumerate(text.split(",")):
        key, equals, value = part.strip().partition("=")
        if not equals and index == 0:
            asked["kind"] = _known(key, _KINDS, "load")
            continue
        name = _known(key, _KEYS, "key of a load")
        if not equals or name in asked:
            why = "is named twice" if equals else "has no value"
            raise ConfigurationError(f"--load: {name} {why}", hint=f"write {name}=NUMBER once")
        asked[name] = int(value) if value.isascii() and value.isdigit() else value
    changed = asked.get("kind", hosts.load.kind) != hosts.load.kind
    usual = _USUAL.get(str(asked.get("kind")), {}) if changed else {}
    try:
        load = Load.model_validate(hosts.load.model_dump() | usual | asked)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        expected = first["msg"].replace("Input should be ", "").replace("integer", "whole number")
        raise ConfigurationError(
            f"--load: {key}={asked[key]} is not usable; expected {expected}",
            hint=f"{key}: {Load.model_fields[key].description}",
        ) from error
    return hosts.model_copy(update={"load": load})


def _known(name: str, known: Iterable[str], what: str) -> str:
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    shown = "".join(one for one in name[:40] if one.isprintable())
    raise ConfigurationError(
        f"--load: no {what} is named {shown!r}; expected {', '.join(known)}",
        hint=f"did you mean {near[0]}?" if near else "for example udp6,streams=10,message_bytes=64",
    )
