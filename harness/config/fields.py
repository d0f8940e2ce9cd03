# SPDX-License-Identifier: MIT
"""The types of values in ``hosts.yaml``: patterns and their descriptions, paths, the base model.

Names that are used in commands have strict patterns.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    ValidationInfo,
)

EXPECTED: dict[str, str] = {}
"""By pattern, its description for error messages."""

_PORT = "(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"


def _pattern(pattern: str, expected: str) -> StringConstraints:
    EXPECTED[pattern] = expected
    return StringConstraints(pattern=pattern)


def _from_the_file(path: Path, info: ValidationInfo) -> Path:
    text = str(path)
    if "://" in text or re.match(r"(?i)(https?|git|ssh):/", text):
        raise ValueError("a URL; expected a path on this machine")
    if not text.isprintable():
        raise ValueError("a path with unprintable characters; expected one without")
    if re.search(r"\$[{A-Za-z_]", text):
        raise ValueError("variables are not expanded here; expected a path without $")
    try:
        return Path((info.context or {}).get("home", "")) / path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{error}; expected a path without ~") from error


def _program_from_the_file(command: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    """A program with a / is relative to the file's directory; others are found in PATH."""
    program, *words = command
    return (str(_from_the_file(Path(program), info)) if "/" in program else program, *words)


Cpu = Annotated[int, Field(ge=0, le=4095)]
Port = Annotated[int, Field(ge=1, le=65535)]
Cpus = Annotated[tuple[Cpu, ...], Field(min_length=1, max_length=1024)]
FilePath = Annotated[Path, AfterValidator(_from_the_file)]
Name = Annotated[
    str, _pattern(r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$", "a name of letters, digits, - and _")
]
Hostname = Annotated[
    str,
    _pattern(
        r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?|[0-9A-Fa-f:]{2,39})$",
        "a host name, an address, or a Host of your OpenSSH configuration",
    ),
]
User = Annotated[str, _pattern(r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}$", "a user name")]
Interface = Annotated[
    str,
    _pattern(r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$", "an interface name such as enp1s0f0np0"),
]
Mac = Annotated[
    str,
    _pattern(
        r"^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$",
        "a unicast MAC address such as 02:00:00:00:00:02, in lower case",
    ),
]
Url = Annotated[
    str,
    _pattern(r"^https?://[A-Za-z0-9.:\[\]_-]{1,255}(/[A-Za-z0-9._~/-]*)?$", "an https:// address"),
]
SystemId = Annotated[
    str,
    _pattern(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", "a system such as 1 or System.Embedded.1"),
]
Coordinator = Annotated[
    str,
    _pattern(
        rf"^([A-Za-z0-9]([A-Za-z0-9._-]{{0,251}}[A-Za-z0-9])?|\[[0-9A-Fa-f:]{{2,39}}\]){_PORT}$",
        "HOST or HOST:PORT of a labgrid coordinator",
    ),
]
LabgridName = Annotated[
    str,
    _pattern(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$", "a name of letters, digits, dots, - and _"),
]
Variable = Annotated[
    str, _pattern(r"^[A-Za-z_][A-Za-z0-9_]{0,63}$", "the name of an environment variable")
]
KeyringEntry = Annotated[
    str, _pattern(r"^[A-Za-z0-9._@-]{1,64}/[A-Za-z0-9._@-]{1,64}$", "SERVICE/USER of a keyring")
]
Word = Annotated[
    str, _pattern(r"^[^\x00-\x08\x0b-\x1f\x7f]{1,4096}$", "a word without control characters")
]
Command = Annotated[
    tuple[Word, ...], Field(min_length=1, max_length=64), AfterValidator(_program_from_the_file)
]
KernelConsole = Annotated[
    str,
    _pattern(
        r"^(tty[A-Za-z]{1,8}[0-9]{1,3}|hvc[0-9]{1,2})(,[0-9a-z,]{1,32})?$",
        "a console as kernels name it, such as ttyS1,115200n8",
    ),
]
Suite = Annotated[str, _pattern(r"^[a-z][a-z0-9-]{0,31}$", "a Debian suite such as trixie")]
Package = Annotated[
    str, _pattern(r"^[a-z0-9][a-z0-9+.-]{1,63}$", "a package such as linux-source-6.12")
]
GitRef = Annotated[
    str, _pattern(r"^[A-Za-z0-9][A-Za-z0-9._/~^-]{0,199}$", "a commit, tag or branch")
]
DistccHost = Annotated[
    str,
    _pattern(
        r"^(([A-Za-z_][A-Za-z0-9_.-]{0,31})?@)?[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?"
        rf"{_PORT}(/[0-9]{{1,4}})?(,lzo)?$",
        "a host as distcc names it, such as builder.lab.example:3632/16,lzo",
    ),
]
SeriesName = Annotated[
    str, _pattern(r"^(auto|linux-[0-9]+\.[0-9]+)$", "auto or a series such as linux-6.12")
]


class Model(BaseModel):
    """Frozen; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def by_key(expected: str) -> Discriminator:
    """Chooses a model by its first key; ``expected`` shows each as ``key: VALUE``."""
    names = re.findall(r"(\w+): ", expected)

    def tag(value: Any) -> str | None:
        keys = value if isinstance(value, dict) else getattr(type(value), "model_fields", ())
        return next((f"with {name}" for name in names if name in keys), None)

    return Discriminator(
        tag, custom_error_type="by_key", custom_error_message=f"expected one of {expected}"
    )
