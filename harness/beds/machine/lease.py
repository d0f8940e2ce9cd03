# SPDX-License-Identifier: MIT
"""The leases of a bed: all of its hosts or none, held only while the harness lives.

Each host keeps its own lease (:mod:`harness.agent.lease`). A thread refreshes it by an ssh
command that starts the agent for one call. The campaign's connection cannot serve: it takes
one call at a time and is gone during a boot. The agent must not refresh by itself either: it
would hold the host for a harness that died without closing the connection. An ssh command
costs the host a login and a start of Python, though. So after two fifths of the time
:meth:`Leases.still_mine` refreshes between acts, by the agents that are up. The thread
refreshes only during longer acts, after half of the time.

A refused refresh loses the lease at once. A failed one is tried again; the lease is lost
when it has expired by this machine's clock, which is before it expires on the host. Nobody
else can have had the host until then.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from harness import config
from harness.agent.protocol import Calls
from harness.base.errors import (
    BusyError,
    HarnessError,
    HostLostError,
    InfrastructureError,
    LeaseLostError,
)
from harness.base.write_ahead import WriteAheadLog
from harness.beds.access.ssh import AgentBySsh, SshTarget

TTL_S = 600.0
_BETWEEN_ACTS = 0.4
_DURING_ACTS = 0.5
_MARGIN = 0.05
"""Share of the time that is deducted for the drift between clocks."""
_RETRY_S = 15.0
_ASK_AGAIN_S = 2.0


@dataclass(frozen=True, kw_only=True)
class State:
    """The state of a host's lease."""

    host: str
    owner: str | None
    holder: str | None
    campaign: str | None
    left_s: float
    since_s: float | None = None
    """When it was taken, in seconds since the epoch by the clock of the host."""

    @classmethod
    def of(cls, host: str, answer: object) -> Self:
        """Parse the agent's answer.

        Raises:
            HostLostError: it is not the state of a lease.
        """
        said = answer if isinstance(answer, dict) else {}
        words = {name: said.get(name) for name in ("owner", "holder", "campaign")}
        left_s, since_s = said.get("left_s"), said.get("since_s")
        if not isinstance(left_s, int | float) or not all(
            word is None or (isinstance(word, str) and word.isprintable())
            for word in words.values()
        ):
            raise HostLostError(f"{host}: not the state of a lease: {str(answer)[:200]!r}")
        since_s = since_s if isinstance(since_s, int | float) else None
        return cls(host=host, left_s=left_s, since_s=since_s, **words)

    def require_not_anothers(self) -> None:
        """Raise a :class:`BusyError` that names the holder, if somebody else has it."""
        if self.owner not in (None, owner()):
            raise BusyError(
                str(self),
                hint=f"if nobody uses it any more: harness hosts release {self.host} --break",
            )

    def __str__(self) -> str:
        if self.owner is None:
            return f"{self.host}: free"
        of = f" (campaign {self.campaign})" if self.campaign else ""
        since = ""
        if self.since_s is not None:
            began = datetime.fromtimestamp(self.since_s, tz=UTC)
            since = f", since {began:%Y-%m-%d %H:%M} UTC"
        left = f"for {self.left_s:.0f} s if not refreshed"
        return f"{self.host}: held by {self.owner}{of}, {left}{since}"


@dataclass
class _Held:
    refreshed_s: float
    until_s: float
    tried_s: float
    trouble: str | None = None
    away: bool = False


class Leases:
    """The leases of several hosts under one holder; the context manager takes and frees them."""

    def __init__(
        self,
        agents: Mapping[str, Calls],
        *,
        campaign: str,
        holder: str | None = None,
        ttl_s: float = TTL_S,
        wait_s: float = 0.0,
        say: Callable[[str], None] = lambda _: None,
        journal: WriteAheadLog | None = None,
        revive: Callable[[str, HostLostError], None] | None = None,
    ) -> None:
        """``agents`` by host name. To resume a campaign, pass its ``holder`` again.

        A host that does not answer is waited for. If it does not come, but ``journal`` says
        that it is still ours, ``revive`` is called and it is waited for once more.
        """
        self.holder = holder or secrets.token_hex(16)
        self._agents = agents
        self._campaign = campaign
        self._ttl_s = ttl_s
        self._wait_s = wait_s
        self._say = say
        self._journal = journal
        self._revive = revive
        self._held: dict[str, _Held] = {}
        self._lost: LeaseLostError | None = None
        self._refreshing = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="leases")

    def __enter__(self) -> Self:
        """Take all, in the order of their names, or none.

        Raises:
            InfrastructureError: somebody else holds one (named), or one does not answer.
        """
        try:
            deadline_s = _now_s() + self._wait_s
            for host in sorted(self._agents):
                began_s = self._take(host, deadline_s)
                self._held[host] = _Held(began_s, self._until_s(began_s, self._ttl_s), began_s)
        except BaseException:
            self._free()
            raise
        self._thread.start()
        return self

    def _take(self, host: str, deadline_s: float) -> float:
        """Take the lease of ``host``; returns when it began."""
        waits = revived = False
        while True:
            began_s = _now_s()
            try:
                self._agents[host].lease_take(
                    owner=owner(),
                    holder=self.holder,
                    ttl_s=self._ttl_s,
                    campaign=self._campaign,
                )
            except HostLostError as error:
                left_s = deadline_s - _now_s()
                if left_s <= 0:
                    ours = self._journal is not None and self._journal.holds(host)
                    if revived or not ours or self._revive is None:
                        raise
                    self._revive(host, error)
                    revived, deadline_s = True, _now_s() + self._wait_s
                elif not waits:
                    self._say(f"{error.message}; waiting for it, {left_s:.0f} s at most")
                waits = True
                time.sleep(_ASK_AGAIN_S)
            else:
                self._note(host, self._ttl_s)
                return began_s

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._free()

    def check(self) -> None:
        """Raise if a lease is known to be lost; asks nobody, for use during an act.

        Raises:
            LeaseLostError: from now on nothing may be done to the hosts.
        """
        for host, held in self._held.items():
            over_s = _now_s() - held.until_s
            if self._lost is None and over_s > 0:
                why = f": {held.trouble}" if held.trouble else ""
                self._lose(host, f"it could not be refreshed in time{why}")
        if self._lost is not None:
            raise self._lost

    def still_mine(self, agents: Mapping[str, Calls] | None = None) -> None:
        """To be called before each act: refreshes the leases that are due.

        ``agents`` have no call in progress; a host without one is asked by ssh.

        Raises:
            LeaseLostError: from now on nothing may be done to the hosts.
        """
        self.check()
        self._refresh_due(_BETWEEN_ACTS, agents or {})
        self.check()

    @contextlib.contextmanager
    def rebooting(self, host: str, *, within_s: float) -> Iterator[None]:
        """Hold the lease of ``host`` while it cannot answer: for ``within_s`` seconds at most.

        Raises:
            InfrastructureError: it could not be extended; the host must not be rebooted.
            LeaseLostError: somebody else has it.
        """
        held = self._held[host]
        with self._refreshing:
            self.check()
            self._refresh(host, self._ttl_s + within_s)
            self.check()
            if held.trouble:
                raise InfrastructureError(
                    f"the lease of {host} could not be extended for a reboot: {held.trouble}"
                )
            held.away = True
        try:
            yield
        finally:
            held.away = False
            with self._refreshing:
                self._refresh(host, self._ttl_s)

    def _keep(self) -> None:
        while not self._ended.wait(min(_RETRY_S, self._ttl_s / 20)):
            with contextlib.suppress(LeaseLostError):
                self.check()
            if self._lost is not None:
                return
            self._refresh_due(_DURING_ACTS, {})

    def _refresh_due(self, share: float, agents: Mapping[str, Calls]) -> None:
        with self._refreshing:
            for host, held in self._held.items():
                now_s = _now_s()
                due = now_s - held.refreshed_s >= share * self._ttl_s
                failed_just_now = held.trouble and now_s - held.tried_s < self._ttl_s / 40
                if due and not held.away and not failed_just_now and self._lost is None:
                    self._refresh(host, self._ttl_s, agents.get(host))

    def _refresh(self, host: str, ttl_s: float, agent: Calls | None = None) -> None:
        held = self._held[host]
        began_s = held.tried_s = _now_s()
        try:
            answer = (agent or self._agents[host]).lease_refresh(holder=self.holder, ttl_s=ttl_s)
            found = State.of(host, answer)
        except HarnessError as error:
            held.trouble = error.message
            return
        if answer.get("held") is not True:
            by = found.owner
            self._lose(host, f"it is held by {by} now" if by else "somebody broke it")
            return
        held.trouble = None
        held.refreshed_s, held.until_s = began_s, self._until_s(began_s, ttl_s)
        self._note(host, ttl_s)

    def _note(self, host: str, left_s: float) -> None:
        if self._journal is not None:
            with contextlib.suppress(HarnessError):  # the lease is valid without the note
                self._journal.note_lease(host, left_s)

    def _lose(self, host: str, why: str) -> None:
        self._note(host, 0)
        self._lost = self._lost or LeaseLostError(
            f"the lease of {host} was lost: {why}",
            hint=f"nothing more was done to the hosts; `harness hosts lease {host}` shows the "
            "holder",
        )

    def _free(self) -> None:
        """Free all; a host that does not answer or that somebody else has needs no freeing."""
        for host in reversed(list(self._held)):
            with contextlib.suppress(HarnessError):
                self._agents[host].lease_free(holder=self.holder)
                self._note(host, 0)
        self._held.clear()

    @staticmethod
    def _until_s(began_s: float, ttl_s: float) -> float:
        return began_s + ttl_s * (1 - _MARGIN)


def agent_of(name: str, host: config.SshHost) -> Calls:
    """The agent on ``host``, with one ssh command per call."""
    return AgentBySsh(SshTarget.of(host), host=name)


def asked(name: str, host: config.SshHost) -> State:
    """The state of the lease of ``host``."""
    return State.of(name, agent_of(name, host).lease_state())


def owner() -> str:
    """USER@MACHINE, shown to others as the holder of a host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # Python before 3.13 raises the first
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _now_s() -> float:
    # Includes suspend: leases expire while this machine sleeps.
    return time.clock_gettime(time.CLOCK_BOOTTIME)
