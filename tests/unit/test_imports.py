# SPDX-License-Identifier: MIT
"""Data flows one way: which module may import which, read from the source of all of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness

pytestmark = pytest.mark.unit

PACKAGE = Path(harness.__file__).parent

GROUND = [
    "errors",
    "terminal",
    "process",
    "namespaces",
    "runtime",
    "resources",
    "cache",
    "progress",
]
"""What all but the islands may import; each may import those before it."""

FLOW = [
    "config",
    "patches",
    "plan",
    "kernels",
    "images",
    "journal",
    "hosts",
    "needs",
    "ndr",
    "workload",
    "tracing",
    "pacing",
    "trials",
    "campaign",
    "selftest",
]
"""From hosts.yaml to a campaign; each may import those before it."""

RESULTS = [
    "samples",
    "measures",
    "counted",
    "saturation",
    "receive_path",
    "metrics",
    "figures",
    "stats",
    "analysis",
    "report",
    "bisect",
]
"""What works offline on a result directory; each may import those before it and the plan."""

ISLANDS = {"nic": {"numpy"}, "agent": {"bcc", "psutil", "pyroute2"}}
"""What imports nothing of the rest, and which packages beside the standard library."""

ALSO = {
    # What the lines above do not give, with the reason.
    "trials": {*RESULTS},  # they are written to the result directory
    "pacing": {"samples", "counted", "saturation"},  # what was measured before
    "campaign": {*RESULTS},  # it writes the rest of it
    "hosts": {"nic"},  # a guest's NIC is the model
    **{module: {"plan"} for module in RESULTS},  # the directory holds its plan
}

ALL = [*GROUND, *FLOW, *RESULTS, *ISLANDS]
TOP = {"__init__": set[str](), "cli": {*ALL}, "commands": {*ALL, "cli"}, "__main__": {"cli"}}


def allowed(module: str) -> set[str]:
    if module in TOP:
        return TOP[module]
    if module in ISLANDS:
        return set()
    before: set[str] = set()
    for line in (GROUND, FLOW, RESULTS):
        if module in line:
            before.update(line[: line.index(module)])
            return before | ALSO.get(module, set()) | (set() if line is GROUND else {*GROUND})
    raise AssertionError(f"harness/{module} has no place in the flow: give it one in this table")


def imported(source: str, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Everything ``source`` imports, in functions too, as dotted names taken apart.

    ``package`` is where the source lies, for relative imports.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (tuple(name.name.split(".")) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = (*start, *(node.module.split(".") if node.module else ()))
            # `from harness import config` imports a module, too.
            yield from ((*module, name.name) for name in node.names)


def breaches(module: str, source: str, package: tuple[str, ...]) -> list[str]:
    found = []
    for name in imported(source, package):
        if name[0] == "harness":
            other = name[1] if len(name) > 1 else "__init__"
            known = other in {*ALL, *TOP}
            if known and other != module and other not in allowed(module):
                found.append(f"{module} imports {'.'.join(name)}")
        elif (
            module in ISLANDS and name[0] not in sys.stdlib_module_names and name[0] not in
            ISLANDS[module]
        ):  # fmt: skip
            found.append(f"{module} imports {name[0]}")
    return found


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "data" not in path.parts)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_only_what_stands_before_them(path: Path) -> None:
    inside = path.relative_to(PACKAGE)
    module = inside.parts[0].removesuffix(".py")
    allowed(module)
    assert breaches(module, path.read_text(), ("harness", *inside.parts[:-1])) == []


@pytest.mark.parametrize(
    ("module", "source", "breach"),
    [
        ("nic", "import harness.errors", "nic imports harness.errors"),
        ("nic", "from harness import errors", "nic imports harness.errors"),
        ("nic", "from ..errors import X", "nic imports harness.errors.X"),
        ("nic", "from .rings import X", None),
        ("nic", "import numpy, select", None),
        ("nic", "import pydantic", "nic imports pydantic"),
        (
            "agent",
            "def f():\n  from harness.process import run",
            "agent imports harness.process.run",
        ),
        ("agent", "import bcc", None),
        ("stats", "from harness.hosts import qemu", "stats imports harness.hosts.qemu"),
        ("stats", "from harness.samples import Trial", None),
        ("report", "from harness.kernels.build import X", "report imports harness.kernels.build.X"),
        ("samples", "import harness.stats", "samples imports harness.stats"),
        (
            "config",
            "if TYPE_CHECKING:\n  from harness.plan import P",
            "config imports harness.plan.P",
        ),
        ("hosts", "from harness.kernels import Image", None),
        ("kernels", "from harness import cli", "kernels imports harness.cli"),
        ("errors", "from harness.process import run", "errors imports harness.process.run"),
        ("commands", "from harness import campaign, report", None),
    ],
)
def test_the_rule_bites(module: str, source: str, breach: str | None) -> None:
    assert breaches(module, source, ("harness", module)) == ([breach] if breach else [])


def test_the_agent_runs_on_the_python_of_rhel_9() -> None:
    vermin = Path(sys.executable).with_name("vermin")
    command = [vermin, "--target=3.9-", "--no-tips", "--violations", PACKAGE / "agent"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_module_without_a_place_is_noticed() -> None:
    with pytest.raises(AssertionError, match="harness/helpers has no place"):
        allowed("helpers")
