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
    """What boots machines runs beside what measures on beds, and before the rest of its half."""

    def boots_machines(item: pytest.Item) -> bool:
        return "rack" in getattr(item, "fixturenames", ())

    for item in filter(boots_machines, items):
        item.add_marker("others")
    items.sort(key=lambda item: not boots_machines(item))
