# SPDX-License-Identifier: MIT
"""What all tests share: an interrupt is one, git's environment is none, machines are no beds.

A shell that runs something in the background has it ignore SIGINT, and whatever
that starts as well; the tests that interrupt a harness would then wait for ever.
"""

import os
import signal

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)
# Of a git hook that runs the tests: their repositories are others.
for leak in [name for name in os.environ if name.startswith("GIT_")]:
    del os.environ[leak]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What boots machines runs beside what measures on beds, and before the rest of its half."""

    def boots_machines(item: pytest.Item) -> bool:
        return "rack" in getattr(item, "fixturenames", ())

    for item in filter(boots_machines, items):
        item.add_marker("others")
    items.sort(key=lambda item: not boots_machines(item))
