# SPDX-License-Identifier: MIT
"""The architectures kernels are built for: x86 machines, real or emulated, and user-mode Linux."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True, kw_only=True)
class Arch:
    """How such a kernel is built, and the harness's configuration of it."""

    name: str
    arguments: tuple[str, ...] = ()
    """Additional arguments of make."""
    goal: str
    built: str
    """The file to boot, in the object directory."""
    kept: str
    """The name of that file in the cache."""
    fragment: Path
    by_compiler: bool = False
    """Does the compiler link the kernel, with the linker that it finds itself?"""
    types_from: str = ""
    """The object from which the kernel's types (BTF) are taken, if it is built without them."""
    headers: bool = False
    """Do its guests compile probes against its headers?"""

    def fragment_of(self, kernel: str) -> Path:
        """The file of options that ``kernel``, such as linux-6.1, needs beside :attr:`fragment`."""
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
    # Debug information for objects of one name only.
    arguments=("ARCH=um", "CFLAGS_dev.o=-g"),
    goal="vmlinux",
    built="vmlinux",
    kept="linux",
    fragment=Path(__file__).with_name("native.config"),
    by_compiler=True,
    types_from="net/core/dev.o",
)
ARCHES: Mapping[str, Arch] = MappingProxyType({arch.name: arch for arch in (X86, UM)})
