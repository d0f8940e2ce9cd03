# SPDX-License-Identifier: MIT
"""The ``kernel`` key of ``hosts.yaml``: which kernel is patched and built, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from harness.config.fields import DistccHost, FilePath, GitRef, Model, Package, SeriesName, by_key


class PackageSource(Model):
    """A kernel source in an installed Debian package."""

    package: Package = Field(description="Debian package that holds the kernel source")


class TarballSource(Model):
    """A kernel source in a tarball."""

    tarball: FilePath = Field(description="tarball with a single top directory")


class GitSource(Model):
    """A kernel source in a git repository, which is only read."""

    git: FilePath = Field(description="git repository with a kernel tree")
    ref: GitRef = Field(default="HEAD", description="commit, tag or branch of that repository")


Source = Annotated[
    Annotated[PackageSource, Tag("with package")]
    | Annotated[TarballSource, Tag("with tarball")]
    | Annotated[GitSource, Tag("with git")],
    by_key("package: NAME, tarball: FILE, git: DIRECTORY"),
]


class Distcc(Model):
    """Machines that compile for this one; they need the same gcc."""

    hosts: Annotated[tuple[DistccHost, ...], Field(min_length=1, max_length=64)] = Field(
        description="the machines, as in DISTCC_HOSTS"
    )
    jobs: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="parallel compilers; null: as distcc and this machine allow"
    )


class Kernel(Model):
    """Which kernel is patched and built, and how."""

    source: Source = Field(
        default=PackageSource(package="linux-source-6.12"),
        description="where the source comes from",
    )
    series: SeriesName = Field(
        default="auto", description="patch series; auto: chosen by the tree's version"
    )
    config: Annotated[
        Literal["auto", "benchmark", "host"] | FilePath, Field(union_mode="left_to_right")
    ] = Field(
        default="auto",
        description="configuration: benchmark, a small kernel for virtual beds; host, the dut's "
        "own with the modules it has loaded; auto, benchmark for a qemu or uml dut and host for an "
        "ssh dut; or a .config file. Options that the experiment needs are added to host and file",
    )
    compiler_cache: Literal["ccache"] | None = Field(
        default=None,
        description="ccache, with your ccache configuration; null: only gcc",
    )
    distcc: Distcc | None = Field(
        default=None, description="further machines that compile; null: only this one"
    )
