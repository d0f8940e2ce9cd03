# SPDX-License-Identifier: MIT
"""Which boot loader a host has, and what is asked of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from .grub import Grub
from .record import Places
from .systemd_boot import SystemdBoot


class Loader(Protocol):
    """A boot loader that can boot an entry of ours once."""

    @property
    def name(self) -> str:
        """As boot_can names it."""

    def why_not(self) -> str | None:
        """Why a one-shot boot cannot be trusted here, or None."""

    def default(self) -> dict[str, Any]:
        """What decides which kernel boots when nothing else was asked for."""

    def pending(self) -> str | None:
        """The entry that boots once: a release of ours, the name of another, or None."""

    def taken(self) -> str | None:
        """The release whose entry was taken since one was armed; None if that is not known."""

    def entries(self, wanted: Mapping[str, Sequence[str]]) -> None:
        """Have entries for just these releases with these parameters."""

    def arm(self, release: str) -> None:
        """Boot ``release`` at the next start of the machine, and only then."""

    def disarm(self) -> None:
        """No one-shot of ours."""


def loader_of(places: Places) -> Loader | None:
    """The loader of this boot, or else the one that is installed."""
    systemd_boot = SystemdBoot(places)
    if systemd_boot.runs():
        return systemd_boot
    grub = Grub(places)
    return grub if grub.directory is not None else None
