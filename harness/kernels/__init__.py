# SPDX-License-Identifier: MIT
"""Builds bootable kernels from a source and a series: one for each step and layout."""

from __future__ import annotations

from harness.config import Kernel
from harness.kernels.build import Image
from harness.kernels.configuration import HostConfig, chosen
from harness.kernels.mailed import Applied, mailed
from harness.kernels.packing import packed
from harness.kernels.source import Commit, commits_between, variants
from harness.kernels.wanted import Kernels

__all__ = [
    "Applied",
    "Commit",
    "HostConfig",
    "Image",
    "Kernels",
    "commits_between",
    "mailed",
    "of_host",
    "packed",
    "variants",
]


def of_host(kernel: Kernel, *, virtual: bool) -> bool:
    """Are kernels configured after the dut's own kernel? Only if the dut is not ``virtual``.

    Raises:
        ConfigurationError: ``kernel.config`` asks for it, but the dut is virtual.
    """
    if kernel.config == "host" and virtual:
        chosen(kernel)
    return kernel.config == "host" or (kernel.config == "auto" and not virtual)
