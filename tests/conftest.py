# SPDX-License-Identifier: MIT
"""What all tests share: an interrupt is one, and who may run beside whom.

A shell that runs something in the background has it ignore SIGINT, and whatever
that starts as well; the tests that interrupt a harness would then wait for ever.
"""

import signal

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under ``--dist loadgroup``: machines boot beside what virtual beds measure.

    Two of one kind never do: two measurements would take each other's CPUs.
    """
    for item in items:
        if item.get_closest_marker("guest"):
            queue = "machines" if "rack" in getattr(item, "fixturenames", ()) else "beds"
            item.add_marker(pytest.mark.xdist_group(queue))
