# SPDX-License-Identifier: MIT
"""The series that ship under ``kernel-patches/``, and which of them fits a tree.

Hides the layout: a directory for each base, a ``series`` file that lists the patches in
order, and file names whose number is the step: ``0000-prelude-*`` makes step 0, ``0001-*``
step 1, and so on. A file ``optional`` lists patches that each make an additional step:
``0002m-*`` on top of step 2 makes step 2m. From number 10 on each is on top of those from 10
before it as well, and all on top of step 8. ``8+11`` is step 8 with that one patch. The tree
without any patch is called ``shipped``.
"""

from __future__ import annotations

import email
import email.policy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.base.errors import ConfigurationError, InfrastructureError
from harness.base.resources import shipped
from harness.plan import FIRST_STAIR, SHIPPED, parts_of

_FILE_NAME = re.compile(r"(\d{4})([a-z]?)-[\w.+-]+\.patch")
_PREFIX = re.compile(r"^\s*(\[[^\]]*\]\s*)+")
_VERSION = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL)\s*=\s*(\d+)\s*$", re.MULTILINE)
_DIFF = re.compile(r"^diff --git a/(\S+) b/(\S+)$", re.MULTILINE)


class UnknownBaseError(ConfigurationError):
    """No series ships for the tree's version."""


@dataclass(frozen=True)
class Patch:
    """One patch in mail form; ``files`` are the paths it touches, from the tree's top."""

    path: Path
    step: int
    variant: str
    """The letter after the number of an optional step; empty in the series itself."""
    subject: str
    author: str
    changelog: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """The step it makes, such as ``2`` or ``2m``."""
        return f"{self.step}{self.variant}"

    @classmethod
    def read(cls, path: Path) -> Patch:
        """The patch in ``path``; its file name has the step."""
        named = _FILE_NAME.fullmatch(path.name)
        if named is None:
            raise InfrastructureError(f"{path}: expected a name like 0001-what-it-does.patch")
        try:
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise InfrastructureError(f"cannot read {path}: {error.strerror}") from error
        header, _, body = text.partition("\n\n")
        mail = email.message_from_string(header, policy=email.policy.default)
        changelog = re.split(r"^(?:---|diff --git .*)$", body, maxsplit=1, flags=re.MULTILINE)[0]
        return cls(
            path=path,
            step=int(named[1]),
            variant=named[2],
            subject=_PREFIX.sub("", str(mail["Subject"] or "")).strip(),
            author=str(mail["From"] or ""),
            changelog=changelog.strip(),
            files=tuple(dict.fromkeys(name for pair in _DIFF.findall(text) for name in pair)),
        )


@dataclass(frozen=True)
class Series:
    """The patches for one base, in order; ``base`` is a name such as ``linux-6.12``."""

    base: str
    directory: Path
    patches: tuple[Patch, ...]
    optional: tuple[Patch, ...] = ()
    """Each makes an additional step, see :meth:`upto`."""

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps of the series, starting with ``"0"``."""
        return tuple(str(step) for step in sorted({0, *(patch.step for patch in self.patches)}))

    @property
    def optional_steps(self) -> tuple[str, ...]:
        """The steps that :attr:`optional` makes."""
        return tuple(patch.name for patch in self.optional)

    def upto(self, step: str | int) -> tuple[Patch, ...]:
        """The patches between the tree as it ships and ``step``, the prelude included.

        Raises:
            ConfigurationError: the series has no such step.
        """
        name = str(step)
        if name == SHIPPED:
            return ()
        first, *added = parts_of(name)
        own = [patch for patch in self.optional if patch.name in (added or [first])]
        unknown = {first, *added} - {*self.steps, *(patch.name for patch in own)}
        if unknown or (added and first not in self.steps) or len(own) < len(added):
            known = ", ".join((*self.steps, *self.optional_steps, SHIPPED))
            raise ConfigurationError(
                f"series {self.base} has no step {step}; expected {known}, "
                "or a numbered step with optional patches over it, such as 8+11"
            )
        if added or not own:
            number = int(first)
        elif own[0].step < FIRST_STAIR:
            number = own[0].step
        else:
            number = int(self.steps[-1])
            own = [each for each in self.optional if FIRST_STAIR <= each.step <= own[0].step]
        return (*(patch for patch in self.patches if patch.step <= number), *own)

    def patches_for(self, step: str | int) -> tuple[Path, ...]:
        """The patch files of :meth:`upto`."""
        return tuple(patch.path for patch in self.upto(step))


def list_series(home: Path | None = None) -> list[Series]:
    """Every series under ``home`` (None: those that ship), oldest base first."""
    home = home or shipped("kernel-patches")
    return [
        _read(file.parent)
        for file in sorted(home.glob("*/series"), key=lambda file: _number(file.parent.name))
    ]


def series(name: str, home: Path | None = None) -> Series:
    """The series called ``name``.

    Raises:
        UnknownBaseError: no series has that name; the message lists the names.
    """
    home = home or shipped("kernel-patches")
    names = [found.base for found in list_series(home)]
    if name not in names:
        raise UnknownBaseError(f"no series {name}; expected {_listed(names)}")
    return _read(home / name)


def series_for(tree: Path, name: str = "auto", home: Path | None = None) -> Series:
    """The series called ``name``, or with ``auto`` the one for the version of ``tree``.

    Raises:
        UnknownBaseError: no series ships for that version.
        ConfigurationError: ``tree`` is not a kernel tree.
    """
    if name != "auto":
        return series(name, home)
    base, release = base_of(tree)
    available = list_series(home)
    for found in available:
        if found.base == base:
            return found
    closest = nearest(base, available)
    raise UnknownBaseError(
        f"{tree} is Linux {release}, for which no series ships; "
        f"expected {_listed([found.base for found in available])}",
        hint=f"`harness patches check {tree} --series {closest.base}` shows how much of the "
        "nearest series applies, `harness patches rebase` ports it"
        if closest
        else None,
    )


def bed_patches(arch: str, base: str, home: Path | None = None) -> tuple[Path, ...]:
    """The patches that a kernel of ``base`` needs to boot as ``arch``, at every step.

    Raises:
        ConfigurationError: there are none for that base.
    """
    home = (home or shipped("kernel-patches")) / f"bed-{arch}"
    if not (home / base / "series").is_file():
        known = _listed(sorted((file.parent.name for file in home.glob("*/series")), key=_number))
        raise ConfigurationError(
            f"{base} cannot be built to run as a process ({arch}); expected {known}",
            hint="that needs virt-pci, which Linux has since 5.14; boot it on a virtual bed: "
            "--bed virtual",
        )
    return tuple(patch.path for patch in _named_in(home / base / "series"))


def nearest(base: str, available: Sequence[Series]) -> Series | None:
    """The series in ``available`` for the version closest to ``base``; None if it is empty."""
    return min(available, key=lambda known: _distance(known.base, base), default=None)


def base_of(tree: Path) -> tuple[str, str]:
    """The base and the release of a kernel tree, such as ``("linux-6.12", "6.12.117")``.

    Raises:
        ConfigurationError: its Makefile does not state a version.
    """
    require_kernel(tree, str(tree))
    stated = _stated(tree)
    base = f"{stated['VERSION']}.{stated['PATCHLEVEL']}"
    return f"linux-{base}", f"{base}.{stated.get('SUBLEVEL', '0')}"


def is_kernel(tree: Path) -> bool:
    """Does ``tree`` have a Makefile that states a version of Linux?"""
    return {"VERSION", "PATCHLEVEL"} <= _stated(tree).keys()


def require_kernel(tree: Path, named: str) -> None:
    """Raise a :class:`ConfigurationError` unless ``tree``, called ``named``, is a kernel tree."""
    if not is_kernel(tree):
        raise ConfigurationError(
            f"{named} is not a kernel tree: no Makefile states VERSION and PATCHLEVEL",
            hint="name the top directory of an unpacked kernel source",
        )


def _stated(tree: Path) -> dict[str, str]:
    try:
        with (tree / "Makefile").open(encoding="utf-8", errors="replace") as makefile:
            return dict(_VERSION.findall(makefile.read(4096)))
    except OSError:
        return {}


def _read(directory: Path) -> Series:
    return Series(
        base=directory.name,
        directory=directory,
        patches=_named_in(directory / "series"),
        optional=_named_in(directory / "optional"),
    )


def _named_in(file: Path) -> tuple[Patch, ...]:
    """The patches that ``file`` lists, one a line; empty without that file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [name for line in lines if (name := line.partition("#")[0].strip())]
    return tuple(Patch.read(file.with_name(name)) for name in names)


def _number(base: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", base))


def _distance(known: str, wanted: str) -> tuple[int, ...]:
    pairs = zip(_number(known), _number(wanted), strict=False)
    return tuple(abs(one - other) for one, other in pairs)


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none ships"
