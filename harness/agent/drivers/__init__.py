# SPDX-License-Identifier: MIT
"""The NIC drivers that the harness knows; each is a module here and a name in this file.

These are declarations, which other rooms may import. A driver without a module has the
defaults of :class:`~.driver.Driver`.
"""

from __future__ import annotations

import importlib
from functools import lru_cache

from .driver import CounterNames, Driver, Firmware, Function

__all__ = ["CounterNames", "Driver", "Firmware", "Function"]

DRIVERS: dict[str, Driver] = {
    driver.name: driver
    for driver in (
        importlib.import_module(f"{__name__}.{module}").DRIVER
        for module in (
            "ef10",
        )
    )
}  # fmt: skip
"""By the name of the kernel's module."""

PLAIN = CounterNames()


def named(name: str | None) -> Driver:
    """The driver ``name``, or one with the defaults."""
    return DRIVERS.get(name or "") or Driver(name or "unknown")


def behind(pci_id: str | None) -> Driver | None:
    """The driver that declares this PCI function, whichever driver is bound to it."""
    return next((one for one in DRIVERS.values() if pci_id in one.functions), None)


@lru_cache(maxsize=16)
def counter_names(there: tuple[str, ...]) -> CounterNames:
    """The meaning of the counters with these names; results do not name the driver."""
    have = set(there)
    sets = (names for driver in DRIVERS.values() for names in driver.counters)
    return next((names for names in sets if have.issuperset(names.known_by)), PLAIN)


@lru_cache(maxsize=16)
def queue_counters(there: tuple[str, ...]) -> tuple[str, ...]:
    """The counters of receive queues among these."""
    pattern = counter_names(there).queue_packets
    return tuple(name for name in there if pattern.fullmatch(name))


@lru_cache(maxsize=16)
def pause_counters(there: tuple[str, ...]) -> tuple[str, ...]:
    """The counters of pause frames among these: of one port, and not by priority."""
    pattern = counter_names(there).pauses
    return tuple(name for name in there if pattern.fullmatch(name))


def makers_of_lists() -> list[Driver]:
    """The drivers that the series makes hand lists to the stack."""
    return [driver for driver in DRIVERS.values() if driver.makes_lists]


def statistics_s() -> float:
    """Seconds after which the counters of every NIC are up to date."""
    return max(driver.statistics_s for driver in DRIVERS.values())
