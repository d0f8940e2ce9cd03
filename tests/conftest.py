# SPDX-License-Identifier: MIT
"""What all tests share: an interrupt is one, and machines are told from beds.

A shell that runs something in the background has it ignore SIGINT, and whatever
that starts as well; the tests that interrupt a harness would then wait for ever.
"""

import signal

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What boots machines runs beside what measures on beds, so it has a marker to select it by."""
    for item in items:
        if "rack" in getattr(item, "fixturenames", ()):
            item.add_marker("machines")
