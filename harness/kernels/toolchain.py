# SPDX-License-Identifier: MIT
"""The compiler of kernels: gcc, with ccache and distcc if hosts.yaml asks for them.

A kernel's cache key names only the local gcc, so each distcc peer has to have the same gcc;
that is checked before a build. ccache uses the user's own configuration.
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
    """gcc, its cache and its distcc peers."""

    compiler: str
    """The first line of ``gcc --version``."""
    cache: str | None = None
    peers: tuple[str, ...] = ()
    wanted_jobs: int | None = None
    strays: tuple[str, ...] = ()
    """Other build tools that are not in the system's directories: path and version of each."""

    @property
    def identity(self) -> str:
        """For cache keys. The system's other tools are implied by its gcc."""
        return "; ".join((self.compiler, *self.strays))

    @property
    def arguments(self) -> list[str]:
        """Arguments of make."""
        if self.cache:
            return [f"CC={self.cache} gcc"]
        return ["CC=distcc gcc"] if self.peers else []

    @property
    def environment(self) -> dict[str, str]:
        """Environment of make."""
        told = {}
        if self.cache:
            # Each configuration is built in another directory, which only debug information names.
            told["CCACHE_NOHASHDIR"] = "1"
        if self.peers:
            told["DISTCC_HOSTS"] = " ".join(self.peers)
        if self.cache and self.peers:
            told["CCACHE_PREFIX"] = "distcc"
        return told

    @property
    def jobs(self) -> int:
        """The number of parallel compilers."""
        own = (os.cpu_count() or 1) + 1
        if not self.peers:
            return own
        return self.wanted_jobs or own + int(_distcc(["distcc", "-j"], self.environment))

    def prove(self) -> None:
        """Check that the tools are installed and that every peer has the same gcc.

        Raises:
            InfrastructureError: a program is missing, or a peer does not compile.
            ConfigurationError: a peer has another gcc.
        """
        if self.cache:
            process.run([self.cache, "--version"], hint=f"apt-get install {self.cache}")
        if not self.peers:
            return
        # ccache passes gcc's full path, and a peer may have several compilers named gcc.
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
                        hint="start distccd there, or remove it from kernel.distcc.hosts",
                    ) from error
                if theirs != ours:
                    raise ConfigurationError(
                        f"distcc's host {peer} has {theirs or 'another gcc'}, this machine {ours}",
                        hint="install the same gcc there, or remove it from kernel.distcc.hosts",
                    )


def toolchain_of(kernel: Kernel) -> Toolchain:
    """The toolchain that ``kernel`` asks for; :meth:`Toolchain.prove` checks it."""
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
    """The name in the object's .comment of the compiler that compiled ``source``."""
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
