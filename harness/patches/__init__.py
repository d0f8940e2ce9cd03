# SPDX-License-Identifier: MIT
"""The kernel series that ship, and how they are applied to a tree."""

from harness.patches.mailed import apply_mailed, read_mailed
from harness.patches.rebase import Rebased, rebase
from harness.patches.series import (
    Patch,
    Series,
    UnknownBaseError,
    base_of,
    bed_patches,
    is_kernel,
    list_series,
    nearest,
    require_kernel,
    series,
    series_for,
)
from harness.patches.tree import (
    AlreadyPatchedError,
    Applied,
    HunkError,
    Outcome,
    Report,
    apply,
    apply_files,
    check,
)

__all__ = [
    "AlreadyPatchedError",
    "Applied",
    "HunkError",
    "Outcome",
    "Patch",
    "Rebased",
    "Report",
    "Series",
    "UnknownBaseError",
    "apply",
    "apply_files",
    "apply_mailed",
    "base_of",
    "bed_patches",
    "check",
    "is_kernel",
    "list_series",
    "nearest",
    "read_mailed",
    "rebase",
    "require_kernel",
    "series",
    "series_for",
]
