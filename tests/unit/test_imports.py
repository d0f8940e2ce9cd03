# SPDX-License-Identifier: MIT
"""Data flows one way: which room may import which, read from the source of all of them."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness

pytestmark = pytest.mark.unit

PACKAGE = Path(harness.__file__).parent

FLOW = [
    "base",
    "cells",
    "config",
    "plan",
    "patches",
    "kernels",
    "vary",
    "images",
    "beds",
    "needs",
    "trials",
    "results",
    "report",
    "campaign",
    "tracing",
    "profiling",
    "bisect",
    "selftest",
]
"""From hosts.yaml to a verdict; each room may import those before it."""

OFFLINE = ("trials", "results", "report")
"""What reads an old result directory: no kernel, no bed, no program is needed for it.

A trial is measured on a bed that is given to it, whose type alone it knows.
"""

BASE = [
    "errors", "terminal", "process", "namespaces", "runtime", "resources", "cache", "progress",
    "write_ahead",
]  # fmt: skip
"""The order within the base; each may import those before it."""

ISLANDS = {"nic": {"numpy"}, "agent": {"bcc", "psutil", "pyroute2"}}
"""What imports nothing of the rest, and which packages beside the standard library."""

DECLARED = tuple(
    ("harness", "agent", *name.split("."))
    for name in (
        "protocol",
        "drivers",
        "counters.pmu",
        "setting",
        "settings.registry",
        "tracing.stages",
        "tracing.btf",
    )
)
"""Of the agent: its calls, the drivers it knows, the settings it makes …, for both sides."""

ALL = [*FLOW, *ISLANDS]
TOP = {"__init__": set[str](), "cli": {*ALL}, "commands": {*ALL, "cli"}, "__main__": {"cli"}}


def allowed(module: str, *, typing: bool = False) -> set[str]:
    if module in TOP:
        return TOP[module]
    if module in ISLANDS:
        return set()
    if module in OFFLINE and not typing:
        return {"base", "cells", "plan", *OFFLINE[: OFFLINE.index(module)]}
    if module in FLOW:
        return {*FLOW[: FLOW.index(module)]} | ({"nic"} if module == "beds" else set())
    raise AssertionError(f"harness/{module} has no place in the flow: give it one in this table")


def imported(source: str, package: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Everything ``source`` imports, in functions too, as dotted names taken apart.

    With each: is it for the type checker alone? ``package`` is where the source lies, for
    relative imports.
    """
    tree = ast.parse(source)
    typing = {
        id(below)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for below in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = (tuple(name.name.split(".")) for name in node.names)
            yield from ((name, id(node) in typing) for name in names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = (*start, *(node.module.split(".") if node.module else ()))
            # `from harness import config` imports a module, too.
            yield from (((*module, name.name), id(node) in typing) for name in node.names)


def breaches(inside: tuple[str, ...], source: str) -> list[str]:
    """What the file at ``inside`` the package imports against the rule."""
    room = inside[0].removesuffix(".py")
    own = inside[1].removesuffix(".py") if room == "base" and len(inside) > 1 else None
    found = []
    for name, typing in imported(source, ("harness", *inside[:-1])):
        if name[0] == "harness":
            other = name[1] if len(name) > 1 else "__init__"
            told = ".".join(name)
            if room in FLOW[1:] and any(name[: len(one)] == one for one in DECLARED):
                continue
            if (
                other in {*ALL, *TOP}
                and other != room
                and other not in allowed(room, typing=typing)
            ):
                found.append(f"{room} imports {told}")
            below = BASE[: BASE.index(own)] if own in BASE else BASE
            if room == other == "base" and len(name) > 2 and name[2] in {*BASE} - {*below, own}:
                found.append(f"base/{own} imports {told}")
        elif (
            room in ISLANDS
            and name[0] not in sys.stdlib_module_names
            and name[0] not in ISLANDS[room]
        ):
            found.append(f"{room} imports {name[0]}")
    return found


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "data" not in path.parts)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_what_stands_before_it(path: Path) -> None:
    inside = path.relative_to(PACKAGE).parts
    allowed(inside[0].removesuffix(".py"))
    assert breaches(inside, path.read_text()) == []


@pytest.mark.parametrize(
    ("inside", "source", "breach"),
    [
        ("nic/x.py", "import harness.base.errors", "nic imports harness.base.errors"),
        ("nic/x.py", "from harness import base", "nic imports harness.base"),
        ("nic/x.py", "from ..base.errors import X", "nic imports harness.base.errors.X"),
        ("nic/x.py", "from .rings import X", None),
        ("nic/x.py", "import numpy, select", None),
        ("nic/x.py", "import pydantic", "nic imports pydantic"),
        (
            "agent/load/x.py",
            "def f():\n  from harness.base.process import run",
            "agent imports harness.base.process.run",
        ),
        ("agent/x.py", "import bcc", None),
        ("beds/bed.py", "from harness.agent.protocol import Calls", None),
        ("config/x.py", "from harness.agent.settings.registry import KEYED", None),
        ("base/x.py", "import harness.agent.drivers", "base imports harness.agent.drivers"),
        (
            "config/x.py",
            "from harness.agent.settings import Settings",
            "config imports harness.agent.settings.Settings",
        ),
        ("beds/bed.py", "from harness.agent import boot", "beds imports harness.agent.boot"),
        ("nic/x.py", "import harness.agent.protocol", "nic imports harness.agent.protocol"),
        ("results/stats.py", "from harness.beds import bed", "results imports harness.beds.bed"),
        ("results/stats.py", "from harness.results.samples import Boot", None),
        (
            "results/compare.py",
            "from harness.report.text import percent",
            "results imports harness.report.text.percent",
        ),
        (
            "report/text.py",
            "from harness.kernels.build import X",
            "report imports harness.kernels.build.X",
        ),
        (
            "config/load.py",
            "if TYPE_CHECKING:\n  from harness.plan import P",
            "config imports harness.plan.P",
        ),
        ("trials/x.py", "if TYPE_CHECKING:\n  from harness.beds.bed import RunningBed", None),
        ("trials/x.py", "from harness.beds import bed", "trials imports harness.beds.bed"),
        ("beds/bed.py", "from harness.kernels import Image", None),
        ("kernels/build.py", "from harness import cli", "kernels imports harness.cli"),
        (
            "base/errors.py",
            "from harness.base.process import run",
            "base/errors imports harness.base.process.run",
        ),
        ("base/process.py", "from harness.base.errors import X", None),
        ("commands/run.py", "from harness import campaign, report", None),
    ],
)
def test_the_rule_bites(inside: str, source: str, breach: str | None) -> None:
    assert breaches(Path(inside).parts, source) == ([breach] if breach else [])


def test_the_agent_runs_on_the_python_of_rhel_9() -> None:
    vermin = Path(sys.executable).with_name("vermin")
    command = [str(vermin), "--target=3.9-", "--no-tips", "--violations", str(PACKAGE / "agent")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_room_without_a_place_is_noticed() -> None:
    with pytest.raises(AssertionError, match="harness/helpers has no place"):
        allowed("helpers")


def test_the_map_names_what_is_there() -> None:
    """Every file and folder that harness/README.md names, from there or from the top."""
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*|\w+\.py)`", text))
    homes = [PACKAGE, PACKAGE.parent, *(path for path in PACKAGE.iterdir() if path.is_dir())]
    missing = {name for name in named if not any((home / name).exists() for home in homes)}
    missing |= {to for to in re.findall(r"\]\(([^)#]+)", text) if not (PACKAGE / to).exists()}
    assert missing - {"kernel-patches/linux-X/", ".venv/bin/pytest"} == set()
    assert "trials/ndr.py" in named


def hidden(function: ast.FunctionDef, known: set[str]) -> set[str]:
    """Names of ``known`` that a comprehension of ``function`` takes for its own, and that the
    function uses beside it: Python 3.12 then finds no value for them (PEP 709).
    """
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp)
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    local = {argument.arg for argument in ast.walk(function) if isinstance(argument, ast.arg)}
    found = set()
    for made in (node for node in ast.walk(function) if isinstance(node, kinds)):
        targets = [node for one in made.generators for node in ast.walk(one.target)]
        own = {node.id for node in targets if isinstance(node, ast.Name)}
        inside = {id(node) for node in ast.walk(made)}
        found |= {node.id for node in names if node.id in own and id(node) not in inside}
    return (found & known) - local


def imported_names(tree: ast.Module) -> set[str]:
    return {
        (name.asname or name.name).partition(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }


def test_no_comprehension_hides_what_its_function_uses() -> None:
    bad = "import x\ndef f(y): return {**{x: 1 for x in y}, 'a': x.b}"
    good = "import x\ndef f(y): return {**{z: 1 for z in y}, 'a': x.b}"
    for source, found in ((bad, {"x"}), (good, set())):
        tree = ast.parse(source)
        [function] = (node for node in tree.body if isinstance(node, ast.FunctionDef))
        assert hidden(function, imported_names(tree)) == found
    for path in files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert hidden(node, imported_names(tree)) == set(), f"{path}: {node.name}"
