# SPDX-License-Identifier: MIT
"""Finds the files that ship with the harness, in a checkout or an installed wheel."""

from __future__ import annotations

from pathlib import Path

from harness.base.errors import InfrastructureError

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(name: str) -> Path:
    """The shipped file or directory ``name``: ``kernel-patches``, ``probes`` or ``hosts.yaml``.

    Raises:
        InfrastructureError: the installation lacks it.
    """
    for home in (_PACKAGE / "data", _PACKAGE.parent):
        if (home / name).exists():
            return home / name
    raise InfrastructureError(
        f"{name} is missing from this installation of the harness",
        hint="reinstall it from a wheel, or with `pip install -e` in a checkout",
    )
