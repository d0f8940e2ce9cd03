# SPDX-License-Identifier: MIT
"""Which kernel is patched and built, and how: the ``kernel`` of ``hosts.yaml``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Tag

from harness.config.fields import DistccHost, FilePath, GitRef, Model, Package, SeriesName, by_key


class PackageSource(Model):
    """A kernel source in an installed Debian package."""

    package: Package = Field(description="Debian package that holds the kernel source")


class TarballSource(Model):
    """A kernel source in a tarball."""

    tarball: FilePath = Field(description="tarball with one directory at its top")


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
    """Machines that compile for this one; they have its gcc."""

    hosts: Annotated[tuple[DistccHost, ...], Field(min_length=1, max_length=64)] = Field(
        description="the machines, as in DISTCC_HOSTS"
    )
    jobs: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="compilers at once; null: what distcc gives the hosts, and ours"
    )


class Kernel(Model):
    """Which kernel is patched and built, and how."""

    source: Source = Field(
        default=PackageSource(package="linux-source-6.12"),
        description="where the source comes from",
    )
    series: SeriesName = Field(
        default="auto", description="patch series; auto goes by the tree's version"
    )
    config: Annotated[
        Literal["auto", "benchmark", "host"] | FilePath, Field(union_mode="left_to_right")
    ] = Field(
        default="auto",
        description="configuration: benchmark, a small kernel for virtual beds; host, the dut's "
        "own with the modules it has loaded; auto, benchmark for a qemu or uml dut and host for an "
        "ssh dut; or a .config file. What the experiment needs is put over host and file",
    )
    compiler_cache: Literal["ccache"] | None = Field(
        default=None,
        description="ccache keeps objects as your ccache configuration says; null: gcc alone",
    )
    distcc: Distcc | None = Field(
        default=None, description="machines that compile too; null: this one alone"
    )
