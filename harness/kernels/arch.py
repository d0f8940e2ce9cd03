# SPDX-License-Identifier: MIT
"""What a kernel is built for: a machine, be it real or emulated, or a process of Linux."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Arch:
    """How make is told of it, what it makes, and what our own configuration is."""

    name: str
    arguments: tuple[str, ...] = ()
    """What make is told."""
    goal: str
    built: str
    """What is booted, in the object directory."""
    kept: str
    """What that is called once it is kept."""
    fragment: Path
    by_compiler: bool = False
    """Is the kernel linked by the compiler, which looks for a linker of its own?"""
    headers: bool = False
    """Do its guests compile against its headers?"""

    def fragment_of(self, kernel: str) -> Path:
        """What a ``kernel`` such as linux-6.1 names otherwise than :attr:`fragment`."""
        own = "" if self is X86 else f"{self.fragment.stem}-"
        return self.fragment.with_name(f"{own}{kernel}.config")


X86 = Arch(
    name="x86",
    goal="bzImage",
    built="arch/x86/boot/bzImage",
    kept="bzImage",
    fragment=Path(__file__).with_name("benchmark.config"),
    headers=True,
)
UM = Arch(
    name="um",
    arguments=("ARCH=um",),
    goal="vmlinux",
    built="vmlinux",
    kept="linux",
    fragment=Path(__file__).with_name("native.config"),
    by_compiler=True,
)
ARCHES: Mapping[str, Arch] = MappingProxyType({arch.name: arch for arch in (X86, UM)})
