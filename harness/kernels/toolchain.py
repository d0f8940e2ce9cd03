# SPDX-License-Identifier: MIT
"""What compiles a kernel: gcc, with ccache before it and distcc behind it if asked for.

A kernel is named after gcc alone, so gcc has to be the same everywhere; that is proven
of each distcc peer before a build. What ccache keeps and with whom it shares is said
in the user's own ccache configuration, which it reads as ever.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.base import process
from harness.base.errors import ConfigurationError, InfrastructureError
from harness.config import Kernel

_PROOF = "int proof(void) { return 0; }\n"
_PROOF_S = 30.0
_OTHERS = ("gcc", "ld", "as", "ar", "nm", "objcopy", "strip", "pahole")
_SYSTEM = (Path("/usr/bin"), Path("/bin"))


@dataclass(frozen=True)
class Toolchain:
    """The compiler and those that compile for it."""

    compiler: str
    """The first line of ``gcc --version``."""
    cache: str | None = None
    peers: tuple[str, ...] = ()
    wanted_jobs: int | None = None
    strays: tuple[str, ...] = ()
    """What else makes a kernel, where it is not the system's own: path and version of each."""

    @property
    def identity(self) -> str:
        """What stands for it in digests: the system's own other tools go with its gcc."""
        return "; ".join((self.compiler, *self.strays))

    @property
    def arguments(self) -> list[str]:
        """What make is told."""
        if self.cache:
            return [f"CC={self.cache} gcc"]
        return ["CC=distcc gcc"] if self.peers else []

    @property
    def environment(self) -> dict[str, str]:
        """What its processes are told."""
        told = {}
        if self.cache:
            # Each configuration has a directory of its own, and only debug information names it.
            told["CCACHE_NOHASHDIR"] = "1"
        if self.peers:
            told["DISTCC_HOSTS"] = " ".join(self.peers)
        if self.cache and self.peers:
            told["CCACHE_PREFIX"] = "distcc"
        return told

    @property
    def jobs(self) -> int:
        """How many compilers run at once."""
        own = (os.cpu_count() or 1) + 1
        if not self.peers:
            return own
        return self.wanted_jobs or own + int(_distcc(["distcc", "-j"], self.environment))

    def prove(self) -> None:
        """See that what was asked for is there, and that all of it compiles alike.

        Raises:
            InfrastructureError: a program is missing, or a peer does not compile.
            ConfigurationError: a peer has another gcc.
        """
        if self.cache:
            process.run([self.cache, "--version"], hint=f"apt-get install {self.cache}")
        if not self.peers:
            return
        # ccache asks for its path, and a peer may have others of that name.
        gcc = (self.cache and shutil.which("gcc")) or "gcc"
        with tempfile.TemporaryDirectory() as scratch:
            source = Path(scratch) / "proof.c"
            source.write_text(_PROOF, encoding="utf-8")
            ours = _compiled_by(["gcc"], source, {})
            for peer in self.peers:
                alone = {"DISTCC_HOSTS": peer, "DISTCC_FALLBACK": "0", "DISTCC_BACKOFF_PERIOD": "0"}
                try:
                    theirs = _compiled_by(["distcc", gcc], source, alone)
                except InfrastructureError as error:
                    raise InfrastructureError(
                        f"distcc's host {peer} does not compile: {error.message}",
                        hint="start distccd there, or take it out of kernel.distcc.hosts",
                    ) from error
                if theirs != ours:
                    raise ConfigurationError(
                        f"distcc's host {peer} has {theirs or 'another gcc'}, this machine {ours}",
                        hint="install the same gcc there, or take it out of kernel.distcc.hosts",
                    )


def toolchain_of(kernel: Kernel) -> Toolchain:
    """The toolchain that ``kernel`` asks for; only gcc is looked at yet."""
    said = process.run(
        ["gcc", "--version"], env=process.building(), hint="apt-get install gcc"
    ).stdout
    distcc = kernel.distcc
    return Toolchain(
        compiler=said.splitlines()[0],
        cache=kernel.compiler_cache,
        peers=distcc.hosts if distcc else (),
        wanted_jobs=distcc.jobs if distcc else None,
        strays=tuple(_strays()),
    )


def _strays() -> Iterator[str]:
    for tool in _OTHERS:
        found = shutil.which(tool)
        if found is None or Path(found).resolve().parent in _SYSTEM:
            continue
        said = process.run([found, "--version"], env=process.building(), check=False).stdout
        yield f"{found}: {said.partition(chr(10))[0]}"


def _compiled_by(compiler: list[str], source: Path, environment: Mapping[str, str]) -> str:
    """What the compiler that compiled ``source`` calls itself in the object."""
    made = source.with_suffix(".o")
    _distcc([*compiler, "-c", str(source), "-o", str(made)], environment)
    dumped = process.run(
        ["readelf", "--string-dump=.comment", str(made)], hint="apt-get install binutils"
    ).stdout
    return dumped.rpartition("]")[2].strip()


def _distcc(command: list[str], environment: Mapping[str, str]) -> str:
    return process.run(
        command,
        env={**process.building(), **environment},
        timeout_s=_PROOF_S,
        hint="apt-get install distcc",
    ).stdout
