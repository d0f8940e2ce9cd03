# SPDX-License-Identifier: MIT
"""Compiles the data path of the NIC model when the package is installed.

Without a C compiler the package is installed all the same: the model does its work in Python, and
``harness doctor`` says so.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_DATAPATH = "harness/nic/datapath"


class DatapathHook(BuildHookInterface):
    """Named in pyproject.toml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile, and add the library to the wheel."""
        path = Path(self.root, _DATAPATH, "build.py")
        spec = importlib.util.spec_from_file_location("datapath_build", path)
        build = importlib.util.module_from_spec(spec)
        # Not through the package, which imports what is not there yet.
        spec.loader.exec_module(build)
        try:
            made = build.compile_library()
        except build.BuildError as error:
            print(f"{error}: it will run in Python", file=sys.stderr)
            return
        build_data["artifacts"].append(f"{_DATAPATH}/{made.name}")
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
