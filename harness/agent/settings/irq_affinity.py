# SPDX-License-Identifier: MIT
"""The CPU for the interface's interrupts."""

from __future__ import annotations

from harness.agent import cpus, setting
from harness.agent.cpus import parse_list
from harness.agent.foreign import read_text
from harness.agent.inventory import interface_irqs
from harness.agent.setting import Asked, Declaration, Setting, write_each


def affinity(irq: int, kind: str) -> str | None:
    """The affinity of the interrupt ``irq``: requested (``smp``) or in force (``effective``)."""
    file = "smp_affinity_list" if kind == "smp" else "effective_affinity_list"
    return read_text(setting.IRQ / str(irq) / file)


def _same_cpus(one: str | None, other: str | None) -> bool:
    return parse_list(one or "") == parse_list(other or "")


def _read(interface: str) -> dict[str, str]:
    # A kernel without SMP has no affinity.
    return {
        str(irq): told
        for irq in interface_irqs(interface)
        if (told := affinity(irq, "smp")) is not None
    }


def _write(value: dict[str, str | None]) -> None:
    write_each(
        (
            (setting.IRQ / irq / "smp_affinity_list", told)
            for irq, told in value.items()
            if told is not None
        ),
        _same_cpus,
    )


def _holds(is_now: dict[str, str | None], wanted: dict[str, str | None]) -> bool:
    # A vector that was freed with its queue does not have to be restored.
    return all(_same_cpus(is_now[irq], told) for irq, told in wanted.items() if irq in is_now)


def _wanted(now: dict[str, str], asked: Asked) -> dict[str, str]:
    return dict.fromkeys(now, str(asked["irq_cpu"]))


SETTINGS = (
    Declaration(
        "irq_affinity",
        lambda interface: Setting("irq_affinity", lambda: _read(interface), _write, _holds),
        wanted=_wanted,
        by="irq_cpu",
        check=lambda cpu: cpus.require(cpu, "the interface's interrupts"),
        absent="the interface has no interrupt of its own to move",
        hint="an interrupt managed by its driver cannot be moved: choose another CPU",
    ),
)
