# SPDX-License-Identifier: MIT
"""Settings of a host that affect the cost of receive: read, changed, verified, restored.

A change is journalled before it is made and read back afterwards. Everything is restored in
reverse order when the agent ends, or by the next agent if this one was killed. If a change
fails, those already made are undone.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from harness.agent import cpus
from harness.agent.faults import AgentError
from harness.agent.foreign import read_text
from harness.agent.interface import in_the_way
from harness.agent.inventory import NET, existing
from harness.agent.setting import Declaration, Setting, put_back, told

from .journal import Journal, end_holder, journalled
from .registry import ARGUMENTS, DECLARED
from .registry import known as _known
from .registry import readings as _readings

_CARRIER_S = 10.0

_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)


class Settings:
    """Makes changes and undoes them."""

    def __init__(self) -> None:
        self._changes: list[tuple[str, Setting, Any]] = []
        self._before: dict[str, dict[str, Any]] = {}
        self._journal: dict[str, Journal] = {}
        self._own_cpus: set[int] | None = None

    def read(self, *, interface: str) -> dict[str, Any]:
        """All settings of the host and the interface, including those that are only read."""
        return _readings(existing(interface), _known(interface))

    def apply(
        self,
        *,
        interface: str,
        process_cpus: Sequence[int] = (),
        sleep: Callable[[float], None] = time.sleep,
        **wanted: Any,
    ) -> dict[str, Any]:
        """Apply the settings ``wanted``; None leaves a setting alone. Idempotent.

        The names in ``wanted`` are the arguments of the settings (:mod:`~.registry`), and
        ``steering``, how packets are limited to ``rx_queues`` queues: ``rss`` only by the RSS
        table, ``ntuple`` only by a rule, ``auto`` by a rule only if nothing else works. The load
        will run on ``process_cpus``. Settings that the driver does not support are ``skipped``;
        ``in_the_way`` and ``packet_taps`` are what others have set up between the NIC and the
        stack (:mod:`~.in_the_way`).

        Raises:
            AgentError: a setting was refused or did not take effect, a CPU cannot be used, or
                another agent works on this interface. All changes are undone; the message names
                those that could not be.
        """
        if unknown := wanted.keys() - ARGUMENTS:
            raise AgentError(f"no setting {', '.join(sorted(unknown))}", kind="configuration")
        asked: dict[str, Any] = {**dict.fromkeys(ARGUMENTS), "steering": "auto", **wanted}
        existing(interface)
        for one in DECLARED.values():
            if one.check and asked[one.argument] is not None:
                one.check(asked[one.argument])
        for cpu in process_cpus:
            cpus.require(cpu, "the load's processes", processes=True)
        asked["interface"] = interface
        try:
            settings = _known(interface)
            recovered = self._recovered(interface, settings)
            before = self._before.setdefault(interface, _readings(interface, settings))
            skipped = self._made(settings, asked)
            if asked["address"] is not None and not _carrier(interface, sleep):
                skipped["link"] = f"no carrier within {_CARRIER_S:.0f} s"
            if asked["irq_cpu"] is not None:
                self._stay_off(asked["irq_cpu"])
            return {
                "before": before,
                "after": _readings(interface, settings),
                "skipped": [{"setting": name, "why": why} for name, why in skipped.items()],
                "recovered": recovered,
                **in_the_way.found(interface),
            }
        except BaseException as error:
            self._taken_back(error)
            raise

    def restore(self) -> dict[str, Any]:
        """Undo every change, the last one first; a failure does not stop the rest."""
        restored: list[str] = []
        failed: list[dict[str, str]] = []
        unfinished: set[str] = set()
        while self._changes:
            interface, setting, old = self._changes[-1]
            why = put_back(setting, old)
            # Only now, so that an agent killed before this still has it in its journal.
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
        """Undo the changes that ended agents left, on every interface of this host.

        ``end_others``: also end agents that still hold a journal; they undo their own changes.

        Raises:
            AgentError: another agent is at work, and ``end_others`` is False.
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
        """Undo everything; raise an AgentError if ``error`` is another one or something is left."""
        left = self.restore()["failed"]
        if not isinstance(error, Exception):
            return  # the agent ends
        named = "; ".join(f"{one['setting']}: {one['why']}" for one in left)
        if isinstance(error, AgentError) and not named:
            return
        kind = error.kind if isinstance(error, AgentError) else "infrastructure"
        hint = error.hint if isinstance(error, AgentError) else None
        message = told(error) + (f"\n  and this could not be put back: {named}" if named else "")
        raise AgentError(message, kind=kind, hint=hint) from error

    def _made(self, settings: dict[str, Setting], asked: dict[str, Any]) -> dict[str, str]:
        """Make each change in turn; returns those that do not apply to this host, and why."""
        skipped: dict[str, str] = {}
        for one in DECLARED.values():
            value = asked[one.argument]
            if not (one.asked(asked, skipped) if one.asked else value is not None):
                continue
            parts = {one.name: value}
            if one.each:
                parts = {f"{one.name}.{name}": (name, to) for name, to in value.items()}
            for name, part in parts.items():
                why = self._change(one, settings[one.name], {**asked, one.argument: part})
                if why is not None:
                    skipped[name] = why
        return skipped

    def _change(self, one: Declaration, setting: Setting, asked: dict[str, Any]) -> str | None:
        """Make one change; returns why it does not apply to this host, or None once it holds."""
        interface, hint = asked["interface"], one.hint
        now = setting.read()
        # None or an empty mapping: this host does not have the setting.
        absent = one.absent is not None and now in (None, {})
        wanted = None
        if not absent or one.off_if_absent:
            wanted = one.wanted(now, asked) if one.wanted else asked[one.argument]
        if absent and one.off_if_absent and wanted in (0, {}):
            return None  # a missing setting is off
        if wanted is None or absent:
            return one.absent
        if setting.holds(now, wanted):
            return None
        if (interface, setting.name) not in {(at, done.name) for at, done, _ in self._changes}:
            self._journal[interface].add(setting.name, now)
            self._changes.append((interface, setting, now))
        try:
            setting.write(wanted)
        except AgentError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _UNSUPPORTED:
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
        """Open the journal, and undo the changes that a killed agent left in it.

        Those that fail are tried again when this agent ends.
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
        """Move the agent to the last CPU that does not receive, if there is one."""
        others = cpus.apart_from(irq_cpu)
        if self._own_cpus is None:
            self._own_cpus = os.sched_getaffinity(0)
        if others:
            _put_on({others[-1]})


def _put_back_all(settings: dict[str, Setting], journal: Journal) -> list[tuple[str, str | None]]:
    """Restore each setting in the journal, the last change first; returns why one failed."""
    return [
        (name, put_back(settings[name], old) if name in settings else "unknown setting")
        for name, old in reversed(journal.left)
    ]


def _put_on(wanted: set[int]) -> None:
    """Move this process to the CPUs ``wanted``; if they went offline, only a message says so."""
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
