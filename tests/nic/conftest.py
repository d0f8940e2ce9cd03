# SPDX-License-Identifier: MIT
"""The data paths that tests use: the library is made from the sources of this checkout."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.nic import datapath
from harness.nic.datapath import Datapath, build

PYTHON = Datapath(None, "the reference")
BOTH = (
    "test_cable", "test_classes", "test_datapath", "test_fuzz", "test_memory", "test_repeat",
    "test_robustness", "test_vhost",
)  # fmt: skip
"""Modules whose tests run with each data path; all others use the one that is installed."""


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Datapath:
    try:
        made = build.compile_library(tmp_path_factory.mktemp("datapath") / "datapath.so")
    except build.BuildError as error:
        pytest.skip(str(error))
    return datapath.load(made)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in BOTH:
        metafunc.fixturenames.insert(0, "data_path")
        metafunc.parametrize("data_path", ["compiled", "python"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def data_path(request: pytest.FixtureRequest) -> Iterator[Datapath]:
    """What the models of a test in this process use."""
    found = PYTHON if request.param == "python" else request.getfixturevalue("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datapath, "chosen", lambda: found)
        yield found
