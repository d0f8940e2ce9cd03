# SPDX-License-Identifier: MIT
"""Cells: what is booted where factors are varied, and what its name says.

A *factor* is what a run varies besides code, such as ``burst``; its values are *levels*. A
*cell* is a variant at one level of each factor. Its name is that of the variant with the
levels, as ``8[burst=64,gro=on]``. Without factors a cell is a variant, and has its name. So the
name alone tells which cells differ in what, also in an old result.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

LEVEL = re.compile(r"[^\[\],\s](?:[^\[\],\x00-\x1f\x7f]*[^\[\],\s])?")
"""A level as it can be part of a name."""


def named(variant: str, levels: Mapping[str, str]) -> str:
    """The cell of ``variant`` at ``levels``."""
    return variant + at(levels)


def at(levels: Mapping[str, str]) -> str:
    """The part of a cell's name that says its ``levels``; empty without any."""
    return f"[{','.join(f'{key}={level}' for key, level in levels.items())}]" if levels else ""


def variant_of(cell: str) -> str:
    """The variant of ``cell``."""
    return cell.partition("[")[0]


def levels_of(cell: str) -> dict[str, str]:
    """The level of each factor in ``cell``."""
    _, _, inside = cell.partition("[")
    pairs = (part.partition("=") for part in inside.removesuffix("]").split(",") if part)
    return {key: level for key, _, level in pairs}


def beside(cell: str, variant: str) -> str:
    """The cell of ``variant`` at the levels of ``cell``."""
    return named(variant, levels_of(cell))


def crossed(variants: Sequence[str], factors: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Every variant at every combination of levels; the cells of a combination are neighbours."""
    return tuple(named(variant, levels) for levels in combined(factors) for variant in variants)


def combined(factors: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of levels."""
    rows = itertools.product(*factors.values())
    return [dict(zip(factors, row, strict=True)) for row in rows]


def factors_of(cells: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The factors that ``cells`` vary, each with its levels in their order; none: empty."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        for key, level in levels_of(cell).items():
            found.setdefault(key, {})[level] = None
    return {key: tuple(levels) for key, levels in found.items()}


def by_levels(cells: Iterable[str]) -> dict[str, list[str]]:
    """The variants by the part of a name that says the levels."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        found.setdefault(at(levels_of(cell)), []).append(variant_of(cell))
    return found


def meant(name: str, cells: Sequence[str]) -> str:
    """The one of ``cells`` that ``name`` means: its levels may be in any order."""
    same = [
        cell
        for cell in cells
        if variant_of(cell) == variant_of(name) and levels_of(cell) == levels_of(name)
    ]
    return same[0] if same else name
