# SPDX-License-Identifier: MIT
"""The boot loader of a host, and the interface of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .grub import Grub
from .record import Places
from .systemd_boot import SystemdBoot


class Loader(Protocol):
    """A boot loader that can boot an entry of the harness once."""

    @property
    def name(self) -> str:
        """The name that ``boot_can`` returns."""

    def why_not(self) -> str | None:
        """Why a one-shot boot is not safe here, or None."""

    def default(self) -> dict[str, Any]:
        """What decides which kernel boots by default."""

    def pending(self) -> str | None:
        """The entry that boots once: a release of the harness, another entry's name, or None."""

    def taken(self) -> str | None:
        """The release whose entry was booted since :meth:`arm`; None if that is not recorded."""

    def entries(self, wanted: Mapping[str, Sequence[str]]) -> None:
        """Write entries for exactly these releases with these parameters; none leaves nothing."""

    def arm(self, release: str) -> None:
        """Boot ``release`` at the next start of the machine, and only then."""

    def disarm(self) -> None:
        """Clear a one-shot of the harness; another one stays."""


def loader_of(places: Places) -> Loader | None:
    """The loader that started this boot, or else an installed GRUB."""
    systemd_boot = SystemdBoot(places)
    if systemd_boot.runs():
        return systemd_boot
    grub = Grub(places)
    return grub if grub.directory is not None else None
