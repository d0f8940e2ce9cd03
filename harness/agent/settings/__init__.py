# SPDX-License-Identifier: MIT
"""The state of a host that decides what receive costs: read, changed, proven, put back.

A change is journalled before it is made and read back after it; everything is put
back in reverse order when the agent ends, and by the next agent if this one was killed.
Whatever goes wrong while changes are made, those already made are taken back.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Interface
from typing import Any

from harness.agent import cpus
from harness.agent.faults import AgentError
from harness.agent.foreign import read_text
from harness.agent.interface import in_the_way
from harness.agent.inventory import NET, existing
from harness.agent.setting import Setting, put_back, told

from .journal import Journal, end_holder, journalled
from .known import ABSENT, HINTS, UNSUPPORTED
from .known import known as _known
from .known import readings as _readings
from .offloads import FEATURES, with_offload
from .queues import with_queues, with_rule

_CARRIER_S = 10.0

Step = tuple[str, Callable[[Any], Any]]
"""A setting, or one offload of them, and what is wanted of it given what is."""


class Settings:
    """Every change this agent made, and the way back."""

    def __init__(self) -> None:
        self._changes: list[tuple[str, Setting, Any]] = []
        self._before: dict[str, dict[str, Any]] = {}
        self._journal: dict[str, Journal] = {}
        self._own_cpus: set[int] | None = None

    def read(self, *, interface: str) -> dict[str, Any]:
        """All settings of the host and the interface, those never changed included."""
        return _readings(existing(interface), _known(interface))

    def apply(
        self,
        *,
        interface: str,
        address: str | None = None,
        peer: dict[str, str] | None = None,
        rx_queues: int | None = None,
        steering: str | None = "auto",
        rx_ring: int | None = None,
        offloads: dict[str, bool] | None = None,
        irq_cpu: int | None = None,
        process_cpus: Sequence[int] = (),
        coalesce: dict[str, Any] | None = None,
        rps: bool | None = None,
        rfs: bool | None = None,
        threaded: bool | None = None,
        napi_defer_hard_irqs: int | None = None,
        gro_flush_timeout_ns: int | None = None,
        busy_read_us: int | None = None,
        busy_poll_us: int | None = None,
        pacing_bytes_per_s: int | None = None,
        irqbalance: bool | None = None,
        governor: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> dict[str, Any]:
        """Bring the host to what is asked for; None leaves a setting alone. Idempotent.

        ``steering`` brings packets into ``rx_queues`` queues: ``rss`` by the table alone,
        ``ntuple`` by a rule alone, ``auto`` by a rule only where nothing else can.
        ``offloads`` go by the names of :data:`~.offloads.FEATURES`; RPS, RFS and threaded
        NAPI can only be switched off. The load will run on ``process_cpus``. What the driver
        does not support is ``skipped``; ``in_the_way`` and ``packet_taps`` are what others
        have put between the NIC and the stack (:mod:`~.in_the_way`).

        Raises:
            AgentError: a setting was refused or did not take, a CPU is not to be had, or
                another agent works on this interface. Everything changed so far has been
                put back; what could not be is named.
        """
        if rps or rfs or threaded:
            raise AgentError(
                "RPS, RFS and threaded NAPI can only be switched off", kind="configuration"
            )
        if unknown := (offloads or {}).keys() - FEATURES.keys():
            raise AgentError(f"no offload {', '.join(sorted(unknown))}", kind="configuration")
        existing(interface)
        if irq_cpu is not None:
            cpus.require(irq_cpu, "the interface's interrupts")
        for cpu in process_cpus:
            cpus.require(cpu, "the load's processes", processes=True)
        at = None if address is None else _address(address)
        # In the order in which one needs the other.
        off = {"rps": rps, "rfs": rfs}
        numbers = {
            "rps_sock_flow_entries": None if rfs is None else 0,
            "threaded": None if threaded is None else 0,
            "napi_defer_hard_irqs": napi_defer_hard_irqs,
            "gro_flush_timeout_ns": gro_flush_timeout_ns,
            "busy_read_us": busy_read_us,
            "busy_poll_us": busy_poll_us,
            "pacing_bytes_per_s": pacing_bytes_per_s,
        }
        steps: list[tuple[str, bool, Callable[[Any], Any]]] = [
            ("irqbalance", irqbalance is False, lambda _: "inactive"),
            ("governor", governor is not None, lambda now: dict.fromkeys(now, governor)),
            ("ipv6_addresses", at is not None, lambda _: []),
            ("ipv6_off", at is not None, lambda _: 1),
            ("rings", rx_ring is not None, lambda now: now | {"rx": rx_ring}),
            *(
                (f"offloads.{name}", True, partial(with_offload, name=name, on=on))
                for name, on in (offloads or {}).items()
            ),
            (
                "rx_queues",
                rx_queues is not None and steering in ("auto", "rss"),
                lambda now: with_queues(now, rx_queues or 1, channels=steering == "auto"),
            ),
            ("addresses", at is not None, lambda now: sorted({*now, str(at)})),
            ("up", True, lambda _: True),
            ("neighbours", peer is not None, lambda now: now | _neighbour(peer)),
            ("coalesce", coalesce is not None, lambda now: now | (coalesce or {})),
            ("irq_affinity", irq_cpu is not None, lambda now: dict.fromkeys(now, str(irq_cpu))),
            *((n, on is False, lambda now: dict.fromkeys(now, "0")) for n, on in off.items()),
            *((n, to is not None, partial(_number_wanted, to)) for n, to in numbers.items()),
        ]
        ruled = steering == "ntuple" or (steering == "auto" and rx_queues == 1)
        by_rule = partial(with_rule, destination=None if at is None else str(at.ip))
        try:
            settings = _known(interface)
            recovered = self._recovered(interface, settings)
            before = self._before.setdefault(interface, _readings(interface, settings))
            wanted = [(name, wanted_from) for name, asked, wanted_from in steps if asked]
            skipped = self._made(interface, settings, wanted)
            if ruled and (steering == "ntuple" or "rx_queues" in {s["setting"] for s in skipped}):
                skipped += self._made(interface, settings, [("ntuple", by_rule)])
            if at is not None and not _carrier(interface, sleep):
                why = f"no carrier within {_CARRIER_S:.0f} s"
                skipped.append({"setting": "link", "why": why})
            if irq_cpu is not None:
                self._stay_off(irq_cpu)
            return {
                "before": before,
                "after": _readings(interface, settings),
                "skipped": skipped,
                "recovered": recovered,
                **in_the_way.found(interface),
            }
        except BaseException as error:
            self._taken_back(error)
            raise

    def restore(self) -> dict[str, Any]:
        """Put back every change, the last one first; a failure does not stop the rest."""
        restored: list[str] = []
        failed: list[dict[str, str]] = []
        unfinished: set[str] = set()
        while self._changes:
            interface, setting, old = self._changes[-1]
            why = put_back(setting, old)
            # Only now: whatever ends this agent meanwhile, the journal still has it.
            self._changes.pop()
            if why is None:
                restored.append(setting.name)
            else:
                failed.append({"setting": setting.name, "why": why})
                unfinished.add(interface)
        if self._own_cpus is not None:
            _put_on(self._own_cpus)
            self._own_cpus = None
        for interface, journal in self._journal.items():
            journal.close(keep=interface in unfinished)
        self._journal.clear()
        self._before.clear()
        return {"restored": restored, "failed": failed}

    def recover(self, *, end_others: bool = False) -> dict[str, Any]:
        """Put back what agents that are gone left changed, on every interface of this host.

        ``end_others``: an agent that still holds a journal is ended, which puts it back.

        Raises:
            AgentError: another agent is at work, and is not to be ended.
        """
        restored: list[str] = []
        failed: list[dict[str, str]] = []
        busy: AgentError | None = None
        for interface in journalled():
            if end_others:
                end_holder(interface)
            try:
                journal = Journal(interface)
            except OSError as error:
                failed.append({"setting": interface, "why": f"{error}: the interface is gone"})
                continue
            except AgentError as error:
                busy = busy or error
                continue
            kept = len(failed)
            for name, why in _put_back_all(_known(interface), journal):
                if why is None:
                    restored.append(f"{interface} {name}")
                else:
                    failed.append({"setting": f"{interface} {name}", "why": why})
            journal.close(keep=len(failed) > kept)
        if busy is not None:
            raise busy
        return {"restored": restored, "failed": failed}

    def _taken_back(self, error: BaseException) -> None:
        """Put everything back, and raise an AgentError in place of an ``error`` that is none."""
        left = self.restore()["failed"]
        if not isinstance(error, Exception):
            return  # the end of this agent, or of its controller
        named = "; ".join(f"{one['setting']}: {one['why']}" for one in left)
        if isinstance(error, AgentError) and not named:
            return
        kind = error.kind if isinstance(error, AgentError) else "infrastructure"
        hint = error.hint if isinstance(error, AgentError) else None
        message = told(error) + (f"\n  and this could not be put back: {named}" if named else "")
        raise AgentError(message, kind=kind, hint=hint) from error

    def _made(
        self, interface: str, settings: dict[str, Setting], wanted: Sequence[Step]
    ) -> list[dict[str, str]]:
        """Make each change in turn; those that do not apply to this host, and why."""
        whys = (
            (name, self._change(interface, settings[name.partition(".")[0]], wanted_from))
            for name, wanted_from in wanted
        )
        return [{"setting": name, "why": why} for name, why in whys if why is not None]

    def _change(
        self, interface: str, setting: Setting, wanted_from: Callable[[Any], Any]
    ) -> str | None:
        """Why it does not apply to this host, or None once it holds."""
        now = setting.read()
        # What reads as None or as nothing is not on this host.
        absent = now in (None, {}) and setting.name in ABSENT
        wanted = None if absent and setting.name not in _OFF else wanted_from(now)
        if absent and setting.name in _OFF and wanted in (0, {}):
            return None  # what is not there is off
        if wanted is None or absent:
            return ABSENT[setting.name]
        if setting.holds(now, wanted):
            return None
        if (interface, setting.name) not in {(at, done.name) for at, done, _ in self._changes}:
            self._journal[interface].add(setting.name, now)
            self._changes.append((interface, setting, now))
        hint = HINTS.get(setting.name)
        try:
            setting.write(wanted)
        except AgentError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in UNSUPPORTED:
                return f"the driver does not support it: {error}"
            raise AgentError(
                f"{interface}: {setting.name} was refused: {told(error)}", hint=hint
            ) from error
        after = setting.read()
        if not setting.holds(after, wanted):
            raise AgentError(
                f"{interface}: {setting.name} did not take: wanted {wanted}, is {after}", hint=hint
            )
        return None

    def _recovered(self, interface: str, settings: dict[str, Setting]) -> list[str]:
        """Open the journal, and put back what an agent that was killed left in it.

        What cannot be put back now is tried again at this agent's own end.
        """
        if interface in self._journal:
            return []
        journal = Journal(interface)
        left = dict(journal.left)
        failed = set()
        try:
            done = _put_back_all(settings, journal)
            for name, why in done:
                sys.stderr.write(f"a killed agent left {name} changed: {why or 'put back'}\n")
                failed |= {name} if why is not None and name in settings else set()
            again = [(name, old) for name, old in left.items() if name in failed]
            journal.start(again)
        except BaseException:
            journal.close(keep=True)
            raise
        self._journal[interface] = journal
        self._changes += [(interface, settings[name], old) for name, old in again]
        return [name for name, _ in done]

    def _stay_off(self, irq_cpu: int) -> None:
        """The agent itself goes to the last CPU that does not receive, where there is one."""
        others = cpus.apart_from(irq_cpu)
        if self._own_cpus is None:
            self._own_cpus = os.sched_getaffinity(0)
        if others:
            _put_on({others[-1]})


_OFF = (
    "rps",
    "rfs",
    "rps_sock_flow_entries",
    "threaded",
    "napi_defer_hard_irqs",
    "gro_flush_timeout_ns",
    "busy_read_us",
    "busy_poll_us",
)
"""Settings that are as good as off where the kernel does not know them."""


def _put_back_all(settings: dict[str, Setting], journal: Journal) -> list[tuple[str, str | None]]:
    """Each setting of the journal, the last change first, with why it is not as it was."""
    return [
        (name, put_back(settings[name], old) if name in settings else "unknown setting")
        for name, old in reversed(journal.left)
    ]


def _address(text: str) -> IPv4Interface:
    try:
        return IPv4Interface(text)
    except ValueError as error:
        raise AgentError(f"not an address: {error}", kind="configuration") from error


def _number_wanted(wanted: int | None, _now: Any) -> int | None:
    return wanted


def _neighbour(peer: dict[str, str] | None) -> dict[str, str]:
    return {peer["address"]: peer["mac"].lower()} if peer else {}


def _put_on(wanted: set[int]) -> None:
    """This process on the CPUs ``wanted``; it is no fault where they went offline meanwhile."""
    try:
        os.sched_setaffinity(0, wanted)
    except OSError as error:
        sys.stderr.write(f"the agent stays where it is: CPUs {cpus.as_list(wanted)}: {error}\n")


def _carrier(interface: str, sleep: Callable[[float], None]) -> bool:
    end_s = time.monotonic() + _CARRIER_S
    while read_text(NET / interface / "carrier") != "1":
        if time.monotonic() > end_s:
            return False
        sleep(0.1)
    return True
